//! Linear maps against double precision.

mod ops_support;

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{Device, Tensor},
};
use ldm_nn::ops;
use ops_support::{assert_close, tensor, to_vec, values, widen};

/// `[N, L]`, `C_in` and `C_out`: one row, one column, odd sizes, blocks and a rest of rows, sums of the weight gradient in parts, and
/// a weight too large for those.
const SHAPES: [([usize; 2], [usize; 2]); 8] = [
    ([1, 1], [1, 1]),
    ([2, 3], [5, 7]),
    ([1, 77], [33, 1]),
    ([1, 300], [1, 20]),
    ([4, 257], [24, 40]),
    ([1, 1500], [17, 9]),
    ([9, 300], [16, 24]),
    ([2, 1100], [400, 360]),
];

fn linear(weight: &[f32], bias: &[f32], [inputs, outputs]: [usize; 2], device: &Device) -> Linear {
    let config = LinearConfig::new(inputs, outputs).with_bias(!bias.is_empty());
    let mut linear = config.init(device);
    linear.weight = Param::from_tensor(tensor(weight, [inputs, outputs], device));
    if !bias.is_empty() {
        linear.bias = Some(Param::from_tensor(tensor(bias, [outputs], device)));
    }
    linear
}

/// `lhs rhs` of `[m, k]` and `[k, n]`.
fn product(lhs: &[f64], rhs: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for (row, out) in lhs.chunks(k).zip(out.chunks_mut(n)) {
        for (x, rhs) in row.iter().zip(rhs.chunks(n)) {
            for (out, y) in out.iter_mut().zip(rhs) {
                *out += x * y;
            }
        }
    }
    out
}

fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns)
        .flat_map(|column| x.iter().skip(column).step_by(columns).copied())
        .collect()
}

#[test]
fn results_and_gradients_match_double_precision() {
    let device = Device::flex().autodiff();
    for ([images, length], [inputs, outputs]) in SHAPES {
        let rows = images * length;
        let (x, weight) = (values(rows * inputs, 1), values(inputs * outputs, 2));
        let grad = values(rows * outputs, 3);
        for bias in [Vec::new(), values(outputs, 4)] {
            let what = format!(
                "[{images}, {length}, {inputs}] to {outputs}, {} biases",
                bias.len()
            );
            let linear = linear(&weight, &bias, [inputs, outputs], &device);
            let input = tensor(&x, [images, length, inputs], &device).require_grad();
            let y = ops::linear(&linear, input.clone());
            let loss = y.clone() * tensor(&grad, [images, length, outputs], &device);
            let grads = loss.sum().backward();

            let (x, weight, grad) = (widen(&x), widen(&weight), widen(&grad));
            let mut expected = product(&x, &weight, [rows, inputs, outputs]);
            for row in expected.chunks_mut(outputs) {
                for (y, bias) in row.iter_mut().zip(&bias) {
                    *y += f64::from(*bias);
                }
            }
            assert_close(&to_vec(y), &expected, 1e-5, &what);
            let expected = product(
                &grad,
                &transposed(&weight, outputs),
                [rows, outputs, inputs],
            );
            let found = to_vec(input.grad(&grads).expect("tracked"));
            assert_close(&found, &expected, 1e-5, &format!("x: {what}"));
            let expected = product(&transposed(&x, inputs), &grad, [inputs, rows, outputs]);
            let found = to_vec(linear.weight.val().grad(&grads).expect("tracked"));
            assert_close(&found, &expected, 1e-5, &format!("weight: {what}"));
            if let Some(bias) = linear.bias {
                let expected = product(&vec![1.0; rows], &grad, [1, rows, outputs]);
                let found = to_vec(bias.val().grad(&grads).expect("tracked"));
                assert_close(&found, &expected, 1e-5, &format!("bias: {what}"));
            }
        }
    }
}

#[test]
fn views_are_mapped_like_their_copies() {
    let device = Device::flex().autodiff();
    let weight = values(6 * 10, 5);
    let run = |x: Tensor<3>, linear: &Linear| {
        let x = x.require_grad();
        let y = ops::linear(linear, x.clone());
        let grads = y.clone().powi_scalar(3).sum().backward();
        let gradients = [
            to_vec(x.grad(&grads).expect("tracked")),
            to_vec(linear.weight.val().grad(&grads).expect("tracked")),
        ];
        (to_vec(y), gradients)
    };
    // Pixels as tokens, and a weight stored the other way round.
    let image = tensor(&values(3 * 6 * 50, 6), [3, 6, 50], &device);
    let view = image.swap_dims(1, 2);
    let copy = tensor(&to_vec(view.clone()), [3, 50, 6], &device);
    let plain = linear(&weight, &[], [6, 10], &device);
    let expected = run(copy, &plain).0;
    let (found, gradients) = run(view, &plain);
    assert_close(&found, &widen(&expected), 1e-6, "tokens");
    let mut turned = plain.clone();
    let stored = tensor(&to_vec(plain.weight.val().transpose()), [10, 6], &device);
    turned.weight = Param::from_tensor(stored.transpose());
    let image = tensor(&values(3 * 6 * 50, 6), [3, 6, 50], &device);
    let (again, of_turned) = run(image.swap_dims(1, 2), &turned);
    assert_close(&again, &widen(&expected), 1e-6, "a turned weight");
    for (found, expected) in of_turned.iter().zip(&gradients) {
        assert_close(found, &widen(expected), 1e-5, "its gradients");
    }
}

#[test]
fn any_number_of_axes_before_the_last() {
    let device = Device::flex();
    let linear = linear(&values(4 * 3, 7), &values(3, 8), [4, 3], &device);
    let x = values(2 * 5 * 6 * 4, 9);
    let expected = to_vec(ops::linear(&linear, tensor(&x, [60, 4], &device)));
    let y = ops::linear(&linear, tensor(&x, [2, 5, 6, 4], &device));
    assert_eq!(y.dims(), [2, 5, 6, 3]);
    assert_eq!(to_vec(y), expected);
}
