use burn::{
    nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig},
    prelude::*,
};

use crate::{
    ops,
    watch::{self, Site},
};

/// Configuration of an [`Attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Width of the queries' input and of the output.
    pub query_dim: usize,
    /// Width of the context that keys and values come from; `None` is self-attention.
    pub context_dim: Option<usize>,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head; the inner width is `heads * head_dim`.
    pub head_dim: usize,
    /// Whether `to_q`, `to_k` and `to_v` have a bias; `to_out` always has one.
    pub qkv_bias: bool,
    /// A group norm before the attention and a residual round it, `(groups, epsilon)`: the form that works on images.
    pub group_norm: Option<(usize, f64)>,
}

/// Multi-head attention under diffusers' `Attention` names.
#[derive(Module, Debug)]
pub struct Attention {
    /// Norm of an image's features; see [`AttentionConfig::group_norm`].
    pub group_norm: Option<GroupNorm>,
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// Output projection; a list of one because the reference's holds a dropout after it.
    pub to_out: Vec<Linear>,
    /// Number of heads.
    pub heads: usize,
}

impl AttentionConfig {
    /// Initialises the projections on `device`.
    pub fn init(&self, device: &Device) -> Attention {
        let inner = self.heads * self.head_dim;
        let context_dim = self.context_dim.unwrap_or(self.query_dim);
        let project = |width| {
            LinearConfig::new(width, inner)
                .with_bias(self.qkv_bias)
                .init(device)
        };
        Attention {
            group_norm: self.group_norm.map(|(groups, epsilon)| {
                GroupNormConfig::new(groups, self.query_dim)
                    .with_epsilon(epsilon)
                    .init(device)
            }),
            to_q: project(self.query_dim),
            to_k: project(context_dim),
            to_v: project(context_dim),
            to_out: vec![LinearConfig::new(inner, self.query_dim).init(device)],
            heads: self.heads,
        }
    }
}

impl Attention {
    /// Attends from `x` to `context`, or to itself.
    ///
    /// # Shapes
    /// - `x`: `[B, L, query_dim]`
    /// - `context`: `[B, S, context_dim]`
    /// - output: `[B, L, query_dim]`
    pub fn forward(&self, x: Tensor<3>, context: Option<Tensor<3>>) -> Tensor<3> {
        let context = match context {
            Some(context) => ops::in_dtype(context, self.to_k.weight.val().dtype()),
            None => x.clone(),
        };
        let q = self.split_heads(ops::linear(&self.to_q, x));
        let k = self.split_heads(ops::linear(&self.to_k, context.clone()));
        let v = self.split_heads(ops::linear(&self.to_v, context));
        let [b, heads, length, head_dim] = q.dims();
        let attended = watch::joint(Site::parent(self.to_q.weight.id), [q, k, v], |[q, k, v]| {
            ops::attention(q, k, v)
        })
        .swap_dims(1, 2)
        .reshape([b, length, heads * head_dim]);
        ops::linear(&self.to_out[0], attended)
    }

    /// Self-attention over the pixels of `[N, C, H, W]`, with the norm before it and the residual round it.
    ///
    /// # Panics
    /// If the module was configured without [`AttentionConfig::group_norm`].
    pub fn forward_image(&self, x: Tensor<4>) -> Tensor<4> {
        let norm = self
            .group_norm
            .as_ref()
            .expect("attention over an image has a group norm");
        let [n, c, h, w] = x.dims();
        let tokens = ops::group_norm(norm, x.clone())
            .reshape([n, c, h * w])
            .swap_dims(1, 2);
        let attended = self.forward(tokens, None);
        x + attended.swap_dims(1, 2).reshape([n, c, h, w])
    }

    /// `[B, L, heads * D]` to `[B, heads, L, D]`.
    fn split_heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [b, length, inner] = x.dims();
        x.reshape([b, length, self.heads, inner / self.heads])
            .swap_dims(1, 2)
    }
}
