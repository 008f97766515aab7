//! The kernels as operations of burn's CPU backend, with and without gradients.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, DispatchDevice, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{DType, Shape, Tensor, TensorData},
};

use super::{
    attention::{self, Heads, Sizes},
    conv2d::{self, Convolution},
    geglu::{self},
    group_norm::{self, Groups, Stats},
    simd::{Level, level},
};

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

fn groups_of(x: &FlexTensor, num_groups: usize) -> Groups {
    let [_, channels, height, width] = x.layout().shape().dims();
    Groups {
        channels,
        channels_per_group: channels / num_groups,
        pixels: height * width,
    }
}

fn group_norm_forward(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    num_groups: usize,
    epsilon: f64,
    silu: bool,
) -> (FlexTensor, Vec<Stats>) {
    let (x, gamma, beta) = (
        x.to_contiguous(),
        gamma.to_contiguous(),
        beta.to_contiguous(),
    );
    let groups = groups_of(&x, num_groups);
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

fn conv2d_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    stride: [usize; 2],
    padding: [usize; 4],
) -> FlexTensor {
    let (x, weight, bias) = (
        x.to_contiguous(),
        weight.to_contiguous(),
        bias.to_contiguous(),
    );
    let conv = convolution_of(&x, &weight, stride, padding);
    let [height, width] = conv
        .output_size()
        .expect("checked by the caller: the kernel fits the input");
    let y = conv2d::forward(&conv, x.storage(), weight.storage(), Some(bias.storage()));
    tensor(y, [conv.images, conv.outputs, height, width])
}

/// The tensor itself if its rows are contiguous, which a view of `[B, L, heads, D]` satisfies, or else a copy.
fn with_rows(x: &FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    if strides[3] == 1 && strides.iter().all(|&stride| stride >= 0) {
        x.clone()
    } else {
        x.to_contiguous()
    }
}

fn heads_of(x: &FlexTensor) -> Heads<'_> {
    let strides = x.layout().strides();
    Heads {
        data: &x.storage()[x.layout().start_offset()..],
        strides: std::array::from_fn(|axis| strides[axis].unsigned_abs()),
    }
}

fn sizes_of(q: &FlexTensor, k: &FlexTensor) -> Sizes {
    let [batch, heads, queries, width] = q.layout().shape().dims();
    let [_, _, keys, _] = k.layout().shape().dims();
    Sizes {
        batch,
        heads,
        queries,
        keys,
        width,
    }
}

/// A tensor `[batch, heads, length, width]` over values in the order `[batch, length, heads, width]`.
fn heads_tensor(values: Vec<f32>, sizes: Sizes, length: usize) -> FlexTensor {
    tensor(values, [sizes.batch, length, sizes.heads, sizes.width]).transpose(1, 2)
}

fn attention_forward(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
) -> (FlexTensor, Vec<Vec<f32>>) {
    let [q, k, v] = [with_rows(q), with_rows(k), with_rows(v)];
    let sizes = sizes_of(&q, &k);
    let (out, log_sums) = attention::forward(sizes, [heads_of(&q), heads_of(&k), heads_of(&v)]);
    (heads_tensor(out, sizes, sizes.queries), log_sums)
}

fn geglu_forward(x: &FlexTensor) -> FlexTensor {
    let x = x.to_contiguous();
    let [batch, length, both] = x.layout().shape().dims();
    tensor(
        geglu::forward(x.storage(), both / 2),
        [batch, length, both / 2],
    )
}

impl CpuOps for Flex {
    fn geglu(x: FlexTensor) -> FlexTensor {
        geglu_forward(&x)
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        attention_forward(&q, &k, &v).0
    }

    fn group_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        num_groups: usize,
        epsilon: f64,
        silu: bool,
    ) -> FlexTensor {
        group_norm_forward(&x, &gamma, &beta, num_groups, epsilon, silu).0
    }

    fn conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        stride: [usize; 2],
        padding: [usize; 4],
    ) -> FlexTensor {
        conv2d_forward(&x, &weight, &bias, stride, padding)
    }
}

