//! Layer normalisation of burn tensors.

use burn::backend::{
    Flex,
    autodiff::{
        checkpoint::base::Checkpointer,
        grads::Gradients,
        ops::{Backward, Ops},
    },
    flex::FlexTensor,
};

use super::{register, tensor};
use crate::ops::{layer_norm, simd::Stats};

/// The normalisation of contiguous tensors, and what its gradient needs.
pub(super) fn forward(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    epsilon: f64,
) -> (FlexTensor, Vec<Stats>) {
    let (y, stats) = layer_norm::forward(x.storage(), gamma.storage(), beta.storage(), epsilon);
    (tensor(y, x.layout().shape().clone()), stats)
}

#[derive(Debug)]
pub(super) struct LayerNormBackward;

impl Backward<Flex, 3> for LayerNormBackward {
    type State = (FlexTensor, FlexTensor, Vec<Stats>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, gamma, stats) = ops.state;
        let computed = layer_norm::backward(x.storage(), grad.storage(), gamma.storage(), &stats);
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        register(grads, nodes, computed, [&x, &gamma]);
    }
}
