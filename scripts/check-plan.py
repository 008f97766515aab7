#!/usr/bin/env python3
"""Compares `ldm plan` with real runs: the median step time and the peak of memory of each stage, within 15%.

Usage: scripts/check-plan.py LDM [STEPS]        LDM is a release build; 25 steps of each stage by default

Three configurations on embedded pictures: the quickstart's, one with small micro-batches that are accumulated and the discriminator from the
first step on, and one of larger pictures. Needs a machine without other work. Linux.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = os.path.join(ROOT, "configs", "quickstart.toml")
PLAIN = ["stage1.loss.perceptual_weight=0"]
CASES = {
    "quickstart": PLAIN,
    "accumulated": PLAIN + [
        "stage1.training.batch_size=4", "stage1.loss.disc_start=0", "stage1.training.accumulation=4",
        "stage2.training.batch_size=8", "stage2.training.accumulation=4",
    ],
    "larger": PLAIN + ["data.resolution=64", "stage1.training.batch_size=8", "stage2.training.batch_size=16"],
}
PEAK = (
    "import os, resource, sys\n"
    "_, status = os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    "sys.exit(os.waitstatus_to_exitcode(status))"
)


def main():
    ldm, steps = os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "25"
    os.environ["HF_HUB_OFFLINE"] = "1"
    worst = 0.0
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        subprocess.run([ldm, "data", "twemoji", "--out", "data", "--count", "300"], check=True, capture_output=True)
        for case, settings in CASES.items():
            length = [f"stage{stage}.training.steps={steps}" for stage in (1, 2)]
            settings = [word for setting in settings + length for word in ("--set", setting)]
            options = [CONFIG, "--data", "data"] + settings
            planned = subprocess.run([ldm, "plan", "--json"] + options, check=True, capture_output=True, text=True)
            for stage, command, plan in zip(("stage1", "stage2"), ("vae", "diffusion"), json.loads(planned.stdout)["stages"]):
                run = subprocess.run(
                    [sys.executable, "-c", PEAK, ldm, "train", command, "--out", case] + options,
                    check=True, capture_output=True, text=True)
                with open(f"{case}/{stage}/metrics.jsonl") as metrics:
                    seconds = [json.loads(line)["seconds_per_step"] for line in metrics][2:]
                for name, real, told in (
                    ("step, s", statistics.median(seconds), plan["step_seconds"]),
                    ("peak, MiB", int(run.stdout.split()[-1]) / 2**20, plan["peak_memory"] / 2**20),
                ):
                    error = told / real - 1
                    worst = max(worst, abs(error))
                    print(f"{case:12} {stage} {name:10} real {real:10.4f} planned {told:10.4f} {100 * error:+6.1f}%")
    print(f"worst {100 * worst:.1f}%")
    sys.exit(worst > 0.15)


main()
