use super::config::*;

impl UNetConfig {
    /// The unconditional U-Net of the paper's CelebA-HQ 256 system (table 12): 274,056,163 parameters, latents 64x64x3.
    pub fn celebahq() -> Self {
        use DownBlockType::{AttnDownBlock2D, DownBlock2D};
        use UpBlockType::{AttnUpBlock2D, UpBlock2D};
        Self {
            sample_size: Some(SampleSize::Square(64)),
            attention_head_dim: Some(PerLevel::All(32)),
            ..Self::unconditional(
                3,
                vec![224, 448, 672, 896],
                vec![
                    DownBlock2D,
                    AttnDownBlock2D,
                    AttnDownBlock2D,
                    AttnDownBlock2D,
                ],
                vec![AttnUpBlock2D, AttnUpBlock2D, AttnUpBlock2D, UpBlock2D],
            )
        }
    }

    /// The U-Net of the paper's text-to-image system (table 15): 872,300,484 parameters, latents 32x32x4, context of width 1280.
    pub fn text_to_image() -> Self {
        use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        use UpBlockType::{CrossAttnUpBlock2D, UpBlock2D};
        Self {
            sample_size: Some(SampleSize::Square(32)),
            ..Self::conditional(
                4,
                1280,
                vec![320, 640, 1280, 1280],
                vec![
                    CrossAttnDownBlock2D,
                    CrossAttnDownBlock2D,
                    CrossAttnDownBlock2D,
                    DownBlock2D,
                ],
                vec![
                    UpBlock2D,
                    CrossAttnUpBlock2D,
                    CrossAttnUpBlock2D,
                    CrossAttnUpBlock2D,
                ],
            )
        }
    }

    /// A `UNet2DModel` for latents of `channels` channels, with diffusers' defaults for the rest (heads of width 8).
    pub fn unconditional(
        channels: usize,
        block_out_channels: Vec<usize>,
        down_block_types: Vec<DownBlockType>,
        up_block_types: Vec<UpBlockType>,
    ) -> Self {
        Self {
            class_name: UNetClass::UNet2DModel,
            sample_size: None,
            in_channels: channels,
            out_channels: channels,
            block_out_channels,
            layers_per_block: 2,
            down_block_types,
            up_block_types,
            mid_block_type: None,
            cross_attention_dim: None,
            attention_head_dim: Some(PerLevel::All(8)),
            transformer_layers_per_block: PerLevel::All(1),
            use_linear_projection: false,
            add_attention: true,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            downsample_padding: 1,
            resnet_time_scale_shift: TimeScaleShift::Default,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            num_class_embeds: None,
        }
    }

    /// A `UNet2DConditionModel` for latents of `channels` channels and a context of width `cross_attention_dim`, with
    /// diffusers' defaults for the rest (8 heads).
    pub fn conditional(
        channels: usize,
        cross_attention_dim: usize,
        block_out_channels: Vec<usize>,
        down_block_types: Vec<DownBlockType>,
        up_block_types: Vec<UpBlockType>,
    ) -> Self {
        Self {
            class_name: UNetClass::UNet2DConditionModel,
            cross_attention_dim: Some(cross_attention_dim),
            ..Self::unconditional(
                channels,
                block_out_channels,
                down_block_types,
                up_block_types,
            )
        }
    }
}
