//! 2-D convolution of `[N, C, H, W]` without groups or dilation, and its gradients.
//!
//! A 3x3 kernel of stride 1 and padding 1 goes through [`winograd`](super::winograd) where its tiles are well filled.
//! Everything else is a matrix product of the weights, `[C_out, C_in kh kw]`, with the patches of one image,
//! `[C_in kh kw, H' W']`; a 1x1 kernel's patches are the image itself.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    buffer::filled,
    gemm::{Matrix, product},
    gradients::{Gradients, sum_of},
    simd::{multiversion, sum_by},
    winograd::{self, Images, Kernels, with_channels_last},
};

/// From this many images on, each is one thread's work; fewer share the threads among their parts.
const MANY_IMAGES: usize = 4;
/// Partial sums of the weight gradient when there are many images: a constant, so that the number of threads does not
/// change the order of the additions.
const PARTIAL_GRADIENTS: usize = 8;
/// Fewest input channels for Winograd's transforms to pay: they work on whole lanes.
const WINOGRAD_MIN_INPUTS: usize = 12;
/// Fewest kernels: with less the direct product takes little of a network's time, and rounds less. This isn't the faster choice everywhere:
/// from 32 to 3 channels Winograd takes half as long, but its error in so small a network's last layer goes straight into the loss.
const WINOGRAD_MIN_KERNELS: usize = 256;

/// A convolution and the images it is applied to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution {
    pub(super) images: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Height and width of the input.
    pub(super) size: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    /// Zeros above, to the left, below and to the right.
    pub(super) padding: [usize; 4],
}

impl Convolution {
    /// Height and width of the output, or `None` if the kernel does not fit the input.
    pub(super) fn output_size(&self) -> Option<[usize; 2]> {
        let [top, left, bottom, right] = self.padding;
        let along = |axis: usize, padding: usize| {
            let span = (self.size[axis] + padding).checked_sub(self.kernel[axis])?;
            Some(span / self.stride[axis] + 1)
        };
        Some([along(0, top + bottom)?, along(1, left + right)?])
    }

    fn output_pixels(&self) -> usize {
        self.output_size()
            .map_or(0, |[height, width]| height * width)
    }

    fn input_len(&self) -> usize {
        self.inputs * self.size[0] * self.size[1]
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn tiles(&self) -> Images {
        Images {
            count: self.images,
            height: self.size[0],
            width: self.size[1],
        }
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0; 4]
    }

    /// Whether Winograd's algorithm applies and saves work: 36 multiplications a tile against 9 a pixel. The number of images has no say in
    /// it, so that an image has the same output in any batch, and gradients of micro-batches are those of the joint batch.
    fn uses_winograd(&self) -> bool {
        let tiles = self.tiles().tiles();
        self.kernel == [3, 3]
            && self.stride == [1, 1]
            && self.padding == [1; 4]
            && self.inputs >= WINOGRAD_MIN_INPUTS
            && self.inputs * self.outputs >= WINOGRAD_MIN_KERNELS
            && 6 * tiles <= self.images * self.size[0] * self.size[1]
    }
}

/// The output, `[N, C_out, H', W']`.
pub(super) fn forward(
    conv: &Convolution,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    if conv.uses_winograd() {
        let kernels = Kernels::new(weight, conv.inputs, conv.outputs);
        return with_channels_last(x, conv.inputs, conv.tiles(), |x| {
            winograd::convolve(x, &kernels, bias)
        });
    }
    let (pixels, depth) = (conv.output_pixels(), conv.inputs * conv.taps());
    let many = conv.images >= MANY_IMAGES;
    let image = |(y, x): (&mut [f32], &[f32])| {
        if let Some(bias) = bias {
            for (plane, &bias) in y.chunks_exact_mut(pixels).zip(bias) {
                plane.fill(bias);
            }
        }
        let patches = patches(conv, x, !many);
        let operands = (Matrix::rows(weight, depth), Matrix::rows(&patches, pixels));
        product(
            [conv.outputs, pixels, depth],
            y,
            operands,
            1.0,
            bias.is_some(),
            !many,
        );
    };
    let length = conv.outputs * pixels;
    let fill = |y: &mut [f32]| {
        if many {
            y.par_chunks_mut(length)
                .zip(x.par_chunks(conv.input_len()))
                .for_each(image);
        } else {
            y.chunks_mut(length)
                .zip(x.chunks(conv.input_len()))
                .for_each(image);
        }
    };
    // SAFETY: the images are all of it; without a bias a product only writes, and with one the bias is there before.
    unsafe { filled(conv.images * length, fill) }
}

