#!/bin/sh
# Fashion-MNIST as class folders of 32x32 PNG files, in DIR/train (60,000) and DIR/test (10,000), from Debian's package.
#
#     scripts/data/fashion-mnist.sh DIR
#
# Needs apt-get and dpkg-deb, no root. LDM is the program, `cargo run --release --` by default. Elsewhere, take the four files from
# https://github.com/zalandoresearch/fashion-mnist and run `ldm data fashion-mnist --from FOLDER --out DIR`.
set -eu

package=dataset-fashion-mnist
version=0.0~git20200523.55506a9-1
sha256=39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
apt-get download "$package=$version"
echo "$sha256  $(echo ./*.deb)" | sha256sum --check --quiet
dpkg-deb -x ./*.deb package

cd "$repository"
${LDM:-cargo run --quiet --release --} data fashion-mnist --from "$work/package/usr/share/datasets/fashion-mnist" --out "$out"
