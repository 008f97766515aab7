//! Attention of burn tensors.

use burn::backend::{
    Flex,
    autodiff::{
        checkpoint::base::Checkpointer,
        grads::Gradients,
        ops::{Backward, Ops},
    },
    flex::FlexTensor,
};

use super::{strided, tensor};
use crate::ops::attention::{self, Heads, Sizes};

/// The tensor itself if its rows are contiguous, which a view of `[B, L, heads, D]` satisfies, or else a copy.
pub(super) fn with_rows(x: &FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    if strides[3] == 1 && strides.iter().all(|&stride| stride >= 0) {
        x.clone()
    } else {
        x.to_contiguous()
    }
}

fn heads_of(x: &FlexTensor) -> Heads<'_> {
    let (data, [image, head, row, _]) = strided(x);
    Heads {
        data,
        strides: [image, head, row],
    }
}

fn sizes_of(q: &FlexTensor, k: &FlexTensor) -> Sizes {
    let [batch, heads, queries, width] = q.layout().shape().dims();
    let [_, _, keys, _] = k.layout().shape().dims();
    Sizes {
        batch,
        heads,
        queries,
        keys,
        width,
    }
}

/// A tensor `[batch, heads, length, width]` over values in the order `[batch, length, heads, width]`.
fn heads_tensor(values: Vec<f32>, sizes: Sizes, length: usize) -> FlexTensor {
    tensor(values, [sizes.batch, length, sizes.heads, sizes.width]).transpose(1, 2)
}

/// The attention of tensors [`with_rows`], and what its gradient needs.
pub(super) fn forward(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
) -> (FlexTensor, Vec<Vec<f32>>) {
    let sizes = sizes_of(q, k);
    let (out, log_sums) = attention::forward(sizes, [heads_of(q), heads_of(k), heads_of(v)]);
    (heads_tensor(out, sizes, sizes.queries), log_sums)
}

#[derive(Debug)]
pub(super) struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = ([FlexTensor; 3], Vec<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = with_rows(&grads.consume::<Flex>(&ops.node));
        let (inputs, log_sums) = ops.state;
        let [q, k, v] = inputs;
        let sizes = sizes_of(&q, &k);
        let inputs = [heads_of(&q), heads_of(&k), heads_of(&v)];
        let computed = attention::backward(sizes, inputs, heads_of(&grad), &log_sums);
        let [q_node, k_node, v_node] = ops.parents;
        let computed = [
            (q_node, computed.q, sizes.queries),
            (k_node, computed.k, sizes.keys),
            (v_node, computed.v, sizes.keys),
        ];
        for (node, values, length) in computed {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, heads_tensor(values, sizes, length));
            }
        }
    }
}
