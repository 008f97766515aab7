//! The learnt log-variance of the observation model.

use burn::prelude::*;

use super::{
    assert_near, gradient_norms,
    objective::{SIDE, autoencoder, discriminator, everything, noise, objective},
    pictures, scalar, seeded, uniform,
};
use crate::{Autoencoder, GeneratorStep, PatchDiscriminator, Stage1LossConfig, VqModelConfig};

fn variable(value: f64) -> Tensor<1> {
    Tensor::from_data([value as f32], &Device::flex())
        .autodiff()
        .require_grad()
}

/// A step at a given log-variance, which is a variable if `learnt`.
fn step<M: Autoencoder>(
    (model, discriminator): (&M, &PatchDiscriminator),
    config: Stage1LossConfig,
    at: f64,
    learnt: bool,
) -> GeneratorStep {
    let images = pictures(2, SIDE);
    if learnt {
        objective(config).generator_with_logvar(
            model,
            Some(discriminator),
            images,
            noise(),
            0,
            Some(variable(at)),
        )
    } else {
        let config = Stage1LossConfig {
            logvar: at,
            ..config
        };
        objective(config).generator(model, Some(discriminator), images, noise(), 0)
    }
}

/// Every number and gradient is that of a constant of the same value, and the variable's own gradient is the objective's slope.
fn check<M: Autoencoder>(model: &M) {
    let (config, at) = (everything(), 0.3);
    let networks = (model, &discriminator());
    let learnt = step(networks, config, at, true);
    let constant = step(networks, config, at, false);
    assert!(constant.logvar_grad.is_none());
    for (found, expected) in [
        (learnt.terms.total, constant.terms.total),
        (learnt.terms.nll, constant.terms.nll),
        (learnt.terms.rec, constant.terms.rec),
    ] {
        assert_near(found, expected, 1e-5);
    }
    assert_near(learnt.terms.d_weight, constant.terms.d_weight, 1e-4);
    let expected = gradient_norms(model, &constant.grads);
    let largest = expected.values().copied().fold(0.0, f32::max);
    let found = gradient_norms(model, &learnt.grads);
    assert_eq!(found.len(), expected.len());
    for (path, expected) in expected {
        assert!(
            (found[&path] - expected).abs() <= 1e-4 * expected + 1e-5 * largest,
            "{path}"
        );
    }

    // The adaptive weight is a constant of the objective, so its slope is the likelihood's.
    let nll = |at| f64::from(step(networks, config, at, false).terms.nll);
    let slope = (nll(at + 0.01) - nll(at - 0.01)) / 0.02;
    assert_near(scalar(learnt.logvar_grad.unwrap()), slope as f32, 1e-3);
}

#[test]
fn its_gradient_is_the_slope_of_the_likelihood_beside_a_posterior() {
    check(&autoencoder());
}

#[test]
fn its_gradient_is_the_slope_of_the_likelihood_beside_a_codebook() {
    let config = VqModelConfig {
        norm_num_groups: 4,
        ..VqModelConfig::new(vec![8, 8], 4, 16, 0)
    };
    check(&seeded(config.init(&Device::flex().autodiff())));
}

/// `d/ds (d / e^s + s)` is 0 where `e^s` is the mean distance of an element.
#[test]
fn it_rests_where_the_variance_is_the_mean_distance() {
    let (model, discriminator) = (autoencoder(), discriminator());
    let (networks, config) = ((&model, &discriminator), everything());
    let terms = step(networks, config, 0.0, false).terms;
    let best = f64::from(terms.rec + terms.perceptual).ln();
    let elements = (3 * SIDE * SIDE) as f32;
    let gradient = |at| scalar(step(networks, config, at, true).logvar_grad.unwrap()) / elements;
    assert!(gradient(best).abs() < 1e-4, "{}", gradient(best));
    assert!(gradient(best - 1.0) < -1.0 && gradient(best + 1.0) > 0.5);
}

#[test]
fn nothing_else_gets_its_gradient() {
    let logvar = variable(0.1);
    let model = autoencoder();
    let images = uniform([1, 3, SIDE, SIDE], 1.0, 3);
    let noise = uniform([1, 4, SIDE / 2, SIDE / 2], 1.0, 4);
    let config = Stage1LossConfig {
        disc_weight: 0.0,
        ..everything()
    };
    let step =
        objective(config).generator_with_logvar(&model, None, images, noise, 0, Some(logvar));
    assert_eq!(step.logvar_grad.unwrap().dims(), [1]);
    assert!(step.codebook.is_none());
}
