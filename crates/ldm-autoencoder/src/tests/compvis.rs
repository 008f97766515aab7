//! Against CompVis' autoencoder loss (`tests/fixtures/compvis/losses`), without its perceptual network, which is too big a file.

use std::collections::BTreeMap;

use burn::{optim::GradientsParams, prelude::*};

use super::{
    Expected, assert_close, assert_near, assert_relative, fixture, gradient_norms, load,
    load_compvis,
};
use crate::{
    AutoencoderKl, AutoencoderKlConfig, DiscriminatorLoss, PatchDiscriminator,
    PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective, weights,
};

const SCALARS: f32 = 2e-4;

pub(crate) fn expected() -> Expected {
    Expected::load("compvis/losses/expected.safetensors")
}

pub(crate) fn autoencoder(device: &Device) -> AutoencoderKl {
    let config = AutoencoderKlConfig::new(vec![32, 64, 32], 3, 0);
    let mut model = config.init(device);
    let path = "compvis/autoencoder-kl-f4/first_stage.safetensors";
    load_compvis(&mut model, path, &config.compvis_keys());
    model
}

pub(crate) fn discriminator(device: &Device) -> PatchDiscriminator {
    let config = PatchDiscriminatorConfig {
        channels: 12,
        ..PatchDiscriminatorConfig::default()
    };
    let mut model = config.init(device);
    let path = "compvis/losses/discriminator.safetensors";
    load(
        &mut model,
        path,
        weights::DISCRIMINATOR_KEY_MAP,
        "num_batches_tracked",
    );
    model
}

/// The likelihood's and the adversarial gradient at the reconstruction.
///
/// The stored gradients also hold the two passes for the adaptive weight, because PyTorch's `retain_grad` accumulates over
/// every pass: `before = 2 nll + adversarial` and `after = before + d_weight * adversarial`.
pub(crate) fn reconstruction_gradients(expected: &Expected) -> (Tensor<4>, Tensor<4>) {
    let before = expected.tensor::<4>("gen.before.grad_reconstruction");
    let after = expected.tensor::<4>("gen.after.grad_reconstruction");
    let adversarial = (after - before.clone()).div_scalar(expected.scalar("gen.after.d_weight"));
    let nll = (before - adversarial.clone()).div_scalar(2.0);
    (nll, adversarial)
}

fn objective(disc_loss: DiscriminatorLoss) -> Stage1Objective {
    let config = Stage1LossConfig {
        perceptual_weight: 0.0,
        disc_start: 3,
        disc_loss,
        watch_before_start: true,
        ..Stage1LossConfig::default()
    };
    Stage1Objective::new(config, None).unwrap()
}

/// The log-variance among the parameters of [`norms`].
const LOGVAR: &str = "loss.logvar";

/// The norm of each parameter's gradient in a run.
fn norms(run: &str) -> BTreeMap<String, f32> {
    let json = std::fs::read(fixture("compvis/losses/grad_norms.json")).unwrap();
    let mut runs: BTreeMap<String, BTreeMap<String, f32>> = serde_json::from_slice(&json).unwrap();
    runs.remove(run).unwrap()
}

/// Compares the gradients of the networks.
fn assert_norms(found: &BTreeMap<String, f32>, run: &str) {
    let mut expected = norms(run);
    expected.remove(LOGVAR);
    let largest = expected.values().copied().fold(0.0, f32::max);
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        let error = (found[&name] - expected).abs();
        assert!(
            error <= 5e-3 * expected + 1e-4 * largest,
            "{run} {name}: {} not {expected}",
            found[&name]
        );
    }
}

fn assert_running_statistics(discriminator: &PatchDiscriminator, expected: &Expected, run: &str) {
    for (layer, index) in [(1, 3), (2, 6), (3, 9)] {
        let norm = discriminator.layers[layer].norm.as_ref().unwrap();
        let key = |name| format!("{run}.disc_after.main.{index}.{name}");
        assert_close(
            norm.running_mean.value(),
            expected.tensor(&key("running_mean")),
            1e-5,
        );
        assert_close(
            norm.running_var.value(),
            expected.tensor(&key("running_var")),
            1e-5,
        );
    }
}

/// The generator's runs: name, step, constant log-variance, weight of the KL divergence.
const RUNS: [(&str, u64, f64, f64); 4] = [
    ("gen.before", 2, 0.0, 1e-6),
    ("gen.after", 3, 0.0, 1e-6),
    ("gen.after_logvar", 10, 0.25, 1e-6),
    ("gen.kl_weight_1", 0, 0.0, 1.0),
];

#[test]
fn the_generators_terms_are_the_references() {
    let device = Device::flex().autodiff();
    let expected = expected();
    let model = autoencoder(&device);
    for (run, at, logvar, kl_weight) in RUNS {
        let discriminator = discriminator(&device);
        let config = Stage1LossConfig {
            logvar,
            kl_weight,
            ..*objective(DiscriminatorLoss::Hinge).config()
        };
        let step = Stage1Objective::new(config, None).unwrap().generator(
            &model,
            Some(&discriminator),
            expected.tensor("image"),
            expected.tensor("noise"),
            at,
        );
        let term = |term: &str| expected.scalar(&format!("{run}.{term}"));
        // The perceptual distance counts once for each of an image's elements.
        let distances = expected.tensor::<1>(&format!("{run}.p_loss"));
        let perceptual = super::scalar(distances.mean());
        let [_, c, h, w] = step.reconstruction.dims();
        let nll = step.terms.nll + perceptual * (c * h * w) as f32 / logvar.exp() as f32;

        assert_close(step.reconstruction, expected.tensor("reconstruction"), 2e-4);
        assert_near(step.terms.rec + perceptual, term("rec_loss"), SCALARS);
        assert_near(nll, term("nll_loss"), SCALARS);
        assert_near(step.terms.kl, term("kl_loss"), SCALARS);
        assert_near(step.terms.g_loss, term("g_loss"), SCALARS);
        assert_eq!(step.terms.logits_fake, -step.terms.g_loss);
        assert_eq!(step.terms.disc_factor, term("disc_factor"));
        assert_running_statistics(&discriminator, &expected, "gen");
    }
}

