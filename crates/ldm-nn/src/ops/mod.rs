//! The operators that dominate a latent diffusion model's time.
//!
//! Each has two implementations: [`composed`] of burn's own operators, for every backend, and a kernel for `f32`
//! tensors on burn's CPU backend, compiled in by the feature `flex`, with a backward pass of its own. The tensor's
//! device decides between them, before burn's dispatch does: so the backend extension is declared for that one backend,
//! and this crate forwards no other backend's feature. Whoever enables `burn/flex` should enable `ldm-nn/flex` instead.
//!
//! Activations may be bf16. A convolution computes in the type of its weight, to which its input is brought; norms and the
//! softmax compute in f32 and give back what they got.
//!
//! Kernels are deterministic: the order of their additions depends on shapes alone, not on the number of threads. They
//! are compiled for several instruction sets; the environment variable `LDM_KERNELS` lowers what is used, to `avx2`,
//! `portable` (what the target has at least) or `composed` (no kernel), for tests and to find a fault.

use burn::{
    nn::{GroupNorm, Linear, conv::Conv2d},
    tensor::{DType, FloatDType, Tensor},
};

use crate::{LayerNorm, watch};

pub mod composed;

#[cfg(feature = "flex")]
mod attention;
#[cfg(all(feature = "flex", target_arch = "x86_64"))]
mod avx512;
#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod buffer;
#[cfg(feature = "flex")]
mod conv2d;
#[cfg(feature = "flex")]
mod geglu;
#[cfg(feature = "flex")]
mod gemm;
#[cfg(feature = "flex")]
mod gradients;
#[cfg(feature = "flex")]
mod group_norm;
#[cfg(feature = "flex")]
mod layer_norm;
#[cfg(feature = "flex")]
mod linear;
#[cfg(feature = "flex")]
mod scratch;
#[cfg(feature = "flex")]
mod shared;
#[cfg(feature = "flex")]
mod simd;
#[cfg(feature = "flex")]
mod transpose;
#[cfg(feature = "flex")]
mod winograd;

/// What the operators of burn's CPU backend run on here, by its name in `LDM_KERNELS`: `avx512`, `avx2`, `portable` or, where no kernel is
/// used or built in, `composed`.
pub fn kernels() -> &'static str {
    #[cfg(feature = "flex")]
    return simd::level().name();
    #[cfg(not(feature = "flex"))]
    return "composed";
}

/// Applies a 2-D convolution, `[N, C_in, H, W]` to `[N, C_out, H', W']`.
pub fn conv2d(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    let x = in_dtype(x, conv.weight.val().dtype());
    watch::layer(conv.weight.id, x, |x| {
        #[cfg(feature = "flex")]
        if let Some(y) = kernel_conv2d(conv, &x) {
            return y;
        }
        composed::conv2d(conv, x)
    })
}

/// Group normalisation (Wu & He 2018) of `[N, C, H, W]`.
pub fn group_norm(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    watched_group_norm(norm, x, |x| {
        #[cfg(feature = "flex")]
        if let Some(y) = kernel_group_norm(norm, &x, false) {
            return y;
        }
        composed::group_norm(norm, x)
    })
}

/// `silu(group_norm(x))` of `[N, C, H, W]`.
pub fn group_norm_silu(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    watched_group_norm(norm, x, |x| {
        #[cfg(feature = "flex")]
        if let Some(y) = kernel_group_norm(norm, &x, true) {
            return y;
        }
        composed::group_norm_silu(norm, x)
    })
}

/// Layer normalisation (Ba et al. 2016) of `[N, L, C]` over the last axis.
pub fn layer_norm(norm: &LayerNorm, x: Tensor<3>) -> Tensor<3> {
    let forward = |x: Tensor<3>| {
        #[cfg(feature = "flex")]
        if backend::runs_on(&x) && x.shape().num_elements() > 0 {
            let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
            assert_eq!(x.dims()[2], gamma.dims()[0], "rows of another width");
            return backend::layer_norm(x, gamma, beta, norm.epsilon);
        }
        composed::layer_norm(norm, x)
    };
    watch::layer(norm.gamma.id, x, |x| widened(x, forward))
}

/// A linear map of the last axis, `[.., C_in]` to `[.., C_out]`.
pub fn linear<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    watch::layer(linear.weight.id, x, |x| {
        #[cfg(feature = "flex")]
        if let Some(y) = kernel_linear(linear, &x) {
            return y;
        }
        composed::linear(linear, x)
    })
}

/// `x` in f32.
pub fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    in_dtype(x, DType::F32)
}

/// `x` in the type that meets a weight in `dtype`.
pub(crate) fn in_dtype<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype {
        x
    } else {
        x.cast(FloatDType::from(dtype))
    }
}

