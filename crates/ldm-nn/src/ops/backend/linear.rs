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

use super::tensor;
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
    let strides = weight.layout().strides();
    Matrix {
        data: &weight.storage()[weight.layout().start_offset()..],
        row: strides[0].unsigned_abs(),
        column: strides[1].unsigned_abs(),
    }
}

/// `[N, L, C]` by its strides: one matrix of N L rows where they follow each other.
fn rows_of(x: &FlexTensor) -> Rows<'_> {
    let [images, rows, _] = x.layout().shape().dims();
    let strides: [usize; 3] = std::array::from_fn(|axis| x.layout().strides()[axis].unsigned_abs());
    let [stride, row, column] = strides;
    let first = Matrix {
        data: &x.storage()[x.layout().start_offset()..],
        row,
        column,
    };
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
    let y = linear::forward(rows_of(x), weight_of(weight), bias, [inputs, outputs]);
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
        let [x_node, weight_node, bias_node] = ops.parents;
        let wanted = [x_node.is_some(), weight_node.is_some(), bias_node.is_some()];
        let computed = linear::backward(
            rows_of(&x),
            weight_of(&weight),
            grad.storage(),
            [inputs, outputs],
            wanted,
        );
        if let Some((node, dx)) = x_node.zip(computed.x) {
            grads.register::<Flex>(node.id, tensor(dx, x.layout().shape().clone()));
        }
        if let Some((node, d_weight)) = weight_node.zip(computed.weight) {
            grads.register::<Flex>(node.id, tensor(d_weight, [inputs, outputs]));
        }
        if let Some((node, d_bias)) = bias_node.zip(computed.bias) {
            grads.register::<Flex>(node.id, tensor(d_bias, [outputs]));
        }
    }
}
