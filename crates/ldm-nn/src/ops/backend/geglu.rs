//! GEGLU of burn tensors.

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
use crate::ops::geglu::{self};

/// The activation of a contiguous tensor.
pub(super) fn forward(x: &FlexTensor) -> FlexTensor {
    let [batch, length, both] = x.layout().shape().dims();
    tensor(
        geglu::forward(x.storage(), both / 2),
        [batch, length, both / 2],
    )
}

#[derive(Debug)]
pub(super) struct GegluBackward;

impl Backward<Flex, 1> for GegluBackward {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let x = ops.state;
        let shape = x.layout().shape().clone();
        let [_, _, both] = shape.dims();
        let [node] = ops.parents;
        if let Some(node) = node {
            let dx = geglu::backward(x.storage(), grad.storage(), both / 2);
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
    }
}
