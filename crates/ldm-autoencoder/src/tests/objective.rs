use std::collections::BTreeMap;

use burn::{optim::GradientsParams, prelude::*};

use super::{
    assert_close, assert_near, gradient_norms, moved, pictures, scalar, seeded, tiny, uniform,
};
use crate::{
    AutoencoderKl, ConfigError, DiscriminatorLoss, GeneratorStep, Lpips, LpipsConfig,
    PatchDiscriminator, PatchDiscriminatorConfig, ReconstructionLoss, Stage1LossConfig,
    Stage1Objective,
};

pub(super) const SIDE: usize = 32;

fn device() -> Device {
    Device::flex().autodiff()
}

pub(super) fn autoencoder() -> AutoencoderKl {
    seeded(tiny(&[8, 8]).init(&device()))
}

pub(super) fn discriminator() -> PatchDiscriminator {
    let config = PatchDiscriminatorConfig {
        channels: 4,
        ..PatchDiscriminatorConfig::default()
    };
    seeded(config.init(&device()))
}

pub(super) fn lpips() -> Lpips {
    let config = LpipsConfig {
        channels: [4; 5],
        heads: false,
    };
    seeded(config.init(&device()))
}

/// Every term on from the first step, with weights of similar effect.
pub(super) fn everything() -> Stage1LossConfig {
    Stage1LossConfig {
        kl_weight: 1e-2,
        disc_start: 0,
        disc_channels: 4,
        ..Stage1LossConfig::default()
    }
}

/// Only the pixel distance.
fn pixels_only() -> Stage1LossConfig {
    Stage1LossConfig {
        kl_weight: 0.0,
        perceptual_weight: 0.0,
        disc_weight: 0.0,
        ..everything()
    }
}

pub(super) fn objective(config: Stage1LossConfig) -> Stage1Objective {
    Stage1Objective::new(config, Some(lpips())).unwrap()
}

pub(super) fn noise() -> Tensor<4> {
    uniform([2, 4, SIDE / 2, SIDE / 2], 1.0, 9)
}

pub(super) fn run(
    objective: &Stage1Objective,
    model: &AutoencoderKl,
    discriminator: &PatchDiscriminator,
    step: u64,
) -> GeneratorStep {
    objective.generator(model, Some(discriminator), pictures(2, SIDE), noise(), step)
}

/// Paths whose gradient a term changes.
fn changed(
    model: &AutoencoderKl,
    with: &GradientsParams,
    without: &GradientsParams,
) -> Vec<String> {
    let (with, without) = (gradient_norms(model, with), gradient_norms(model, without));
    assert_eq!(with.len(), without.len());
    let largest = without.values().copied().fold(0.0, f32::max);
    with.into_iter()
        .filter(|(path, norm)| (norm - without[path]).abs() > 1e-6 * largest)
        .map(|(path, _)| path)
        .collect()
}

fn has_prefix(paths: &[String], prefix: &str) -> bool {
    paths.iter().any(|path| path.starts_with(prefix))
}

#[test]
fn the_pixel_distance_moves_every_weight_of_the_autoencoder() {
    let (model, discriminator) = (autoencoder(), discriminator());
    for reconstruction in [ReconstructionLoss::L1, ReconstructionLoss::L2] {
        let step = run(
            &objective(Stage1LossConfig {
                reconstruction,
                ..pixels_only()
            }),
            &model,
            &discriminator,
            0,
        );
        let paths = moved(&model, &step.grads);
        let norms = gradient_norms(&model, &step.grads);
        let expected: Vec<_> = norms
            .keys()
            .filter(|path| path.ends_with("conv2.weight"))
            .collect();
        assert_eq!(norms.len(), gradient_count(&model));
        assert!(
            expected.iter().all(|path| paths.contains(path)),
            "{paths:?}"
        );
        for part in [
            "encoder.conv_in.weight",
            "quant_conv.weight",
            "post_quant_conv.weight",
            "decoder.conv_out.weight",
        ] {
            assert!(has_prefix(&paths, part), "{part} stands still");
        }
        assert_eq!(
            (
                step.terms.perceptual,
                step.terms.g_loss,
                step.terms.d_weight
            ),
            (0.0, 0.0, 0.0)
        );
    }
}

fn gradient_count(model: &AutoencoderKl) -> usize {
    let all = model
        .encode(pictures(1, 8))
        .sample(uniform([1, 4, 4, 4], 1.0, 1));
    let grads = model.decode(all).sum().backward();
    gradient_norms(model, &GradientsParams::from_grads(grads, model)).len()
}