#[test]
fn the_reconstructions_gradient_reaches_every_parameter_as_in_the_reference() {
    let device = Device::flex().autodiff();
    let expected = expected();
    let model = autoencoder(&device);
    let (nll, adversarial) = reconstruction_gradients(&expected);
    for (run, _, logvar, kl_weight) in RUNS {
        let posterior = model.encode(expected.tensor("image"));
        let reconstruction = model.decode(posterior.sample(expected.tensor("noise")));
        let term = |term: &str| expected.scalar(&format!("{run}.{term}"));
        let gradient = nll.clone().div_scalar(logvar.exp())
            + adversarial
                .clone()
                .mul_scalar(term("d_weight") * term("disc_factor"));
        let kl = posterior.kl().sum().mul_scalar(kl_weight / 2.0);
        let grads = ((reconstruction * gradient).sum() + kl).backward();
        let grads = GradientsParams::from_grads(grads, &model);
        assert_norms(&gradient_norms(&model, &grads), run);
        for (part, weight) in [
            ("decoder.conv_out", &model.decoder.conv_out.weight),
            ("encoder.conv_in", &model.encoder.conv_in.weight),
        ] {
            if ["gen.before", "gen.after"].contains(&run) {
                assert_relative(
                    grads.get::<4>(weight.id).unwrap(),
                    expected.tensor(&format!("{run}.grad.{part}.weight")),
                    1e-2,
                );
            }
        }
    }
}

#[test]
fn the_log_variances_gradient_is_the_references() {
    let device = Device::flex().autodiff();
    let expected = expected();
    let model = autoencoder(&device);
    for (run, at, logvar, kl_weight) in RUNS {
        let config = Stage1LossConfig {
            kl_weight,
            ..*objective(DiscriminatorLoss::Hinge).config()
        };
        let step = Stage1Objective::new(config, None)
            .unwrap()
            .generator_with_logvar(
                &model,
                Some(&discriminator(&device)),
                expected.tensor("image"),
                expected.tensor("noise"),
                at,
                Some(Tensor::from_floats([logvar as f32], &Device::flex())),
            );
        // The perceptual distance counts once for each of an image's elements.
        let distances = expected.tensor::<1>(&format!("{run}.p_loss"));
        let [_, c, h, w] = step.reconstruction.dims();
        let elements = (c * h * w) as f32;
        let perceptual = super::scalar(distances.mean()) * elements / logvar.exp() as f32;
        let found = super::scalar(step.logvar_grad.unwrap()) - perceptual;
        // The elements minus the likelihood, which are nearly equal.
        let error = (found.abs() - norms(run)[LOGVAR]).abs() / elements;
        assert!(error < SCALARS, "{run}: {found}, {error}");
    }
}

#[test]
fn logits_are_the_references_in_both_modes() {
    let expected = expected();
    let model = discriminator(&Device::flex().autodiff());
    let images = || expected.tensor::<4>("image");
    assert_close(
        model.valid().forward(images()),
        expected.tensor("nlayer.eval.logits"),
        SCALARS,
    );
    assert_close(
        model.forward(images()).inner(),
        expected.tensor("nlayer.train.logits"),
        SCALARS,
    );
}

#[test]
fn the_discriminators_step_is_the_references() {
    let device = Device::flex().autodiff();
    let expected = expected();
    let losses = [
        (DiscriminatorLoss::Hinge, "hinge"),
        (DiscriminatorLoss::Vanilla, "vanilla"),
    ];
    for (loss, name) in losses {
        for (when, step) in [("before", 2), ("after", 3)] {
            let discriminator = discriminator(&device);
            let found = objective(loss)
                .discriminator(
                    &discriminator,
                    expected.tensor("image"),
                    expected.tensor("reconstruction"),
                    step,
                )
                .expect("the adversarial part is on");
            let term = |term| expected.scalar(&format!("disc.{name}.{when}.{term}"));
            assert_near(found.terms.loss, term("disc_loss"), SCALARS);
            assert_near(found.terms.logits_real, term("logits_real"), SCALARS);
            assert_near(found.terms.logits_fake, term("logits_fake"), SCALARS);
            assert_running_statistics(&discriminator, &expected, "disc");
            if when == "before" {
                assert!(found.grads.is_empty());
                continue;
            }
            let norms = gradient_norms(&discriminator, &found.grads);
            let norms = norms
                .into_iter()
                .map(|(path, norm)| (compvis_name(&path), norm))
                .collect();
            assert_norms(&norms, &format!("disc.{name}.after"));
            if loss == DiscriminatorLoss::Hinge {
                let gradient = found
                    .grads
                    .get::<4>(discriminator.layers[0].conv.weight.id)
                    .unwrap();
                assert_relative(
                    gradient,
                    expected.tensor("disc.hinge.after.grad.main.0.weight"),
                    1e-2,
                );
            }
        }
    }
}

/// Applies [`weights::DISCRIMINATOR_KEY_MAP_OUT`], whose patterns are prefixes with escaped dots.
fn compvis_name(path: &str) -> String {
    weights::DISCRIMINATOR_KEY_MAP_OUT
        .iter()
        .find_map(|(pattern, name)| {
            let prefix = pattern.trim_start_matches('^').replace('\\', "");
            path.strip_prefix(&prefix)
                .map(|rest| format!("{name}{rest}"))
        })
        .expect("every path is in the map")
}
