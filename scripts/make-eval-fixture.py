#!/usr/bin/env python3
"""Makes tests/fixtures/eval: what torch-fidelity, scikit-image and NumPy make of small random inputs.

Needs torch, torch-fidelity, scikit-image and safetensors:

    python scripts/make-eval-fixture.py tests/fixtures/eval

The network is torch-fidelity's Inception with all widths divided by 16 and random weights, rounded to 16 bits. Features and logits are
random. Everything is drawn from fixed seeds.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity import feature_extractor_inceptionv3 as reference
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

DIVISOR = 16


def narrow_network():
    """torch-fidelity's network, its widths divided."""
    divided = lambda channels: 3 if channels == 3 else channels // DIVISOR

    conv, norm, linear = torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear
    with (
        mock.patch.object(torch.nn, "Conv2d", lambda i, o, **kwargs: conv(divided(i), divided(o), **kwargs)),
        mock.patch.object(torch.nn, "BatchNorm2d", lambda width, **kwargs: norm(divided(width), **kwargs)),
        mock.patch.object(torch.nn, "Linear", lambda i, o: linear(divided(i), divided(o))),
        mock.patch.object(torch, "load", lambda *_, **__: {}),
        mock.patch.object(reference.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None),
    ):
        return reference.FeatureExtractorInceptionV3(
            "narrow", ["2048", "logits_unbiased"], feature_extractor_weights_path="none"
        )


def pictures(count, height, width, seed):
    """Smooth ones, [N, 3, H, W] of 8 bits."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=rng)
    fine = torch.rand(count, 3, height, width, generator=rng)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return ((0.85 * smooth + 0.15 * fine).clamp(0, 1) * 255).round().to(torch.uint8)


def calibrated(network):
    """Statistics of normalisation from pictures, so that no layer dies out; everything fits 16 bits."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.copy_(0.8 + 0.4 * torch.rand(norm.weight.shape, generator=rng))
            norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=rng))
        network.train()
        network(pictures(8, 64, 64, seed=2))
        network.eval()
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return network


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    arrays, expected = {}, {}

    torch.manual_seed(0)
    network = calibrated(narrow_network())
    state = {k: v.half().numpy() for k, v in network.state_dict().items() if v.is_floating_point()}
    save_file(state, out / "inception.safetensors")
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, output: spatial.append(output[:, :7]))
    images = pictures(3, 40, 48, seed=3)
    arrays["images"] = images.permute(0, 2, 3, 1).contiguous().numpy()
    narrow = dict(zip(["pool3", "logits_unbiased"], network(images)))
    network.double().feature_extractor_internal_dtype = torch.float64
    for name, exact in zip(["pool3", "logits_unbiased"], network(images)):
        arrays[name] = exact.numpy()
        # Random layers amplify rounding: how far 32 bits lead the reference itself from 64.
        expected[f"{name}_rounding"] = ((narrow[name] - exact).abs().max() / exact.abs().max()).item()
    arrays["spatial"] = spatial[1].mean(dim=(2, 3)).float().numpy()

    image = pictures(1, 29, 23, seed=4)
    arrays["small"] = image[0].permute(1, 2, 0).contiguous().numpy()
    arrays["small.torch_fidelity"] = (
        (interpolate_bilinear_2d_like_tensorflow1x(image.float(), size=(37, 37), align_corners=False) - 128) / 128
    ).numpy()
    arrays["small.pytorch_fid"] = (
        2 * F.interpolate(image.float() / 255, size=(37, 37), mode="bilinear", align_corners=False) - 1
    ).numpy()

    rng = torch.Generator().manual_seed(5)
    mixing = torch.randn(24, 24, generator=rng)
    samples = (torch.randn(60, 24, generator=rng) @ mixing).relu() + 0.2
    real = (torch.randn(80, 24, generator=rng) @ (mixing + 0.2 * torch.randn(24, 24, generator=rng))).relu()
    logits = 2 * torch.randn(64, 10, generator=rng)
    arrays["features.samples"], arrays["features.real"] = samples.numpy(), real.numpy()
    arrays["logits"] = logits.numpy()
    statistics = [fid_features_to_statistics(x.double()) for x in (samples, real)]
    expected |= fid_statistics_to_metric(*statistics, verbose=False)
    # Fewer rows than features: singular covariances.
    few = [fid_features_to_statistics(x[:15].double()) for x in (samples, real)]
    expected["frechet_inception_distance_of_15"] = fid_statistics_to_metric(*few, verbose=False)[
        "frechet_inception_distance"
    ]
    expected |= kid_features_to_metric(
        samples.double(), real.double(), kid_subsets=10, kid_subset_size=40, verbose=False
    )
    expected |= prc_features_to_metric(samples.double(), real.double(), verbose=False)
    expected |= isc_features_to_metric(logits)
    expected["permutation"] = np.random.RandomState(2020).permutation(12).tolist()
    expected["choice"] = np.random.RandomState(2020).choice(1000, 5, replace=False).tolist()

    original = pictures(1, 24, 32, seed=6)[0].permute(1, 2, 0).contiguous().numpy()
    noise = np.random.RandomState(7).normal(0, 12, original.shape)
    distorted = np.clip(original + noise, 0, 255).round().astype(np.uint8)
    arrays["original"], arrays["distorted"] = original, distorted
    expected["psnr"] = peak_signal_noise_ratio(original, distorted, data_range=255)
    expected["ssim"] = structural_similarity(
        original,
        distorted,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / "arrays.safetensors")
    mean, covariance = statistics[0]["mu"], statistics[0]["sigma"]
    np.savez_compressed(out / "compressed.npz", mu=mean, sigma=covariance)
    np.savez(
        out / "stored.npz",
        mu=mean.astype(np.float32),
        sigma=np.asfortranarray(covariance + np.triu(np.ones_like(covariance))),
        count=np.array(60),
    )
    (out / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
