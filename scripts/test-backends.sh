#!/usr/bin/env bash
# Runs the tests of the operators and the models on GPU and LibTorch backends, software-emulated where there is no hardware.
#
# Usage: scripts/test-backends.sh [wgpu|tch]...        both by default
#
# wgpu needs a Vulkan driver; without a GPU, Debian's `mesa-vulkan-drivers` has one for the CPU.
# tch needs PyTorch 2.9.0: `pip install torch==2.9.0`, and its Python as `python3` or in $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(-p ldm-cli --test backends)

run_wgpu() {
    cargo test "${tests[@]}" --features wgpu -- --nocapture
}

run_tch() {
    local python=${PYTHON:-python3} lib
    lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
    local nvidia
    nvidia=$(find "$(dirname "$(dirname "$lib")")/nvidia" -name lib -type d 2>/dev/null | tr '\n' ':' || true)
    PATH="$(dirname "$(command -v "$python")"):$PATH" \
        LIBTORCH_USE_PYTORCH=1 LD_LIBRARY_PATH="$lib:$nvidia${LD_LIBRARY_PATH:-}" \
        cargo test "${tests[@]}" --features tch -- --nocapture
}

backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(wgpu tch)
for backend in "${backends[@]}"; do
    case "$backend" in
        wgpu | tch) echo "== $backend" && "run_$backend" ;;
        *) echo "error: no backend called $backend; there are wgpu and tch" >&2 && exit 2 ;;
    esac
done
