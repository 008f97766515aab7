//! The number of threads does not change a bit of any result.

mod ops_support;

use burn::{
    nn::{
        GroupNormConfig, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor},
};
use ldm_nn::{LayerNorm, ops};
use ops_support::{tensor, to_vec, values};

/// The results of `work` on one thread, and on five.
fn on_one_and_on_many<T: Send>(work: impl Fn() -> T + Sync) -> [T; 2] {
    [1, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a thread pool").install(&work)
    })
}

/// Output and gradient of the input, of a module's function.
fn output_and_gradient(shape: [usize; 4], apply: impl Fn(Tensor<4>) -> Tensor<4>) -> [Vec<f32>; 2] {
    let device = Device::flex().autodiff();
    let x = tensor(&values(shape.iter().product(), 1), shape, &device).require_grad();
    let y = apply(x.clone());
    let grads = y.clone().square().sum().backward();
    [to_vec(y), to_vec(x.grad(&grads).expect("tracked"))]
}

fn conv(channels: [usize; 2], kernel: usize, stride: usize) -> Conv2d {
    let padding = kernel / 2;
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride; 2])
        .with_padding(PaddingConfig2d::Explicit(
            padding, padding, padding, padding,
        ))
        .init(&Device::flex().autodiff())
}

#[test]
fn group_norm_does_not_depend_on_threads() {
    let norm = GroupNormConfig::new(4, 16).init(&Device::flex().autodiff());
    let [one, many] = on_one_and_on_many(|| {
        output_and_gradient([5, 16, 9, 9], |x| ops::group_norm_silu(&norm, x))
    });
    assert_eq!(one, many);
}

#[test]
fn layer_norm_does_not_depend_on_threads() {
    let device = Device::flex().autodiff();
    let [one, many] = on_one_and_on_many(|| {
        let norm = LayerNorm::new(96, 1e-5, &device);
        let x = tensor(&values(7 * 90 * 96, 1), [7, 90, 96], &device).require_grad();
        let y = norm.forward(x.clone());
        let grads = y.clone().powi_scalar(3).sum().backward();
        let [d_gamma, d_beta] = [&norm.gamma, &norm.beta].map(|param| param.val().grad(&grads));
        let parameters = [d_gamma, d_beta].map(|grad| to_vec(grad.expect("tracked")));
        (
            to_vec(y),
            to_vec(x.grad(&grads).expect("tracked")),
            parameters,
        )
    });
    assert_eq!(one, many);
}

#[test]
fn linear_maps_do_not_depend_on_threads() {
    let device = Device::flex().autodiff();
    // Blocks of rows with sums in parts; all threads in one product.
    for ([rows, inputs], outputs) in [([2100, 48], 80), ([300, 320], 512)] {
        let linear = LinearConfig::new(inputs, outputs).init(&device);
        let [one, many] = on_one_and_on_many(|| {
            let x = tensor(&values(rows * inputs, 1), [rows, inputs], &device).require_grad();
            let y = ops::linear(&linear, x.clone());
            let grads = y.clone().powi_scalar(3).sum().backward();
            let bias = linear.bias.as_ref().expect("a bias").val();
            [
                to_vec(y),
                to_vec(x.grad(&grads).expect("tracked")),
                to_vec(linear.weight.val().grad(&grads).expect("tracked")),
                to_vec(bias.grad(&grads).expect("tracked")),
            ]
        });
        assert!(one == many, "{rows} rows");
    }
}

#[test]
fn convolutions_do_not_depend_on_threads() {
    let cases = [
        // Winograd by blocks and by panels; patches of many and of few images; a plain product.
        ([4, 16, 20, 20], conv([16, 32], 3, 1)),
        ([1, 64, 16, 12], conv([64, 48], 3, 1)),
        ([6, 8, 9, 9], conv([8, 12], 3, 2)),
        ([1, 96, 15, 15], conv([96, 64], 3, 2)),
        ([2, 200, 17, 17], conv([200, 100], 1, 1)),
    ];
    for (shape, conv) in cases {
        let [one, many] = on_one_and_on_many(|| {
            let [y, dx] = output_and_gradient(shape, |x| ops::conv2d(&conv, x));
            let device = Device::flex().autodiff();
            let x = tensor(&values(shape.iter().product(), 1), shape, &device);
            let grads = ops::conv2d(&conv, x).square().sum().backward();
            [
                y,
                dx,
                to_vec(conv.weight.val().grad(&grads).expect("tracked")),
            ]
        });
        assert_eq!(one, many, "{shape:?}");
    }
}

#[test]
fn attention_does_not_depend_on_threads() {
    for shape in [[1, 2, 200, 16], [3, 4, 50, 24]] {
        let [one, many] = on_one_and_on_many(|| {
            output_and_gradient(shape, |x| ops::attention(x.clone(), x.clone() * 0.5, x))
        });
        assert_eq!(one, many, "{shape:?}");
    }
}
