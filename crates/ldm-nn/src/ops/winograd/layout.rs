//! Images cut into tiles, and stored with their channels innermost.

use rayon::prelude::*;

use super::{TILE, transforms::Lane};
#[cfg(target_arch = "x86_64")]
use crate::ops::{
    avx512,
    simd::{Level, level},
};
use crate::ops::{
    scratch::with_scratch,
    simd::{LANES, multiversion},
};

/// The images that are convolved, and their tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Images {
    pub(in crate::ops) count: usize,
    pub(in crate::ops) height: usize,
    pub(in crate::ops) width: usize,
}

impl Images {
    pub(super) fn tiles_per_row(&self) -> usize {
        self.width.div_ceil(TILE)
    }

    pub(in crate::ops) fn tiles(&self) -> usize {
        self.count * self.height.div_ceil(TILE) * self.tiles_per_row()
    }

    /// Image, and first row and column of the outputs, of a tile.
    pub(super) fn tile(&self, index: usize) -> [usize; 3] {
        let (rows, columns) = (self.height.div_ceil(TILE), self.tiles_per_row());
        [
            index / (rows * columns),
            index / columns % rows * TILE,
            index % columns * TILE,
        ]
    }
}

pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(LANES)
}

/// A tensor with its channels innermost, `[N, H, W, C]`, and zeros up to whole lanes.
#[derive(Clone, Copy)]
pub(in crate::ops) struct ChannelsLast<'a> {
    pub(super) data: &'a [f32],
    pub(super) channels: usize,
    pub(super) images: Images,
}

/// Runs `work` with the transpose of `x`, `[N, C, H, W]`.
pub(in crate::ops) fn with_channels_last<T>(
    x: &[f32],
    channels: usize,
    images: Images,
    work: impl FnOnce(ChannelsLast<'_>) -> T,
) -> T {
    const STRIP: usize = 64;
    let (pixels, width) = (images.height * images.width, padded(channels));
    with_scratch(images.count * pixels * width, |data| {
        data.par_chunks_mut(pixels * width)
            .zip(x.par_chunks(channels * pixels))
            .for_each(|(out, x)| {
                out.par_chunks_mut(STRIP * width)
                    .enumerate()
                    .for_each(|(strip, out)| {
                        transpose_strip(&x[strip * STRIP..], pixels, channels, out, width);
                    });
            });
        work(ChannelsLast {
            data,
            channels,
            images,
        })
    })
}

multiversion! {
    /// `out[p][c] = x[c * stride + p]`.
    fn transpose_strip(x: &[f32], stride: usize, channels: usize, out: &mut [f32], width: usize) {
        let pixels = out.len() / width;
        for first in (0..channels).step_by(LANES) {
            let lanes = LANES.min(channels - first);
            let mut p = 0;
            #[cfg(target_arch = "x86_64")]
            if level() == Level::Avx512 && lanes == LANES {
                while p + LANES <= pixels {
                    let x = &x[first * stride + p..];
                    let out = &mut out[p * width + first..];
                    assert!((LANES - 1) * stride + LANES <= x.len() && (LANES - 1) * width + LANES <= out.len());
                    // SAFETY: both hold the square by the assertion, and the machine has AVX-512.
                    unsafe { avx512::transpose_square(x.as_ptr(), stride, out.as_mut_ptr(), width) };
                    p += LANES;
                }
            }
            while lanes == LANES && p + 8 <= pixels {
                let mut block = [[0.0f32; 8]; LANES];
                for (lane, block) in block.iter_mut().enumerate() {
                    let start = (first + lane) * stride + p;
                    block.copy_from_slice(&x[start..start + 8]);
                }
                for (i, out) in out[p * width..(p + 8) * width].chunks_exact_mut(width).enumerate() {
                    for (out, block) in out[first..first + LANES].iter_mut().zip(&block) {
                        *out = block[i];
                    }
                }
                p += 8;
            }
            for p in p..pixels {
                let out = &mut out[p * width + first..p * width + first + LANES];
                out[lanes..].fill(0.0);
                for (lane, out) in out.iter_mut().enumerate().take(lanes) {
                    *out = x[(first + lane) * stride + p];
                }
            }
        }
    }
}

/// Loads a square of pixels whose corner is `border` before `position`; pixels outside the image are zero.
#[inline(always)]
pub(super) fn load<const N: usize>(
    x: ChannelsLast<'_>,
    image: usize,
    position: [usize; 2],
    border: usize,
    channel: usize,
) -> [[Lane; N]; N] {
    let Images { height, width, .. } = x.images;
    let stride = padded(x.channels);
    let mut square = [[[0.0; LANES]; N]; N];
    for (i, line) in square.iter_mut().enumerate() {
        let row = (position[0] + i).wrapping_sub(border);
        if row >= height {
            continue;
        }
        let line_start = (image * height + row) * width;
        for (j, lane) in line.iter_mut().enumerate() {
            let column = (position[1] + j).wrapping_sub(border);
            if column < width {
                let start = (line_start + column) * stride + channel;
                lane.copy_from_slice(&x.data[start..start + LANES]);
            }
        }
    }
    square
}
