//! The objective of an autoencoder with a codebook.

use burn::{
    optim::{AdamConfig, GradientsParams},
    prelude::*,
};

use super::{
    assert_close, assert_near, gradient_norms, moved,
    objective::{SIDE, discriminator, lpips, noise, objective},
    pictures, scalar, seeded, uniform, values,
};
use crate::{
    Autoencoder, CodebookBeta, CodebookUsage, Penalty, Stage1LossConfig, VectorQuantizer, VqModel,
    VqModelConfig,
};

const CODES: usize = 16;

/// An autoencoder whose codes are spread like its latents.
fn model() -> VqModel {
    let config = VqModelConfig {
        norm_num_groups: 4,
        ..VqModelConfig::new(vec![8, 8], 4, CODES, 0)
    };
    with_codes(
        seeded(config.init(&Device::flex().autodiff())),
        uniform([CODES, 4], 1.0, 17),
    )
}

fn with_codes(mut model: VqModel, codes: Tensor<2>) -> VqModel {
    let weight = &mut model.quantize.embedding.weight;
    *weight = weight
        .clone()
        .map(|old| Tensor::from_data(codes.to_data(), &old.device()).require_grad());
    model
}

/// Every term on from the first step.
fn everything() -> Stage1LossConfig {
    Stage1LossConfig {
        disc_start: 0,
        disc_weight: 0.75,
        disc_channels: 4,
        ..Stage1LossConfig::default()
    }
}

fn pixels_only() -> Stage1LossConfig {
    Stage1LossConfig {
        codebook_weight: 0.0,
        perceptual_weight: 0.0,
        disc_weight: 0.0,
        ..everything()
    }
}

/// Commitment, distance of the codes, share of the codes in use.
fn penalty(model: &VqModel) -> [Tensor<1>; 3] {
    match model.regularised(pictures(2, SIDE), noise()).penalty {
        Penalty::Codebook {
            commitment,
            codes,
            usage,
        } => [commitment, codes, usage.used()],
        Penalty::Kl(_) => panic!("a codebook has no divergence"),
    }
}

/// Two pixels: (0, 0) goes to the code (1, 0), (5, 4) to (5, 5); the squared differences are 1, 0, 0, 1.
#[test]
fn loss_and_usage_by_hand() {
    let device = Device::flex().autodiff();
    let mut quantizer = VectorQuantizer::new(3, 2, &device);
    let codes = Tensor::<2>::from_floats([[1.0, 0.0], [-9.0, 9.0], [5.0, 5.0]], &device);
    quantizer.embedding.weight = (quantizer.embedding.weight).map(|_| codes.require_grad());
    let latents = Tensor::<4>::from_floats([[[[0.0, 5.0]], [[0.0, 4.0]]]], &device).require_grad();

    let quantized = quantizer.forward(latents.clone());
    let usage = CodebookUsage {
        latents: latents.clone().inner(),
        hits: quantizer.hits(quantized.indices.clone()),
    };
    assert_eq!(values(usage.hits.clone()), [1.0, 0.0, 1.0]);
    assert_near(scalar(usage.used()), 2.0 / 3.0, 1e-6);
    assert_near(scalar(usage.perplexity()), 2.0, 1e-6);

    // 2/4 (z - q) at the latents, its opposite at the codes, and a quarter of one of them.
    for (codebook_beta, encoder, codebook) in [
        (CodebookBeta::Legacy, 0.5, 0.125),
        (CodebookBeta::Paper, 0.125, 0.5),
    ] {
        let quantized = quantizer.forward(latents.clone());
        let [commitment, codes] = quantized.distances(latents.clone());
        let penalty = Penalty::Codebook {
            commitment,
            codes,
            usage: usage.clone(),
        };
        let loss = penalty.value(&Stage1LossConfig {
            codebook_beta,
            ..Stage1LossConfig::default()
        });
        assert_near(scalar(loss.clone()), 0.5 + 0.25 * 0.5, 1e-6);
        let gradients = loss.backward();
        let at_latents = values(latents.grad(&gradients).unwrap());
        assert_eq!(at_latents, [-encoder, 0.0, 0.0, -encoder]);
        let at_codes = quantizer.embedding.weight.grad(&gradients).unwrap();
        assert_eq!(values(at_codes), [codebook, 0.0, 0.0, 0.0, 0.0, codebook]);
    }
}

/// Frequencies 1/2, 1/4, 1/4, 0: exp of 1.5 ln 2.
#[test]
fn perplexity_by_hand() {
    let usage = |hits: &[f32]| CodebookUsage {
        latents: Tensor::zeros([1, 1, 1, 1], &Device::flex()),
        hits: Tensor::from_floats(hits, &Device::flex()),
    };
    let found = scalar(usage(&[8.0, 4.0, 4.0, 0.0]).perplexity());
    assert_near(found, 2f32.powf(1.5), 1e-6);
    assert_near(scalar(usage(&[3.0; 7]).perplexity()), 7.0, 1e-6);
    assert_near(scalar(usage(&[0.0, 5.0]).perplexity()), 1.0, 1e-6);
}

#[test]
fn the_codebooks_loss_moves_codebook_and_encoder_alone() {
    let model = model();
    let [commitment, codes, _] = penalty(&model);
    let encoder = ["encoder.conv_in.weight", "quant_conv.weight"];
    for (loss, parts, prefixes) in [
        (commitment, &encoder[..], &["encoder.", "quant_conv."][..]),
        (codes, &["quantize.embedding.weight"], &["quantize."]),
    ] {
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        let paths = moved(&model, &grads);
        for part in parts {
            assert!(paths.iter().any(|path| path == part), "{part} stands still");
        }
        for (path, norm) in gradient_norms(&model, &grads) {
            let own = prefixes.iter().any(|prefix| path.starts_with(prefix));
            assert!(own || norm == 0.0, "{path} moves");
        }
    }
}

