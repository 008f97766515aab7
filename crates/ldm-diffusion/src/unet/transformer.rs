use burn::{
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
};
use ldm_nn::{
    Attention, AttentionConfig, LayerNorm, ops,
    watch::{self, Site},
};

use super::init::{zeroed_conv, zeroed_linear};

/// Spatial transformer: an image's pixels become tokens that attend to each other and to a context (paper, section 3.3).
///
/// diffusers' `Transformer2DModel`.
#[derive(Module, Debug)]
pub struct Transformer2d {
    /// Norm before the transformer, epsilon 1e-6.
    pub norm: GroupNorm,
    /// Projection of the features to the tokens.
    pub proj_in: Projection,
    /// The layers.
    pub transformer_blocks: Vec<TransformerBlock>,
    /// Projection back; starts at 0.
    pub proj_out: Projection,
}

/// Configuration of a [`Transformer2d`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Transformer2dConfig {
    pub(super) channels: usize,
    pub(super) context_dim: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) norm_num_groups: usize,
    pub(super) linear_projection: bool,
}

impl Transformer2dConfig {
    pub(super) fn init(&self, device: &Device) -> Transformer2d {
        let projection = || Projection::new(self.channels, self.linear_projection, device);
        Transformer2d {
            norm: GroupNormConfig::new(self.norm_num_groups, self.channels)
                .with_epsilon(1e-6)
                .init(device),
            proj_in: projection(),
            transformer_blocks: (0..self.layers)
                .map(|_| TransformerBlock::new(self.channels, self.context_dim, self.heads, device))
                .collect(),
            proj_out: projection().zeroed(device),
        }
    }
}

impl Transformer2d {
    /// Attends, with a residual round the whole.
    ///
    /// # Shapes
    /// - `x`, output: `[N, C, H, W]`
    /// - `context`: `[N, S, context_dim]`
    pub fn forward(&self, x: Tensor<4>, context: Tensor<3>) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let to_tokens = |x: Tensor<4>| x.reshape([n, c, h * w]).swap_dims(1, 2);
        let to_image = |x: Tensor<3>| x.swap_dims(1, 2).reshape([n, c, h, w]);

        let normed = ops::group_norm(&self.norm, x.clone());
        let mut tokens = match &self.proj_in {
            Projection::Conv(conv) => to_tokens(ops::conv2d(conv, normed)),
            Projection::Linear(linear) => ops::linear(linear, to_tokens(normed)),
        };
        for block in &self.transformer_blocks {
            tokens = block.forward(tokens, context.clone());
        }
        let projected = match &self.proj_out {
            Projection::Conv(conv) => ops::conv2d(conv, to_image(tokens)),
            Projection::Linear(linear) => to_image(ops::linear(linear, tokens)),
        };
        projected + x
    }
}

/// A map of each pixel's features, stored as a 1x1 convolution or as a linear layer.
#[derive(Module, Debug)]
pub enum Projection {
    /// `[C, C, 1, 1]`.
    Conv(Conv2d),
    /// `use_linear_projection`.
    Linear(Linear),
}

impl Projection {
    fn new(channels: usize, linear: bool, device: &Device) -> Self {
        if linear {
            Self::Linear(LinearConfig::new(channels, channels).init(device))
        } else {
            Self::Conv(Conv2dConfig::new([channels, channels], [1, 1]).init(device))
        }
    }

    fn zeroed(self, device: &Device) -> Self {
        match self {
            Self::Conv(conv) => Self::Conv(zeroed_conv(conv, device)),
            Self::Linear(linear) => Self::Linear(zeroed_linear(linear, device)),
        }
    }
}

/// Pre-norm transformer layer: self-attention, attention to the context, feed-forward. diffusers' `BasicTransformerBlock`.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before `attn1`.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn1: Attention,
    /// Norm before `attn2`.
    pub norm2: LayerNorm,
    /// Attention to the context.
    pub attn2: Attention,
    /// Norm before `ff`.
    pub norm3: LayerNorm,
    /// Feed-forward.
    pub ff: FeedForward,
}

impl TransformerBlock {
    fn new(channels: usize, context_dim: usize, heads: usize, device: &Device) -> Self {
        let norm = || LayerNorm::new(channels, 1e-5, device);
        let attention = |context_dim| {
            AttentionConfig {
                query_dim: channels,
                context_dim,
                heads,
                head_dim: channels / heads,
                qkv_bias: false,
                group_norm: None,
            }
            .init(device)
        };
        Self {
            norm1: norm(),
            attn1: attention(None),
            norm2: norm(),
            attn2: attention(Some(context_dim)),
            norm3: norm(),
            ff: FeedForward::new(channels, device),
        }
    }

    /// Applies the three sublayers, each with its residual.
    ///
    /// # Shapes
    /// - `x`, output: `[N, L, C]`
    /// - `context`: `[N, S, context_dim]`
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let x = self.attn1.forward(self.norm1.forward(x.clone()), None) + x;
        let x = self
            .attn2
            .forward(self.norm2.forward(x.clone()), Some(context))
            + x;
        self.ff.forward(self.norm3.forward(x.clone())) + x
    }
}

/// Feed-forward with a GEGLU activation (Shazeer 2020): `proj_out(value gelu(gate))`, inner width 4 C.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `[value | gate]`, diffusers' `net.0.proj`.
    pub proj_in: Linear,
    /// diffusers' `net.2`.
    pub proj_out: Linear,
}

impl FeedForward {
    fn new(channels: usize, device: &Device) -> Self {
        let inner = 4 * channels;
        Self {
            proj_in: LinearConfig::new(channels, 2 * inner).init(device),
            proj_out: LinearConfig::new(inner, channels).init(device),
        }
    }

    /// `[N, L, C]` to `[N, L, C]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = watch::joint(
            Site::parent(self.proj_in.weight.id),
            [ops::linear(&self.proj_in, x)],
            |[x]| ops::geglu(x),
        );
        ops::linear(&self.proj_out, inner)
    }
}
