//! 3x3 convolution of stride 1 and padding 1 by Winograd's F(4x4, 3x3) (Lavin & Gray 2016), and its weight gradient.
//!
//! A tile of 4x4 outputs `Y = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A` takes 36 multiplications a channel instead of 144: over
//! all tiles and channels they are 36 matrix products, one a frequency. The weight gradient is the adjoint,
//! `dg = Gᵀ [ Σ_tiles (A dY Aᵀ) ⊙ (Bᵀ d B) ] G`. Activations are first laid out with the channels innermost and padded
//! to whole lanes, so that each transform works on [`LANES`] channels at once and writes what the products read.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{
    avx512,
    simd::{Level, level},
};
use super::{
    buffer::filled,
    gemm::{Matrix, Panels, small_product},
    scratch::with_scratch,
    shared::SharedSlice,
    simd::{LANES, multiversion},
};
use layout::{ChannelsLast, padded};
use transforms::{Lane, both_axes, filter_adjoint, fused, plain, store};

pub(super) use kernels::Kernels;
pub(super) use layout::{Images, Square, with_channels_last};
#[cfg(target_arch = "x86_64")]
pub(super) use transforms::transforms;

mod kernels;
mod layout;
mod transforms;

/// Weights of a kernel.
const TAPS: usize = 9;
/// Outputs along one side of a tile.
const TILE: usize = 4;
/// Inputs along one side of a tile.
const PATCH: usize = TILE + 2;
/// Matrix products.
const FREQUENCIES: usize = PATCH * PATCH;
/// Most tiles that one task of the forward pass takes: their transforms should stay in a core's own cache.
const MAX_BLOCK: usize = 48;
/// Fewest tiles worth a task.
const MIN_BLOCK: usize = 12;
/// Outputs of a task of the weight gradient.
const GRADIENT_ROWS: usize = 12;
/// Blocks of tiles that are transformed before the weight gradient's products consume them.
const GRADIENT_BLOCKS: usize = 8;

/// Most input channels that a product sums before it adds to what others have: the transformed kernels of a panel that it reads should stay
/// in a core's own cache. All convolutions sum in the same pieces, so that they round alike.
const MAX_DEPTH: usize = 256;

/// The length of [`pieces`] but perhaps the last.
fn depth(inputs: usize) -> usize {
    padded(inputs.div_ceil(inputs.div_ceil(MAX_DEPTH)))
}

/// The input channels, in pieces of about one length, of whole lanes but for the last.
fn pieces(inputs: usize) -> impl Iterator<Item = Range<usize>> {
    let depth = depth(inputs);
    (0..inputs)
        .step_by(depth)
        .map(move |start| start..inputs.min(start + depth))
}

/// Distance of the frequencies, of `len` elements each: were it a multiple of a page's length, which powers of two make it, the lines that
/// one transform touches would all compete for one set of the cache.
fn spread(len: usize) -> usize {
    len + LANES
}

/// Convolves `x`: `[N, C_out, H, W]`.
pub(super) fn convolve(
    x: ChannelsLast<'_>,
    kernels: &Kernels<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    assert_eq!(x.channels, kernels.inputs);
    // Whatever is larger, transformed tiles or transformed kernels, is made once and used at once.
    let fill = |y: &mut [f32]| match x.images.tiles() <= kernels.outputs {
        true => convolve_by_panels(x, kernels, bias, &SharedSlice::new(y)),
        false => convolve_by_blocks(x, kernels, bias, &SharedSlice::new(y)),
    };
    let pixels = x.images.height * x.images.width;
    // SAFETY: tiles and panels partition the output, and are only written.
    unsafe { filled(x.images.count * kernels.outputs * pixels, fill) }
}

