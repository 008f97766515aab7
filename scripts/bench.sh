#!/usr/bin/env bash
# Times ldm's workloads beside the reference implementation's, PyTorch and diffusers, or its operators beside the machine's limits.
#
# Usage: scripts/bench.sh [WORKLOAD..] [--json FILE] [--docs] [--rounds N] [--repeats N] [--threads N]
#        scripts/bench.sh --ops [FILTER..] [--json FILE] [--docs] [--threads N]
#
# Builds, runs ours and the peer alternately, each time in a process of its own, and prints a table: medians over the rounds of each
# process's median, their ratio, and peak resident memory. --json writes one line a workload, as soon as it is measured; --docs puts
# the table and the machine into docs/benchmarks.md.
#
# $PEER_PYTHON    Python with torch and diffusers; by default python3
# $PEER_SCRIPT    the peer's workloads: `SCRIPT WORKLOAD --repeats N --threads N` prints a line of JSON with `median_s` and
#                 `peak_rss_mib`; by default ../shared/bench/peer_torch.py
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PEER_PYTHON:-python3}" scripts/bench.py "$@"
