//! The kernels as operations of burn's CPU backend, with and without gradients.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, DispatchDevice, Flex,
        autodiff::{
            NodeId,
            checkpoint::strategy::CheckpointStrategy,
            grads,
            ops::{Backward, OpsKind},
        },
        backend_extension,
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{DType, Shape, Tensor, TensorData},
};

use super::{
    gradients::Gradients,
    simd::{Level, level},
};

mod attention;
mod conv2d;
mod geglu;
mod group_norm;
mod layer_norm;
mod linear;

/// Whether `x` is an `f32` tensor of the CPU backend, tracked or not, and kernels are allowed.
pub(super) fn runs_on<const D: usize>(x: &Tensor<D>) -> bool {
    fn is_flex(device: &DispatchDevice) -> bool {
        match device {
            DispatchDevice::Flex(_) => true,
            DispatchDevice::Autodiff(device) => is_flex(device),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
    x.dtype() == DType::F32 && level() > Level::Composed && is_flex(x.device().as_dispatch())
}

/// Operations with a kernel. Only tensors for which [`runs_on`] holds may come here.
#[backend_extension(Flex, Autodiff)]
pub(super) trait CpuOps: Backend {
    /// Group normalisation, and SiLU if `silu`.
    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        num_groups: usize,
        epsilon: f64,
        silu: bool,
    ) -> FloatTensor<Self>;

    /// Layer normalisation of rows.
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// A linear map of rows; the bias is empty if there is none.
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Scaled dot-product attention.
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// GEGLU over the last axis.
    fn geglu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Convolution with kernels of any size, without groups or dilation; `padding` is above, left, below and right.
    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 4],
    ) -> FloatTensor<Self>;
}

/// Calls [`CpuOps::group_norm`].
pub(super) fn group_norm(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    num_groups: usize,
    epsilon: f64,
    silu: bool,
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::group_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        num_groups,
        epsilon,
        silu,
    ))
}

/// Calls [`CpuOps::layer_norm`].
pub(super) fn layer_norm(
    x: Tensor<3>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::layer_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        epsilon,
    ))
}

/// Calls [`CpuOps::linear`].
pub(super) fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ))
}

/// Calls [`CpuOps::attention`].
pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

/// Calls [`CpuOps::geglu`].
pub(super) fn geglu(x: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::geglu(x.into_dispatch()))
}

/// Calls [`CpuOps::conv2d`].
pub(super) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 4],
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        stride,
        padding,
    ))
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The elements from a tensor's first on, and the distances along its axes, none of which may run backwards.
fn strided<const D: usize>(x: &FlexTensor) -> (&[f32], [usize; D]) {
    let strides = x.layout().strides();
    (
        &x.storage()[x.layout().start_offset()..],
        std::array::from_fn(|axis| strides[axis].unsigned_abs()),
    )
}

/// Which of an operator's input, weight and bias are tracked.
fn wanted(nodes: &[Option<NodeId>; 3]) -> Gradients<bool> {
    let [x, weight, bias] = nodes.each_ref().map(Option::is_some);
    Gradients { x, weight, bias }
}

/// Adds what was computed to the gradients of an operator's input `x`, weight and bias, as far as they are tracked.
fn register(
    grads: &mut grads::Gradients,
    nodes: [Option<NodeId>; 3],
    computed: Gradients<Option<Vec<f32>>>,
    [x, weight]: [&FlexTensor; 2],
) {
    let Gradients {
        x: of_x,
        weight: of_weight,
        bias: of_bias,
    } = computed;
    let shape_of = |x: &FlexTensor| x.layout().shape().clone();
    let shaped = [
        of_x.map(|values| tensor(values, shape_of(x))),
        of_weight.map(|values| tensor(values, shape_of(weight))),
        of_bias.map(|values| {
            let len = values.len();
            tensor(values, [len])
        }),
    ];
    for (node, gradient) in nodes.into_iter().zip(shaped) {
        if let Some((node, gradient)) = node.zip(gradient) {
            grads.register::<Flex>(node, gradient);
        }
    }
}

impl CpuOps for Flex {
    fn geglu(x: FlexTensor) -> FlexTensor {
        geglu::forward(&x.to_contiguous())
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        let [q, k, v] = [&q, &k, &v].map(attention::with_rows);
        attention::forward(&q, &k, &v).0
    }

    fn group_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        num_groups: usize,
        epsilon: f64,
        silu: bool,
    ) -> FlexTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(|x| x.to_contiguous());
        group_norm::forward(&x, &gamma, &beta, num_groups, epsilon, silu).0
    }

    fn linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let [x, weight] = [x, weight].map(|x| linear::with_strides(&x));
        linear::forward(&x, &weight, &bias.to_contiguous())
    }

    fn layer_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f64) -> FlexTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(|x| x.to_contiguous());
        layer_norm::forward(&x, &gamma, &beta, epsilon).0
    }

    fn conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        stride: [usize; 2],
        padding: [usize; 4],
    ) -> FlexTensor {
        let [x, weight, bias] = [x, weight, bias].map(|x| x.to_contiguous());
        conv2d::forward(&x, &weight, &bias, stride, padding)
    }
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn geglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = x.into_primitive().to_contiguous();
        let y = geglu::forward(&x);
        match geglu::GegluBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(x, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [q.node(), k.node(), v.node()];
        let [q, k, v] = [q, k, v].map(|x| attention::with_rows(&x.into_primitive()));
        let (out, log_sums) = attention::forward(&q, &k, &v);
        match attention::AttentionBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(([q, k, v], log_sums), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: [usize; 2],
        padding: [usize; 4],
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [x, weight, bias] = [x, weight, bias].map(|x| x.into_primitive().to_contiguous());
        let y = conv2d::forward(&x, &weight, &bias, stride, padding);
        match (conv2d::Conv2dBackward { stride, padding })
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, weight), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let [x, weight] = [x, weight].map(|x| linear::with_strides(&x.into_primitive()));
        let y = linear::forward(&x, &weight, &bias.into_primitive().to_contiguous());
        match (linear::LinearBackward)
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, weight), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let [x, gamma, beta] = [x, gamma, beta].map(|x| x.into_primitive().to_contiguous());
        let (y, stats) = layer_norm::forward(&x, &gamma, &beta, epsilon);
        match (layer_norm::LayerNormBackward)
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, stats), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        num_groups: usize,
        epsilon: f64,
        silu: bool,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let [x, gamma, beta] = [x, gamma, beta].map(|x| x.into_primitive().to_contiguous());
        let (y, stats) = group_norm::forward(&x, &gamma, &beta, num_groups, epsilon, silu);
        match (group_norm::GroupNormBackward { num_groups, silu })
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, beta, stats), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
