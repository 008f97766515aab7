//! The operators composed of burn's own: what every backend runs that has no kernel here, and what the kernels are
//! tested and measured against.

use burn::{
    nn::{GroupNorm, Linear, conv::Conv2d},
    tensor::{Tensor, activation},
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

/// [`layer_norm`](super::layer_norm) of sums and products. burn's own is another operator without gradients than with them on some
/// backends, and rounds otherwise.
pub fn layer_norm(norm: &LayerNorm, x: Tensor<3>) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normalised = centred / variance.add_scalar(norm.epsilon).sqrt();
    normalised * norm.gamma.val().unsqueeze() + norm.beta.val().unsqueeze()
}

/// [`linear`](super::linear) of burn's.
pub fn linear<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    linear.forward(x)
}

/// [`attention`](super::attention) of burn's matrix products.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let logits = to_f32(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)));
    in_dtype(softmax(logits), v.dtype()).matmul(v)
}

/// Softmax over the last axis, which burn's is in two ways as [`layer_norm`] is.
fn softmax(logits: Tensor<4>) -> Tensor<4> {
    let largest = logits.clone().detach().max_dim(3);
    let weights = (logits - largest).exp();
    weights.clone() / weights.sum_dim(3)
}

/// [`geglu`](super::geglu) of burn's.
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    let width = x.dims()[2] / 2;
    let gate = x.clone().narrow(2, width, width);
    x.narrow(2, 0, width) * activation::gelu(gate)
}
