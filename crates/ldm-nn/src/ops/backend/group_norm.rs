//! Group normalisation of burn tensors.

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
use crate::ops::{
    group_norm::{self, Groups},
    simd::Stats,
};

fn groups_of(x: &FlexTensor, num_groups: usize) -> Groups {
    let [_, channels, height, width] = x.layout().shape().dims();
    Groups {
        channels,
        channels_per_group: channels / num_groups,
        pixels: height * width,
    }
}

/// The normalisation of contiguous tensors, and what its gradient needs.
pub(super) fn forward(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    num_groups: usize,
    epsilon: f64,
    silu: bool,
) -> (FlexTensor, Vec<Stats>) {
    let groups = groups_of(x, num_groups);
    let (y, stats) = group_norm::forward(
        x.storage(),
        gamma.storage(),
        beta.storage(),
        groups,
        epsilon,
        silu,
    );
    (tensor(y, x.layout().shape().clone()), stats)
}

#[derive(Debug)]
pub(super) struct GroupNormBackward {
    pub(super) num_groups: usize,
    pub(super) silu: bool,
}

impl Backward<Flex, 3> for GroupNormBackward {
    type State = (FlexTensor, FlexTensor, FlexTensor, Vec<Stats>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, gamma, beta, stats) = ops.state;
        let affine = (gamma.storage(), beta.storage());
        let groups = groups_of(&x, self.num_groups);
        let computed = group_norm::backward(
            x.storage(),
            grad.storage(),
            affine,
            &stats,
            groups,
            self.silu,
        );
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        register(grads, nodes, computed, [&x, &gamma]);
    }
}
