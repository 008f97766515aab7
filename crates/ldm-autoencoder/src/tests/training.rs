//! Steps taken: both networks learn, and what a step leaves behind.

use burn::{optim::AdamConfig, prelude::*};

use super::{
    assert_close, gradient_norms,
    objective::{SIDE, autoencoder, discriminator, everything, noise, objective, run},
    pictures, scalar, uniform,
};
use crate::{DiscriminatorLoss, Stage1LossConfig};

#[test]
fn the_generators_step_leaves_the_discriminator_trainable() {
    let discriminator = discriminator();
    run(&objective(everything()), &autoencoder(), &discriminator, 0);
    let step = objective(everything())
        .discriminator(&discriminator, pictures(2, SIDE), noise_images(), 0)
        .unwrap();
    // Three norms' scales and shifts, five weights, two biases.
    assert_eq!(gradient_norms(&discriminator, &step.grads).len(), 13);
}

fn noise_images() -> Tensor<4> {
    uniform([2, 3, SIDE, SIDE], 1.0, 11)
}

#[test]
fn the_discriminator_learns_to_tell_images_from_noise() {
    for disc_loss in [DiscriminatorLoss::Hinge, DiscriminatorLoss::Vanilla] {
        let objective = objective(Stage1LossConfig {
            disc_loss,
            ..everything()
        });
        let mut optimizer = AdamConfig::new().with_beta_1(0.5).init();
        let mut discriminator = discriminator();
        let mut losses = Vec::new();
        let mut accuracy = 0.0;
        for _ in 0..15 {
            let step = objective
                .discriminator(&discriminator, pictures(2, SIDE), noise_images(), 0)
                .unwrap();
            losses.push(step.terms.loss);
            accuracy = step.terms.accuracy;
            discriminator = optimizer.step(2e-3, discriminator, step.grads);
        }
        assert!(losses[14] < 0.5 * losses[0], "{losses:?}");
        assert!(accuracy > 0.95, "{accuracy}");
    }
}

#[test]
fn overfits_one_batch() {
    let config = Stage1LossConfig {
        kl_weight: 1e-6,
        disc_weight: 0.0,
        ..everything()
    };
    let objective = objective(config);
    let mut optimizer = AdamConfig::new().init();
    let mut model = autoencoder();
    let mut losses = Vec::new();
    for step in 0..60 {
        let step = objective.generator(&model, None, pictures(2, SIDE), noise(), step);
        losses.push(step.terms.rec);
        model = optimizer.step(4e-3, model, step.grads);
    }
    assert!(losses[59] < 0.4 * losses[0], "{losses:?}");
}

#[test]
fn running_statistics_are_saved_with_the_step_that_made_them() {
    let discriminator = discriminator();
    discriminator.forward(pictures(2, SIDE));
    let norm = discriminator.layers[1].norm.as_ref().unwrap();
    assert_close(
        norm.running_mean.value(),
        norm.running_mean.value_sync(),
        0.0,
    );
    assert!(scalar(norm.running_var.value().sub_scalar(1.0).abs().sum()) > 0.0);
}