/// A norm of narrow activations: in f32, like the norm's parameters, and back.
fn widened<const D: usize>(x: Tensor<D>, norm: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        dtype @ (DType::BF16 | DType::F16) => in_dtype(norm(to_f32(x)), dtype),
        _ => norm(x),
    }
}

/// A norm without an affine map has no parameter to be known by, and none that could be at fault.
fn watched_group_norm(
    norm: &GroupNorm,
    x: Tensor<4>,
    forward: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let forward = |x| widened(x, forward);
    match &norm.gamma {
        Some(gamma) => watch::layer(gamma.id, x, forward),
        None => forward(x),
    }
}

/// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), without a mask.
///
/// # Shapes
/// - `q`: `[B, heads, L, D]`; `k`, `v`: `[B, heads, S, D]`
/// - output: `[B, heads, L, D]`
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if [&q, &k, &v]
        .into_iter()
        .all(|x| backend::runs_on(x) && x.shape().num_elements() > 0)
    {
        let ([batch, heads, _, width], [_, _, keys, _]) = (q.dims(), k.dims());
        assert!(
            k.dims() == [batch, heads, keys, width] && k.dims() == v.dims(),
            "attention of queries {:?} to keys {:?} and values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
        return backend::attention(q, k, v);
    }
    composed::attention(q, k, v)
}

/// GEGLU (Shazeer 2020): of `[N, L, 2 C]`, taken as `[value | gate]`, `value * gelu(gate)`, `[N, L, C]`.
///
/// # Panics
/// If the last axis is odd.
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    assert!(
        x.dims()[2].is_multiple_of(2),
        "GEGLU needs values and gates, not {:?}",
        x.dims()
    );
    #[cfg(feature = "flex")]
    if backend::runs_on(&x) && x.shape().num_elements() > 0 {
        return backend::geglu(x);
    }
    composed::geglu(x)
}

/// The kernel's result, or `None` where it does not apply.
#[cfg(feature = "flex")]
fn kernel_group_norm(norm: &GroupNorm, x: &Tensor<4>, silu: bool) -> Option<Tensor<4>> {
    let (gamma, beta) = norm.gamma.as_ref().zip(norm.beta.as_ref())?;
    let applies =
        backend::runs_on(x) && x.dims()[1] == norm.num_channels && x.shape().num_elements() > 0;
    applies.then(|| {
        backend::group_norm(
            x.clone(),
            gamma.val(),
            beta.val(),
            norm.num_groups,
            norm.epsilon,
            silu,
        )
    })
}

/// The kernel's result, or `None` where it does not apply.
#[cfg(feature = "flex")]
fn kernel_linear<const D: usize>(linear: &Linear, x: &Tensor<D>) -> Option<Tensor<D>> {
    let mut shape = x.dims();
    let [inputs, outputs] = linear.weight.dims();
    let applies = D > 1
        && backend::runs_on(x)
        && backend::runs_on(&linear.weight.val())
        && shape[D - 1] == inputs
        && x.shape().num_elements() > 0
        && outputs > 0;
    if !applies {
        return None;
    }
    let x = match D {
        // A view stays one.
        3 => Tensor::from_dispatch(x.clone().into_dispatch()),
        _ => {
            let images = shape[..D - 2].iter().product();
            x.clone().reshape([images, shape[D - 2], inputs])
        }
    };
    let bias = match &linear.bias {
        Some(bias) => bias.val(),
        None => Tensor::zeros([0], &x.device()),
    };
    shape[D - 1] = outputs;
    Some(backend::linear(x, linear.weight.val(), bias).reshape(shape))
}

/// The kernel's result, or `None` where it does not apply.
#[cfg(feature = "flex")]
fn kernel_conv2d(conv: &Conv2d, x: &Tensor<4>) -> Option<Tensor<4>> {
    let [images, inputs, height, width] = x.dims();
    let [outputs, weight_inputs, ..] = conv.weight.dims();
    use burn::nn::PaddingConfig2d;

    let padding = match conv.padding {
        PaddingConfig2d::Valid => [0; 4],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [top, left, bottom, right],
        PaddingConfig2d::Same => return None,
    };
    let shape = conv2d::Convolution {
        images,
        inputs,
        outputs,
        size: [height, width],
        kernel: conv.kernel_size,
        stride: conv.stride,
        padding,
    };
    let applies = backend::runs_on(x)
        && conv.groups == 1
        && conv.dilation == [1, 1]
        && inputs == weight_inputs
        && x.shape().num_elements() > 0
        && shape.output_size().is_some();
    applies.then(|| {
        let bias = match &conv.bias {
            Some(bias) => bias.val(),
            None => Tensor::zeros([outputs], &x.device()),
        };
        backend::conv2d(x.clone(), conv.weight.val(), bias, conv.stride, padding)
    })
}
