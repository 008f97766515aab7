"""What scripts/bench.sh runs; it says how to use this. Needs the standard library alone, where nothing is compared."""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

PEER = pathlib.Path(os.environ.get("PEER_SCRIPT", "../shared/bench/peer_torch.py"))
DOCS = pathlib.Path("docs/benchmarks.md")


def build(package, bench):
    """The path of a bench of the workspace, built in release."""
    # With the packages that select burn's features, so that a build of the program and this one share their dependencies.
    command = ["cargo", "bench", "-p", "ldm-cli", "-p", package, "--bench", bench]
    command += ["--no-run", "--message-format=json-render-diagnostics"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if output.returncode:
        sys.exit(output.returncode)
    for line in output.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == bench:
            return message["executable"]
    sys.exit(f"error: cargo built no bench {bench}")


def run(command):
    """The last line of a command's output, which is JSON."""
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"{output.stderr}error: {' '.join(map(str, command))} ended with {output.returncode}")
    return json.loads(output.stdout.strip().splitlines()[-1])


def compare(workload, ours, args):
    """One line of the table: both sides alternately, each in a process of its own."""
    options = [workload, "--repeats", str(args.repeats), "--threads", str(args.threads)]
    sides = {"ours": [ours, *options], "peer": [sys.executable, PEER, *options]}
    results = {side: [] for side in sides}
    for number in range(args.rounds):
        for side, command in sides.items():
            results[side].append(run(command))
            print(f"{workload}, round {number + 1}, {side}: {results[side][-1]['median_s']:.3f} s", file=sys.stderr, flush=True)
    seconds = {side: statistics.median(result["median_s"] for result in results[side]) for side in sides}
    # Memory hardly varies; what counts is how much has to be there.
    memory = {side: max(result["peak_rss_mib"] for result in results[side]) for side in sides}
    return {
        "workload": workload,
        "ours_s": round(seconds["ours"], 4),
        "peer_s": round(seconds["peer"], 4),
        "ratio": round(seconds["ours"] / seconds["peer"], 3),
        "ours_mib": round(memory["ours"]),
        "peer_mib": round(memory["peer"]),
    }


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def workload_table(results):
    rows = [
        [f"`{r['workload']}`", f"{r['ours_s']:.3f}", f"{r['peer_s']:.3f}", f"{r['ratio']:.2f}", r["ours_mib"], r["peer_mib"], f"{r['ours_mib'] / r['peer_mib']:.2f}"]
        for r in results
    ]
    return table(["workload", "ldm, s", "PyTorch, s", "ratio", "ldm, MiB", "PyTorch, MiB", "ratio"], rows)


def machine(threads):
    """The machine in a few words."""
    model = platform.processor() or platform.machine()
    features = set()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        if found := re.search(r"^model name\s*: (.*)$", text, re.M):
            model = found[1]
        if found := re.search(r"^flags\s*: (.*)$", text, re.M):
            features = set(found[1].split())
    vectors = "AVX-512" if "avx512f" in features else "AVX2" if "avx2" in features else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}{f' ({vectors})' if vectors else ''}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {threads} threads, f32"


def burn_version():
    return re.search(r'name = "burn"\nversion = "(.*)"', pathlib.Path("Cargo.lock").read_text())[1]


def write_docs(name, text):
    """Replaces what is between the markers called `name`."""
    begin, end = f"<!-- {name}: scripts/bench.sh writes this -->", f"<!-- end of {name} -->"
    docs = DOCS.read_text()
    if begin not in docs or end not in docs:
        sys.exit(f"error: {DOCS} lacks the line `{begin}` or `{end}`")
    before, rest = docs.split(begin, 1)
    after = rest.split(end, 1)[1]
    DOCS.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def bench_workloads(args):
    if not PEER.exists():
        sys.exit(f"error: {PEER} does not exist\nhelp: set PEER_SCRIPT to the script with the peer's workloads")
    try:
        from importlib.metadata import version

        peer = f"PyTorch {version('torch')}, diffusers {version('diffusers')}"
    except ImportError:
        sys.exit(f"error: {sys.executable} has no torch or no diffusers\nhelp: set PEER_PYTHON to a Python that has both")
    ours = build("ldm-pipeline", "workloads")
    listed = subprocess.run([ours, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    known = [line.split()[0] for line in listed.splitlines()]
    for name in args.names:
        if name not in known:
            sys.exit(f"error: `{name}` is no workload\nhelp: there are {', '.join(known)}")
    results = []
    if args.json:
        args.json.write_text("")
    for workload in args.names or known:
        results.append(compare(workload, ours, args))
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    rendered = workload_table(results)
    print(rendered)
    if args.docs:
        about = f"{machine(args.threads)}; burn {burn_version()}; {peer}. {args.rounds} rounds of {args.repeats} runs."
        write_docs("workloads", f"{about}\n\n{rendered}")


def bench_operators(args):
    peaks, results = None, []
    for package, bench in [("ldm-nn", "ops"), ("ldm-pipeline", "updates")]:
        command = [build(package, bench), *args.names, "--json", "--threads", str(args.threads)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            result = json.loads(line)
            print(line, end="", file=sys.stderr, flush=True)
            if "peak_gflops" in result:
                peaks = peaks or result
            else:
                results.append(result)
        if process.wait():
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    if args.json:
        args.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    rows = [
        [
            f"`{r['operator']}`",
            f"{r['ours_ms']:.3f}",
            f"{r['ours_ms'] / r['burn_ms']:.2f}" if r.get("burn_ms") else "",
            f"{r['gflops']:.0f}" if r["gflops"] else "",
            f"{r['gbytes_per_s']:.1f}",
            r["bound"],
            f"{r['of_roof']:.2f}",
        ]
        for r in results
    ]
    rendered = table(["operator", "ms", "of burn's", "GFLOP/s", "GB/s", "bound", "of the roof"], rows)
    about = f"Measured peaks: {peaks['peak_gflops']:.0f} GFLOP/s, {peaks['peak_gbytes_per_s']:.1f} GB/s."
    print(f"{about}\n\n{rendered}")
    if args.docs:
        write_docs("operators", f"{machine(args.threads)}; burn {burn_version()}. {about}\n\n{rendered}")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a number from 1 on")
    return value


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Times ldm beside PyTorch, or its operators beside the machine's limits.")
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help="by default all; with --ops parts of operators' names")
    parser.add_argument("--ops", action="store_true", help="operators instead of workloads")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="one line a workload or operator")
    parser.add_argument("--docs", action="store_true", help=f"put the table into {DOCS}; not with a choice of workloads")
    parser.add_argument("--rounds", type=positive, default=3, help="processes of each side")
    parser.add_argument("--repeats", type=positive, default=3, help="timed runs in each")
    parser.add_argument("--threads", type=positive, default=os.cpu_count())
    args = parser.parse_args()
    if args.docs and args.names:
        parser.error("--docs writes the whole table: leave out the names")
    (bench_operators if args.ops else bench_workloads)(args)


main()
