//! Group normalisation, optionally followed by SiLU, in one pass over `[N, C, H, W]` each way.
//!
//! With the mean `m` and the reciprocal deviation `r` of a group, `x̂ = (x - m) r`, `z = γ x̂ + β` and `y = z` or
//! `z σ(z)`. The backward pass takes `g = dy/dz · dL/dy` and gives, with means over the group,
//! `dx = r (γ g - mean(γ g) - x̂ mean(γ g x̂))`, `dγ = Σ g x̂`, `dβ = Σ g`.

use rayon::prelude::*;

use super::simd::{LANES, Stats, exp, mul_add, multiversion, sigmoid, sum_of_lanes};
use super::{buffer::filled, gradients::Gradients};

/// What the rows of a `[N, C, H, W]` tensor mean to the normalisation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    /// Channels of the tensor.
    pub(super) channels: usize,
    /// Channels that share a mean and a deviation.
    pub(super) channels_per_group: usize,
    /// Elements of one channel, `H * W`.
    pub(super) pixels: usize,
}

impl Groups {
    fn len(&self) -> usize {
        self.channels_per_group * self.pixels
    }

    /// The channels of the `index`-th group of the batch.
    fn channels_of(&self, index: usize) -> std::ops::Range<usize> {
        let first = index * self.channels_per_group % self.channels;
        first..first + self.channels_per_group
    }
}

/// Normalises `x`, and applies SiLU if `silu`; returns the result and what the backward pass needs.
pub(super) fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    groups: Groups,
    epsilon: f64,
    silu: bool,
) -> (Vec<f32>, Vec<Stats>) {
    let len = groups.len();
    let mut stats = vec![Stats::default(); x.len() / len];
    let fill = |y: &mut [f32]| {
        y.par_chunks_mut(len)
            .zip(x.par_chunks(len))
            .zip(stats.par_iter_mut())
            .enumerate()
            .for_each(|(index, ((y, x), stats))| {
                *stats = Stats::of(x, epsilon);
                let channels = groups.channels_of(index);
                let affine = (&gamma[channels.clone()], &beta[channels]);
                normalize_group(x, y, affine, *stats, groups.pixels, silu);
            });
    };
    // SAFETY: the groups are all of it, and are only written.
    let y = unsafe { filled(x.len(), fill) };
    (y, stats)
}

/// Propagates `grad`, the gradient with respect to the result of [`forward`].
pub(super) fn backward(
    x: &[f32],
    grad: &[f32],
    (gamma, beta): (&[f32], &[f32]),
    stats: &[Stats],
    groups: Groups,
    silu: bool,
) -> Gradients<Option<Vec<f32>>> {
    let len = groups.len();
    // Sums of one channel of one image: `[Σ g, Σ g x̂]`.
    let mut sums = vec![[0.0f64; 2]; x.len() / groups.pixels];
    let fill = |dx: &mut [f32]| {
        dx.par_chunks_mut(len)
            .zip(x.par_chunks(len).zip(grad.par_chunks(len)))
            .zip(sums.par_chunks_mut(groups.channels_per_group))
            .enumerate()
            .for_each(|(index, ((dx, (x, grad)), sums))| {
                let channels = groups.channels_of(index);
                let affine = (&gamma[channels.clone()], &beta[channels]);
                backward_group(x, grad, dx, affine, stats[index], silu, sums);
            });
    };
    // SAFETY: the groups are all of it, and each element is written before it is read.
    let dx = unsafe { filled(x.len(), fill) };

    let mut totals = vec![[0.0f64; 2]; groups.channels];
    for image in sums.chunks(groups.channels) {
        for (total, sum) in totals.iter_mut().zip(image) {
            total[0] += sum[0];
            total[1] += sum[1];
        }
    }
    Gradients {
        x: Some(dx),
        weight: Some(totals.iter().map(|total| total[1] as f32).collect()),
        bias: Some(totals.iter().map(|total| total[0] as f32).collect()),
    }
}

