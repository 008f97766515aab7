#!/usr/bin/env python3
"""Judges samples drawn from semantic masks by the colours of their pixels.

    scripts/judge-masks.py LABELS.json MASKS PICTURES

Each pixel of a picture is taken for the label that has the nearest of the colours in LABELS.json (as scripts/data/faces.sh writes it), and
compared with the mask of the same file name in MASKS. Run it on real pictures first: what they reach is what samples can. Needs numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    labels = json.loads(Path(sys.argv[1]).read_text())
    drawn = [(list(bytes.fromhex(colour)), id) for id, label in enumerate(labels) for colour in label["drawn"]]
    colours = np.array([colour for colour, _ in drawn], dtype=np.int32)
    of_colour = np.array([id for _, id in drawn])
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    pictures = sorted(Path(sys.argv[3]).glob("*.png"))
    for path in pictures:
        picture = np.asarray(Image.open(path).convert("RGB"), dtype=np.int32)
        asked = np.asarray(Image.open(Path(sys.argv[2], path.name)))
        distance = ((picture[:, :, None] - colours) ** 2).sum(-1)
        np.add.at(counts, (asked, of_colour[distance.argmin(-1)]), 1)
    print(f"{len(pictures)} pictures: {np.trace(counts) / counts.sum():.1%} of all pixels")
    for id, label in enumerate(labels):
        found = counts[id] / max(counts[id].sum(), 1)
        others = ", ".join(f"{labels[other]['name']} {found[other]:.1%}" for other in np.argsort(-found)[:3] if other != id)
        print(f"  {label['name']:12} {found[id]:6.1%} (taken for {others}), {counts[id].sum() / counts.sum():.1%} of the pixels")


if __name__ == "__main__":
    main()