#[derive(Debug)]
struct GroupNormBackward {
    num_groups: usize,
    silu: bool,
}

impl Backward<Flex, 3> for GroupNormBackward {
    type State = (FlexTensor, FlexTensor, FlexTensor, Vec<Stats>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, gamma, beta, stats) = ops.state;
        let (x, gamma, beta) = (
            x.to_contiguous(),
            gamma.to_contiguous(),
            beta.to_contiguous(),
        );
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
        let [x_node, gamma_node, beta_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, tensor(computed.x, x.layout().shape().clone()));
        }
        if let Some(node) = gamma_node {
            grads.register::<Flex>(node.id, tensor(computed.gamma, [groups.channels]));
        }
        if let Some(node) = beta_node {
            grads.register::<Flex>(node.id, tensor(computed.beta, [groups.channels]));
        }
    }
}

#[derive(Debug)]
struct Conv2dBackward {
    stride: [usize; 2],
    padding: [usize; 4],
}

impl Backward<Flex, 3> for Conv2dBackward {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = (ops.state.0.to_contiguous(), ops.state.1.to_contiguous());
        let conv = convolution_of(&x, &weight, self.stride, self.padding);
        let [x_node, weight_node, bias_node] = ops.parents;
        let wanted = conv2d::Gradients {
            x: x_node.is_some(),
            weight: weight_node.is_some(),
            bias: bias_node.is_some(),
        };
        let computed = conv2d::backward(
            &conv,
            x.storage(),
            weight.storage(),
            grad.storage(),
            &wanted,
        );
        if let Some((node, values)) = x_node.zip(computed.x) {
            grads.register::<Flex>(node.id, tensor(values, x.layout().shape().clone()));
        }
        if let Some((node, values)) = weight_node.zip(computed.weight) {
            grads.register::<Flex>(node.id, tensor(values, weight.layout().shape().clone()));
        }
        if let Some((node, values)) = bias_node.zip(computed.bias) {
            grads.register::<Flex>(node.id, tensor(values, [conv.outputs]));
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = ([FlexTensor; 3], Vec<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = with_rows(&grads.consume::<Flex>(&ops.node));
        let (inputs, log_sums) = ops.state;
        let [q, k, v] = inputs.each_ref().map(with_rows);
        let sizes = sizes_of(&q, &k);
        let inputs = [heads_of(&q), heads_of(&k), heads_of(&v)];
        let computed = attention::backward(sizes, inputs, heads_of(&grad), &log_sums);
        let [q_node, k_node, v_node] = ops.parents;
        let computed = [
            (q_node, computed.q, sizes.queries),
            (k_node, computed.k, sizes.keys),
            (v_node, computed.v, sizes.keys),
        ];
        for (node, values, length) in computed {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, heads_tensor(values, sizes, length));
            }
        }
    }
}

#[derive(Debug)]
struct GegluBackward;

impl Backward<Flex, 1> for GegluBackward {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let x = ops.state.to_contiguous();
        let shape = x.layout().shape().clone();
        let [_, _, both] = shape.dims();
        let [node] = ops.parents;
        if let Some(node) = node {
            let dx = geglu::backward(x.storage(), grad.storage(), both / 2);
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
    }
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn geglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = x.into_primitive();
        let y = geglu_forward(&x);
        match GegluBackward.prepare::<C>(nodes).compute_bound().stateful() {
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
        let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
        let (out, log_sums) = attention_forward(&q, &k, &v);
        match AttentionBackward
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
        let (x, weight, bias) = (
            x.into_primitive(),
            weight.into_primitive(),
            bias.into_primitive(),
        );
        let y = conv2d_forward(&x, &weight, &bias, stride, padding);
        match (Conv2dBackward { stride, padding })
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, weight), y),
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
        let (x, gamma, beta) = (
            x.into_primitive(),
            gamma.into_primitive(),
            beta.into_primitive(),
        );
        let (y, stats) = group_norm_forward(&x, &gamma, &beta, num_groups, epsilon, silu);
        match (GroupNormBackward { num_groups, silu })
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, beta, stats), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
