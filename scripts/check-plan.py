#!/usr/bin/env python3
"""Compares what `ldm plan` predicts with what training then takes, for three configurations and both stages of each: the time of a step and the
peak of memory must agree within 15%.

Usage: scripts/check-plan.py [LDM]        LDM is a release build, by default target/release/ldm

Needs Linux, about five minutes on two cores, and a machine with nothing else to do: other work makes steps slower at one time than at another.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

LIMIT = 0.15
STEPS = 30
ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESET = (ROOT / "configs/quickstart.toml").read_text()

# The quickstart's networks and batches, with the adversarial part in the second half.
QUICKSTART = [
    "stage1.loss.perceptual_weight=0",
    f"stage1.training.steps={STEPS}",
    f"stage1.loss.disc_start={STEPS // 2}",
    f"stage2.training.steps={STEPS}",
]
# An unconditional model of attention blocks on larger pictures, in larger batches, of a codebook's autoencoder.
UNCONDITIONAL = [
    *QUICKSTART,
    "data.resolution=64",
    "data.crop=random",
    f"stage1.loss.disc_start={STEPS}",
    "stage1.training.batch_size=24",
    "stage2.training.batch_size=48",
]
# A class-conditional model with accumulated gradients and the adversarial part from the start.
CLASSES = [
    *QUICKSTART,
    "data.flip=0.5",
    "stage1.loss.disc_start=0",
    "stage1.training.batch_size=8",
    "stage1.training.accumulation=3",
    "stage2.training.batch_size=16",
    "stage2.training.accumulation=4",
    "stage2.class={ n_classes = 5, embed_dim = 128 }",
]
UNET = """
_class_name = "UNet2DModel"
sample_size = 16
in_channels = 6
out_channels = 6
block_out_channels = [64, 128, 192]
down_block_types = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 32
"""


def without(text, *names):
    """The TOML text without some sections."""
    for name in names:
        text, count = re.subn(rf"^\[{re.escape(name)}\]\n(?:(?!\[).*\n)*", "", text, flags=re.M)
        assert count == 1, f"the preset has no section {name}"
    return text


def configurations():
    texts = ("stage2.text", "stage2.text.bert")
    yield "text", PRESET, QUICKSTART
    unconditional = without(PRESET, *texts, "stage2.unet") + "\n[stage2.unet]" + UNET
    unconditional = unconditional.replace("[stage1.vae]", "[stage1.vq]\nnum_vq_embeddings = 512")
    yield "unconditional, VQ", unconditional, UNCONDITIONAL
    yield "classes", without(PRESET, *texts), CLASSES


def train(command, metrics):
    """Trains; returns the peak of memory in bytes, and the seconds of each step."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    complaints = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(map(str, command))} failed\n{complaints}")
    steps = [json.loads(line)["seconds_per_step"] for line in metrics.read_text().splitlines()]
    return usage.ru_maxrss * 1024, steps


def typical(seconds, before):
    """Mean over the steps without and with the adversarial part of the median of either, the first two steps aside."""
    parts = [seconds[2:before], seconds[max(before, 2) :]]
    counts = [before, len(seconds) - before]
    return sum(n * statistics.median(part) for part, n in zip(parts, counts) if n) / len(seconds)


def make_data(ldm, folder):
    """Pictures in a folder for each of four classes, with captions."""
    subprocess.run([ldm, "data", "twemoji", "--out", folder, "--count", "200"], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        place = folder / str(number % 4)
        place.mkdir(exist_ok=True)
        (folder / line["file_name"]).rename(place / line["file_name"])
        line["file_name"] = f"{number % 4}/{line['file_name']}"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare(ldm, work):
    """Plans and trains every configuration, and prints a line for each figure. Returns the number of those that are too far off."""
    wrong = 0
    data = work / "data"
    make_data(ldm, data)
    print(f"{'configuration':18} {'stage':12} {'':6} {'predicted':>12} {'measured':>12} {'error':>8}")
    for number, (name, text, settings) in enumerate(configurations()):
        config = work / f"{number}.toml"
        config.write_text(text)
        options = [word for setting in settings for word in ("--set", setting)]
        command = [ldm, "plan", config, "--data", data, "--json", *options]
        plan = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if plan.returncode != 0:
            sys.exit(f"error: {' '.join(map(str, command))} failed\n{plan.stderr}")
        for stage in json.loads(plan.stdout)["stages"]:
            kind, folder = {"autoencoder": ("vae", "stage1"), "diffusion": ("diffusion", "stage2")}[stage["stage"]]
            out = work / f"run{number}"
            command = [ldm, "train", kind, config, "--data", data, "--out", out, *options]
            peak, seconds = train(command, out / folder / "metrics.jsonl")
            share = (stage["adversarial"] or {}).get("share", 1.0)
            measured = typical(seconds, round((1 - share) * len(seconds)))
            rows = [
                ("step", stage["step_seconds"], measured, "{:9.1f} ms", 1e3),
                ("memory", stage["peak_memory"], peak, "{:8.1f} MiB", 2.0**-20),
            ]
            for what, predicted, found, form, unit in rows:
                error = predicted / found - 1
                verdict = "" if abs(error) <= LIMIT else "  WRONG"
                wrong += bool(verdict)
                figures = " ".join(form.format(value * unit) for value in (predicted, found))
                print(f"{name:18} {stage['stage']:12} {what:6} {figures} {100 * error:+7.1f}%{verdict}", flush=True)
    return wrong


def main():
    ldm = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/ldm").resolve()
    if not ldm.is_file():
        sys.exit(f"error: there is no {ldm}: build it by cargo build --release -p ldm-cli, or name another")
    with tempfile.TemporaryDirectory() as work:
        wrong = compare(ldm, pathlib.Path(work))
    if wrong:
        sys.exit(f"error: {wrong} predictions are more than {100 * LIMIT:.0f}% off")
    print(f"all within {100 * LIMIT:.0f}%")


main()
