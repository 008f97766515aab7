//! A linear map of the rows of `[N, L, C_in]`, `y = x W + b`, and its gradients, `dx = g Wᵀ`, `dW = xᵀ g` and `db = Σ g`.

use rayon::prelude::*;

use super::{
    buffer::filled,
    gemm::{Matrix, product},
    gradients::{Gradients, sum_of},
    simd::multiversion,
};

/// Rows of one task.
const BLOCK: usize = 256;
/// With fewer blocks than this, all threads share each product instead.
const MANY_BLOCKS: usize = 4;
/// Partial sums of the weight gradient of many rows: a constant, so that the number of threads does not change the order of the
/// additions.
const PARTIAL_GRADIENTS: usize = 8;
/// Most elements of a weight whose gradient is summed in parts; beyond it all threads share its product.
const MAX_PARTIAL: usize = 128 * 1024;

/// `images` matrices of `rows` rows each, at `stride` from each other.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) images: usize,
    pub(super) rows: usize,
    pub(super) stride: usize,
    pub(super) first: Matrix<'a>,
}

impl<'a> Rows<'a> {
    /// All rows of `data`, each of `width` elements.
    pub(super) fn contiguous(data: &'a [f32], width: usize) -> Self {
        Self {
            images: 1,
            rows: data.len() / width,
            stride: 0,
            first: Matrix::rows(data, width),
        }
    }

    /// The rows from `row` of an image on.
    fn from(&self, image: usize, row: usize) -> Matrix<'a> {
        Matrix {
            data: &self.first.data[image * self.stride + row * self.first.row..],
            ..self.first
        }
    }

    fn total(&self) -> usize {
        self.images * self.rows
    }
}

/// The result, `[N L, C_out]`: the rows of `x` times `weight`, `[C_in, C_out]`, plus `bias`.
pub(super) fn forward(
    x: Rows<'_>,
    weight: Matrix<'_>,
    [inputs, outputs]: [usize; 2],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let blocks = x.images * x.rows.div_ceil(BLOCK);
    let many = blocks >= MANY_BLOCKS;
    let block = |out: &mut [f32], image: usize, row: usize| {
        let rows = out.len() / outputs;
        if let Some(bias) = bias {
            for row in out.chunks_exact_mut(outputs) {
                row.copy_from_slice(bias);
            }
        }
        let operands = (x.from(image, row), weight);
        product(
            [rows, outputs, inputs],
            out,
            operands,
            1.0,
            bias.is_some(),
            !many,
        );
    };
    let fill = |out: &mut [f32]| {
        if many {
            out.par_chunks_mut(x.rows * outputs)
                .enumerate()
                .flat_map(|(image, out)| {
                    let blocks = out.par_chunks_mut(BLOCK * outputs).enumerate();
                    blocks.map(move |(index, out)| (image, index * BLOCK, out))
                })
                .for_each(|(image, row, out)| block(out, image, row));
        } else {
            for (image, out) in out.chunks_mut(x.rows * outputs).enumerate() {
                block(out, image, 0);
            }
        }
    };
    // SAFETY: the blocks are all of it; without a bias a product only writes, and with one the bias is there before.
    unsafe { filled(x.total() * outputs, fill) }
}

/// The gradients that are `wanted`, from that of the result, `[N L, C_out]`.
pub(super) fn backward(
    x: Rows<'_>,
    weight: Matrix<'_>,
    grad: &[f32],
    [inputs, outputs]: [usize; 2],
    wanted: &Gradients<bool>,
) -> Gradients<Option<Vec<f32>>> {
    let rows = Rows::contiguous(grad, outputs);
    Gradients {
        x: (wanted.x).then(|| forward(rows, weight.transposed(), [outputs, inputs], None)),
        weight: (wanted.weight).then(|| weight_gradient(x, grad, [inputs, outputs])),
        bias: (wanted.bias).then(|| bias_gradient(grad, outputs)),
    }
}

/// `xᵀ g`, `[C_in, C_out]`.
fn weight_gradient(x: Rows<'_>, grad: &[f32], [inputs, outputs]: [usize; 2]) -> Vec<f32> {
    let len = inputs * outputs;
    // Of `count` rows of an image.
    let add =
        |sum: &mut [f32], image: usize, row: usize, count: usize, more: bool, threads: bool| {
            let from = (image * x.rows + row) * outputs;
            let operands = (
                x.from(image, row).transposed(),
                Matrix::rows(&grad[from..from + count * outputs], outputs),
            );
            product([inputs, outputs, count], sum, operands, 1.0, more, threads);
        };
    if len > MAX_PARTIAL || x.total() < PARTIAL_GRADIENTS * BLOCK {
        let fill = |sum: &mut [f32]| {
            for image in 0..x.images {
                add(sum, image, 0, x.rows, image > 0, true);
            }
        };
        // SAFETY: the first product writes all of it.
        return unsafe { filled(len, fill) };
    }
    // Pieces of images, dealt out to the parts in turn of their order.
    let step = x.rows.min(x.total().div_ceil(PARTIAL_GRADIENTS));
    let pieces: Vec<[usize; 2]> = (0..x.images)
        .flat_map(|image| (0..x.rows).step_by(step).map(move |row| [image, row]))
        .collect();
    let parts: Vec<Vec<f32>> = pieces
        .par_chunks(pieces.len().div_ceil(PARTIAL_GRADIENTS))
        .map(|pieces| {
            let fill = |sum: &mut [f32]| {
                for (index, &[image, row]) in pieces.iter().enumerate() {
                    add(sum, image, row, step.min(x.rows - row), index > 0, false);
                }
            };
            // SAFETY: the first product writes all of it.
            unsafe { filled(len, fill) }
        })
        .collect();
    sum_of(parts)
}

/// The sums of the columns.
fn bias_gradient(grad: &[f32], outputs: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = grad
        .par_chunks(BLOCK * outputs)
        .map(|rows| {
            let mut sums = vec![0.0; outputs];
            add_rows(rows, &mut sums);
            sums
        })
        .collect();
    let mut totals = vec![0.0f64; outputs];
    for part in parts {
        for (total, part) in totals.iter_mut().zip(part) {
            *total += f64::from(part);
        }
    }
    totals.into_iter().map(|total| total as f32).collect()
}

multiversion! {
    /// Adds each row to `sums`.
    fn add_rows(rows: &[f32], sums: &mut [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}