#[test]
fn each_further_term_moves_what_it_should() {
    let (model, discriminator) = (autoencoder(), discriminator());
    let base = pixels_only();
    let without = run(&objective(base), &model, &discriminator, 0);

    let kl = run(
        &objective(Stage1LossConfig {
            kl_weight: 1.0,
            ..base
        }),
        &model,
        &discriminator,
        0,
    );
    let paths = changed(&model, &kl.grads, &without.grads);
    assert!(
        has_prefix(&paths, "encoder.conv_in") && has_prefix(&paths, "quant_conv"),
        "{paths:?}"
    );
    assert!(
        !has_prefix(&paths, "decoder.") && !has_prefix(&paths, "post_quant_conv."),
        "{paths:?}"
    );

    let others = [
        Stage1LossConfig {
            perceptual_weight: 1.0,
            ..base
        },
        Stage1LossConfig {
            disc_weight: 0.5,
            ..base
        },
    ];
    for config in others {
        let with = run(&objective(config), &model, &discriminator, 0);
        let paths = changed(&model, &with.grads, &without.grads);
        for part in ["encoder.", "quant_conv.", "post_quant_conv.", "decoder."] {
            assert!(
                has_prefix(&paths, part),
                "{part} stands still with {config:?}"
            );
        }
    }
}

#[test]
fn the_terms_add_up() {
    let config = everything();
    let terms = run(&objective(config), &autoencoder(), &discriminator(), 0).terms;
    let elements = (3 * SIDE * SIDE) as f32;
    assert_near(terms.nll, elements * (terms.rec + terms.perceptual), 1e-4);
    let total = terms.nll + config.kl_weight as f32 * terms.kl + terms.d_weight * terms.g_loss;
    assert_near(terms.total, total, 1e-5);
    assert!(terms.perceptual > 0.0 && terms.kl > 0.0 && terms.d_weight > 0.0);
}

#[test]
fn the_observations_variance_scales_the_likelihood() {
    let (model, discriminator) = (autoencoder(), discriminator());
    let plain = run(&objective(pixels_only()), &model, &discriminator, 0);
    let config = Stage1LossConfig {
        logvar: 0.25,
        ..pixels_only()
    };
    let scaled = run(&objective(config), &model, &discriminator, 0);
    let elements = (3 * SIDE * SIDE) as f32;
    assert_near(
        scaled.terms.nll,
        plain.terms.nll / 0.25f32.exp() + 0.25 * elements,
        1e-5,
    );
    let last = |step: &GeneratorStep| {
        step.grads
            .get::<4>(model.decoder.conv_out.weight.id)
            .unwrap()
    };
    assert_close(last(&scaled), last(&plain).div_scalar(0.25f64.exp()), 1e-5);
}

