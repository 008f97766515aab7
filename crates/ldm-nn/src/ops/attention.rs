//! Scaled dot-product attention and its gradients, a block of queries at a time.
//!
//! One task takes one head of one image, or a share of its queries where there are few heads. It holds the weights of
//! [`BLOCK`] queries, never more: the backward pass recomputes them from the logarithm of each query's sum of
//! exponentials. With `P = softmax(s Q Kᵀ)` and `O = P V`: `dV = Pᵀ dO`, `dP = dO Vᵀ`,
//! `dS = s P ⊙ (dP - rowsum(P ⊙ dP))`, `dQ = dS K`, `dK = dSᵀ Q`.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    buffer::filled,
    gemm::{Matrix, Panels, small_product},
    shared::SharedSlice,
    simd::{LANES, exp, multiversion},
    transpose::transpose_lanes,
};

/// Queries whose weights a task holds at a time.
const BLOCK: usize = 48;
/// Keys whose products are summed before the next ones': their rows stay in a core's own cache while all rows of a block use them.
const KEY_BLOCK: usize = 256;
/// With fewer heads than this in the batch, each one's queries are shared among tasks.
const MANY_HEADS: usize = 8;
/// Most shares of one head's queries: a constant, so that the number of threads does not change the result.
const SHARES: usize = 8;

/// Sizes of an attention; the queries are `[batch, heads, queries, width]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) width: usize,
}

/// A tensor `[batch, heads, length, width]` with any strides but along its width.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) data: &'a [f32],
    /// Distance between images, heads and rows.
    pub(super) strides: [usize; 3],
}

/// Gradients with respect to queries, keys and values, in the layout of [`forward`]'s output.
pub(super) struct Gradients {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

impl<'a> Heads<'a> {
    /// The rows of one head of one image.
    fn rows(&self, image: usize, head: usize) -> Matrix<'a> {
        let [image_stride, head_stride, row] = self.strides;
        Matrix {
            data: &self.data[image * image_stride + head * head_stride..],
            row,
            column: 1,
        }
    }
}

impl Sizes {
    fn scale(&self) -> f32 {
        (1.0 / (self.width as f64).sqrt()) as f32
    }

    fn padded_width(&self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    fn padded_keys(&self) -> usize {
        self.keys.next_multiple_of(LANES)
    }

    /// Distance of the rows of scores: not that of a page, or the scores of one key would all compete for one set of the cache.
    fn score_stride(&self) -> usize {
        self.padded_keys() + LANES
    }

    /// The first key and the number of keys of each [`KEY_BLOCK`].
    fn key_blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let keys = self.keys;
        (0..keys)
            .step_by(KEY_BLOCK)
            .map(move |first| (first, KEY_BLOCK.min(keys - first)))
    }

    /// Queries of one task, whole blocks.
    fn share(&self) -> usize {
        let shares = if self.batch * self.heads >= MANY_HEADS {
            1
        } else {
            SHARES
        };
        self.queries.div_ceil(shares).next_multiple_of(BLOCK)
    }

    /// Image, head and queries of every task.
    fn tasks(&self) -> Vec<Task> {
        let share = self.share();
        (0..self.batch * self.heads)
            .flat_map(|index| {
                (0..self.queries).step_by(share).map(move |first| Task {
                    image: index / self.heads,
                    head: index % self.heads,
                    queries: [first, self.queries.min(first + share)],
                })
            })
            .collect()
    }

    /// Where a row of the output, `[batch, length, heads, width]`, starts.
    fn row(&self, task: &Task, length: usize, index: usize) -> usize {
        ((task.image * length + index) * self.heads + task.head) * self.width
    }
}

struct Task {
    image: usize,
    head: usize,
    queries: [usize; 2],
}

impl Task {
    /// First query and number of queries of each block.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let [first, end] = self.queries;
        (first..end)
            .step_by(BLOCK)
            .map(move |start| (start, BLOCK.min(end - start)))
    }
}

/// Keys or values laid out for the products of each head: by each task for itself, or once where several share a head.
struct Prepared<'a> {
    sizes: Sizes,
    x: Heads<'a>,
    layout: fn(Matrix<'_>, usize, usize) -> Vec<f32>,
    all: Option<Vec<Vec<f32>>>,
}

