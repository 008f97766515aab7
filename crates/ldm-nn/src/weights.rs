//! How the tensors of a CompVis checkpoint correspond to diffusers' names and layouts, which are the native ones.

/// A tensor under diffusers' key, and the tensor of a CompVis checkpoint that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// diffusers' key, without the component: `mid_block.resnets.0.conv1.weight`.
    pub diffusers: String,
    /// CompVis' key, without the component's prefix: `middle_block.0.in_layers.2.weight`.
    pub compvis: String,
    /// How the one lies in the other.
    pub layout: Layout,
}

/// How a tensor of diffusers lies in that of a CompVis checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same shape and order.
    Same,
    /// `[O, I]` stored as the weight of a convolution with a kernel of 1: `[O, I, 1]` or, with two axes, `[O, I, 1, 1]`.
    Pointwise {
        /// Number of axes of the kernel.
        axes: usize,
    },
    /// A third of a fused projection of queries, keys and values: `[O, I]` of `[3 O, I, 1]`, or `[O]` of `[3 O]`.
    Qkv {
        /// 0 for queries, 1 for keys, 2 for values.
        part: usize,
        /// Number of heads, each with its three parts together (CompVis' legacy order); 1 where the parts lie one after the other.
        heads: usize,
    },
}

impl KeyPair {
    /// A pair of tensors of the same shape and order.
    pub fn same(diffusers: impl Into<String>, compvis: impl Into<String>) -> Self {
        Self {
            diffusers: diffusers.into(),
            compvis: compvis.into(),
            layout: Layout::Same,
        }
    }
}
