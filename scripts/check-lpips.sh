#!/usr/bin/env bash
# Compares the perceptual distance and the stage-1 objective with the original code's numbers.
# The tests can't do it with the perceptual network: its weights are 59 MB.
#
# Usage: scripts/check-lpips.sh VGG16.safetensors HEADS.safetensors
#
# The files hold VGG16's convolutions under torchvision's names and LPIPS' heads under its own (lin0.model.1.weight);
# tests/fixtures/compvis/losses/README.md says which weights the numbers belong to.
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: scripts/check-lpips.sh VGG16.safetensors HEADS.safetensors" >&2
    exit 2
fi
files=("$(realpath "$1")" "$(realpath "$2")")
cd "$(dirname "$0")/.."
cargo run --release -p ldm-autoencoder --example lpips_parity -- "${files[@]}"
