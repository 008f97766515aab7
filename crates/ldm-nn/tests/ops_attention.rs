//! Attention against double precision and finite differences.

mod ops_support;

use burn::tensor::{Device, Tensor};
use ldm_nn::ops;
use ops_support::{assert_close, assert_gradient, tensor, to_vec, values, widen};

/// `[batch, heads, queries, keys, width]`: one of each, sizes that fill neither lanes nor blocks, few and many heads.
const SIZES: [[usize; 5]; 7] = [
    [1, 1, 1, 1, 1],
    [2, 3, 5, 7, 4],
    [1, 2, 50, 17, 16],
    [2, 4, 16, 16, 16],
    [1, 1, 130, 33, 20],
    [3, 4, 49, 77, 5],
    [1, 1, 9, 40, 48],
];

fn reference(q: &[f64], k: &[f64], v: &[f64], sizes: [usize; 5]) -> Vec<f64> {
    let [batch, heads, queries, keys, width] = sizes;
    let mut out = vec![0.0; batch * heads * queries * width];
    for (at, out) in out.chunks_mut(width).enumerate() {
        let head = at / queries;
        let q = &q[at * width..(at + 1) * width];
        let rows = |x: &'_ [f64], key: usize| x[(head * keys + key) * width..][..width].to_vec();
        let scores: Vec<f64> = (0..keys)
            .map(|key| {
                q.iter().zip(rows(k, key)).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()
            })
            .collect();
        let max = scores
            .iter()
            .fold(f64::NEG_INFINITY, |max, &score| max.max(score));
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for (key, score) in scores.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(rows(v, key)) {
                *out += (score - max).exp() / sum * v;
            }
        }
    }
    out
}

/// Queries, keys and values.
fn inputs(sizes: [usize; 5]) -> [Vec<f32>; 3] {
    let [batch, heads, queries, keys, width] = sizes;
    let scaled = |length: usize, seed: u64| {
        values(batch * heads * length * width, seed)
            .iter()
            .map(|value| 1.5 * value)
            .collect()
    };
    [scaled(queries, 1), scaled(keys, 2), scaled(keys, 3)]
}

#[test]
fn forward_matches_double_precision() {
    let device = Device::flex();
    for sizes in SIZES {
        let [batch, heads, queries, keys, width] = sizes;
        let [q, k, v] = inputs(sizes);
        let expected = reference(&widen(&q), &widen(&k), &widen(&v), sizes);
        let (long, short) = ([batch, heads, queries, width], [batch, heads, keys, width]);
        let out = ops::attention(
            tensor(&q, long, &device),
            tensor(&k, short, &device),
            tensor(&v, short, &device),
        );
        assert_eq!(out.dims(), long);
        assert_close(&to_vec(out), &expected, 1e-5, &format!("{sizes:?}"));
    }
}

#[test]
fn gradients_match_finite_differences() {
    let device = Device::flex().autodiff();
    for sizes in SIZES {
        let [batch, heads, queries, keys, width] = sizes;
        let [q, k, v] = inputs(sizes);
        let weight = values(batch * heads * queries * width, 4);
        let (long, short) = ([batch, heads, queries, width], [batch, heads, keys, width]);
        let tracked = [(&q, long), (&k, short), (&v, short)]
            .map(|(values, shape)| tensor(values, shape, &device).require_grad());
        let [tq, tk, tv] = tracked.clone();
        let out = ops::attention(tq, tk, tv);
        let grads = (out * tensor(&weight, long, &device)).sum().backward();
        let gradients = tracked.map(|input| to_vec(input.grad(&grads).expect("tracked")));

        let inputs = [widen(&q), widen(&k), widen(&v)];
        let weight = widen(&weight);
        for (place, name) in ["q", "k", "v"].into_iter().enumerate() {
            let loss = |moved: &[f64]| -> f64 {
                let mut inputs = inputs.clone();
                inputs[place] = moved.to_vec();
                let [q, k, v] = &inputs;
                reference(q, k, v, sizes)
                    .iter()
                    .zip(&weight)
                    .map(|(out, weight)| out * weight)
                    .sum()
            };
            assert_gradient(
                &loss,
                &inputs[place],
                &gradients[place],
                1e-4,
                &format!("{name}: {sizes:?}"),
            );
        }
    }
}

#[test]
fn views_attend_like_their_copies() {
    let device = Device::flex();
    let view = |length: usize, seed: u64| -> Tensor<4> {
        tensor(
            &values(2 * length * 3 * 8, seed),
            [2, length, 3, 8],
            &device,
        )
        .swap_dims(1, 2)
    };
    let copy = |view: &Tensor<4>| tensor(&to_vec(view.clone()), view.dims(), &device);
    let (q, k, v) = (view(10, 5), view(21, 6), view(21, 7));
    let expected = to_vec(ops::attention(copy(&q), copy(&k), copy(&v)));
    assert_eq!(to_vec(ops::attention(q, k, v)), expected);
}

#[test]
fn large_scores_do_not_overflow() {
    let device = Device::flex();
    let shape = [1, 1, 4, 16];
    let q = tensor(&values(64, 8), shape, &device) * 1e4;
    let out = to_vec(ops::attention(
        q.clone(),
        q.clone(),
        tensor(&values(64, 9), shape, &device),
    ));
    // Every query's largest score is its own: one key takes all the weight.
    assert_close(&out, &widen(&values(64, 9)), 1e-5, "one-hot");
}
