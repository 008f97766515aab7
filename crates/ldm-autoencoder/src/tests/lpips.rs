use burn::prelude::*;

use super::{assert_close, assert_near, scalar, seeded, uniform, values};
use crate::{Lpips, LpipsConfig};

fn small(heads: bool, device: &Device) -> Lpips {
    let config = LpipsConfig {
        channels: [3, 4, 4, 5, 5],
        heads,
    };
    let mut lpips = seeded(config.init(device));
    // Learnt weights are never negative.
    for head in lpips.heads.iter_mut().flatten() {
        head.weight = head.weight.clone().map(Tensor::abs);
    }
    lpips
}

/// The first stage, restated on the host from its features.
fn host_distance(a: &[f32], b: &[f32], channels: usize, weights: &[f32]) -> f32 {
    let pixels = a.len() / channels;
    let unit = |x: &[f32], pixel: usize| -> Vec<f64> {
        let vector: Vec<f64> = (0..channels)
            .map(|c| f64::from(x[c * pixels + pixel]))
            .collect();
        let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-10;
        vector.into_iter().map(|v| v / length).collect()
    };
    let sum: f64 = (0..pixels)
        .map(|pixel| {
            let pairs = unit(a, pixel).into_iter().zip(unit(b, pixel)).zip(weights);
            pairs
                .map(|((a, b), w)| f64::from(*w) * (a - b).powi(2))
                .sum::<f64>()
        })
        .sum();
    (sum / pixels as f64) as f32
}

#[test]
fn a_stage_is_the_weighted_distance_of_unit_features() {
    let device = Device::flex();
    for heads in [false, true] {
        let lpips = small(heads, &device);
        let (a, b) = (
            uniform([1, 3, 16, 24], 1.0, 1),
            uniform([1, 3, 16, 24], 1.0, 2),
        );
        let features = |image: Tensor<4>| {
            let centre =
                Tensor::<1>::from_floats([-0.030, -0.088, -0.188], &device).reshape([1, 3, 1, 1]);
            let scale =
                Tensor::<1>::from_floats([0.458, 0.448, 0.450], &device).reshape([1, 3, 1, 1]);
            let x = (image - centre) / scale;
            let x = burn::tensor::activation::relu(lpips.convs[0].forward(x));
            values(burn::tensor::activation::relu(lpips.convs[1].forward(x)))
        };
        let weights = match &lpips.heads {
            Some(heads) => values(heads[0].weight.val()),
            None => vec![1.0; 3],
        };
        let expected = host_distance(&features(a.clone()), &features(b.clone()), 3, &weights);
        let [first, ..] = lpips.stage_distances(a, b);
        assert_near(scalar(first), expected, 1e-4);
    }
}

#[test]
fn distances_add_up_and_are_symmetric() {
    let lpips = small(false, &Device::flex());
    let (a, b) = (
        uniform([2, 3, 17, 24], 1.0, 1),
        uniform([2, 3, 17, 24], 1.0, 2),
    );
    let total = lpips.forward(a.clone(), b.clone());
    assert_eq!(total.dims(), [2]);
    let stages = lpips.stage_distances(a.clone(), b.clone());
    assert_close(
        stages.into_iter().reduce(|sum, stage| sum + stage).unwrap(),
        total.clone(),
        0.0,
    );
    assert_close(lpips.forward(b, a.clone()), total.clone(), 1e-6);
    assert!(values(total).iter().all(|distance| *distance > 0.0));
    assert_eq!(values(lpips.forward(a.clone(), a)), [0.0, 0.0]);
}

#[test]
fn gradients_reach_the_image_only_and_match_finite_differences() {
    let lpips = small(true, &Device::flex().autodiff());
    let a = uniform([1, 3, 16, 16], 1.0, 3);
    let b = uniform([1, 3, 16, 16], 1.0, 4);
    let leaf = b.clone().autodiff().require_grad();
    let grads = lpips.forward(a.clone(), leaf.clone()).sum().backward();
    let gradient = leaf.grad(&grads).unwrap();
    assert!(burn::optim::GradientsParams::from_grads(grads, &lpips).is_empty());

    // Along the gradient, where the slope is its length.
    let length = scalar(gradient.clone().square().sum().sqrt());
    let direction = gradient.div_scalar(length);
    let plain = lpips.valid();
    let at = |step: f64| {
        let b = b.clone() + direction.clone().mul_scalar(step);
        scalar(plain.forward(a.clone(), b))
    };
    let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
    assert!(length > 0.0);
    assert_near(difference, length, 0.02);
}

#[test]
fn the_gradient_at_features_of_zero_is_finite() {
    // Biases that no input can overcome: every ReLU is shut, every feature vector has length zero.
    let mut lpips = small(false, &Device::flex());
    for conv in &mut lpips.convs {
        conv.bias = conv
            .bias
            .take()
            .map(|bias| bias.map(|bias| bias.full_like(-1e3)));
    }
    let leaf = uniform([1, 3, 16, 16], 1.0, 6).autodiff().require_grad();
    let distance = lpips.forward(uniform([1, 3, 16, 16], 1.0, 7), leaf.clone());
    assert_eq!(scalar(distance.clone()), 0.0);
    let gradient = values(leaf.grad(&distance.sum().backward()).unwrap());
    assert!(gradient.iter().all(|value| value.is_finite()));
}
