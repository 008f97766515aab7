//! Pictures to the input of a network: resized bilinearly, as the published scores were made.

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;

/// Whose pixels a resized picture has. Scores under different conventions can't be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// As TensorFlow 1 did for the first published scores, and torch-fidelity does: pixel `i` of the result is taken at `i * in / out`, and
    /// levels `v` of 8 bits become `(v - 128) / 128`.
    #[default]
    TorchFidelity,
    /// As pytorch-fid does: at `(i + 1/2) * in / out - 1/2`, and `2 v / 255 - 1`.
    PytorchFid,
}

/// Pictures of any sizes as `[N, 3, side, side]` in `[-1, 1]`, without a low-pass filter.
pub(crate) fn network_input(
    images: &[RgbImage],
    side: usize,
    convention: Convention,
    device: &Device,
) -> Tensor<4> {
    let mut values = vec![0.0f32; images.len() * 3 * side * side];
    (values.par_chunks_exact_mut(3 * side * side).zip(images))
        .for_each(|(to, image)| resize(image, side, convention, to));
    Tensor::from_data(
        TensorData::new(values, [images.len(), 3, side, side]),
        device,
    )
}

/// Where a pixel of the result lies between two of the picture.
#[derive(Clone, Copy)]
struct Place {
    low: u32,
    high: u32,
    share: f32,
}

fn places(from: u32, to: usize, convention: Convention) -> Vec<Place> {
    let scale = (f64::from(from) / to as f64) as f32;
    (0..to)
        .map(|index| {
            let at = match convention {
                Convention::TorchFidelity => index as f32 * scale,
                Convention::PytorchFid => (scale * (index as f32 + 0.5) - 0.5).max(0.0),
            };
            // Rounding must not lead beyond the last pixel.
            let low = (at as u32).min(from - 1);
            Place {
                low,
                high: (low + 1).min(from - 1),
                share: at - low as f32,
            }
        })
        .collect()
}

/// Writes `[3, side, side]`.
fn resize(image: &RgbImage, side: usize, convention: Convention, to: &mut [f32]) {
    let (width, height) = image.dimensions();
    let columns = places(width, side, convention);
    let rows = places(height, side, convention);
    let level = |x: u32, y: u32, channel: usize| {
        let level = f32::from(image.get_pixel(x, y).0[channel]);
        match convention {
            Convention::TorchFidelity => level,
            Convention::PytorchFid => level / 255.0,
        }
    };
    for (channel, plane) in to.chunks_exact_mut(side * side).enumerate() {
        for (line, row) in plane.chunks_exact_mut(side).zip(&rows) {
            for (value, column) in line.iter_mut().zip(&columns) {
                let along = |y: u32| {
                    let (a, b) = (
                        level(column.low, y, channel),
                        level(column.high, y, channel),
                    );
                    a + (b - a) * column.share
                };
                let (upper, lower) = (along(row.low), along(row.high));
                let level = upper + (lower - upper) * row.share;
                *value = match convention {
                    Convention::TorchFidelity => (level - 128.0) / 128.0,
                    Convention::PytorchFid => 2.0 * level - 1.0,
                };
            }
        }
    }
}