/// The gradients that are `wanted`, from that of the output.
pub(super) fn backward(
    conv: &Convolution,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    wanted: &Gradients<bool>,
) -> Gradients<Option<Vec<f32>>> {
    let bias = wanted.bias.then(|| bias_gradient(conv, grad));
    if !conv.uses_winograd() {
        return Gradients {
            x: wanted.x.then(|| input_gradient(conv, weight, grad)),
            weight: wanted.weight.then(|| weight_gradient(conv, x, grad)),
            bias,
        };
    }
    with_channels_last(grad, conv.outputs, conv.tiles(), |grad| Gradients {
        x: wanted.x.then(|| {
            winograd::convolve(
                grad,
                &Kernels::adjoint(weight, conv.inputs, conv.outputs),
                None,
            )
        }),
        weight: wanted.weight.then(|| {
            with_channels_last(x, conv.inputs, conv.tiles(), |x| {
                winograd::weight_gradient(x, grad)
            })
        }),
        bias,
    })
}

fn bias_gradient(conv: &Convolution, grad: &[f32]) -> Vec<f32> {
    let pixels = conv.output_pixels();
    let planes: Vec<f64> = grad
        .par_chunks(pixels)
        .with_min_len(64)
        .map(|plane| sum_by(plane.len(), |i| plane[i]))
        .collect();
    (0..conv.outputs)
        .map(|output| {
            planes
                .iter()
                .skip(output)
                .step_by(conv.outputs)
                .sum::<f64>() as f32
        })
        .collect()
}

fn input_gradient(conv: &Convolution, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let (pixels, depth) = (conv.output_pixels(), conv.inputs * conv.taps());
    let weight = Matrix::rows(weight, depth).transposed();
    let mut dx = vec![0.0; conv.images * conv.input_len()];
    let many = conv.images >= MANY_IMAGES;
    let image = |(dx, grad): (&mut [f32], &[f32])| {
        let operands = (weight, Matrix::rows(grad, pixels));
        let shape = [depth, pixels, conv.outputs];
        if conv.is_pointwise() {
            product(shape, dx, operands, 1.0, false, !many);
        } else {
            let mut patches = vec![0.0; depth * pixels];
            product(shape, &mut patches, operands, 1.0, false, !many);
            scatter_patches(conv, &patches, dx);
        }
    };
    let length = conv.outputs * pixels;
    if many {
        dx.par_chunks_mut(conv.input_len())
            .zip(grad.par_chunks(length))
            .for_each(image);
    } else {
        dx.chunks_mut(conv.input_len())
            .zip(grad.chunks(length))
            .for_each(image);
    }
    dx
}

fn weight_gradient(conv: &Convolution, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let (pixels, depth) = (conv.output_pixels(), conv.inputs * conv.taps());
    let many = conv.images >= MANY_IMAGES;
    let sum = |x: &[f32], grad: &[f32]| {
        let mut sum = vec![0.0; conv.outputs * depth];
        let images = x
            .chunks(conv.input_len())
            .zip(grad.chunks(conv.outputs * pixels));
        for (index, (x, grad)) in images.enumerate() {
            let patches = patches(conv, x, !many);
            let operands = (
                Matrix::rows(grad, pixels),
                Matrix::rows(&patches, pixels).transposed(),
            );
            product(
                [conv.outputs, depth, pixels],
                &mut sum,
                operands,
                1.0,
                index > 0,
                !many,
            );
        }
        sum
    };
    if !many {
        return sum(x, grad);
    }
    let share = conv.images.div_ceil(PARTIAL_GRADIENTS);
    let partial: Vec<Vec<f32>> = x
        .par_chunks(share * conv.input_len())
        .zip(grad.par_chunks(share * conv.outputs * pixels))
        .map(|(x, grad)| sum(x, grad))
        .collect();
    sum_of(partial)
}

