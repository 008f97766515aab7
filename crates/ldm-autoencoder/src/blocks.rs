//! The levels that encoder and decoder are made of, under diffusers' field names.

use burn::prelude::*;
use ldm_nn::{
    Activations, Attention, AttentionConfig, Downsample2d, DownsamplePadding, ResnetBlock2d,
    ResnetBlock2dConfig, Upsample2d,
};

/// Epsilon of every group norm in the autoencoder.
pub(crate) const NORM_EPS: f64 = 1e-6;

pub(crate) fn resnet(
    in_channels: usize,
    out_channels: usize,
    groups: usize,
    device: &Device,
) -> ResnetBlock2d {
    ResnetBlock2dConfig {
        in_channels,
        out_channels,
        temb_channels: None,
        scale_shift: false,
        norm_num_groups: groups,
        norm_eps: NORM_EPS,
    }
    .init(device)
}

/// Single-head self-attention over the pixels of a feature map.
pub(crate) fn attention(channels: usize, groups: usize, device: &Device) -> Attention {
    AttentionConfig {
        query_dim: channels,
        context_dim: None,
        heads: 1,
        head_dim: channels,
        qkv_bias: true,
        group_norm: Some((groups, NORM_EPS)),
    }
    .init(device)
}

/// Runs ResNet blocks, each followed by its attention where the level has any.
fn run(
    activations: Activations,
    resnets: &[ResnetBlock2d],
    attentions: &[Attention],
    mut x: Tensor<4>,
) -> Tensor<4> {
    for (index, resnet) in resnets.iter().enumerate() {
        x = activations.run(resnet, x, |resnet, x| resnet.forward(x, None));
        if let Some(attention) = attentions.get(index) {
            x = activations.run(attention, x, |attention, x| attention.forward_image(x));
        }
    }
    x
}

/// What a level of the encoder or decoder is built from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) layers: usize,
    pub(crate) attention: bool,
    /// Whether the level ends by changing the resolution; the last one does not.
    pub(crate) resample: bool,
    pub(crate) groups: usize,
}

impl LevelConfig {
    fn resnets(&self, device: &Device) -> Vec<ResnetBlock2d> {
        (0..self.layers)
            .map(|layer| {
                let in_channels = if layer == 0 {
                    self.in_channels
                } else {
                    self.out_channels
                };
                resnet(in_channels, self.out_channels, self.groups, device)
            })
            .collect()
    }

    fn attentions(&self, device: &Device) -> Vec<Attention> {
        let count = if self.attention { self.layers } else { 0 };
        (0..count)
            .map(|_| attention(self.out_channels, self.groups, device))
            .collect()
    }
}

/// One resolution level of the encoder.
#[derive(Module, Debug)]
pub struct DownEncoderBlock {
    /// ResNet blocks.
    pub resnets: Vec<ResnetBlock2d>,
    /// One per ResNet block, or none.
    pub attentions: Vec<Attention>,
    /// One, or none in the last level.
    pub downsamplers: Vec<Downsample2d>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl DownEncoderBlock {
    pub(crate) fn new(config: LevelConfig, device: &Device) -> Self {
        Self {
            resnets: config.resnets(device),
            attentions: config.attentions(device),
            downsamplers: config
                .resample
                .then(|| {
                    Downsample2d::new(config.out_channels, DownsamplePadding::RightBottom, device)
                })
                .into_iter()
                .collect(),
            activations: Activations::default(),
        }
    }

    /// `[N, C_in, H, W]` to `[N, C_out, H/2, W/2]`, or to the same size in the last level.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = run(self.activations, &self.resnets, &self.attentions, x);
        self.downsamplers.iter().fold(x, |x, down| down.forward(x))
    }
}

/// The bottom of encoder and decoder: a ResNet block, self-attention, a ResNet block.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// Two ResNet blocks.
    pub resnets: Vec<ResnetBlock2d>,
    /// Between them; one, or none.
    pub attentions: Vec<Attention>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl MidBlock {
    pub(crate) fn new(channels: usize, groups: usize, attend: bool, device: &Device) -> Self {
        Self {
            resnets: (0..2)
                .map(|_| resnet(channels, channels, groups, device))
                .collect(),
            attentions: attend
                .then(|| attention(channels, groups, device))
                .into_iter()
                .collect(),
            activations: Activations::default(),
        }
    }

    /// `[N, C, H, W]` to the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        run(self.activations, &self.resnets, &self.attentions, x)
    }
}

/// One resolution level of the decoder.
#[derive(Module, Debug)]
pub struct UpDecoderBlock {
    /// ResNet blocks, one more than in the encoder's level.
    pub resnets: Vec<ResnetBlock2d>,
    /// One per ResNet block, or none.
    pub attentions: Vec<Attention>,
    /// One, or none in the last level.
    pub upsamplers: Vec<Upsample2d>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl UpDecoderBlock {
    pub(crate) fn new(config: LevelConfig, device: &Device) -> Self {
        Self {
            resnets: config.resnets(device),
            attentions: config.attentions(device),
            upsamplers: config
                .resample
                .then(|| Upsample2d::new(config.out_channels, device))
                .into_iter()
                .collect(),
            activations: Activations::default(),
        }
    }

    /// `[N, C_in, H, W]` to `[N, C_out, 2H, 2W]`, or to the same size in the last level.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = run(self.activations, &self.resnets, &self.attentions, x);
        self.upsamplers.iter().fold(x, |x, up| up.forward(x))
    }
}