/// Transforms all kernels, then takes block after block of tiles through the whole algorithm.
fn convolve_by_blocks(
    x: ChannelsLast<'_>,
    kernels: &Kernels<'_>,
    bias: Option<&[f32]>,
    y: &SharedSlice<'_>,
) {
    let (images, inputs, outputs) = (x.images, kernels.inputs, kernels.outputs);
    let (in_width, out_width) = (padded(inputs), padded(outputs));
    let tiles = images.tiles();
    let blocks = tiles
        .div_ceil(MAX_BLOCK)
        .max(8.min(tiles.div_ceil(MIN_BLOCK)));
    let block = tiles.div_ceil(blocks).next_multiple_of(6);
    with_scratch(kernels.panels() * kernels.panel_len(), |weights| {
        weights
            .par_chunks_mut(kernels.panel_len())
            .enumerate()
            .for_each(|(panel, out)| {
                kernels.transform(panel, 0..inputs, out, spread(inputs * LANES))
            });
        let weights = &*weights;
        (0..tiles.div_ceil(block))
            .into_par_iter()
            .for_each(|index| {
                let first = index * block;
                let count = block.min(tiles - first);
                let strides = [spread(block * in_width), spread(block * out_width)];
                let [patches_len, sums_len] = strides.map(|stride| FREQUENCIES * stride);
                with_scratch(patches_len + sums_len, |scratch| {
                    let (patches, sums) = scratch.split_at_mut(patches_len);
                    for tile in 0..count {
                        transform_input(
                            x,
                            first + tile,
                            &mut patches[tile * in_width..],
                            strides[0],
                        );
                    }
                    for frequency in 0..FREQUENCIES {
                        let out = &mut sums[frequency * strides[1]..][..block * out_width];
                        for piece in pieces(inputs) {
                            let patches = &patches[frequency * strides[0] + piece.start..];
                            let rhs = Panels {
                                data: &weights[frequency * spread(inputs * LANES)..]
                                    [piece.start * LANES..],
                                panel: kernels.panel_len(),
                                step: LANES,
                            };
                            small_product(
                                [count, kernels.panels(), piece.len()],
                                out,
                                out_width,
                                Matrix::rows(patches, in_width),
                                rhs,
                                piece.start > 0,
                            );
                        }
                    }
                    // One panel after the other: its outputs' lines stay in the cache until all of their tiles are there.
                    for panel in 0..kernels.panels() {
                        for tile in 0..count {
                            let sums = &sums[tile * out_width + panel * LANES..];
                            let place = Place {
                                images,
                                outputs,
                                tile: images.tile(first + tile),
                                panel,
                            };
                            transform_output(sums, strides[1], bias, place, y);
                        }
                    }
                });
            });
    });
}

/// Transforms all tiles, then takes the kernels of [`LANES`] outputs after others through the whole algorithm.
fn convolve_by_panels(
    x: ChannelsLast<'_>,
    kernels: &Kernels<'_>,
    bias: Option<&[f32]>,
    y: &SharedSlice<'_>,
) {
    let (images, inputs, outputs) = (x.images, kernels.inputs, kernels.outputs);
    let in_width = padded(inputs);
    let tiles = images.tiles();
    let block = MIN_BLOCK.min(tiles);
    let stride = spread(block * in_width);
    let block_len = FREQUENCIES * stride;
    let sums_stride = spread(tiles * LANES);
    with_scratch(tiles.div_ceil(block) * block_len, |patches| {
        patches
            .par_chunks_mut(block_len)
            .enumerate()
            .for_each(|(index, patches)| {
                for tile in 0..block.min(tiles - index * block) {
                    transform_input(
                        x,
                        index * block + tile,
                        &mut patches[tile * in_width..],
                        stride,
                    );
                }
            });
        let patches = &*patches;
        (0..kernels.panels()).into_par_iter().for_each(|panel| {
            let kernels_stride = spread(depth(inputs) * LANES);
            let kernels_len = FREQUENCIES * kernels_stride;
            with_scratch(kernels_len + FREQUENCIES * sums_stride, |scratch| {
                let (weights, sums) = scratch.split_at_mut(kernels_len);
                for piece in pieces(inputs) {
                    kernels.transform(panel, piece.clone(), weights, kernels_stride);
                    for frequency in 0..FREQUENCIES {
                        let rhs = Panels {
                            data: &weights[frequency * kernels_stride..],
                            panel: 0,
                            step: LANES,
                        };
                        let sums = &mut sums[frequency * sums_stride..][..tiles * LANES];
                        for (patches, out) in patches
                            .chunks(block_len)
                            .zip(sums.chunks_mut(block * LANES))
                        {
                            let patches = &patches[frequency * stride + piece.start..];
                            let shape = [out.len() / LANES, 1, piece.len()];
                            let lhs = Matrix::rows(patches, in_width);
                            small_product(shape, out, LANES, lhs, rhs, piece.start > 0);
                        }
                    }
                }
                for tile in 0..tiles {
                    let place = Place {
                        images,
                        outputs,
                        tile: images.tile(tile),
                        panel,
                    };
                    transform_output(&sums[tile * LANES..], sums_stride, bias, place, y);
                }
            });
        });
    });
}

