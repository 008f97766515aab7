//! Times the operators at the shapes of the models that `scripts/bench.sh` runs, alternately with burn's own, and compares them
//! with the machine's limits.
//!
//! `cargo bench -p ldm-nn --bench ops [-- FILTER..] [--threads N] [--ours] [--best] [--json]`: median milliseconds, operations and
//! bytes per second, and how near that is to the machine's roof. `+bwd` is a forward and a backward pass. `--ours` leaves out
//! burn's operators, for a profiler; `--best` prints the best times instead of the medians.

mod roofline;

use burn::{
    nn::{
        GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Distribution, Tensor},
};
use ldm_nn::{
    LayerNorm, Upsample2d,
    ops::{self, composed},
    upsample_nearest,
};

use roofline::{Cost, Table, timed};

fn main() {
    let table = Table::from_arguments();
    group_norms(&table);
    layer_norms(&table);
    convolutions(&table);
    upsamplings(&table);
    attentions(&table);
    linears(&table);
    geglus(&table);
}

fn group_norms(table: &Table) {
    for (n, c, size, silu) in [
        (1, 224, 64, true),
        (1, 448, 32, true),
        (1, 448, 32, false),
        (1, 896, 8, true),
        (2, 320, 32, true),
        (2, 1280, 8, true),
        (1, 128, 256, true),
        (1, 256, 128, true),
        (1, 512, 64, true),
        (32, 64, 16, true),
        (32, 64, 16, false),
        (32, 128, 8, true),
        (32, 192, 4, true),
        (8, 32, 64, true),
        (8, 64, 32, true),
        (8, 128, 16, true),
    ] {
        let (name, ours, theirs): (_, fn(&_, _) -> _, fn(&_, _) -> _) = if silu {
            (
                "group_norm_silu",
                ops::group_norm_silu,
                composed::group_norm_silu,
            )
        } else {
            ("group_norm", ops::group_norm, composed::group_norm)
        };
        let shape = [n, c, size, size];
        let side = |operator: fn(&_, _) -> _| {
            move |inputs: &Inputs| {
                let norm = GroupNormConfig::new(32, c).init(&inputs.device);
                let x = inputs.tensor(shape);
                boxed(move || operator(&norm, x.clone()))
            }
        };
        let costs = elementwise(shape);
        operator(
            table,
            &format!("{name} {shape:?}"),
            costs,
            side(ours),
            side(theirs),
        );
    }
}

fn layer_norms(table: &Table) {
    for shape in [
        [2, 1024, 320],
        [2, 256, 640],
        [2, 64, 1280],
        [32, 256, 64],
        [32, 64, 128],
    ] {
        let side = |operator: fn(&LayerNorm, Tensor<3>) -> Tensor<3>| {
            move |inputs: &Inputs| {
                let norm = LayerNorm::new(shape[2], 1e-5, &inputs.device);
                let x = inputs.tensor(shape);
                boxed(move || operator(&norm, x.clone()))
            }
        };
        operator(
            table,
            &format!("layer_norm {shape:?}"),
            elementwise(shape),
            side(ops::layer_norm),
            side(composed::layer_norm),
        );
    }
}

/// Forward reads and writes all elements once; backward reads the input and the gradient, and writes a gradient.
fn elementwise<const D: usize>(shape: [usize; D]) -> [Cost; 2] {
    let elements: usize = shape.iter().product();
    [Cost::new(0, 2 * elements), Cost::new(0, 5 * elements)]
}

