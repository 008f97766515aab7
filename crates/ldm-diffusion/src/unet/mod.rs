//! The denoising U-Net (paper, section 3.2; Ho et al. 2020, appendix B), under diffusers' names.

mod attention;
mod blocks;
mod class;
mod config;
mod init;
mod presets;
mod resample;
mod transformer;
mod validate;

use burn::{
    nn::{
        GroupNorm, GroupNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
};
use ldm_nn::{Activations, TimestepEmbedding, ops, timestep_embedding};

pub use attention::SpatialAttention;
pub use blocks::{DownBlock, MidBlock, UpBlock};
pub use class::ClassEmbedding;
pub use config::{
    ClassEmbedType, DownBlockType, MidBlockType, PerLevel, ResampleType, SampleSize,
    TimeScaleShift, UNetClass, UNetConfig, UpBlockType,
};
pub use resample::{Downsampler, Upsampler};
pub use transformer::{FeedForward, Projection, Transformer2d, TransformerBlock};

/// The denoising network: diffusers' `UNet2DConditionModel` or `UNet2DModel`, whichever [`UNetConfig`] describes.
#[derive(Module, Debug)]
pub struct UNet {
    /// First convolution.
    pub conv_in: Conv2d,
    /// From the sinusoidal embedding of the timestep to that of the blocks.
    pub time_embedding: TimestepEmbedding,
    /// Embedding of a class, added to that of the timestep.
    pub class_embedding: Option<ClassEmbedding>,
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
    /// See [`UNetConfig::center_input_sample`].
    pub center_input_sample: bool,
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
            class_embedding: ClassEmbedding::new(config, device),
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
            center_input_sample: config.center_input_sample,
        }
    }

    /// The same network, whose ResNet blocks and attentions keep their activations for the backward pass or compute them
    /// again. Neither the record nor the configuration knows of it.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        for block in &mut self.down_blocks {
            block.activations = activations;
        }
        self.mid_block.activations = activations;
        for block in &mut self.up_blocks {
            block.activations = activations;
        }
        self
    }

    /// Predicts noise, sample or velocity, whichever it was trained to.
    ///
    /// # Shapes
    /// - `x`: `[N, in_channels, H, W]`, any height and width
    /// - `timesteps`: `[N]`, in training steps, fractions allowed
    /// - `context`: `[N, S, cross_attention_dim]`; ignored by a network without transformers
    /// - output: `[N, out_channels, H, W]`, in f32 whatever the weights are in
    ///
    /// # Panics
    /// If a network with transformers gets no context, or one with classes is called without
    /// [`forward_with_class`](Self::forward_with_class).
    pub fn forward(
        &self,
        x: Tensor<4>,
        timesteps: Tensor<1>,
        context: Option<Tensor<3>>,
    ) -> Tensor<4> {
        self.forward_with_class(x, timesteps, context, None)
    }

    /// [`forward`](Self::forward) with class labels `[N]`, for a network that has a [`ClassEmbedding`].
    ///
    /// Under [`ClassEmbedType::Identity`] a label is added to every component of the timestep's embedding.
    ///
    /// # Panics
    /// If labels are missing where the network has classes, or given where it has none, or a transformer gets no context.
    pub fn forward_with_class(
        &self,
        x: Tensor<4>,
        timesteps: Tensor<1>,
        context: Option<Tensor<3>>,
        class_labels: Option<Tensor<1, Int>>,
    ) -> Tensor<4> {
        let temb = self.embed_timesteps(timesteps);
        let temb = match (&self.class_embedding, class_labels) {
            (None, None) => temb,
            (Some(classes), Some(labels)) => temb + classes.forward(labels, |t| self.sinusoids(t)),
            (Some(_), None) => panic!("this U-Net has class embeddings, and got no class labels"),
            (None, Some(_)) => panic!("this U-Net has no class embeddings, but got class labels"),
        };
        self.forward_embedded(x, temb, context)
    }

    /// [`forward`](Self::forward) with an embedding `[N, time_embed_dim]` that is added to the timestep's, for a network under
    /// [`ClassEmbedType::Identity`].
    ///
    /// # Panics
    /// If the network is of another kind, or a transformer gets no context.
    pub fn forward_with_class_embedding(
        &self,
        x: Tensor<4>,
        timesteps: Tensor<1>,
        context: Option<Tensor<3>>,
        embedding: Tensor<2>,
    ) -> Tensor<4> {
        assert!(
            matches!(self.class_embedding, Some(ClassEmbedding::Identity(_))),
            "this U-Net takes no embedding of a class"
        );
        let temb = self.embed_timesteps(timesteps) + embedding;
        self.forward_embedded(x, temb, context)
    }

    /// Embedding `[N, time_embed_dim]` of timesteps `[N]`, without that of a class.
    pub fn embed_timesteps(&self, timesteps: Tensor<1>) -> Tensor<2> {
        self.time_embedding.forward(self.sinusoids(timesteps))
    }

    fn sinusoids(&self, timesteps: Tensor<1>) -> Tensor<2> {
        let width = self.time_embedding.linear_1.weight.dims()[0];
        timestep_embedding(timesteps, width, self.flip_sin_to_cos, self.freq_shift)
    }

    fn forward_embedded(
        &self,
        x: Tensor<4>,
        temb: Tensor<2>,
        context: Option<Tensor<3>>,
    ) -> Tensor<4> {
        let context = context.as_ref();
        let x = if self.center_input_sample {
            x * 2.0 - 1.0
        } else {
            x
        };

        let mut x = ops::conv2d(&self.conv_in, x);
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &temb, context, &mut skips);
        }
        x = self.mid_block.forward(x, &temb, context);
        for block in &self.up_blocks {
            x = block.forward(x, &temb, context, &mut skips);
        }
        let x = ops::group_norm_silu(&self.conv_norm_out, x);
        ops::to_f32(ops::conv2d(&self.conv_out, x))
    }
}