/// The patches of one image, `[C_in kh kw, H' W']`.
fn patches<'a>(conv: &Convolution, x: &'a [f32], threads: bool) -> Cow<'a, [f32]> {
    if conv.is_pointwise() {
        return Cow::Borrowed(x);
    }
    let rows = conv.taps() * conv.output_pixels();
    let mut patches = vec![0.0; conv.inputs * rows];
    let channels = patches
        .chunks_mut(rows)
        .zip(x.chunks(conv.size[0] * conv.size[1]));
    if threads {
        channels
            .par_bridge()
            .for_each(|(patches, plane)| gather_channel(conv, plane, patches));
    } else {
        channels.for_each(|(patches, plane)| gather_channel(conv, plane, patches));
    }
    Cow::Owned(patches)
}

/// Adds the gradients of the patches to those of the pixels that they were taken from.
fn scatter_patches(conv: &Convolution, patches: &[f32], dx: &mut [f32]) {
    let rows = conv.taps() * conv.output_pixels();
    dx.par_chunks_mut(conv.size[0] * conv.size[1])
        .zip(patches.par_chunks(rows))
        .with_min_len(16)
        .for_each(|(plane, patches)| scatter_channel(conv, patches, plane));
}

multiversion! {
    fn gather_channel(conv: &Convolution, plane: &[f32], patches: &mut [f32]) {
        for_each_run(conv, |patch, pixel, len, stride| {
            let out = &mut patches[patch..patch + len];
            match stride {
                1 => out.copy_from_slice(&plane[pixel..pixel + len]),
                2 => {
                    let pairs = plane[pixel..pixel + 2 * len - 1].chunks(2);
                    for (out, pair) in out.iter_mut().zip(pairs) {
                        *out = pair[0];
                    }
                }
                _ => {
                    for (out, value) in out.iter_mut().zip(plane[pixel..].iter().step_by(stride)) {
                        *out = *value;
                    }
                }
            }
        });
    }
}

multiversion! {
    fn scatter_channel(conv: &Convolution, patches: &[f32], plane: &mut [f32]) {
        for_each_run(conv, |patch, pixel, len, stride| {
            let from = &patches[patch..patch + len];
            if stride == 1 {
                for (value, from) in plane[pixel..pixel + len].iter_mut().zip(from) {
                    *value += from;
                }
            } else {
                for (value, from) in plane[pixel..].iter_mut().step_by(stride).zip(from) {
                    *value += from;
                }
            }
        });
    }
}

/// Calls `run(patch, pixel, len, stride)` for each tap and output row: `len` consecutive elements of the patches from
/// `patch` on are the pixels of the plane from `pixel` on, `stride` apart. Taps on the padding are left out.
#[inline(always)]
fn for_each_run(conv: &Convolution, mut run: impl FnMut(usize, usize, usize, usize)) {
    let Some([out_height, out_width]) = conv.output_size() else {
        return;
    };
    let [height, width] = conv.size;
    let [top, left, ..] = conv.padding;
    let [row_stride, stride] = conv.stride;
    for tap_row in 0..conv.kernel[0] {
        for tap_column in 0..conv.kernel[1] {
            // Outputs whose tap is inside the row: `first..end`.
            let first = left.saturating_sub(tap_column).div_ceil(stride);
            let end = (width + left)
                .saturating_sub(tap_column)
                .div_ceil(stride)
                .min(out_width);
            if first >= end {
                continue;
            }
            let column = first * stride + tap_column - left;
            for out_row in 0..out_height {
                let row = (out_row * row_stride + tap_row).wrapping_sub(top);
                if row < height {
                    let tap = tap_row * conv.kernel[1] + tap_column;
                    let patch = (tap * out_height + out_row) * out_width + first;
                    run(patch, row * width + column, end - first, stride);
                }
            }
        }
    }
}
