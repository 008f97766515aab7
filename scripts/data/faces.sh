#!/bin/sh
# Cartoon faces (DiceBear's style "Toon Head", CC-BY 4.0) with captions and semantic masks, at 64x64: DIR/train (10,000) and DIR/test (1,000),
# each with images/, captions in images/metadata.jsonl, and masks/. Two seeds never make the same face.
#
#     scripts/data/faces.sh DIR [--train N] [--test N] [--size PIXELS]
#
# Needs Node.js 18 or newer and npm. The packages are those of faces/package-lock.json, by version and SHA-512; nothing in them is run
# while they are installed.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 DIR [--train N] [--test N] [--size PIXELS]" >&2; exit 2; }
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
shift
source=$(cd "$(dirname "$0")/faces" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp "$source"/* "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund
node faces.mjs "$out" "$@"
