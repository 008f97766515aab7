//! Group normalisation against double precision and finite differences.

mod ops_support;

use burn::{
    module::Param,
    nn::{GroupNorm, GroupNormConfig},
    tensor::{Device, Tensor},
};
use ldm_nn::ops;
use ops_support::{assert_close, assert_gradient, tensor, to_vec, values, widen};

/// `[N, C, H, W]` and groups: one pixel, one channel, one group, odd sizes, a channel longer than a summing block.
const SHAPES: [([usize; 4], usize); 8] = [
    ([1, 1, 1, 3], 1),
    ([2, 4, 1, 1], 2),
    ([2, 6, 3, 5], 3),
    ([3, 2, 7, 9], 1),
    ([1, 8, 4, 4], 8),
    ([2, 64, 2, 2], 32),
    ([1, 4, 33, 35], 2),
    ([1, 1, 50, 50], 1),
];
const EPSILON: f64 = 1e-6;

fn norm(gamma: &[f32], beta: &[f32], groups: usize, device: &Device) -> GroupNorm {
    let mut norm = GroupNormConfig::new(groups, gamma.len())
        .with_epsilon(EPSILON)
        .init(device);
    norm.gamma = Some(Param::from_tensor(tensor(gamma, [gamma.len()], device)));
    norm.beta = Some(Param::from_tensor(tensor(beta, [beta.len()], device)));
    norm
}

fn apply(norm: &GroupNorm, x: Tensor<4>, silu: bool) -> Tensor<4> {
    if silu {
        ops::group_norm_silu(norm, x)
    } else {
        ops::group_norm(norm, x)
    }
}

fn reference(
    x: &[f64],
    gamma: &[f64],
    beta: &[f64],
    shape: [usize; 4],
    groups: usize,
    silu: bool,
) -> Vec<f64> {
    let [_, channels, height, width] = shape;
    let len = channels / groups * height * width;
    let mut y = Vec::with_capacity(x.len());
    for group in x.chunks(len) {
        let mean = group.iter().sum::<f64>() / len as f64;
        let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
        for x in group {
            let channel = y.len() / (height * width) % channels;
            let z = (x - mean) / (variance + EPSILON).sqrt() * gamma[channel] + beta[channel];
            y.push(if silu { z / (1.0 + (-z).exp()) } else { z });
        }
    }
    y
}

#[test]
fn forward_matches_double_precision() {
    let device = Device::flex();
    for (shape, groups) in SHAPES {
        // A mean far from zero is where a careless variance cancels.
        let x: Vec<f32> = values(shape.iter().product(), 1)
            .iter()
            .map(|x| 3.0 * x + 40.0)
            .collect();
        let (gamma, beta) = (values(shape[1], 2), values(shape[1], 3));
        for silu in [false, true] {
            let y = apply(
                &norm(&gamma, &beta, groups, &device),
                tensor(&x, shape, &device),
                silu,
            );
            let expected = reference(
                &widen(&x),
                &widen(&gamma),
                &widen(&beta),
                shape,
                groups,
                silu,
            );
            assert_close(
                &to_vec(y),
                &expected,
                1e-5,
                &format!("{shape:?}, {groups} groups, SiLU {silu}"),
            );
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let device = Device::flex().autodiff();
    for (shape, groups) in SHAPES {
        let len = shape.iter().product();
        let (x, weight) = (values(len, 4), values(len, 5));
        let (gamma, beta) = (values(shape[1], 6), values(shape[1], 7));
        for silu in [false, true] {
            let what = format!("{shape:?}, {groups} groups, SiLU {silu}");
            let norm = norm(&gamma, &beta, groups, &device);
            let input = tensor(&x, shape, &device).require_grad();
            let y = apply(&norm, input.clone(), silu);
            let grads = (y * tensor(&weight, shape, &device)).sum().backward();
            let (gamma_param, beta_param) = (
                norm.gamma.expect("affine").val(),
                norm.beta.expect("affine").val(),
            );

            let (x, gamma, beta, weight) = (widen(&x), widen(&gamma), widen(&beta), widen(&weight));
            let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
                reference(x, gamma, beta, shape, groups, silu)
                    .iter()
                    .zip(&weight)
                    .map(|(y, w)| y * w)
                    .sum()
            };
            let gradient = to_vec(input.grad(&grads).expect("tracked"));
            // A group of two or fewer elements has almost no gradient: compare with the scale of the others.
            assert_gradient(
                &|x| loss(x, &gamma, &beta),
                &x,
                &gradient,
                2e-4,
                &format!("x: {what}"),
            );
            let gradient = to_vec(gamma_param.grad(&grads).expect("tracked"));
            assert_gradient(
                &|gamma| loss(&x, gamma, &beta),
                &gamma,
                &gradient,
                1e-4,
                &format!("gamma: {what}"),
            );
            let gradient = to_vec(beta_param.grad(&grads).expect("tracked"));
            assert_gradient(
                &|beta| loss(&x, &gamma, beta),
                &beta,
                &gradient,
                1e-4,
                &format!("beta: {what}"),
            );
        }
    }
}

#[test]
fn a_view_is_normalised_like_its_copy() {
    let device = Device::flex();
    let x = tensor(&values(2 * 6 * 3 * 5, 8), [2, 3, 5, 6], &device).permute([0, 3, 1, 2]);
    let copy = tensor(&to_vec(x.clone()), [2, 6, 3, 5], &device);
    let norm = norm(&values(6, 9), &values(6, 10), 3, &device);
    assert_eq!(
        to_vec(ops::group_norm_silu(&norm, x)),
        to_vec(ops::group_norm_silu(&norm, copy))
    );
}
