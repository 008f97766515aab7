use burn::prelude::*;
use ldm_nn::{
    Activations, Downsample2d, DownsamplePadding, ResnetBlock2d, Upsample2d, downsample_mean_2x,
    upsample_nearest,
};

use super::{
    blocks::resnet,
    config::{ResampleType, UNetConfig},
};

/// From one level to the next coarser one.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per level, and a Box is no module"
)]
pub enum Downsampler {
    /// A convolution of stride 2.
    Conv(Downsample2d),
    /// A ResNet block whose branches are halved by the mean of 2x2 pixels.
    Resnet(ResnetBlock2d),
}

impl Downsampler {
    pub(super) fn new(
        kind: ResampleType,
        config: &UNetConfig,
        channels: usize,
        device: &Device,
    ) -> Self {
        match kind {
            ResampleType::Conv => {
                let padding = match config.downsample_padding {
                    0 => DownsamplePadding::RightBottom,
                    _ => DownsamplePadding::Symmetric,
                };
                Self::Conv(Downsample2d::new(channels, padding, device))
            }
            ResampleType::Resnet => Self::Resnet(resnet(config, channels, channels, device)),
        }
    }

    /// `[N, C, H, W]` to about half the size, see [`Downsample2d::forward`] and [`downsample_mean_2x`].
    pub(super) fn forward(
        &self,
        activations: Activations,
        x: Tensor<4>,
        temb: &Tensor<2>,
    ) -> Tensor<4> {
        match self {
            Self::Conv(downsample) => downsample.forward(x),
            Self::Resnet(resnet) => {
                activations.run(resnet, (x, Some(temb.clone())), |resnet, (x, temb)| {
                    resnet.forward_resampled(x, temb, downsample_mean_2x)
                })
            }
        }
    }
}

/// From one level to the next finer one.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per level, and a Box is no module"
)]
pub enum Upsampler {
    /// Nearest neighbour, then a convolution.
    Conv(Upsample2d),
    /// A ResNet block whose branches are enlarged by nearest neighbour.
    Resnet(ResnetBlock2d),
}

impl Upsampler {
    pub(super) fn new(
        kind: ResampleType,
        config: &UNetConfig,
        channels: usize,
        device: &Device,
    ) -> Self {
        match kind {
            ResampleType::Conv => Self::Conv(Upsample2d::new(channels, device)),
            ResampleType::Resnet => Self::Resnet(resnet(config, channels, channels, device)),
        }
    }

    /// `[N, C, H, W]` to `[N, C, size[0], size[1]]`.
    pub(super) fn forward(
        &self,
        activations: Activations,
        x: Tensor<4>,
        temb: &Tensor<2>,
        size: [usize; 2],
    ) -> Tensor<4> {
        match self {
            Self::Conv(upsample) => upsample.forward_to_size(x, size),
            Self::Resnet(resnet) => {
                activations.run(resnet, (x, Some(temb.clone())), move |resnet, (x, temb)| {
                    resnet.forward_resampled(x, temb, |x| upsample_nearest(x, size))
                })
            }
        }
    }
}
