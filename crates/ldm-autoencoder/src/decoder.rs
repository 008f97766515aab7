use burn::{
    nn::{
        GroupNorm, GroupNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
};
use ldm_nn::{Activations, ops};

use crate::{
    MidBlock, UpBlockType, UpDecoderBlock,
    architecture::Architecture,
    blocks::{LevelConfig, NORM_EPS},
};

/// Latents, after `post_quant_conv`, to images.
#[derive(Module, Debug)]
pub struct Decoder {
    /// First convolution.
    pub conv_in: Conv2d,
    /// The bottom.
    pub mid_block: MidBlock,
    /// Levels, from the latent's resolution upwards.
    pub up_blocks: Vec<UpDecoderBlock>,
    /// Last norm, followed by SiLU.
    pub conv_norm_out: GroupNorm,
    /// Last convolution, to the image; its weight's gradients set the adversarial weight.
    pub conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn new(config: Architecture, device: &Device) -> Self {
        let groups = config.norm_num_groups;
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv3x3 = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        let up_blocks = channels
            .iter()
            .zip(config.up_block_types)
            .enumerate()
            .map(|(level, (&out_channels, kind))| {
                let level = LevelConfig {
                    in_channels: if level == 0 {
                        first
                    } else {
                        channels[level - 1]
                    },
                    out_channels,
                    layers: config.layers_per_block + 1,
                    attention: *kind == UpBlockType::AttnUp,
                    resample: level + 1 < channels.len(),
                    groups,
                };
                UpDecoderBlock::new(level, device)
            })
            .collect();
        Self {
            conv_in: conv3x3([config.latent_channels, first]),
            mid_block: MidBlock::new(first, groups, config.mid_block_add_attention, device),
            up_blocks,
            conv_norm_out: GroupNormConfig::new(groups, last)
                .with_epsilon(NORM_EPS)
                .init(device),
            conv_out: conv3x3([last, config.out_channels]),
        }
    }

    /// Sets what becomes of the activations of ResNet blocks and attentions.
    pub(crate) fn set_activations(&mut self, activations: Activations) {
        for block in &mut self.up_blocks {
            block.activations = activations;
        }
        self.mid_block.activations = activations;
    }

    /// Everything before [`conv_out`](Self::conv_out): `[N, c, h, w]` to `[N, C, f h, f w]`.
    pub fn features(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = ops::conv2d(&self.conv_in, latents);
        let x = self.mid_block.forward(x);
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        ops::group_norm_silu(&self.conv_norm_out, x)
    }

    /// `[N, c, h, w]` to `[N, 3, f h, f w]`.
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        ops::conv2d(&self.conv_out, self.features(latents))
    }
}
