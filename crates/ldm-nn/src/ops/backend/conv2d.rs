//! Convolution of burn tensors.

use burn::backend::{
    Flex,
    autodiff::{
        checkpoint::base::Checkpointer,
        grads::Gradients,
        ops::{Backward, Ops},
    },
    flex::FlexTensor,
};

use super::{register, tensor, wanted};
use crate::ops::conv2d::{self, Convolution};

fn convolution_of(
    x: &FlexTensor,
    weight: &FlexTensor,
    stride: [usize; 2],
    padding: [usize; 4],
) -> Convolution {
    let [images, inputs, height, width] = x.layout().shape().dims();
    let [outputs, _, kernel_height, kernel_width] = weight.layout().shape().dims();
    Convolution {
        images,
        inputs,
        outputs,
        size: [height, width],
        kernel: [kernel_height, kernel_width],
        stride,
        padding,
    }
}

/// The convolution of contiguous tensors.
pub(super) fn forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    stride: [usize; 2],
    padding: [usize; 4],
) -> FlexTensor {
    let conv = convolution_of(x, weight, stride, padding);
    let [height, width] = conv
        .output_size()
        .expect("checked by the caller: the kernel fits the input");
    let y = conv2d::forward(&conv, x.storage(), weight.storage(), Some(bias.storage()));
    tensor(y, [conv.images, conv.outputs, height, width])
}

#[derive(Debug)]
pub(super) struct Conv2dBackward {
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 4],
}

impl Backward<Flex, 3> for Conv2dBackward {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = ops.state;
        let conv = convolution_of(&x, &weight, self.stride, self.padding);
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let computed = conv2d::backward(
            &conv,
            x.storage(),
            weight.storage(),
            grad.storage(),
            &wanted(&nodes),
        );
        register(grads, nodes, computed, [&x, &weight]);
    }
}