fn convolutions(table: &Table) {
    for (n, c_in, c_out, size, kernel, stride) in [
        // The CelebA-HQ U-Net.
        (1, 3, 224, 64, 3, 1),
        (1, 224, 224, 64, 3, 1),
        (1, 448, 224, 64, 3, 1),
        (1, 448, 448, 32, 3, 1),
        (1, 672, 672, 16, 3, 1),
        (1, 896, 896, 8, 3, 1),
        (1, 1792, 896, 8, 3, 1),
        (1, 448, 224, 64, 1, 1),
        (1, 1792, 896, 8, 1, 1),
        (1, 224, 224, 64, 3, 2),
        (1, 448, 448, 32, 3, 2),
        // The text-to-image U-Net.
        (2, 320, 320, 32, 3, 1),
        (2, 640, 640, 16, 3, 1),
        (2, 1280, 1280, 8, 3, 1),
        (2, 2560, 1280, 4, 3, 1),
        (2, 320, 320, 32, 1, 1),
        (2, 640, 640, 16, 3, 2),
        // KL-f4.
        (1, 3, 128, 256, 3, 1),
        (1, 128, 128, 256, 3, 1),
        (1, 256, 256, 128, 3, 1),
        (1, 512, 512, 64, 3, 1),
        (1, 128, 3, 256, 3, 1),
        (1, 256, 128, 256, 1, 1),
        (1, 128, 128, 256, 3, 2),
        // The small U-Net.
        (32, 64, 64, 16, 3, 1),
        (32, 128, 64, 16, 3, 1),
        (32, 128, 128, 8, 3, 1),
        (32, 192, 192, 4, 3, 1),
        (32, 384, 192, 4, 3, 1),
        (32, 64, 64, 16, 1, 1),
        (32, 192, 128, 8, 1, 1),
        (32, 64, 64, 16, 3, 2),
        // The small autoencoder.
        (8, 3, 32, 64, 3, 1),
        (8, 32, 32, 64, 3, 1),
        (8, 64, 64, 32, 3, 1),
        (8, 128, 128, 16, 3, 1),
        (8, 32, 3, 64, 3, 1),
        (8, 64, 64, 32, 3, 2),
    ] {
        let shape = [n, c_in, size, size];
        let side = |operator: fn(&Conv2d, Tensor<4>) -> Tensor<4>| {
            move |inputs: &Inputs| {
                let half = kernel / 2;
                let conv = Conv2dConfig::new([c_in, c_out], [kernel, kernel])
                    .with_stride([stride, stride])
                    .with_padding(PaddingConfig2d::Explicit(half, half, half, half))
                    .init(&inputs.device);
                let x = inputs.tensor(shape);
                boxed(move || operator(&conv, x.clone()))
            }
        };
        let (inputs, outputs) = (n * size * size, n * (size / stride).pow(2));
        operator(
            table,
            &format!("conv{kernel}x{kernel}/{stride} {c_in}->{c_out} {shape:?}"),
            weighted(
                c_in * c_out * kernel * kernel,
                outputs,
                [inputs * c_in, outputs * c_out],
            ),
            side(ops::conv2d),
            side(composed::conv2d),
        );
    }
}

fn upsamplings(table: &Table) {
    for shape @ [n, c, size, _] in [
        [1, 448, 32, 32],
        [1, 896, 8, 8],
        [2, 1280, 8, 8],
        [1, 256, 128, 128],
        [1, 512, 64, 64],
        [32, 128, 8, 8],
        [8, 64, 32, 32],
    ] {
        let outputs = n * 4 * size * size;
        let side = |operator: fn(&Upsample2d, Tensor<4>) -> Tensor<4>| {
            move |inputs: &Inputs| {
                let upsample = Upsample2d::new(c, &inputs.device);
                let x = inputs.tensor(shape);
                boxed(move || operator(&upsample, x.clone()))
            }
        };
        operator(
            table,
            &format!("upsample conv3x3 {shape:?}"),
            weighted(9 * c * c, outputs, [n * c * size * size, outputs * c]),
            side(Upsample2d::forward),
            side(|upsample, x| {
                let [_, _, height, width] = x.dims();
                composed::conv2d(&upsample.conv, upsample_nearest(x, [2 * height, 2 * width]))
            }),
        );
    }
}

fn linears(table: &Table) {
    for (shape, outputs) in [
        ([1, 1024, 448], 448),
        ([1, 64, 896], 896),
        ([2, 1024, 320], 2560),
        ([2, 1024, 1280], 320),
        ([2, 256, 640], 5120),
        ([2, 64, 1280], 10240),
        ([2, 77, 1280], 320),
        ([32, 256, 64], 512),
        ([32, 256, 256], 64),
        ([32, 64, 128], 1024),
    ] {
        let [n, length, inputs] = shape;
        let tokens = n * length;
        let side = |operator: fn(&Linear, Tensor<3>) -> Tensor<3>| {
            move |inputs: &Inputs| {
                let linear = LinearConfig::new(shape[2], outputs).init(&inputs.device);
                let x = inputs.tensor(shape);
                boxed(move || operator(&linear, x.clone()))
            }
        };
        operator(
            table,
            &format!("linear {shape:?}->{outputs}"),
            weighted(
                inputs * outputs,
                tokens,
                [tokens * inputs, tokens * outputs],
            ),
            side(ops::linear),
            side(composed::linear),
        );
    }
}

