#!/usr/bin/env python3
"""Judges class-conditional samples by a classifier that has seen real pictures only.

    scripts/judge-classes.py TRAIN TEST SAMPLES

Each is a folder with a folder of PNG files per class, of the same names and of one size. A small convolutional network learns TRAIN (three
epochs, a few minutes on two cores), is checked on TEST, and then says how many pictures of each folder of SAMPLES it takes for that class.
Needs torch, numpy and pillow.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

EPOCHS = 3
BATCH = 128


def read(folder, classes):
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted(Path(folder, name).glob("*.png")):
            images.append(np.asarray(Image.open(path).convert("L")))
            labels.append(label)
    if not images:
        sys.exit(f"no PNG files in the class folders of {folder}")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def batch(images):
    return images[:, None].float() / 127.5 - 1


def network(classes):
    def block(i, o):
        return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(1, 32), *block(32, 64), *block(64, 128), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, classes)
    )


def predict(model, images):
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch(part)).argmax(1) for part in images.split(500)])


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    train, test, samples = sys.argv[1:]
    torch.manual_seed(0)
    classes = sorted(path.name for path in Path(train).iterdir() if path.is_dir())
    images, labels = read(train, classes)
    model = network(len(classes))
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(batch(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for title, folder in (("held-out real pictures", test), ("samples", samples)):
        images, labels = read(folder, classes)
        found = predict(model, images)
        print(f"{title}: {(found == labels).float().mean():.1%} of {len(labels)}")
        for label, name in enumerate(classes):
            of_class = found[labels == label]
            others = torch.bincount(of_class[of_class != label], minlength=len(classes))
            worst = f", else mostly {classes[others.argmax()]}" if others.any() else ""
            print(f"  {name:15} {(of_class == label).float().mean():6.1%} of {len(of_class)}{worst}")


if __name__ == "__main__":
    main()
