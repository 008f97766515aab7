//! Linear maps of burn tensors.

use burn::backend::{
    Flex,
    autodiff::{
        checkpoint::base::Checkpointer,
        grads::Gradients,
        ops::{Backward, Ops},
    },
    flex::FlexTensor,
};

use super::{register, strided, tensor, wanted};
use crate::ops::{
    gemm::Matrix,
    linear::{self, Rows},
};

/// The tensor itself, which may be a view, unless an axis runs backwards or repeats itself.
pub(super) fn with_strides(x: &FlexTensor) -> FlexTensor {
    if x.layout().strides().iter().all(|&stride| stride > 0) {
        x.clone()
    } else {
        x.to_contiguous()
    }
}

fn weight_of(weight: &FlexTensor) -> Matrix<'_> {
    let (data, [row, column]) = strided(weight);
    Matrix { data, row, column }
}

/// `[N, L, C]` by its strides: one matrix of N L rows where they follow each other.
fn rows_of(x: &FlexTensor) -> Rows<'_> {
    let [images, rows, _] = x.layout().shape().dims();
    let (data, [stride, row, column]) = strided(x);
    let first = Matrix { data, row, column };
    match stride == rows * row || images == 1 {
        true => Rows {
            images: 1,
            rows: images * rows,
            stride: 0,
            first,
        },
        false => Rows {
            images,
            rows,
            stride,
            first,
        },
    }
}

/// The map of tensors [`with_strides`]; the bias is contiguous, and empty if there is none.
pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let [images, rows, _] = x.layout().shape().dims();
    let [inputs, outputs] = weight.layout().shape().dims();
    let bias = Some(bias.storage()).filter(|bias: &&[f32]| !bias.is_empty());
    let y = linear::forward(rows_of(x), weight_of(weight), [inputs, outputs], bias);
    tensor(y, [images, rows, outputs])
}

#[derive(Debug)]
pub(super) struct LinearBackward;

impl Backward<Flex, 3> for LinearBackward {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = ops.state;
        let [inputs, outputs] = weight.layout().shape().dims();
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let computed = linear::backward(
            rows_of(&x),
            weight_of(&weight),
            grad.storage(),
            [inputs, outputs],
            &wanted(&nodes),
        );
        register(grads, nodes, computed, [&x, &weight]);
    }
}
