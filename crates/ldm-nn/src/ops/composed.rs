//! The operators composed of burn's own: what every backend runs that has no kernel here, and what the kernels are
//! tested and measured against.

use burn::{
    nn::{GroupNorm, Linear, conv::Conv2d},
    tensor::{Tensor, activation, module},
};

use super::{in_dtype, to_f32};
use crate::LayerNorm;

/// [`conv2d`](super::conv2d) of burn's.
pub fn conv2d(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    conv.forward(x)
}

/// [`group_norm`](super::group_norm) of burn's.
pub fn group_norm(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    norm.forward(x)
}

/// [`group_norm_silu`](super::group_norm_silu) of burn's.
pub fn group_norm_silu(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    activation::silu(norm.forward(x))
}

/// [`layer_norm`](super::layer_norm) of burn's.
pub fn layer_norm(norm: &LayerNorm, x: Tensor<3>) -> Tensor<3> {
    let beta = Some(norm.beta.val());
    module::layer_norm(x, norm.gamma.val(), beta, norm.epsilon)
}

/// [`linear`](super::linear) of burn's.
pub fn linear<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    linear.forward(x)
}

/// [`attention`](super::attention) of burn's matrix products and softmax.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let logits = to_f32(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)));
    in_dtype(activation::softmax(logits, 3), v.dtype()).matmul(v)
}

/// [`geglu`](super::geglu) of burn's.
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    let width = x.dims()[2] / 2;
    let gate = x.clone().narrow(2, width, width);
    x.narrow(2, 0, width) * activation::gelu(gate)
}
