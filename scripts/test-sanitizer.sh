#!/usr/bin/env bash
# Runs the operators' tests under AddressSanitizer, on each kernel level: their `unsafe` reads and writes through pointers.
#
# Usage: scripts/test-sanitizer.sh
#
# Needs a nightly toolchain (`rustup toolchain install nightly`) on Linux; builds everything anew in target/sanitizer, without optimising dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc +nightly -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Zsanitizer=address"
# The models that burn keeps for the process's lifetime are no leaks.
export ASAN_OPTIONS="detect_leaks=0"
for level in avx512 avx2 portable; do
    echo "== $level"
    LDM_KERNELS=$level cargo +nightly test --target "$target" --target-dir target/sanitizer -p ldm-nn --features flex --test 'ops_*'
done