impl<'a> Prepared<'a> {
    fn new(sizes: Sizes, x: Heads<'a>, layout: fn(Matrix<'_>, usize, usize) -> Vec<f32>) -> Self {
        let all = (sizes.share() < sizes.queries).then(|| {
            (0..sizes.batch * sizes.heads)
                .into_par_iter()
                .map(|index| {
                    let rows = x.rows(index / sizes.heads, index % sizes.heads);
                    layout(rows, sizes.keys, sizes.width)
                })
                .collect()
        });
        Self {
            sizes,
            x,
            layout,
            all,
        }
    }

    fn of(&self, task: &Task) -> Cow<'_, [f32]> {
        let Sizes {
            heads, keys, width, ..
        } = self.sizes;
        match &self.all {
            Some(all) => Cow::Borrowed(&all[task.image * heads + task.head]),
            None => Cow::Owned((self.layout)(
                self.x.rows(task.image, task.head),
                keys,
                width,
            )),
        }
    }
}

/// The output, `[batch, queries, heads, width]`, and the log-sum-exp of each query's scores, `[tasks][queries]`.
pub(super) fn forward(sizes: Sizes, [q, k, v]: [Heads<'_>; 3]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (width, keys, stride) = (
        sizes.padded_width(),
        sizes.padded_keys(),
        sizes.score_stride(),
    );
    let (k, v) = (
        Prepared::new(sizes, k, transposed_panels),
        Prepared::new(sizes, v, padded_rows),
    );
    let mut log_sums = Vec::new();
    let fill = |out: &mut [f32]| {
        let shared = SharedSlice::new(out);
        log_sums = sizes
            .tasks()
            .into_par_iter()
            .map_init(
                || {
                    (
                        vec![0.0; BLOCK * stride],
                        vec![0.0; BLOCK * width],
                        Vec::with_capacity(BLOCK),
                    )
                },
                |(weights, sums, denominators), task| {
                    let q = q.rows(task.image, task.head);
                    let (k, v) = (k.of(&task), v.of(&task));
                    let mut log_sums = Vec::with_capacity(task.queries[1] - task.queries[0]);
                    for (first, count) in task.blocks() {
                        let q = Matrix {
                            data: &q.data[first * q.row..],
                            ..q
                        };
                        let panels = Panels {
                            data: &k,
                            panel: sizes.width * LANES,
                            step: LANES,
                        };
                        small_product(
                            [count, keys / LANES, sizes.width],
                            weights,
                            stride,
                            q,
                            panels,
                            false,
                        );
                        denominators.clear();
                        let scores = &mut weights[..count * stride];
                        softmax(
                            scores,
                            stride,
                            sizes.keys,
                            sizes.scale(),
                            denominators,
                            &mut log_sums,
                        );
                        for (first_key, keys) in sizes.key_blocks() {
                            let panels = Panels {
                                data: &v[first_key * width..],
                                panel: LANES,
                                step: width,
                            };
                            small_product(
                                [count, width / LANES, keys],
                                sums,
                                width,
                                Matrix::rows(&weights[first_key..], stride),
                                panels,
                                first_key > 0,
                            );
                        }
                        for (row, denominator) in denominators.iter().enumerate() {
                            let sums = &mut sums[row * width..row * width + sizes.width];
                            sums.iter_mut().for_each(|sum| *sum /= denominator);
                            // SAFETY: this query of this head of this image is this task's alone.
                            unsafe {
                                shared.write(sizes.row(&task, sizes.queries, first + row), sums)
                            };
                        }
                    }
                    log_sums
                },
            )
            .collect();
    };
    let token = sizes.heads * sizes.width;
    // SAFETY: every query of every head is a task's, which writes it.
    let out = unsafe { filled(sizes.batch * sizes.queries * token, fill) };
    (out, log_sums)
}