/// Costs of `weights` that each meet `positions` positions. Backward does the work of forward twice; it reads the input, the weights and
/// the gradient of the output, and writes gradients of the first two.
fn weighted(weights: usize, positions: usize, [input, output]: [usize; 2]) -> [Cost; 2] {
    let flop = 2 * weights * positions;
    [
        Cost::new(flop, input + weights + output),
        Cost::new(3 * flop, 3 * (input + weights) + 2 * output),
    ]
}

fn attentions(table: &Table) {
    for (b, heads, l, s, d) in [
        (1, 14, 1024, 1024, 32),
        (1, 21, 256, 256, 32),
        (1, 28, 64, 64, 32),
        (2, 8, 1024, 1024, 40),
        (2, 8, 1024, 77, 40),
        (2, 8, 256, 256, 80),
        (2, 8, 64, 64, 160),
        (1, 1, 4096, 4096, 512),
        (32, 4, 256, 256, 16),
        (32, 4, 256, 32, 16),
        (32, 4, 64, 64, 32),
        (32, 4, 64, 32, 32),
        (8, 1, 256, 256, 128),
    ] {
        let side = |operator: fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>| {
            move |inputs: &Inputs| {
                let q = inputs.tensor([b, heads, l, d]);
                let [k, v] = [0; 2].map(|_| inputs.tensor([b, heads, s, d]));
                boxed(move || operator(q.clone(), k.clone(), v.clone()))
            }
        };
        let flop = 4 * b * heads * l * s * d;
        // Forward moves q, k, v and the output; backward those and three gradients, and reads the output's.
        let floats = b * heads * (l + s) * d;
        operator(
            table,
            &format!("attention {b}x{heads}x{l}x{s}x{d}"),
            [Cost::new(flop, 2 * floats), Cost::new(3 * flop, 6 * floats)],
            side(ops::attention),
            side(composed::attention),
        );
    }
}

fn geglus(table: &Table) {
    for shape in [
        [2, 1024, 2560],
        [2, 256, 5120],
        [2, 64, 10240],
        [32, 256, 512],
        [32, 64, 1024],
    ] {
        let side = |operator: fn(Tensor<3>) -> Tensor<3>| {
            move |inputs: &Inputs| {
                let x = inputs.tensor(shape);
                boxed(move || operator(x.clone()))
            }
        };
        let half = shape.iter().product::<usize>() / 2;
        operator(
            table,
            &format!("geglu {shape:?}"),
            [Cost::new(0, 3 * half), Cost::new(0, 8 * half)],
            side(ops::geglu),
            side(composed::geglu),
        );
    }
}

/// Where an operator's operands are.
struct Inputs {
    device: Device,
    tracked: bool,
}

impl Inputs {
    /// Random numbers, which gradients are wanted of where there are gradients.
    fn tensor<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let x = Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &self.device);
        if self.tracked { x.require_grad() } else { x }
    }
}

type Operator<const D: usize> = Box<dyn Fn() -> Tensor<D>>;

fn boxed<const D: usize>(operator: impl Fn() -> Tensor<D> + 'static) -> Operator<D> {
    Box::new(operator)
}

/// Two lines of the table: the forward pass, and it with the backward pass.
fn operator<const D: usize>(
    table: &Table,
    name: &str,
    costs: [Cost; 2],
    ours: impl Fn(&Inputs) -> Operator<D>,
    theirs: impl Fn(&Inputs) -> Operator<D>,
) {
    let [forward, both] = costs;
    if table.has(name) {
        let inputs = Inputs {
            device: Device::flex(),
            tracked: false,
        };
        let (ours, theirs) = (ours(&inputs), theirs(&inputs));
        let (ours, theirs) = (timed(|| drop(ours())), timed(|| drop(theirs())));
        table.line(name, forward, ours, Some(theirs));
    }
    let name = format!("{name} +bwd");
    if table.has(&name) {
        let inputs = Inputs {
            device: Device::flex().autodiff(),
            tracked: true,
        };
        let (ours, theirs) = (ours(&inputs), theirs(&inputs));
        // The gradient that it starts from is one of ones.
        let ours = timed(|| drop(ours().backward()));
        let theirs = timed(|| drop(theirs().backward()));
        table.line(&name, both, ours, Some(theirs));
    }
}