/// The gradient of the weights, `[C_out, C_in, 3, 3]`, from the input and the gradient of the output.
pub(super) fn weight_gradient(x: ChannelsLast<'_>, grad: ChannelsLast<'_>) -> Vec<f32> {
    let fill = |gradient: &mut [f32]| match x.images.tiles() <= MAX_BLOCK {
        true => gradient_by_rows(x, grad, gradient),
        false => gradient_by_frequencies(x, grad, gradient),
    };
    // SAFETY: the gradient of every kernel is written, and none is read.
    unsafe { filled(grad.channels * x.channels * TAPS, fill) }
}

/// Takes block after block of tiles to the frequencies, and sums the products of each frequency over all of them.
fn gradient_by_frequencies(x: ChannelsLast<'_>, grad: ChannelsLast<'_>, gradient: &mut [f32]) {
    let (images, inputs, outputs) = (x.images, x.channels, grad.channels);
    let (in_width, out_width) = (padded(inputs), padded(outputs));
    let tiles = images.tiles();
    let blocks = tiles.div_ceil(MAX_BLOCK);
    let block = tiles.div_ceil(blocks);
    let resident = blocks.min(GRADIENT_BLOCKS);
    let strides = [spread(block * in_width), spread(block * out_width)];
    let lens = strides.map(|stride| FREQUENCIES * stride);
    let sums_stride = spread(outputs * in_width);
    let count = |index: usize| block.min(tiles - (index * block).min(tiles));
    let sums_len = FREQUENCIES * sums_stride;
    with_scratch(resident * (lens[0] + lens[1]) + sums_len, |scratch| {
        let (transformed, sums) = scratch.split_at_mut(resident * (lens[0] + lens[1]));
        let (patches, grads) = transformed.split_at_mut(resident * lens[0]);
        for first in (0..blocks).step_by(resident) {
            let active = resident.min(blocks - first);
            patches
                .par_chunks_mut(lens[0])
                .zip(grads.par_chunks_mut(lens[1]))
                .take(active)
                .enumerate()
                .for_each(|(index, (patches, grads))| {
                    for tile in 0..count(first + index) {
                        let place = (first + index) * block + tile;
                        transform_input(x, place, &mut patches[tile * in_width..], strides[0]);
                        transform_gradient(grad, place, &mut grads[tile * out_width..], strides[1]);
                    }
                });
            sums.par_chunks_mut(sums_stride)
                .enumerate()
                .for_each(|(frequency, sums)| {
                    for index in 0..active {
                        let lhs = Matrix {
                            data: &grads[index * lens[1] + frequency * strides[1]..],
                            row: 1,
                            column: out_width,
                        };
                        let rhs = Panels {
                            data: &patches[index * lens[0] + frequency * strides[0]..],
                            panel: LANES,
                            step: in_width,
                        };
                        let shape = [outputs, in_width / LANES, count(first + index)];
                        small_product(shape, sums, in_width, lhs, rhs, first + index > 0);
                    }
                });
        }
        gradient
            .par_chunks_mut(inputs * TAPS)
            .enumerate()
            .for_each(|(output, gradient)| {
                transform_sums(&sums[output * in_width..], sums_stride, gradient);
            });
    });
}

