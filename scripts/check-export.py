#!/usr/bin/env python3
"""Opens a text-to-image model that ldm wrote in diffusers, and compares what both make of the same latents.

    python3 -m venv venv && venv/bin/pip install torch==2.9.0 diffusers==0.36.0 transformers==4.57.6
    ldm data twemoji --out data --count 64
    ldm train all configs/quickstart.toml --data data --out RUN --steps 60 \\
        --set stage1.loss.perceptual_weight=0 --set stage2.text.bert.max_position_embeddings=77
    venv/bin/python scripts/check-export.py RUN/model "red apple" [--ldm target/release/ldm]

The pipeline always reads 77 tokens, so the model has to be trained with as many.

Prints the largest differences and fails if one exceeds 1e-4 of the reference's largest absolute value (latents), or one
8-bit level and a half (images).
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from diffusers import LDMTextToImagePipeline
from PIL import Image
from safetensors.torch import load_file, save_file

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("prompt")
parser.add_argument("--ldm", default="target/release/ldm")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--guidance", type=float, default=2.0)
args = parser.parse_args()

pipeline = LDMTextToImagePipeline.from_pretrained(args.model)
pipeline.set_progress_bar_config(disable=True)
unet = pipeline.unet.config
side = unet.sample_size
noise = torch.randn(1, unet.in_channels, side, side, generator=torch.Generator().manual_seed(0))

decoder_input = []
decode = pipeline.vqvae.decode
pipeline.vqvae.decode = lambda latents, **options: decoder_input.append(latents) or decode(latents, **options)
expected = pipeline(
    args.prompt,
    # The pipeline divides by 8 whatever the autoencoder's factor is.
    height=8 * side,
    width=8 * side,
    num_inference_steps=args.steps,
    guidance_scale=args.guidance,
    # The pipeline doesn't scale it: every sampler of a model trained by ldm starts from unit variance.
    latents=noise,
    output_type="np",
).images[0]
expected_latents = decoder_input[0] * pipeline.vqvae.config.scaling_factor

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    save_file({"latents": noise}, folder / "start.safetensors")
    command = [args.ldm, "sample", args.prompt, "--model", args.model, "--steps", str(args.steps)]
    command += ["--guidance", str(args.guidance), "--out", folder / "sample.png"]
    command += ["--init-latents", folder / "start.safetensors", "--save-latents", folder / "end.safetensors"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latents = load_file(folder / "end.safetensors")["latents"]
    image = numpy.asarray(Image.open(folder / "sample.png").convert("RGB"))

latent_error = ((latents - expected_latents).abs().max() / expected_latents.abs().max()).item()
image_error = numpy.abs(image - expected * 255).max()
print(f"latents: {latent_error:.1e} of the largest value; image: {image_error:.2f} of 255")
sys.exit(1 if latent_error > 1e-4 or image_error > 1.5 else 0)
