//! Layer normalisation against double precision and finite differences.

mod ops_support;

use burn::{
    module::Param,
    tensor::{Device, Tensor},
};
use ldm_nn::{LayerNorm, ops};
use ops_support::{assert_close, assert_gradient, tensor, to_vec, values, widen};

/// `[N, L, C]`: few elements, one less than two lanes, odd widths, rows of several tasks, a row longer than a summing block.
const SHAPES: [[usize; 3]; 7] = [
    [1, 1, 3],
    [2, 3, 5],
    [1, 7, 31],
    [2, 4, 64],
    [3, 70, 96],
    [1, 300, 129],
    [1, 2, 1500],
];
const EPSILON: f64 = 1e-5;

fn norm(gamma: &[f32], beta: &[f32], device: &Device) -> LayerNorm {
    let mut norm = LayerNorm::new(gamma.len(), EPSILON, device);
    norm.gamma = Param::from_tensor(tensor(gamma, [gamma.len()], device));
    norm.beta = Param::from_tensor(tensor(beta, [beta.len()], device));
    norm
}

fn reference(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let width = gamma.len();
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let affine = gamma.iter().zip(beta);
        let normal = row.iter().map(|x| (x - mean) / (variance + EPSILON).sqrt());
        y.extend(
            normal
                .zip(affine)
                .map(|(x, (gamma, beta))| x * gamma + beta),
        );
    }
    y
}

#[test]
fn forward_matches_double_precision() {
    let device = Device::flex();
    for shape in SHAPES {
        // A mean far from zero is where a careless variance cancels.
        let x: Vec<f32> = values(shape.iter().product(), 1)
            .iter()
            .map(|x| 3.0 * x + 40.0)
            .collect();
        let (gamma, beta) = (values(shape[2], 2), values(shape[2], 3));
        let y = ops::layer_norm(&norm(&gamma, &beta, &device), tensor(&x, shape, &device));
        let expected = reference(&widen(&x), &widen(&gamma), &widen(&beta));
        assert_close(&to_vec(y), &expected, 1e-5, &format!("{shape:?}"));
    }
}

#[test]
fn gradients_match_finite_differences() {
    let device = Device::flex().autodiff();
    for shape in SHAPES {
        let len = shape.iter().product();
        let (x, weight) = (values(len, 4), values(len, 5));
        let (gamma, beta) = (values(shape[2], 6), values(shape[2], 7));
        let norm = norm(&gamma, &beta, &device);
        let input = tensor(&x, shape, &device).require_grad();
        let y = norm.forward(input.clone());
        let grads = (y * tensor(&weight, shape, &device)).sum().backward();

        let (x, gamma, beta, weight) = (widen(&x), widen(&gamma), widen(&beta), widen(&weight));
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
            let y = reference(x, gamma, beta);
            y.iter().zip(&weight).map(|(y, w)| y * w).sum()
        };
        let gradient = |of: &Tensor<1>| to_vec(of.grad(&grads).expect("tracked"));
        assert_gradient(
            &|x| loss(x, &gamma, &beta),
            &x,
            &to_vec(input.grad(&grads).expect("tracked")),
            2e-4,
            &format!("x: {shape:?}"),
        );
        assert_gradient(
            &|gamma| loss(&x, gamma, &beta),
            &gamma,
            &gradient(&norm.gamma.val()),
            1e-4,
            &format!("gamma: {shape:?}"),
        );
        assert_gradient(
            &|beta| loss(&x, &gamma, beta),
            &beta,
            &gradient(&norm.beta.val()),
            1e-4,
            &format!("beta: {shape:?}"),
        );
    }
}

#[test]
fn training_and_inference_round_alike() {
    let shape = [2, 9, 40];
    let apply = |device: &Device| {
        let norm = norm(&values(40, 8), &values(40, 9), device);
        let x = tensor(&values(2 * 9 * 40, 10), shape, device);
        to_vec(norm.forward(x))
    };
    assert_eq!(apply(&Device::flex()), apply(&Device::flex().autodiff()));
}
