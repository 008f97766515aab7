#!/usr/bin/env python3
"""The paper's text-to-image model at full size (872M U-Net, text transformer, KL-f8) with random weights: diffusers beside ldm.

    python3 -m venv venv && venv/bin/pip install torch==2.9.0 diffusers==0.36.0 transformers==4.57.6
    venv/bin/python scripts/bench-text-to-image.py DIR [--ldm target/release/ldm] [--steps 5] [--rounds 2]

Writes the model into DIR with diffusers if it isn't there (6 GB), then lets both sample 256x256 with guidance, alternately and each in a
process of its own, with 1 step and with --steps, and prints medians: seconds to the end of the run, seconds per step by the difference, and
peak resident memory. The latents that both leave are compared.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT = "a painting of a virus monster playing guitar"
GUIDANCE = 5.0


def write_model(folder):
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=1280,
    )
    vae = AutoencoderKL(
        sample_size=256,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    bert = LDMBertModel(
        LDMBertConfig(d_model=1280, encoder_layers=32, encoder_ffn_dim=5120, encoder_attention_heads=8, head_dim=64)
    )
    vocab = pathlib.Path(__file__).parent.parent / "crates/ldm-text/assets/vocab.txt"
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer = BertTokenizer(str(vocab), model_max_length=77)
    LDMTextToImagePipeline(vae, bert, tokenizer, unet, scheduler).save_pretrained(folder)


def run_diffusers(folder, start, end, steps):
    began = time.perf_counter()
    import torch
    from diffusers import LDMTextToImagePipeline
    from safetensors.torch import load_file, save_file

    pipeline = LDMTextToImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    kept = []
    decode = pipeline.vqvae.decode
    pipeline.vqvae.decode = lambda latents, **options: kept.append(latents) or decode(latents, **options)
    latents = load_file(start)["latents"]
    pipeline(PROMPT, 256, 256, num_inference_steps=steps, guidance_scale=GUIDANCE, latents=latents)
    save_file({"latents": (kept[0] * pipeline.vqvae.config.scaling_factor).contiguous()}, end)
    print(json.dumps({"load": loaded - began}))


def timed(command):
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--ldm", default="target/release/ldm")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=3, metavar=("START", "END", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run_diffusers(args.folder, args.one[0], args.one[1], int(args.one[2]))
    if not (args.folder / "model_index.json").exists():
        write_model(args.folder)

    import torch
    from safetensors.torch import load_file, save_file

    bytes_of_weights = sum(path.stat().st_size for path in args.folder.rglob("*.safetensors"))
    print(f"weights: {bytes_of_weights / 2**20:.0f} MiB")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        start = scratch / "start.safetensors"
        save_file({"latents": torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))}, start)

        def ours(steps):
            command = [args.ldm, "sample", PROMPT, "--model", args.folder, "--steps", str(steps), "--sampler", "ddim"]
            command += ["--guidance", str(GUIDANCE), "--out", scratch / "ours.png"]
            command += ["--init-latents", start, "--save-latents", scratch / "ours.safetensors"]
            return timed(command)

        def theirs(steps):
            command = [sys.executable, __file__, args.folder, "--one", start, scratch / "theirs.safetensors", str(steps)]
            return timed(command)

        figures = {"ldm": {1: [], args.steps: []}, "diffusers": {1: [], args.steps: []}}
        memory = {"ldm": 0, "diffusers": 0}
        for _ in range(args.rounds):
            for steps in (1, args.steps):
                for name, run in (("ldm", ours), ("diffusers", theirs)):
                    seconds, mib, _ = run(steps)
                    figures[name][steps].append(seconds)
                    memory[name] = max(memory[name], mib)
        a, b = (load_file(scratch / name)["latents"] for name in ("ours.safetensors", "theirs.safetensors"))
        print(f"latents differ by {((a - b).abs().max() / b.abs().max()).item():.1e} of the largest value")
    for name, by_steps in figures.items():
        one, all_ = (statistics.median(by_steps[steps]) for steps in (1, args.steps))
        per_step = (all_ - one) / (args.steps - 1)
        print(
            f"{name}: {args.steps} steps {all_:.1f} s, a step {per_step:.2f} s, the rest {one - per_step:.1f} s, "
            f"peak {memory[name]:.0f} MiB"
        )


main()