/// Propagates `grad`, the gradient with respect to [`forward`]'s output.
pub(super) fn backward(
    sizes: Sizes,
    [q, k, v]: [Heads<'_>; 3],
    grad: Heads<'_>,
    log_sums: &[Vec<f32>],
) -> Gradients {
    let (width, keys, stride) = (
        sizes.padded_width(),
        sizes.padded_keys(),
        sizes.score_stride(),
    );
    let k_transposed = Prepared::new(sizes, k, transposed_panels);
    let v_transposed = Prepared::new(sizes, v, transposed_panels);
    let k_rows = Prepared::new(sizes, k, padded_rows);
    let token = sizes.heads * sizes.width;
    let mut gradients = Gradients {
        q: vec![0.0; sizes.batch * sizes.queries * token],
        k: vec![0.0; sizes.batch * sizes.keys * token],
        v: vec![0.0; sizes.batch * sizes.keys * token],
    };
    let tasks = sizes.tasks();
    let shared_q = SharedSlice::new(&mut gradients.q);
    let partial: Vec<[Vec<f32>; 2]> = tasks
        .par_iter()
        .zip(log_sums)
        .map_init(
            || {
                [
                    vec![0.0; BLOCK * stride],
                    vec![0.0; BLOCK * stride],
                    vec![0.0; BLOCK * width],
                ]
            },
            |[weights, slopes, dq], (task, log_sums)| {
                let (q, grad) = (
                    q.rows(task.image, task.head),
                    grad.rows(task.image, task.head),
                );
                let (k_transposed, v_transposed) = (k_transposed.of(task), v_transposed.of(task));
                let k = k_rows.of(task);
                let [mut dk, mut dv] =
                    [vec![0.0; sizes.keys * width], vec![0.0; sizes.keys * width]];
                for ((first, count), log_sums) in task.blocks().zip(log_sums.chunks(BLOCK)) {
                    let block = |rows: Matrix<'_>| {
                        padded_rows(
                            Matrix {
                                data: &rows.data[first * rows.row..],
                                ..rows
                            },
                            count,
                            sizes.width,
                        )
                    };
                    let (q, grad) = (block(q), block(grad));
                    let to_keys = [count, keys / LANES, sizes.width];
                    let across = |data| Panels {
                        data,
                        panel: sizes.width * LANES,
                        step: LANES,
                    };
                    let along = |data| Panels {
                        data,
                        panel: LANES,
                        step: width,
                    };
                    small_product(
                        to_keys,
                        weights,
                        stride,
                        Matrix::rows(&q, width),
                        across(&k_transposed),
                        false,
                    );
                    small_product(
                        to_keys,
                        slopes,
                        stride,
                        Matrix::rows(&grad, width),
                        across(&v_transposed),
                        false,
                    );
                    softmax_backward(weights, slopes, stride, sizes.keys, log_sums, sizes.scale());

                    let to_inputs = [sizes.keys, width / LANES, count];
                    let transposed = |rows| Matrix::rows(rows, stride).transposed();
                    small_product(
                        to_inputs,
                        &mut dv,
                        width,
                        transposed(weights),
                        along(&grad),
                        true,
                    );
                    small_product(
                        to_inputs,
                        &mut dk,
                        width,
                        transposed(slopes),
                        along(&q),
                        true,
                    );
                    for (first_key, keys) in sizes.key_blocks() {
                        small_product(
                            [count, width / LANES, keys],
                            dq,
                            width,
                            Matrix::rows(&slopes[first_key..], stride),
                            along(&k[first_key * width..]),
                            first_key > 0,
                        );
                    }
                    for (row, dq) in dq.chunks_exact(width).enumerate().take(count) {
                        // SAFETY: this query of this head of this image is this task's alone.
                        unsafe {
                            shared_q.write(
                                sizes.row(task, sizes.queries, first + row),
                                &dq[..sizes.width],
                            );
                        }
                    }
                }
                [dk, dv]
            },
        )
        .collect();
    let image_len = sizes.keys * token;
    let images = gradients.k.par_chunks_mut(image_len);
    images
        .zip(gradients.v.par_chunks_mut(image_len))
        .enumerate()
        .for_each(|(image, (image_dk, image_dv))| {
            let parts = tasks.iter().zip(&partial);
            for (task, [dk, dv]) in parts.filter(|(task, _)| task.image == image) {
                for key in 0..sizes.keys {
                    let start = sizes.row(task, sizes.keys, key) - image * image_len;
                    for (total, part) in [(&mut *image_dk, dk), (&mut *image_dv, dv)] {
                        let total = &mut total[start..start + sizes.width];
                        for (total, part) in total.iter_mut().zip(&part[key * width..]) {
                            *total += part;
                        }
                    }
                }
            }
        });
    gradients
}