multiversion! {
    fn normalize_group(
        x: &[f32], y: &mut [f32], affine: (&[f32], &[f32]), stats: Stats, pixels: usize, silu: bool,
    ) {
        let rows = x.chunks_exact(pixels).zip(y.chunks_exact_mut(pixels));
        for ((x, y), (&gamma, &beta)) in rows.zip(affine.0.iter().zip(affine.1)) {
            let scale = gamma * stats.rstd;
            let shift = beta - stats.mean * scale;
            if silu {
                for (y, &x) in y.iter_mut().zip(x) {
                    let z = mul_add::<FMA>(x, scale, shift);
                    *y = z / (1.0 + exp::<FMA>(-z));
                }
            } else {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = mul_add::<FMA>(x, scale, shift);
                }
            }
        }
    }
}

multiversion! {
    fn backward_group(
        x: &[f32], grad: &[f32], dx: &mut [f32], affine: (&[f32], &[f32]), stats: Stats, silu: bool,
        sums: &mut [[f64; 2]],
    ) {
        let pixels = x.len() / sums.len();
        let Stats { mean, rstd } = stats;
        let (mut mean_g, mut mean_gx) = (0.0, 0.0);
        // `dx` holds `g` until the means over the whole group are known.
        for (channel, sums) in sums.iter_mut().enumerate() {
            let row = channel * pixels..(channel + 1) * pixels;
            let (gamma, beta) = (affine.0[channel], affine.1[channel]);
            for block in row.clone().step_by(64 * LANES) {
                let block = block..row.end.min(block + 64 * LANES);
                let (x, grad, g) = (&x[block.clone()], &grad[block.clone()], &mut dx[block]);
                if silu {
                    for ((g, &x), &grad) in g.iter_mut().zip(x).zip(grad) {
                        let z = mul_add::<FMA>((x - mean) * rstd, gamma, beta);
                        let s = sigmoid::<FMA>(z);
                        *g = grad * s * mul_add::<FMA>(z, 1.0 - s, 1.0);
                    }
                } else {
                    g.copy_from_slice(grad);
                }
                let [sum_g, sum_gx] = sums_of_block::<FMA>(g, x, mean);
                sums[0] += sum_g;
                sums[1] += sum_gx * f64::from(rstd);
            }
            mean_g += f64::from(gamma) * sums[0];
            mean_gx += f64::from(gamma) * sums[1];
        }
        let len = x.len() as f64;
        let from_g = (mean_g / len) as f32 * rstd;
        let from_x = (mean_gx / len) as f32 * rstd * rstd;
        for (channel, (x, dx)) in x.chunks_exact(pixels).zip(dx.chunks_exact_mut(pixels)).enumerate() {
            let scale = affine.0[channel] * rstd;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = mul_add::<FMA>(x - mean, -from_x, mul_add::<FMA>(*dx, scale, -from_g));
            }
        }
    }
}

/// `[Σ g, Σ g (x - mean)]` of a block short enough for `f32` lanes.
#[inline(always)]
fn sums_of_block<const FMA: bool>(g: &[f32], x: &[f32], mean: f32) -> [f64; 2] {
    let mut lanes = [[0.0f32; LANES]; 2];
    let (g_lanes, g_rest) = g.as_chunks::<LANES>();
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    for (g, x) in g_lanes.iter().zip(x_lanes) {
        for lane in 0..LANES {
            lanes[0][lane] += g[lane];
            lanes[1][lane] = mul_add::<FMA>(g[lane], x[lane] - mean, lanes[1][lane]);
        }
    }
    for (lane, (g, x)) in g_rest.iter().zip(x_rest).enumerate() {
        lanes[0][lane] += g;
        lanes[1][lane] = mul_add::<FMA>(*g, x - mean, lanes[1][lane]);
    }
    [sum_of_lanes(&lanes[0]), sum_of_lanes(&lanes[1])]
}
