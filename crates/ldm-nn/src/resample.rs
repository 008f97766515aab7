use burn::{
    nn::{
        PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
    tensor::{module::avg_pool2d, ops::AvgPoolOptions},
};

use crate::ops;

/// Where a stride-2 convolution pads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownsamplePadding {
    /// One pixel on every side: the U-Net.
    Symmetric,
    /// One pixel right and bottom only: the autoencoder, and a U-Net with `downsample_padding = 0`.
    RightBottom,
}

/// Halves height and width with a 3x3 convolution of stride 2.
#[derive(Module, Debug)]
pub struct Downsample2d {
    /// The convolution; its own padding is the configured one.
    pub conv: Conv2d,
}

impl Downsample2d {
    /// Initialises a down-sampling layer that keeps the channel count.
    pub fn new(channels: usize, padding: DownsamplePadding, device: &Device) -> Self {
        let padding = match padding {
            DownsamplePadding::Symmetric => PaddingConfig2d::Explicit(1, 1, 1, 1),
            DownsamplePadding::RightBottom => PaddingConfig2d::Explicit(0, 0, 1, 1),
        };
        Self {
            conv: Conv2dConfig::new([channels, channels], [3, 3])
                .with_stride([2, 2])
                .with_padding(padding)
                .init(device),
        }
    }

    /// `[N, C, H, W]` to `[N, C, ceil(H/2), ceil(W/2)]`, or the floor where only right and bottom are padded.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(&self.conv, x)
    }
}

/// Doubles height and width by nearest neighbour, then a 3x3 convolution.
#[derive(Module, Debug)]
pub struct Upsample2d {
    /// The convolution after the interpolation.
    pub conv: Conv2d,
}

impl Upsample2d {
    /// Initialises an up-sampling layer that keeps the channel count.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new([channels, channels], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
        }
    }

    /// `[N, C, H, W]` to `[N, C, 2H, 2W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        self.forward_to_size(x, [2 * height, 2 * width])
    }

    /// `[N, C, H, W]` to `[N, C, size[0], size[1]]`: a U-Net's skip may be one pixel off twice the size.
    pub fn forward_to_size(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        ops::conv2d(&self.conv, upsample_nearest(x, size))
    }
}

/// Halves height and width by the mean of 2x2 pixels; an odd last row or column is dropped.
///
/// `[N, C, H, W]` to `[N, C, floor(H/2), floor(W/2)]`. Bilinear interpolation by a factor of 1/2 without aligned corners
/// computes the same.
pub fn downsample_mean_2x(x: Tensor<4>) -> Tensor<4> {
    avg_pool2d(x, AvgPoolOptions::new([2, 2]))
}

/// Nearest neighbour to `size`: pixel `i` of `n` takes pixel `floor(i H / n)` of `H`.
///
/// `[N, C, H, W]` to `[N, C, size[0], size[1]]`.
pub fn upsample_nearest(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    if size == [2 * h, 2 * w] {
        // A reshape and an expansion, so the gradient is a plain sum.
        return x
            .reshape([n, c, h, 1, w, 1])
            .expand([n, c, h, 2, w, 2])
            .reshape([n, c, 2 * h, 2 * w]);
    }
    let device = x.device();
    let sources = |from: usize, to: usize| {
        let sources: Vec<i64> = (0..to).map(|i| (i * from / to) as i64).collect();
        Tensor::<1, Int>::from_data(TensorData::new(sources, [to]), &device)
    };
    x.select(2, sources(h, size[0]))
        .select(3, sources(w, size[1]))
}