/// Rows padded with zeros to whole lanes.
fn padded_rows(rows: Matrix<'_>, count: usize, width: usize) -> Vec<f32> {
    let padded = width.next_multiple_of(LANES);
    let mut out = vec![0.0; count * padded];
    for (row, out) in out.chunks_exact_mut(padded).enumerate() {
        out[..width].copy_from_slice(&rows.data[row * rows.row..row * rows.row + width]);
    }
    out
}

/// The transpose of rows in panels of [`LANES`] rows, `[panels, width, LANES]`, the last padded with zeros.
fn transposed_panels(rows: Matrix<'_>, count: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; count.next_multiple_of(LANES) * width];
    for (panel, out) in out.chunks_exact_mut(width * LANES).enumerate() {
        let first = panel * LANES;
        let panel = &rows.data[first * rows.row..];
        let shape = [LANES.min(count - first), width];
        transpose_lanes(panel, rows.row, out, LANES, shape);
    }
    out
}

multiversion! {
    /// Turns rows of scores into `exp(scale (score - max))`; appends their sums and log-sum-exps.
    fn softmax(scores: &mut [f32], stride: usize, keys: usize, scale: f32, sums: &mut Vec<f32>, log_sums: &mut Vec<f32>) {
        // Loops, not iterator chains: a closure that is not inlined would be compiled for the baseline.
        for row in scores.chunks_exact_mut(stride) {
            let (lanes, rest) = row[..keys].as_chunks_mut::<LANES>();
            let mut maxima = [f32::NEG_INFINITY; LANES];
            for chunk in lanes.iter() {
                for (max, &value) in maxima.iter_mut().zip(chunk) {
                    *max = if value > *max { value } else { *max };
                }
            }
            let mut max = f32::NEG_INFINITY;
            for &value in maxima.iter().chain(rest.iter()) {
                max = if value > max { value } else { max };
            }
            let shift = -max * scale;
            let mut lane_sums = [0.0f32; LANES];
            for chunk in lanes.iter_mut() {
                for (sum, value) in lane_sums.iter_mut().zip(chunk) {
                    *value = exp::<FMA>(*value * scale + shift);
                    *sum += *value;
                }
            }
            for (sum, value) in lane_sums.iter_mut().zip(rest) {
                *value = exp::<FMA>(*value * scale + shift);
                *sum += *value;
            }
            let sum: f32 = lane_sums.iter().sum();
            sums.push(sum);
            log_sums.push(sum.ln() - shift);
        }
    }
}

multiversion! {
    /// Turns rows of scores into weights, and the gradients of the weights into those of the unscaled scores.
    fn softmax_backward(
        scores: &mut [f32], grads: &mut [f32], stride: usize, keys: usize, log_sums: &[f32], scale: f32,
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(grads.chunks_exact_mut(stride));
        for ((scores, grads), &log_sum) in rows.zip(log_sums) {
            let (weights, grads) = (&mut scores[..keys], &mut grads[..keys]);
            let mut sums = [0.0f32; LANES];
            {
                let (weight_lanes, weight_rest) = weights.as_chunks_mut::<LANES>();
                let (grad_lanes, grad_rest) = grads.as_chunks::<LANES>();
                for (weights, grads) in weight_lanes.iter_mut().zip(grad_lanes) {
                    for ((sum, weight), grad) in sums.iter_mut().zip(weights).zip(grads) {
                        *weight = exp::<FMA>(*weight * scale - log_sum);
                        *sum += *weight * grad;
                    }
                }
                for ((sum, weight), grad) in sums.iter_mut().zip(weight_rest).zip(grad_rest) {
                    *weight = exp::<FMA>(*weight * scale - log_sum);
                    *sum += *weight * grad;
                }
            }
            let mean: f32 = sums.iter().sum();
            for (weight, grad) in weights.iter().zip(grads) {
                *grad = (*grad - mean) * *weight * scale;
            }
        }
    }
}
