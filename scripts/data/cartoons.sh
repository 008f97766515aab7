#!/bin/sh
# The data of the small systems at 64x64: DIR/faces (see faces.sh), DIR/twemoji (3,674 emoji with two captions each), and DIR/cartoons,
# links to all emoji and 3,000 faces, for the first stage that they share.
#
#     scripts/data/cartoons.sh DIR
#
# LDM is the program, `cargo run --release --` by default.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
scripts=$(cd "$(dirname "$0")" && pwd)

"$scripts/faces.sh" "$out/faces"
(cd "$scripts/../.." && ${LDM:-cargo run --quiet --release --} data twemoji --skin-tones --captions full --out "$out/twemoji")
mkdir -p "$out/cartoons/faces"
ln -sfn ../twemoji "$out/cartoons/twemoji"
cd "$out/cartoons/faces"
ln -sf ../../faces/train/images/0[0-2]???.png .
