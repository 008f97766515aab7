//! Images cut into tiles, and stored with their channels innermost.

use rayon::prelude::*;

use super::{TILE, transforms::Lane};
use crate::ops::{scratch::with_scratch, simd::LANES, transpose::transpose_lanes};

/// Pixels of a task of the transposition, at least.
const STRIP: usize = 64;

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

    /// Height and width of an image of whole tiles with a border of one pixel.
    fn bordered(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| side.next_multiple_of(TILE) + 2)
    }
}

pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(LANES)
}

/// A tensor with its channels innermost, `[N, H', W', C']`: zeros up to whole lanes, up to whole tiles, and for a border of one pixel.
#[derive(Clone, Copy)]
pub(in crate::ops) struct ChannelsLast<'a> {
    data: &'a [f32],
    pub(super) channels: usize,
    pub(super) images: Images,
}

/// A square of pixels of a [`ChannelsLast`] tensor: the channels of pixel `(i, j)` begin at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Square<'a> {
    pub(in crate::ops) data: &'a [f32],
    pub(in crate::ops) row: usize,
    pub(in crate::ops) column: usize,
}

impl<'a> ChannelsLast<'a> {
    /// The `N` x `N` pixels from `border` above and left of a tile on.
    ///
    /// # Panics
    /// If they aren't all within the image with its border.
    pub(super) fn square<const N: usize>(&self, tile: usize, border: usize) -> Square<'a> {
        let [image, row, column] = self.images.tile(tile);
        let [height, width] = self.images.bordered();
        let stride = padded(self.channels);
        let (row, column) = (row + 1 - border, column + 1 - border);
        assert!(row + N <= height && column + N <= width);
        let start = ((image * height + row) * width + column) * stride;
        let len = ((N - 1) * width + N) * stride;
        Square {
            data: &self.data[start..start + len],
            row: width * stride,
            column: stride,
        }
    }
}

impl Square<'_> {
    /// Some of the channels of all pixels.
    #[inline(always)]
    pub(super) fn lanes<const N: usize>(&self, channel: usize) -> [[Lane; N]; N] {
        let mut square = [[[0.0; LANES]; N]; N];
        for (i, line) in square.iter_mut().enumerate() {
            for (j, lane) in line.iter_mut().enumerate() {
                let start = i * self.row + j * self.column + channel;
                lane.copy_from_slice(&self.data[start..start + LANES]);
            }
        }
        square
    }
}

/// Runs `work` with the transpose of `x`, `[N, C, H, W]`.
pub(in crate::ops) fn with_channels_last<T>(
    x: &[f32],
    channels: usize,
    images: Images,
    work: impl FnOnce(ChannelsLast<'_>) -> T,
) -> T {
    let [height, width] = images.bordered();
    let stride = padded(channels);
    let pixels = images.height * images.width;
    with_scratch(images.count * height * width * stride, |data| {
        data.par_chunks_mut(width * stride)
            .with_min_len(STRIP.div_ceil(width))
            .enumerate()
            .for_each(|(index, out)| {
                let (image, row) = (index / height, index % height);
                if row == 0 || row > images.height {
                    return out.fill(0.0);
                }
                let (left, rest) = out.split_at_mut(stride);
                let (line, right) = rest.split_at_mut(images.width * stride);
                left.fill(0.0);
                right.fill(0.0);
                let first = image * channels * pixels + (row - 1) * images.width;
                transpose_line(&x[first..], pixels, channels, line, stride);
            });
        work(ChannelsLast {
            data,
            channels,
            images,
        })
    })
}

/// `out[p][c] = x[c * stride + p]`, with zeros up to whole lanes.
fn transpose_line(x: &[f32], stride: usize, channels: usize, out: &mut [f32], width: usize) {
    let pixels = out.len() / width;
    for first in (0..channels).step_by(LANES) {
        let shape = [LANES.min(channels - first), pixels];
        transpose_lanes(
            &x[first * stride..],
            stride,
            &mut out[first..],
            width,
            shape,
        );
    }
}