/// Takes all tiles, few as they are, to the frequencies, and then the kernels of some outputs and inputs after others through the whole
/// algorithm: the sums of all kernels would be four times the gradient.
fn gradient_by_rows(x: ChannelsLast<'_>, grad: ChannelsLast<'_>, gradient: &mut [f32]) {
    let (inputs, tiles) = (x.channels, x.images.tiles());
    let widths = [padded(inputs), padded(grad.channels)];
    let strides = widths.map(spread);
    let [x_len, grad_len] = strides.map(|stride| FREQUENCIES * stride);
    with_scratch(tiles * (x_len + grad_len), |transformed| {
        transformed
            .par_chunks_mut(x_len + grad_len)
            .enumerate()
            .for_each(|(tile, transformed)| {
                let (patch, gradient) = transformed.split_at_mut(x_len);
                transform_input(x, tile, patch, strides[0]);
                transform_gradient(grad, tile, gradient, strides[1]);
            });
        let transformed = &*transformed;
        gradient
            .par_chunks_mut(GRADIENT_ROWS * inputs * TAPS)
            .enumerate()
            .for_each(|(index, gradient)| {
                let rows = gradient.len() / (inputs * TAPS);
                for piece in pieces(inputs) {
                    let width = padded(piece.len());
                    let sums_stride = spread(rows * width);
                    with_scratch(FREQUENCIES * sums_stride, |sums| {
                        for (frequency, sums) in sums.chunks_exact_mut(sums_stride).enumerate() {
                            let lhs = Matrix {
                                data: &transformed
                                    [x_len + frequency * strides[1] + index * GRADIENT_ROWS..],
                                row: 1,
                                column: x_len + grad_len,
                            };
                            let rhs = Panels {
                                data: &transformed[frequency * strides[0] + piece.start..],
                                panel: LANES,
                                step: x_len + grad_len,
                            };
                            let shape = [rows, width / LANES, tiles];
                            small_product(shape, sums, width, lhs, rhs, false);
                        }
                        for (row, gradient) in gradient.chunks_exact_mut(inputs * TAPS).enumerate()
                        {
                            let gradient = &mut gradient[piece.start * TAPS..piece.end * TAPS];
                            transform_sums(&sums[row * width..], sums_stride, gradient);
                        }
                    });
                }
            });
    });
}

/// Transforms the inputs of one tile, every channel.
fn transform_input(x: ChannelsLast<'_>, tile: usize, out: &mut [f32], stride: usize) {
    let patch = x.square::<PATCH>(tile, 1);
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        assert!((FREQUENCIES - 1) * stride + patch.column <= out.len());
        // SAFETY: by the assertion; the machine has AVX-512.
        return unsafe { avx512::transform_input(patch, out.as_mut_ptr(), stride) };
    }
    transform_input_lanes(patch, out, stride);
}

/// Takes the gradients of one tile's outputs to the frequencies, every channel.
fn transform_gradient(grad: ChannelsLast<'_>, tile: usize, out: &mut [f32], stride: usize) {
    let tile = grad.square::<TILE>(tile, 0);
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        assert!((FREQUENCIES - 1) * stride + tile.column <= out.len());
        // SAFETY: by the assertion; the machine has AVX-512.
        return unsafe { avx512::transform_gradient(tile, out.as_mut_ptr(), stride) };
    }
    transform_gradient_lanes(tile, out, stride);
}

multiversion! {
    fn transform_input_lanes(patch: Square<'_>, out: &mut [f32], stride: usize) {
        for channel in (0..patch.column).step_by(LANES) {
            let patch: [[Lane; PATCH]; PATCH] = patch.lanes(channel);
            let frequencies = match FMA {
                true => both_axes(&patch, fused::input_transform),
                false => both_axes(&patch, plain::input_transform),
            };
            store(&frequencies, &mut out[channel..], stride);
        }
    }
}

multiversion! {
    fn transform_gradient_lanes(tile: Square<'_>, out: &mut [f32], stride: usize) {
        for channel in (0..tile.column).step_by(LANES) {
            let tile: [[Lane; TILE]; TILE] = tile.lanes(channel);
            let frequencies = match FMA {
                true => both_axes(&tile, fused::output_adjoint),
                false => both_axes(&tile, plain::output_adjoint),
            };
            store(&frequencies, &mut out[channel..], stride);
        }
    }
}

