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

    /// The U-Net of the paper's class-conditional ImageNet system over the f8 autoencoder (CompVis' `cin-ldm-vq-f8`): 394,984,196
    /// parameters, latents 32x32x4, context of width 512 with a class as its only token.
    pub fn imagenet_f8() -> Self {
        use DownBlockType::CrossAttnDownBlock2D;
        use UpBlockType::CrossAttnUpBlock2D;
        Self {
            sample_size: Some(SampleSize::Square(32)),
            attention_head_dim: Some(PerLevel::Each(vec![8, 16, 32])),
            ..Self::conditional(
                4,
                512,
                vec![256, 512, 1024],
                vec![CrossAttnDownBlock2D; 3],
                vec![CrossAttnUpBlock2D; 3],
            )
        }
    }

    /// The U-Net of the class-conditional ImageNet system over the f4 autoencoder (CompVis' `cin256-v2`): 400,920,579
    /// parameters, latents 64x64x3, context of width 512.
    pub fn imagenet_f4() -> Self {
        use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        use UpBlockType::{CrossAttnUpBlock2D, UpBlock2D};
        Self {
            sample_size: Some(SampleSize::Square(64)),
            attention_head_dim: Some(PerLevel::All(1)),
            ..Self::conditional(
                3,
                512,
                vec![192, 384, 576, 960],
                vec![
                    DownBlock2D,
                    CrossAttnDownBlock2D,
                    CrossAttnDownBlock2D,
                    CrossAttnDownBlock2D,
                ],
                vec![
                    CrossAttnUpBlock2D,
                    CrossAttnUpBlock2D,
                    CrossAttnUpBlock2D,
                    UpBlock2D,
                ],
            )
        }
    }

    /// The U-Net of the paper's semantic synthesis system (CompVis' `semantic_synthesis256`): 215,229,315 parameters, latents
    /// 64x64x3 with a rescaled label map of 3 channels concatenated to them.
    ///
    /// Only the middle attends: the configured factors 8, 16 and 32 don't occur among three levels.
    pub fn landscapes() -> Self {
        Self {
            sample_size: Some(SampleSize::Square(64)),
            in_channels: 6,
            attention_head_dim: Some(PerLevel::All(128)),
            ..Self::unconditional(
                3,
                vec![128, 512, 1024],
                vec![DownBlockType::DownBlock2D; 3],
                vec![UpBlockType::UpBlock2D; 3],
            )
        }
    }

    /// The unconditional U-Net of the paper's LSUN-Churches system (CompVis' `lsun_churches-ldm-kl-8`): 294,966,916 parameters,
    /// latents 32x32x4.
    pub fn lsun_churches() -> Self {
        use DownBlockType::{AttnDownBlock2D, ResnetDownsampleBlock2D};
        use UpBlockType::{AttnUpBlock2D, ResnetUpsampleBlock2D};
        Self {
            sample_size: Some(SampleSize::Square(32)),
            // Eight heads at every level.
            attention_head_dim: Some(PerLevel::Each(vec![24, 48, 48, 96, 96])),
            attn_norm_num_groups: Some(32),
            downsample_type: ResampleType::Resnet,
            upsample_type: ResampleType::Resnet,
            resnet_time_scale_shift: TimeScaleShift::ScaleShift,
            ..Self::unconditional(
                4,
                vec![192, 384, 384, 768, 768],
                vec![
                    AttnDownBlock2D,
                    AttnDownBlock2D,
                    AttnDownBlock2D,
                    AttnDownBlock2D,
                    ResnetDownsampleBlock2D,
                ],
                vec![
                    ResnetUpsampleBlock2D,
                    AttnUpBlock2D,
                    AttnUpBlock2D,
                    AttnUpBlock2D,
                    AttnUpBlock2D,
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
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            downsample_padding: 1,
            downsample_type: ResampleType::Conv,
            upsample_type: ResampleType::Conv,
            resnet_time_scale_shift: TimeScaleShift::Default,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            num_class_embeds: None,
            class_embed_type: None,
            center_input_sample: false,
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
