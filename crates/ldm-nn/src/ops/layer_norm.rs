//! Layer normalisation of the rows of `[N, L, C]`, in one pass each way.
//!
//! With the mean `m` and the reciprocal deviation `r` of a row, `x̂ = (x - m) r` and `y = γ x̂ + β`. From `g = dL/dy` the backward pass
//! gives, with means over the row, `dx = r (γ g - mean(γ g) - x̂ mean(γ g x̂))`, and with sums over all rows `dγ = Σ g x̂`, `dβ = Σ g`.

use rayon::prelude::*;

use super::simd::{LANES, Stats, mul_add, multiversion, sum_of_lanes};
use super::{buffer::filled, gradients::Gradients};

/// Elements that make a task.
const TASK: usize = 16 * 1024;

/// Normalises rows as long as `gamma`; returns the result and what the backward pass needs of each row.
pub(super) fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f64,
) -> (Vec<f32>, Vec<Stats>) {
    let width = gamma.len();
    let rows = (TASK / width).max(1);
    let mut stats = vec![Stats::default(); x.len() / width];
    let fill = |y: &mut [f32]| {
        y.par_chunks_mut(rows * width)
            .zip(x.par_chunks(rows * width))
            .zip(stats.par_chunks_mut(rows))
            .for_each(|((y, x), stats)| normalize_rows(x, y, (gamma, beta), stats, epsilon));
    };
    // SAFETY: the rows are all of it, and are only written.
    let y = unsafe { filled(x.len(), fill) };
    (y, stats)
}

/// Propagates `grad`, the gradient with respect to the result of [`forward`].
pub(super) fn backward(
    x: &[f32],
    grad: &[f32],
    gamma: &[f32],
    stats: &[Stats],
) -> Gradients<Option<Vec<f32>>> {
    let width = gamma.len();
    let rows = (TASK / width).max(1);
    // Of each task `[dγ | dβ]`.
    let mut sums = vec![0.0f32; stats.len().div_ceil(rows) * 2 * width];
    let fill = |dx: &mut [f32]| {
        dx.par_chunks_mut(rows * width)
            .zip(
                x.par_chunks(rows * width)
                    .zip(grad.par_chunks(rows * width)),
            )
            .zip(stats.par_chunks(rows).zip(sums.par_chunks_mut(2 * width)))
            .for_each(|((dx, (x, grad)), (stats, sums))| {
                backward_rows(x, grad, dx, gamma, stats, sums);
            });
    };
    // SAFETY: the rows are all of it, and each element is written before it is read.
    let dx = unsafe { filled(x.len(), fill) };

    let mut totals = vec![0.0f64; 2 * width];
    for task in sums.chunks(2 * width) {
        for (total, &sum) in totals.iter_mut().zip(task) {
            *total += f64::from(sum);
        }
    }
    let mut gamma: Vec<f32> = totals.into_iter().map(|total| total as f32).collect();
    let beta = gamma.split_off(width);
    Gradients {
        x: Some(dx),
        weight: Some(gamma),
        bias: Some(beta),
    }
}

multiversion! {
    fn normalize_rows(
        x: &[f32], y: &mut [f32], affine: (&[f32], &[f32]), stats: &mut [Stats], epsilon: f64,
    ) {
        let width = affine.0.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), stats) in rows.zip(stats) {
            *stats = Stats::of(x, epsilon);
            let Stats { mean, rstd } = *stats;
            for ((y, &x), (&gamma, &beta)) in y.iter_mut().zip(x).zip(affine.0.iter().zip(affine.1)) {
                *y = mul_add::<FMA>((x - mean) * rstd, gamma, beta);
            }
        }
    }
}

multiversion! {
    fn backward_rows(
        x: &[f32], grad: &[f32], dx: &mut [f32], gamma: &[f32], stats: &[Stats], sums: &mut [f32],
    ) {
        let width = gamma.len();
        let (d_gamma, d_beta) = sums.split_at_mut(width);
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, grad), dx), &Stats { mean, rstd }) in rows.zip(stats) {
            // `dx` holds `x̂` until the means over the row are known.
            for ((dx, &x), (&g, (d_gamma, d_beta))) in
                dx.iter_mut().zip(x).zip(grad.iter().zip(d_gamma.iter_mut().zip(d_beta.iter_mut())))
            {
                *dx = (x - mean) * rstd;
                *d_gamma = mul_add::<FMA>(g, *dx, *d_gamma);
                *d_beta += g;
            }
            let [mean_g, mean_gx] = sums_of_row::<FMA>(grad, gamma, dx).map(|sum| (sum / width as f64) as f32);
            for ((dx, &g), &gamma) in dx.iter_mut().zip(grad).zip(gamma) {
                *dx = rstd * mul_add::<FMA>(*dx, -mean_gx, mul_add::<FMA>(g, gamma, -mean_g));
            }
        }
    }
}

/// `[Σ γ g, Σ γ g x̂]` of a row.
#[inline(always)]
fn sums_of_row<const FMA: bool>(g: &[f32], gamma: &[f32], x_hat: &[f32]) -> [f64; 2] {
    let mut lanes = [[0.0f32; LANES]; 2];
    let (g_lanes, g_rest) = g.as_chunks::<LANES>();
    let (gamma_lanes, gamma_rest) = gamma.as_chunks::<LANES>();
    let (x_lanes, x_rest) = x_hat.as_chunks::<LANES>();
    for ((g, gamma), x) in g_lanes.iter().zip(gamma_lanes).zip(x_lanes) {
        for lane in 0..LANES {
            let scaled = g[lane] * gamma[lane];
            lanes[0][lane] += scaled;
            lanes[1][lane] = mul_add::<FMA>(scaled, x[lane], lanes[1][lane]);
        }
    }
    for (lane, ((g, gamma), x)) in g_rest.iter().zip(gamma_rest).zip(x_rest).enumerate() {
        lanes[0][lane] += g * gamma;
        lanes[1][lane] = mul_add::<FMA>(g * gamma, *x, lanes[1][lane]);
    }
    [sum_of_lanes(&lanes[0]), sum_of_lanes(&lanes[1])]
}