/// The whole objective by plain automatic differentiation, one forward pass per gradient, and d_weight on the host.
#[test]
fn gradients_and_adaptive_weight_equal_a_plain_computation() {
    let (model, discriminator) = (autoencoder(), discriminator());
    let (config, lpips) = (everything(), lpips());
    let objective = Stage1Objective::new(config, Some(lpips.clone())).unwrap();
    let step = run(&objective, &model, &discriminator, 0);

    let images = pictures(2, SIDE);
    let forward = || {
        let posterior = model.encode(images.clone());
        let reconstruction = model.decode(posterior.sample(noise()));
        let perceptual = lpips
            .forward(images.clone(), reconstruction.clone())
            .reshape([2, 1, 1, 1]);
        let nll = ((images.clone() - reconstruction.clone()).abs() + perceptual)
            .sum()
            .div_scalar(2.0);
        let g_loss = discriminator.forward(reconstruction).mean().neg();
        (nll, posterior.kl().sum().div_scalar(2.0), g_loss)
    };
    let norm = |loss: Tensor<1>| {
        let gradient = model
            .decoder
            .conv_out
            .weight
            .grad(&loss.backward())
            .unwrap();
        scalar(gradient.square().sum().sqrt())
    };
    let nll_norm = norm(forward().0);
    let g_norm = norm(forward().2);
    let d_weight = (nll_norm / (g_norm + 1e-4)).clamp(0.0, 1e4) * 0.5;
    assert_near(step.terms.d_weight, d_weight, 1e-4);

    let (nll, kl, g_loss) = forward();
    let loss = nll + kl.mul_scalar(config.kl_weight) + g_loss.mul_scalar(d_weight);
    assert_near(step.terms.total, scalar(loss.clone()), 1e-4);
    let expected = gradient_norms(
        &model,
        &GradientsParams::from_grads(loss.backward(), &model),
    );
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
fn the_adversarial_part_starts_at_its_step() {
    let (model, discriminator) = (autoencoder(), discriminator());
    let config = Stage1LossConfig {
        disc_start: 3,
        perceptual_weight: 0.0,
        ..everything()
    };
    let before = run(&objective(config), &model, &discriminator, 2);
    assert_eq!(
        (
            before.terms.g_loss,
            before.terms.d_weight,
            before.terms.disc_factor
        ),
        (0.0, 0.0, 0.0)
    );
    let batch = || (pictures(2, SIDE), pictures(2, SIDE).mul_scalar(0.5));
    let step =
        |config, at| objective(config).discriminator(&discriminator, batch().0, batch().1, at);
    assert!(step(config, 2).is_none());
    assert!(step(config, 3).is_some());

    let watched = Stage1LossConfig {
        watch_before_start: true,
        ..config
    };
    let seen = run(&objective(watched), &model, &discriminator, 2);
    assert!(seen.terms.g_loss != 0.0 && seen.terms.d_weight > 0.0);
    assert_eq!(seen.terms.disc_factor, 0.0);
    assert_eq!(
        gradient_norms(&model, &seen.grads),
        gradient_norms(&model, &before.grads)
    );
    let after = run(&objective(config), &model, &discriminator, 3);
    assert_eq!(after.terms.disc_factor, 1.0);
    assert!(step(watched, 2).unwrap().grads.is_empty());
}

#[test]
fn a_weight_of_zero_needs_no_network() {
    let config = Stage1LossConfig {
        perceptual_weight: 0.0,
        disc_weight: 0.0,
        ..everything()
    };
    assert!(config.discriminator().is_none());
    assert!(
        Stage1LossConfig {
            disc_weight: 0.5,
            disc_factor: 0.0,
            ..config
        }
        .discriminator()
        .is_none()
    );
    let objective = Stage1Objective::new(config, None).unwrap();
    let discriminator = discriminator();
    let statistics = |discriminator: &PatchDiscriminator| {
        super::values(
            discriminator.layers[1]
                .norm
                .as_ref()
                .unwrap()
                .running_mean
                .value_sync(),
        )
    };
    let before = statistics(&discriminator);
    let step = run(&objective, &autoencoder(), &discriminator, 0);
    assert_eq!((step.terms.perceptual, step.terms.g_loss), (0.0, 0.0));
    assert_eq!(statistics(&discriminator), before, "the discriminator ran");
    assert!(
        objective
            .discriminator(&discriminator, pictures(1, SIDE), pictures(1, SIDE), 9)
            .is_none()
    );
}

#[test]
fn configuration_is_checked() {
    let defaults: Stage1LossConfig = toml::from_str("").unwrap();
    assert_eq!(defaults, Stage1LossConfig::default());
    let parsed: Stage1LossConfig =
        toml::from_str("reconstruction = 'l2'\ndisc_loss = 'vanilla'").unwrap();
    assert_eq!(parsed.reconstruction, ReconstructionLoss::L2);
    assert_eq!(parsed.disc_loss, DiscriminatorLoss::Vanilla);
    let error = toml::from_str::<Stage1LossConfig>("kl_wieght = 1.0").unwrap_err();
    assert!(
        error.to_string().contains("unknown field `kl_wieght`"),
        "{error}"
    );

    let wrong: BTreeMap<&str, Stage1LossConfig> = BTreeMap::from([
        (
            "kl_weight",
            Stage1LossConfig {
                kl_weight: -1.0,
                ..everything()
            },
        ),
        (
            "codebook_weight",
            Stage1LossConfig {
                codebook_weight: f64::INFINITY,
                ..everything()
            },
        ),
        (
            "disc_weight",
            Stage1LossConfig {
                disc_weight: f64::NAN,
                ..everything()
            },
        ),
        (
            "logvar",
            Stage1LossConfig {
                logvar: f64::INFINITY,
                ..everything()
            },
        ),
        (
            "disc_layers",
            Stage1LossConfig {
                disc_layers: 6,
                ..everything()
            },
        ),
        (
            "disc_channels",
            Stage1LossConfig {
                disc_channels: 0,
                ..everything()
            },
        ),
    ]);
    for (field, config) in wrong {
        let error = Stage1Objective::new(config, Some(lpips())).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("`{field}` is")),
            "{error}"
        );
    }
    let missing = Stage1Objective::new(everything(), None).unwrap_err();
    assert_eq!(missing, ConfigError::PerceptualNetworkMissing(1.0));
}
