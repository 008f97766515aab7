//! GEGLU (Shazeer 2020), `value * gelu(gate)` of rows `[value | gate]`, and its gradient, each in one pass.
//!
//! `gelu(g) = g Φ(g)` with the exact normal distribution function, whose derivative is `Φ(g) + g φ(g)`. One exponential
//! serves both: `φ(g) = exp(-g² / 2) / sqrt(2 π)`, and Abramowitz & Stegun's 7.1.26 has `Φ` to 1e-7 from it.

use rayon::prelude::*;

use super::{
    buffer::filled,
    simd::{exp, mul_add, multiversion},
};

/// Elements that make a task.
const TASK: usize = 16 * 1024;

/// The activation of rows of `2 * width` elements: rows of `width`.
pub(super) fn forward(x: &[f32], width: usize) -> Vec<f32> {
    let rows = (TASK / width).max(1);
    let fill = |y: &mut [f32]| {
        y.par_chunks_mut(rows * width)
            .zip(x.par_chunks(rows * 2 * width))
            .for_each(|(y, x)| forward_rows(x, y, width));
    };
    // SAFETY: the rows are all of it, and are only written.
    unsafe { filled(x.len() / 2, fill) }
}

/// The gradient of `x` from that of the activation.
pub(super) fn backward(x: &[f32], grad: &[f32], width: usize) -> Vec<f32> {
    let rows = (TASK / width).max(1);
    let fill = |dx: &mut [f32]| {
        dx.par_chunks_mut(rows * 2 * width)
            .zip(x.par_chunks(rows * 2 * width))
            .zip(grad.par_chunks(rows * width))
            .for_each(|((dx, x), grad)| backward_rows(x, grad, dx, width));
    };
    // SAFETY: the rows are all of it, and are only written.
    unsafe { filled(x.len(), fill) }
}

multiversion! {
    fn forward_rows(x: &[f32], y: &mut [f32], width: usize) {
        for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (values, gates) = x.split_at(width);
            for ((y, &value), &gate) in y.iter_mut().zip(values).zip(gates) {
                let [distribution, _] = normal::<FMA>(gate);
                *y = value * gate * distribution;
            }
        }
    }
}

multiversion! {
    fn backward_rows(x: &[f32], grad: &[f32], dx: &mut [f32], width: usize) {
        let rows = x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width));
        for ((x, dx), grad) in rows.zip(grad.chunks_exact(width)) {
            let (values, gates) = x.split_at(width);
            let (d_values, d_gates) = dx.split_at_mut(width);
            let inputs = values.iter().zip(gates).zip(grad);
            for ((d_value, d_gate), ((&value, &gate), &grad)) in d_values.iter_mut().zip(d_gates).zip(inputs) {
                let [distribution, density] = normal::<FMA>(gate);
                *d_value = grad * gate * distribution;
                *d_gate = grad * value * mul_add::<FMA>(gate, density, distribution);
            }
        }
    }
}

/// The standard normal distribution and density, `[Φ(x), φ(x)]`.
#[inline(always)]
fn normal<const FMA: bool>(x: f32) -> [f32; 2] {
    const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;
    let bell = exp::<FMA>(-0.5 * x * x);
    // `1 / (1 + p |x| / sqrt(2))`, and half the polynomial of the error function.
    let t = 1.0 / mul_add::<FMA>(x.abs(), 0.231_641_89, 1.0);
    let mut polynomial = mul_add::<FMA>(t, 0.530_702_7, -0.726_576);
    polynomial = mul_add::<FMA>(polynomial, t, 0.710_706_9);
    polynomial = mul_add::<FMA>(polynomial, t, -0.142_248_37);
    polynomial = mul_add::<FMA>(polynomial, t, 0.127_414_8);
    let tail = polynomial * t * bell;
    [
        if x < 0.0 { tail } else { 1.0 - tail },
        bell * INVERSE_SQRT_2_PI,
    ]
}
