#!/usr/bin/env bash
# Runs all tests on each of the operators' kernel levels that this machine has, and on one thread: they must not depend on either.
#
# Usage: scripts/test-kernels.sh [avx512|avx2|portable|composed|one-thread]...        all by default
#
# A level that the machine lacks runs the best that it has. `composed` is burn's own operators, which other devices use as well.
set -euo pipefail
cd "$(dirname "$0")/.."

levels=("$@")
[ ${#levels[@]} -gt 0 ] || levels=(avx512 avx2 portable composed one-thread)
for level in "${levels[@]}"; do
    echo "== $level"
    case "$level" in
        avx512 | avx2 | portable | composed) LDM_KERNELS=$level cargo test --workspace ;;
        one-thread) RAYON_NUM_THREADS=1 cargo test --workspace ;;
        *) echo "error: no level called $level; there are avx512, avx2, portable, composed and one-thread" >&2 && exit 2 ;;
    esac
done
