use burn::prelude::*;
use ldm_nn::{Attention, AttentionConfig};

use super::{
    config::UNetConfig,
    init::zeroed_linear,
    transformer::{Transformer2d, Transformer2dConfig},
};

/// What follows a ResNet block at a level that attends.
#[derive(Module, Debug)]
pub enum SpatialAttention {
    /// Self-attention over the pixels.
    Plain(Attention),
    /// A transformer that attends to the context as well.
    Transformer(Transformer2d),
}

/// Kinds of [`SpatialAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttentionKind {
    /// `AttnDownBlock2D`.
    Plain,
    /// `AttnUpBlock2D`.
    PlainUp,
    /// `UNetMidBlock2D`.
    PlainMid,
    /// `CrossAttn*Block2D`.
    Transformer,
}

impl SpatialAttention {
    /// The attention of `config` at `level`, counted from the finest.
    pub(super) fn new(
        kind: AttentionKind,
        config: &UNetConfig,
        level: usize,
        device: &Device,
    ) -> Self {
        let channels = config.block_out_channels[level];
        let entry = match kind {
            AttentionKind::PlainUp => config.up_width_entry(level),
            _ => level,
        };
        let head_dim = config.attention_head_dim.as_ref().map(|dim| dim.at(entry));
        if kind == AttentionKind::Transformer {
            let transformer = Transformer2dConfig {
                channels,
                context_dim: config.cross_attention_dim.expect("checked by validate"),
                heads: head_dim.expect("checked by validate"),
                layers: config.transformer_layers_per_block.at(level),
                norm_num_groups: config.norm_num_groups,
                linear_projection: config.use_linear_projection,
            };
            return Self::Transformer(transformer.init(device));
        }
        let head_dim = head_dim.unwrap_or(channels);
        let norm_num_groups = match kind {
            AttentionKind::PlainMid => config.mid_attention_groups(),
            _ => Some(config.norm_num_groups),
        };
        let mut attention = AttentionConfig {
            query_dim: channels,
            context_dim: None,
            heads: channels / head_dim,
            head_dim,
            qkv_bias: true,
            group_norm: norm_num_groups.map(|groups| (groups, config.norm_eps)),
        }
        .init(device);
        attention.to_out = (attention.to_out.into_iter())
            .map(|linear| zeroed_linear(linear, device))
            .collect();
        Self::Plain(attention)
    }

    /// Attends, with a residual round it.
    ///
    /// # Shapes
    /// - `x`, output: `[N, C, H, W]`
    /// - `context`: `[N, S, D]`
    ///
    /// # Panics
    /// If a transformer gets no context.
    pub(super) fn forward(&self, x: Tensor<4>, context: Option<&Tensor<3>>) -> Tensor<4> {
        match self {
            Self::Plain(attention) if attention.group_norm.is_some() => attention.forward_image(x),
            Self::Plain(attention) => {
                let [n, c, h, w] = x.dims();
                let tokens = x.clone().reshape([n, c, h * w]).swap_dims(1, 2);
                let attended = attention.forward(tokens, None);
                x + attended.swap_dims(1, 2).reshape([n, c, h, w])
            }
            Self::Transformer(transformer) => {
                let context = context.expect("this U-Net attends to a context, and got none");
                transformer.forward(x, context.clone())
            }
        }
    }
}
