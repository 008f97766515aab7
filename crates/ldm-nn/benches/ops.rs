//! Times the operators against burn's own, alternately, at the shapes of the small and of the paper's models.
//!
//! `cargo bench -p ldm-nn --bench ops [-- FILTER..] [--ours]`: medians in milliseconds, and GFLOP/s for matrix work.
//! `--ours` leaves out burn's, for a profiler.

use std::time::{Duration, Instant};

use burn::{
    nn::{
        GroupNorm, GroupNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Distribution, Tensor},
};
use ldm_nn::ops::{self, composed};

/// At least this many rounds, and rounds until this much time has passed.
const MIN_ROUNDS: usize = 5;
const MIN_TIME: Duration = Duration::from_millis(400);

/// One line of the table: an operator at a shape, ours and burn's.
struct Case<'a> {
    name: String,
    /// Floating-point operations, or 0 for an operator bound by memory.
    flop: f64,
    ours: Box<dyn FnMut() + 'a>,
    theirs: Box<dyn FnMut() + 'a>,
}

fn main() {
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!(
        "{:<44} {:>9} {:>9} {:>7} {:>9} {:>9}",
        "operator", "ours ms", "burn ms", "ratio", "GFLOP/s", "burn's"
    );
    let device = Device::flex();
    for (n, c, size) in [
        (32, 64, 16),
        (32, 128, 8),
        (32, 192, 4),
        (8, 32, 64),
        (8, 64, 32),
        (8, 128, 16),
        (1, 224, 64),
        (1, 128, 256),
    ] {
        let norm = GroupNormConfig::new(32, c).init(&device);
        for silu in [false, true] {
            group_norm_case(&filters, &norm, [n, c, size, size], silu);
        }
    }
    for (n, c_in, c_out, size, kernel, stride) in [
        (32, 64, 64, 16, 3, 1),
        (32, 128, 64, 16, 3, 1),
        (32, 128, 128, 8, 3, 1),
        (32, 192, 192, 4, 3, 1),
        (32, 384, 192, 4, 3, 1),
        (8, 32, 32, 64, 3, 1),
        (8, 64, 64, 32, 3, 1),
        (8, 128, 128, 16, 3, 1),
        (8, 3, 32, 64, 3, 1),
        (8, 32, 3, 64, 3, 1),
        (1, 224, 224, 64, 3, 1),
        (1, 448, 448, 32, 3, 1),
        (1, 672, 672, 16, 3, 1),
        (1, 128, 128, 256, 3, 1),
        (32, 64, 64, 16, 1, 1),
        (32, 192, 128, 8, 1, 1),
        (1, 448, 224, 64, 1, 1),
        (32, 64, 64, 16, 3, 2),
        (8, 64, 64, 32, 3, 2),
    ] {
        let conv = Conv2dConfig::new([c_in, c_out], [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(
                kernel / 2,
                kernel / 2,
                kernel / 2,
                kernel / 2,
            ))
            .init(&device);
        conv_case(&filters, &conv, [n, c_in, size, size]);
    }
    for (b, heads, l, s, d) in [
        (32, 4, 256, 256, 16),
        (32, 4, 256, 32, 16),
        (32, 4, 64, 64, 32),
        (32, 4, 64, 32, 32),
        (1, 14, 1024, 1024, 32),
        (2, 8, 1024, 77, 40),
    ] {
        attention_case(&filters, b, heads, [l, s], d);
    }
    for shape in [[32, 256, 512], [32, 64, 1024], [2, 1024, 2560]] {
        geglu_case(&filters, shape);
    }
}

fn geglu_case(filters: &[String], shape: [usize; 3]) {
    let name = format!("geglu {shape:?}");
    let x = random(shape, &Device::flex());
    let plain = |f: fn(Tensor<3>) -> Tensor<3>| {
        let x = x.clone();
        move || drop(f(x.clone()))
    };
    let (ours, theirs) = (
        Box::new(plain(ops::geglu)),
        Box::new(plain(composed::geglu)),
    );
    report(
        filters,
        Case {
            name: name.clone(),
            flop: 0.0,
            ours,
            theirs,
        },
    );
    let x = random(shape, &Device::flex().autodiff());
    let tracked = |f: fn(Tensor<3>) -> Tensor<3>| {
        let x = x.clone();
        move || drop(f(x.clone().require_grad()).sum().backward())
    };
    let (ours, theirs) = (
        Box::new(tracked(ops::geglu)),
        Box::new(tracked(composed::geglu)),
    );
    report(
        filters,
        Case {
            name: name + " +bwd",
            flop: 0.0,
            ours,
            theirs,
        },
    );
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), device)
}

