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

use super::tensor;
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
        let [x_node, gamma_node, beta_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, tensor(computed.x, x.layout().shape().clone()));
        }
        let shape = gamma.layout().shape();
        if let Some(node) = gamma_node {
            grads.register::<Flex>(node.id, tensor(computed.gamma, shape.clone()));
        }
        if let Some(node) = beta_node {
            grads.register::<Flex>(node.id, tensor(computed.beta, shape.clone()));
        }
    }
}
