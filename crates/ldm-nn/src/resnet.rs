use burn::{
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
    tensor::activation::silu,
};

use crate::ops;

/// Configuration of a [`ResnetBlock2d`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetBlock2dConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output; a 1x1 shortcut convolution appears where they differ.
    pub out_channels: usize,
    /// Width of the timestep embedding, `None` in an autoencoder.
    pub temb_channels: Option<usize>,
    /// The embedding scales and shifts the second norm instead of being added before it.
    pub scale_shift: bool,
    /// Groups of both group norms.
    pub norm_num_groups: usize,
    /// Epsilon of both group norms: 1e-5 in the U-Net, 1e-6 in the autoencoder.
    pub norm_eps: f64,
}

/// Pre-activation residual block: `x + conv2(silu(norm2(conv1(silu(norm1(x))) + temb)))`.
///
/// The block of Ho et al. 2020 (appendix B), under diffusers' `ResnetBlock2D` names.
#[derive(Module, Debug)]
pub struct ResnetBlock2d {
    /// Norm before the first convolution.
    pub norm1: GroupNorm,
    /// First 3x3 convolution.
    pub conv1: Conv2d,
    /// Projection of the timestep embedding, absent in an autoencoder.
    pub time_emb_proj: Option<Linear>,
    /// Norm before the second convolution.
    pub norm2: GroupNorm,
    /// Second 3x3 convolution.
    pub conv2: Conv2d,
    /// 1x1 convolution of the skip where the channel counts differ.
    pub conv_shortcut: Option<Conv2d>,
    /// See [`ResnetBlock2dConfig::scale_shift`].
    pub scale_shift: bool,
}

impl ResnetBlock2dConfig {
    /// Initialises the block's parameters on `device`.
    pub fn init(&self, device: &Device) -> ResnetBlock2d {
        let norm = |channels| {
            GroupNormConfig::new(self.norm_num_groups, channels)
                .with_epsilon(self.norm_eps)
                .init(device)
        };
        let conv3x3 = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        let temb_width = self.out_channels * if self.scale_shift { 2 } else { 1 };
        ResnetBlock2d {
            norm1: norm(self.in_channels),
            conv1: conv3x3([self.in_channels, self.out_channels]),
            time_emb_proj: self
                .temb_channels
                .map(|width| LinearConfig::new(width, temb_width).init(device)),
            norm2: norm(self.out_channels),
            conv2: conv3x3([self.out_channels, self.out_channels]),
            conv_shortcut: (self.in_channels != self.out_channels).then(|| {
                Conv2dConfig::new([self.in_channels, self.out_channels], [1, 1]).init(device)
            }),
            scale_shift: self.scale_shift,
        }
    }
}

impl ResnetBlock2d {
    /// Applies the block.
    ///
    /// # Shapes
    /// - `x`: `[N, C_in, H, W]`
    /// - `temb`: `[N, temb_channels]`, before its activation; `None` exactly where the block has no `time_emb_proj`
    /// - output: `[N, C_out, H, W]`
    ///
    /// # Panics
    /// If a block with a `time_emb_proj` gets no `temb`.
    pub fn forward(&self, x: Tensor<4>, temb: Option<Tensor<2>>) -> Tensor<4> {
        self.forward_resampled(x, temb, |x| x)
    }

    /// [`forward`](Self::forward) to another size: `resample` is applied to both branches, in the residual one before its
    /// first convolution (Dhariwal & Nichol 2021, section 3).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_resampled(
        &self,
        x: Tensor<4>,
        temb: Option<Tensor<2>>,
        resample: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let h = resample(ops::group_norm_silu(&self.norm1, x.clone()));
        let h = ops::conv2d(&self.conv1, h);
        let x = resample(x);
        let h = match &self.time_emb_proj {
            None => ops::group_norm_silu(&self.norm2, h),
            Some(projection) => {
                let temb = temb.expect("a block with a timestep projection needs an embedding");
                let temb = ops::linear(projection, silu(temb)).unsqueeze_dims::<4>(&[-1, -1]);
                if self.scale_shift {
                    let mut halves = temb.chunk(2, 1).into_iter();
                    let (scale, shift) = (halves.next().unwrap(), halves.next().unwrap());
                    silu(ops::group_norm(&self.norm2, h) * scale.add_scalar(1.0) + shift)
                } else {
                    ops::group_norm_silu(&self.norm2, h + temb)
                }
            }
        };
        let h = ops::conv2d(&self.conv2, h);
        let skip = match &self.conv_shortcut {
            Some(conv) => ops::conv2d(conv, x),
            None => x,
        };
        skip + h
    }
}