#[test]
fn the_reconstruction_passes_the_codes_by() {
    let model = model();
    let step = objective(pixels_only()).generator(&model, None, pictures(2, SIDE), noise(), 0);
    let paths = moved(&model, &step.grads);
    for part in [
        "encoder.conv_in.weight",
        "quant_conv.weight",
        "post_quant_conv.weight",
    ] {
        assert!(paths.iter().any(|path| path == part), "{part} stands still");
    }
    assert!(!paths.iter().any(|path| path.starts_with("quantize.")));

    // What is decoded are codes, and what the encoder gets is the gradient there.
    let latents = model.encode(pictures(2, SIDE));
    let decoded = model.regularised(pictures(2, SIDE), noise()).latents;
    let codes = model.quantize(latents.clone()).latents;
    assert_close(decoded.inner(), codes.inner(), 1e-6);
    let slope = uniform([2, 4, SIDE / 2, SIDE / 2], 1.0, 5);
    let norms = |loss: Tensor<1>| {
        gradient_norms(
            &model,
            &GradientsParams::from_grads(loss.backward(), &model),
        )
    };
    let through = model.regularised(pictures(2, SIDE), noise()).latents;
    assert_eq!(
        norms((through * slope.clone()).sum()),
        norms((latents * slope).sum())
    );
}

#[test]
fn terms_are_means_that_add_up() {
    let (model, discriminator) = (model(), discriminator());
    let config = Stage1LossConfig {
        codebook_weight: 0.5,
        ..everything()
    };
    let run = |config| {
        let images = pictures(2, SIDE);
        let step = objective(config).generator(&model, Some(&discriminator), images, noise(), 0);
        step.terms
    };
    let terms = run(config);
    assert_near(terms.nll, terms.rec + terms.perceptual, 1e-5);
    let total = terms.nll + 0.5 * terms.codebook + terms.d_weight * terms.g_loss;
    assert_near(terms.total, total, 1e-5);
    assert_eq!(terms.kl, 0.0);
    let [commitment, codes, used] = penalty(&model);
    assert_eq!(
        (terms.codebook, terms.codes_used),
        (
            scalar(commitment + codes.mul_scalar(0.25)),
            scalar(used.clone())
        )
    );
    let most = terms.codes_used * CODES as f32;
    assert!(terms.codebook_perplexity > 1.0 && terms.codebook_perplexity <= most * 1.0001);
    assert!(terms.codes_used > 1.0 / CODES as f32 && terms.codes_used <= 1.0);

    let varied = run(Stage1LossConfig {
        logvar: 0.25,
        ..config
    });
    assert_near(varied.nll, terms.nll / 0.25f32.exp() + 0.25, 1e-5);
}

/// The whole objective by plain automatic differentiation, one forward pass per gradient, and d_weight on the host.
#[test]
fn gradients_and_adaptive_weight_equal_a_plain_computation() {
    let (model, discriminator, lpips) = (model(), discriminator(), lpips());
    let config = everything();
    let images = pictures(2, SIDE);
    let step =
        objective(config).generator(&model, Some(&discriminator), images.clone(), noise(), 0);

    let forward = || {
        let latents = model.encode(images.clone());
        let codes = model.quantize(latents.clone()).latents;
        let codebook = (latents.clone() - codes.clone().detach()).square().mean()
            + (codes.clone() - latents.clone().detach())
                .square()
                .mean()
                .mul_scalar(0.25);
        let straight = latents.clone() + (codes - latents).detach();
        let reconstruction = model.decode_quantized(straight);
        let perceptual = lpips
            .forward(images.clone(), reconstruction.clone())
            .reshape([2, 1, 1, 1]);
        let nll = ((images.clone() - reconstruction.clone()).abs() + perceptual).mean();
        (
            nll,
            codebook,
            discriminator.forward(reconstruction).mean().neg(),
        )
    };
    let norm = |loss: Tensor<1>| {
        let weight = &model.decoder.conv_out.weight;
        scalar(weight.grad(&loss.backward()).unwrap().square().sum().sqrt())
    };
    let ratio = norm(forward().0) / (norm(forward().2) + 1e-4);
    let d_weight = ratio.clamp(0.0, 1e4) * 0.75;
    assert_near(step.terms.d_weight, d_weight, 1e-4);

    let (nll, codebook, g_loss) = forward();
    let loss = nll + codebook + g_loss.mul_scalar(d_weight);
    assert_near(step.terms.total, scalar(loss.clone()), 1e-4);
    let expected = GradientsParams::from_grads(loss.backward(), &model);
    let expected = gradient_norms(&model, &expected);
    let found = gradient_norms(&model, &step.grads);
    let largest = expected.values().copied().fold(0.0, f32::max);
    assert_eq!(found.len(), expected.len());
    for (path, expected) in expected {
        let error = (found[&path] - expected).abs();
        assert!(
            error <= 1e-3 * expected + 1e-5 * largest,
            "{path}: {} not {expected}",
            found[&path]
        );
    }
}

#[test]
fn overfits_one_batch() {
    let config = Stage1LossConfig {
        disc_weight: 0.0,
        ..everything()
    };
    let objective = objective(config);
    let mut optimizer = AdamConfig::new().init();
    let mut model = model();
    let mut losses = Vec::new();
    for step in 0..80 {
        let step = objective.generator(&model, None, pictures(2, SIDE), noise(), step);
        losses.push(step.terms.rec);
        model = optimizer.step(4e-3, model, step.grads);
    }
    assert!(losses[79] < 0.4 * losses[0], "{losses:?}");
}
