//! GEGLU against double precision and finite differences.

mod ops_support;

use burn::tensor::{Device, Tensor};
use ldm_nn::ops;
use ops_support::{assert_close, assert_gradient, tensor, to_vec, values, widen};

/// `[N, L, C]` of the output: one column, sizes that fill no lanes, more rows than a task takes.
const SHAPES: [[usize; 3]; 4] = [[1, 9, 1], [2, 3, 5], [1, 7, 33], [3, 700, 16]];

/// The standard normal distribution by Simpson's rule on its density.
fn normal_distribution(x: f64) -> f64 {
    const STEPS: usize = 200;
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = x / STEPS as f64;
    let inner: f64 = (1..STEPS)
        .map(|i| density(i as f64 * step) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    0.5 + step / 3.0 * (density(0.0) + inner + density(x))
}

fn reference(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks(2 * width)
        .flat_map(|row| {
            (0..width).map(|i| row[i] * row[width + i] * normal_distribution(row[width + i]))
        })
        .collect()
}

fn input([n, length, width]: [usize; 3]) -> Vec<f32> {
    let scaled = values(n * length * 2 * width, 1);
    scaled.iter().map(|value| 2.5 * value).collect()
}

#[test]
fn forward_matches_double_precision() {
    let device = Device::flex();
    for shape in SHAPES {
        let [n, length, width] = shape;
        let x = input(shape);
        let y = ops::geglu(tensor(&x, [n, length, 2 * width], &device));
        assert_eq!(y.dims(), shape);
        assert_close(
            &to_vec(y),
            &reference(&widen(&x), width),
            1e-6,
            &format!("{shape:?}"),
        );
    }
}

#[test]
fn gradient_matches_finite_differences() {
    let device = Device::flex().autodiff();
    for shape in SHAPES.into_iter().take(3) {
        let [n, length, width] = shape;
        let (x, weight) = (input(shape), values(n * length * width, 2));
        let tracked: Tensor<3> = tensor(&x, [n, length, 2 * width], &device).require_grad();
        let grads = (ops::geglu(tracked.clone()) * tensor(&weight, shape, &device))
            .sum()
            .backward();
        let gradient = to_vec(tracked.grad(&grads).expect("tracked"));
        let weight = widen(&weight);
        let loss = |x: &[f64]| -> f64 {
            reference(x, width)
                .iter()
                .zip(&weight)
                .map(|(y, weight)| y * weight)
                .sum()
        };
        assert_gradient(&loss, &widen(&x), &gradient, 1e-5, &format!("{shape:?}"));
    }
}

#[test]
fn far_tails_are_linear_and_zero() {
    let x = tensor(
        &[3.0, 3.0, 3.0, 30.0, -30.0, 1e4],
        [1, 1, 6],
        &Device::flex(),
    );
    assert_close(&to_vec(ops::geglu(x)), &[90.0, 0.0, 3e4], 1e-6, "tails");
}
