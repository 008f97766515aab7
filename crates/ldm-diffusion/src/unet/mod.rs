//! The denoising U-Net (paper, section 3.2; Ho et al. 2020, appendix B), under diffusers' names.

mod attention;
mod blocks;
mod config;
mod init;
mod presets;
mod transformer;
mod validate;

use burn::{
    nn::{
        Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
};
use ldm_nn::{TimestepEmbedding, ops, timestep_embedding};

pub use attention::SpatialAttention;
pub use blocks::{DownBlock, MidBlock, UpBlock};
pub use config::{
    DownBlockType, MidBlockType, PerLevel, SampleSize, TimeScaleShift, UNetClass, UNetConfig,
    UpBlockType,
};
pub use transformer::{FeedForward, Projection, Transformer2d, TransformerBlock};

/// The denoising network: diffusers' `UNet2DConditionModel` or `UNet2DModel`, whichever [`UNetConfig`] describes.
#[derive(Module, Debug)]
pub struct UNet {
    /// First convolution.
    pub conv_in: Conv2d,
    /// From the sinusoidal embedding of the timestep to that of the blocks.
    pub time_embedding: TimestepEmbedding,
    /// Learned embedding of a class, added to that of the timestep.
    pub class_embedding: Option<Embedding>,
    /// The levels, finest first.
    pub down_blocks: Vec<DownBlock>,
    /// The middle.
    pub mid_block: MidBlock,
    /// The levels, coarsest first.
    pub up_blocks: Vec<UpBlock>,
    /// Norm before the last convolution.
    pub conv_norm_out: GroupNorm,
    /// Last convolution; starts at 0.
    pub conv_out: Conv2d,
    /// See [`UNetConfig::flip_sin_to_cos`].
    pub flip_sin_to_cos: bool,
    /// See [`UNetConfig::freq_shift`].
    pub freq_shift: f64,
}

impl UNet {
    /// See [`UNetConfig::init`].
    fn new(config: &UNetConfig, device: &Device) -> Self {
        let levels = config.block_out_channels.len();
        let channels = config.block_out_channels[0];
        let conv = |channels| {
            Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        Self {
            conv_in: conv([config.in_channels, channels]),
            time_embedding: TimestepEmbedding::new(channels, config.time_embed_dim(), device),
            class_embedding: (config.num_class_embeds)
                .map(|classes| EmbeddingConfig::new(classes, config.time_embed_dim()).init(device)),
            down_blocks: (0..levels)
                .map(|level| DownBlock::new(config, level, device))
                .collect(),
            mid_block: MidBlock::new(config, device),
            up_blocks: (0..levels)
                .rev()
                .map(|level| UpBlock::new(config, level, device))
                .collect(),
            conv_norm_out: GroupNormConfig::new(config.norm_num_groups, channels)
                .with_epsilon(config.norm_eps)
                .init(device),
            conv_out: init::zeroed_conv(conv([channels, config.out_channels]), device),
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// Predicts noise, sample or velocity, whichever it was trained to.
    ///
    /// # Shapes
    /// - `x`: `[N, in_channels, H, W]`, any height and width
    /// - `timesteps`: `[N]`, in training steps, fractions allowed
    /// - `context`: `[N, S, cross_attention_dim]`; ignored by a network without transformers
    /// - output: `[N, out_channels, H, W]`
    ///
    /// # Panics
    /// If a network with transformers gets no context, or one with classes is called without
    /// [`forward_labelled`](Self::forward_labelled).
    pub fn forward(
        &self,
        x: Tensor<4>,
        timesteps: Tensor<1>,
        context: Option<Tensor<3>>,
    ) -> Tensor<4> {
        self.forward_labelled(x, timesteps, context, None)
    }

    /// [`forward`](Self::forward) with class labels `[N]` for a network that has `num_class_embeds`.
    ///
    /// # Panics
    /// If labels are given exactly where the network has no classes, or a transformer gets no context.
    pub fn forward_labelled(
        &self,
        x: Tensor<4>,
        timesteps: Tensor<1>,
        context: Option<Tensor<3>>,
        labels: Option<Tensor<1, Int>>,
    ) -> Tensor<4> {
        let temb = self.embed(timesteps, labels);
        let context = context.as_ref();

        let mut x = ops::conv2d(&self.conv_in, x);
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &temb, context, &mut skips);
        }
        x = self.mid_block.forward(x, &temb, context);
        for block in &self.up_blocks {
            x = block.forward(x, &temb, context, &mut skips);
        }
        ops::conv2d(&self.conv_out, ops::group_norm_silu(&self.conv_norm_out, x))
    }

    /// Embedding of timestep and class, `[N, time_embed_dim]`.
    fn embed(&self, timesteps: Tensor<1>, labels: Option<Tensor<1, Int>>) -> Tensor<2> {
        let width = self.time_embedding.linear_1.weight.dims()[0];
        let sinusoids = timestep_embedding(timesteps, width, self.flip_sin_to_cos, self.freq_shift);
        let temb = self.time_embedding.forward(sinusoids);
        match (&self.class_embedding, labels) {
            (None, None) => temb,
            (Some(classes), Some(labels)) => temb + classes.weight.val().select(0, labels),
            (Some(_), None) => panic!("this U-Net has class embeddings, and got no class labels"),
            (None, Some(_)) => panic!("this U-Net has no class embeddings, but got class labels"),
        }
    }
}