/// Times a unary operator forward, and forward with backward.
fn unary_case<M: Clone>(
    filters: &[String],
    name: &str,
    flop: f64,
    module: (&M, &M),
    shape: [usize; 4],
    ours: fn(&M, Tensor<4>) -> Tensor<4>,
    theirs: fn(&M, Tensor<4>) -> Tensor<4>,
) {
    let device = Device::flex();
    let x = random(shape, &device);
    let plain = |f: fn(&M, Tensor<4>) -> Tensor<4>| {
        let x = x.clone();
        move || drop(f(module.0, x.clone()))
    };
    report(
        filters,
        Case {
            name: format!("{name} {shape:?}"),
            flop,
            ours: Box::new(plain(ours)),
            theirs: Box::new(plain(theirs)),
        },
    );
    let x = random(shape, &device.autodiff());
    let tracked = |f: fn(&M, Tensor<4>) -> Tensor<4>| {
        let x = x.clone();
        move || drop(f(module.1, x.clone().require_grad()).sum().backward())
    };
    report(
        filters,
        Case {
            name: format!("{name} {shape:?} +bwd"),
            flop: 3.0 * flop,
            ours: Box::new(tracked(ours)),
            theirs: Box::new(tracked(theirs)),
        },
    );
}

fn group_norm_case(filters: &[String], norm: &GroupNorm, shape: [usize; 4], silu: bool) {
    use burn::module::Module;
    let tracked = norm.clone().fork(&Device::flex().autodiff()).train();
    if silu {
        unary_case(
            filters,
            "group_norm_silu",
            0.0,
            (norm, &tracked),
            shape,
            ops::group_norm_silu,
            composed::group_norm_silu,
        );
    } else {
        unary_case(
            filters,
            "group_norm",
            0.0,
            (norm, &tracked),
            shape,
            ops::group_norm,
            composed::group_norm,
        );
    }
}

fn conv_case(filters: &[String], conv: &Conv2d, shape: [usize; 4]) {
    use burn::module::Module;
    let tracked = conv.clone().fork(&Device::flex().autodiff()).train();
    let weight: usize = conv.weight.dims().iter().product();
    let pixels = shape[0] * shape[2] * shape[3] / (conv.stride[0] * conv.stride[1]);
    let name = format!(
        "conv{}x{}/{} {}->{}",
        conv.kernel_size[0],
        conv.kernel_size[1],
        conv.stride[0],
        shape[1],
        conv.weight.dims()[0]
    );
    unary_case(
        filters,
        &name,
        2.0 * (weight * pixels) as f64,
        (conv, &tracked),
        shape,
        ops::conv2d,
        composed::conv2d,
    );
}

fn attention_case(filters: &[String], batch: usize, heads: usize, [l, s]: [usize; 2], d: usize) {
    type Attention = fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;
    let flop = 4.0 * (batch * heads * l * s * d) as f64;
    let name = format!("attention {batch}x{heads}x{l}x{s}x{d}");
    let inputs = |device: &Device| {
        (
            random([batch, heads, l, d], device),
            random([batch, heads, s, d], device),
            random([batch, heads, s, d], device),
        )
    };
    let (q, k, v) = inputs(&Device::flex());
    let plain = |f: Attention| {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        move || drop(f(q.clone(), k.clone(), v.clone()))
    };
    report(
        filters,
        Case {
            name: name.clone(),
            flop,
            ours: Box::new(plain(ops::attention)),
            theirs: Box::new(plain(composed::attention)),
        },
    );
    let (q, k, v) = inputs(&Device::flex().autodiff());
    let tracked = |f: Attention| {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        move || {
            drop(
                f(
                    q.clone().require_grad(),
                    k.clone().require_grad(),
                    v.clone().require_grad(),
                )
                .sum()
                .backward(),
            )
        }
    };
    report(
        filters,
        Case {
            name: name + " +bwd",
            flop: 3.0 * flop,
            ours: Box::new(tracked(ops::attention)),
            theirs: Box::new(tracked(composed::attention)),
        },
    );
}

fn report(filters: &[String], mut case: Case) {
    if !filters.is_empty()
        && !filters
            .iter()
            .any(|filter| case.name.contains(filter.as_str()))
    {
        return;
    }
    let (mut ours, mut theirs) = (vec![], vec![]);
    let alone = std::env::args().any(|argument| argument == "--ours");
    (case.ours)();
    if alone {
        case.theirs = Box::new(|| ());
    }
    (case.theirs)();
    let start = Instant::now();
    while ours.len() < MIN_ROUNDS || start.elapsed() < MIN_TIME {
        ours.push(seconds(&mut case.ours));
        theirs.push(seconds(&mut case.theirs));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let rate = |time: f64| {
        if case.flop > 0.0 {
            format!("{:.1}", case.flop / time / 1e9)
        } else {
            String::new()
        }
    };
    println!(
        "{:<44} {:>9.3} {:>9.3} {:>7.3} {:>9} {:>9}",
        case.name,
        ours * 1e3,
        theirs * 1e3,
        ours / theirs,
        rate(ours),
        rate(theirs)
    );
}

fn seconds(run: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    // The best is what a busy machine's neighbours disturb least.
    let best = std::env::args().any(|argument| argument == "--best");
    times[if best { 0 } else { times.len() / 2 }]
}
