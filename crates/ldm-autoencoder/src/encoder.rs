use burn::{
    nn::{
        GroupNorm, GroupNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
};
use ldm_nn::{Activations, ops};

use crate::{
    DownBlockType, DownEncoderBlock, MidBlock,
    architecture::Architecture,
    blocks::{LevelConfig, NORM_EPS},
};

/// Images to their latents, or to the moments of these, before `quant_conv`.
#[derive(Module, Debug)]
pub struct Encoder {
    /// First convolution.
    pub conv_in: Conv2d,
    /// Levels, from full resolution downwards.
    pub down_blocks: Vec<DownEncoderBlock>,
    /// The bottom.
    pub mid_block: MidBlock,
    /// Last norm, followed by SiLU.
    pub conv_norm_out: GroupNorm,
    /// Last convolution, to the latent or to its mean and log-variance.
    pub conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn new(config: Architecture, device: &Device) -> Self {
        let groups = config.norm_num_groups;
        let channels = config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv3x3 = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        let down_blocks = channels
            .iter()
            .zip(config.down_block_types)
            .enumerate()
            .map(|(level, (&out_channels, kind))| {
                let level = LevelConfig {
                    in_channels: if level == 0 {
                        first
                    } else {
                        channels[level - 1]
                    },
                    out_channels,
                    layers: config.layers_per_block,
                    attention: *kind == DownBlockType::AttnDown,
                    resample: level + 1 < channels.len(),
                    groups,
                };
                DownEncoderBlock::new(level, device)
            })
            .collect();
        Self {
            conv_in: conv3x3([config.in_channels, first]),
            down_blocks,
            mid_block: MidBlock::new(last, groups, config.mid_block_add_attention, device),
            conv_norm_out: GroupNormConfig::new(groups, last)
                .with_epsilon(NORM_EPS)
                .init(device),
            conv_out: conv3x3([last, config.encoder_out_channels]),
        }
    }

    /// Sets what becomes of the activations of ResNet blocks and attentions.
    pub(crate) fn set_activations(&mut self, activations: Activations) {
        for block in &mut self.down_blocks {
            block.activations = activations;
        }
        self.mid_block.activations = activations;
    }

    /// `[N, 3, H, W]` to `[N, c, H/f, W/f]`, or `2c` channels for moments.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let x = ops::conv2d(&self.conv_in, images);
        let x = self.down_blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.mid_block.forward(x);
        ops::conv2d(&self.conv_out, ops::group_norm_silu(&self.conv_norm_out, x))
    }
}