/// Which outputs a task writes: those of one panel in one tile.
#[derive(Clone, Copy)]
struct Place {
    images: Images,
    outputs: usize,
    tile: [usize; 3],
    panel: usize,
}

/// Transforms sums to the outputs at a place, and adds the bias.
fn transform_output(
    sums: &[f32],
    stride: usize,
    bias: Option<&[f32]>,
    place: Place,
    y: &SharedSlice<'_>,
) {
    let Place {
        images,
        outputs,
        tile: [image, row, column],
        panel,
    } = place;
    let first = panel * LANES;
    let lanes = LANES.min(outputs - first);
    let mut lane_bias = [0.0; LANES];
    if let Some(bias) = bias {
        lane_bias[..lanes].copy_from_slice(&bias[first..first + lanes]);
    }
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 && lanes == LANES && column + TILE <= images.width {
        assert!((FREQUENCIES - 1) * stride + LANES <= sums.len());
        let rows = TILE.min(images.height - row);
        let plane = images.height * images.width;
        let start = (image * outputs + first) * plane + row * images.width + column;
        let len = (LANES - 1) * plane + (rows - 1) * images.width + TILE;
        // SAFETY: tiles and panels partition the output, and this task alone has this place; the sums are there by the assertion, and the
        // machine has AVX-512.
        return unsafe {
            let out = y.place(start, len);
            let strides = [plane, images.width];
            avx512::transform_output(sums.as_ptr(), stride, &lane_bias, out, strides, rows);
        };
    }
    transform_output_lanes(sums, stride, &lane_bias, place, y);
}

multiversion! {
    fn transform_output_lanes(sums: &[f32], stride: usize, bias: &Lane, place: Place, y: &SharedSlice<'_>) {
        let Place { images, outputs, tile: [image, row, column], panel } = place;
        let first = panel * LANES;
        let lanes = LANES.min(outputs - first);
        let (rows, columns) = (TILE.min(images.height - row), TILE.min(images.width - column));
        let mut frequencies = [[[0.0; LANES]; PATCH]; PATCH];
        for (i, lane) in frequencies.as_flattened_mut().iter_mut().enumerate() {
            lane.copy_from_slice(&sums[i * stride..i * stride + LANES]);
        }
        let mut tile = match FMA {
            true => both_axes(&frequencies, fused::output_transform),
            false => both_axes(&frequencies, plain::output_transform),
        };
        for value in tile.as_flattened_mut() {
            for (value, bias) in value.iter_mut().zip(bias) {
                *value += bias;
            }
        }
        for lane in 0..lanes {
            let plane = (image * outputs + first + lane) * images.height;
            for (i, tile) in tile.iter().enumerate().take(rows) {
                let values: [f32; TILE] = std::array::from_fn(|j| tile[j][lane]);
                let start = (plane + row + i) * images.width + column;
                // SAFETY: tiles and panels partition the output, and this task alone has this place.
                unsafe {
                    // A constant length is one store, not a call.
                    if columns == TILE { y.write(start, &values) } else { y.write(start, &values[..columns]) }
                }
            }
        }
    }
}

multiversion! {
    /// Takes the sums of one output and some inputs back to their taps, `[inputs, 3, 3]`.
    fn transform_sums(sums: &[f32], stride: usize, gradient: &mut [f32]) {
        for (index, taps) in gradient.chunks_mut(LANES * TAPS).enumerate() {
            let mut frequencies = [[[0.0; LANES]; PATCH]; PATCH];
            for (i, lane) in frequencies.as_flattened_mut().iter_mut().enumerate() {
                lane.copy_from_slice(&sums[i * stride + index * LANES..][..LANES]);
            }
            let transformed = both_axes(&frequencies, filter_adjoint);
            for (lane, taps) in taps.chunks_exact_mut(TAPS).enumerate() {
                for (tap, value) in taps.iter_mut().zip(transformed.as_flattened()) {
                    *tap = value[lane];
                }
            }
        }
    }
}
