//! Convolutions and their gradients against direct loops in double precision.

mod ops_support;

use burn::{
    module::Param,
    nn::{
        PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::Device,
};
use ldm_nn::ops;
use ops_support::{assert_close, tensor, to_vec, values, widen};

/// A convolution to test: padding is above, left, below and right.
struct Case {
    images: usize,
    channels: [usize; 2],
    size: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    padding: [usize; 4],
}

const fn case(
    images: usize,
    channels: [usize; 2],
    size: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    padding: [usize; 4],
) -> Case {
    Case {
        images,
        channels,
        size,
        kernel,
        stride,
        padding,
    }
}

/// Small kernels of every kind that go through patches.
const DIRECT: [Case; 11] = [
    case(1, [1, 1], [1, 1], [3, 3], 1, [1; 4]),
    case(1, [1, 1], [1, 1], [1, 1], 1, [0; 4]),
    case(2, [3, 5], [5, 7], [3, 3], 1, [1; 4]),
    case(5, [3, 17], [6, 4], [3, 3], 1, [1; 4]),
    case(1, [20, 3], [9, 9], [3, 3], 1, [1; 4]),
    case(2, [5, 4], [3, 5], [1, 1], 1, [0; 4]),
    case(6, [4, 7], [8, 8], [3, 3], 2, [1; 4]),
    case(1, [4, 3], [7, 9], [3, 3], 2, [1; 4]),
    case(2, [4, 3], [8, 6], [3, 3], 2, [0, 0, 1, 1]),
    case(1, [2, 3], [9, 11], [4, 2], 3, [2, 0, 1, 3]),
    case(9, [2, 3], [5, 5], [5, 5], 1, [2; 4]),
];

/// 3x3 kernels wide and large enough for Winograd: whole tiles, cut tiles, channels that do not fill their lanes, and as many channels as the
/// presets have on one side, of which sums are made in pieces.
const WINOGRAD: [Case; 9] = [
    case(2, [16, 16], [16, 16], [3, 3], 1, [1; 4]),
    case(32, [13, 18], [4, 4], [3, 3], 1, [1; 4]),
    case(3, [17, 12], [15, 14], [3, 3], 1, [1; 4]),
    case(1, [33, 40], [24, 19], [3, 3], 1, [1; 4]),
    case(2, [32, 16], [60, 60], [3, 3], 1, [1; 4]),
    case(2, [1792, 17], [8, 8], [3, 3], 1, [1; 4]),
    case(1, [23, 896], [7, 8], [3, 3], 1, [1; 4]),
    case(2, [2560, 8], [4, 4], [3, 3], 1, [1; 4]),
    case(1, [300, 20], [28, 32], [3, 3], 1, [1; 4]),
];

struct Reference {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

impl Case {
    fn output(&self) -> [usize; 2] {
        let [top, left, bottom, right] = self.padding;
        [
            (self.size[0] + top + bottom - self.kernel[0]) / self.stride + 1,
            (self.size[1] + left + right - self.kernel[1]) / self.stride + 1,
        ]
    }

    fn describe(&self) -> String {
        let Case {
            images,
            channels,
            size,
            kernel,
            stride,
            padding,
        } = self;
        format!(
            "{images}x{channels:?} {size:?} kernel {kernel:?} stride {stride} padding {padding:?}"
        )
    }

    fn module(&self, weight: &[f32], bias: &[f32], device: &Device) -> Conv2d {
        let [top, left, bottom, right] = self.padding;
        let mut conv = Conv2dConfig::new(self.channels, self.kernel)
            .with_stride([self.stride; 2])
            .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
            .init(device);
        let [inputs, outputs] = self.channels;
        let shape = [outputs, inputs, self.kernel[0], self.kernel[1]];
        conv.weight = Param::from_tensor(tensor(weight, shape, device));
        conv.bias = Some(Param::from_tensor(tensor(bias, [outputs], device)));
        conv
    }

    /// The convolution and its gradients for `Σ y grad`, by their definition.
    fn reference(&self, x: &[f64], weight: &[f64], bias: &[f64], grad: &[f64]) -> Reference {
        let ([inputs, outputs], [height, width], [out_height, out_width]) =
            (self.channels, self.size, self.output());
        let pixels = out_height * out_width;
        let mut y: Vec<f64> = (0..grad.len())
            .map(|i| bias[i / pixels % outputs])
            .collect();
        let (mut dx, mut dw, mut db) = (
            vec![0.0; x.len()],
            vec![0.0; weight.len()],
            vec![0.0; outputs],
        );
        for (at, &grad) in grad.iter().enumerate() {
            let [image, output] = [at / pixels / outputs, at / pixels % outputs];
            let [out_row, out_column] = [at % pixels / out_width, at % out_width];
            db[output] += grad;
            for tap_row in 0..self.kernel[0] {
                let row = (out_row * self.stride + tap_row).wrapping_sub(self.padding[0]);
                for tap_column in 0..self.kernel[1] {
                    let column =
                        (out_column * self.stride + tap_column).wrapping_sub(self.padding[1]);
                    if row >= height || column >= width {
                        continue;
                    }
                    for input in 0..inputs {
                        let from = ((image * inputs + input) * height + row) * width + column;
                        let tap = ((output * inputs + input) * self.kernel[0] + tap_row)
                            * self.kernel[1]
                            + tap_column;
                        y[at] += x[from] * weight[tap];
                        dx[from] += grad * weight[tap];
                        dw[tap] += grad * x[from];
                    }
                }
            }
        }
        Reference { y, dx, dw, db }
    }

    fn check(&self, tolerance: f64) {
        let what = self.describe();
        let ([inputs, outputs], [out_height, out_width]) = (self.channels, self.output());
        let in_shape = [self.images, inputs, self.size[0], self.size[1]];
        let out_shape = [self.images, outputs, out_height, out_width];
        let x = values(in_shape.iter().product(), 1);
        let weight = values(outputs * inputs * self.kernel[0] * self.kernel[1], 2);
        let (bias, grad) = (values(outputs, 3), values(out_shape.iter().product(), 4));
        let expected = self.reference(&widen(&x), &widen(&weight), &widen(&bias), &widen(&grad));

        let plain = Device::flex();
        let y = ops::conv2d(
            &self.module(&weight, &bias, &plain),
            tensor(&x, in_shape, &plain),
        );
        assert_eq!(y.dims(), out_shape, "{what}");
        assert_close(&to_vec(y), &expected.y, tolerance, &format!("y: {what}"));

        let device = plain.autodiff();
        let conv = self.module(&weight, &bias, &device);
        let input = tensor(&x, in_shape, &device).require_grad();
        let y = ops::conv2d(&conv, input.clone());
        assert_close(
            &to_vec(y.clone()),
            &expected.y,
            tolerance,
            &format!("tracked y: {what}"),
        );
        let grads = (y * tensor(&grad, out_shape, &device)).sum().backward();
        let dx = to_vec(input.grad(&grads).expect("tracked"));
        assert_close(&dx, &expected.dx, tolerance, &format!("x: {what}"));
        let dw = to_vec(conv.weight.val().grad(&grads).expect("tracked"));
        assert_close(&dw, &expected.dw, tolerance, &format!("weight: {what}"));
        let db = to_vec(
            conv.bias
                .expect("has one")
                .val()
                .grad(&grads)
                .expect("tracked"),
        );
        assert_close(&db, &expected.db, tolerance, &format!("bias: {what}"));
    }
}

#[test]
fn patches_match_direct_loops() {
    for case in &DIRECT {
        case.check(1e-5);
    }
}

#[test]
fn winograd_matches_direct_loops() {
    for case in &WINOGRAD {
        case.check(3e-5);
    }
}

/// Whether few tiles or few kernels are kept, and however many images share the work.
#[test]
fn an_image_has_the_same_output_in_any_batch() {
    let device = Device::flex();
    let shape = [40, 290, 8, 8];
    let conv = Conv2dConfig::new([290, 36], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(&device);
    let x = tensor(&values(shape.iter().product(), 6), shape, &device);
    let together = ops::conv2d(&conv, x.clone());
    for image in [0, 39] {
        let alone = ops::conv2d(&conv, x.clone().narrow(0, image, 1));
        assert_eq!(
            to_vec(alone),
            to_vec(together.clone().narrow(0, image, 1)),
            "image {image}"
        );
    }
}

#[test]
fn what_has_no_kernel_falls_back() {
    let device = Device::flex();
    let x = tensor(&values(2 * 4 * 9 * 9, 5), [2, 4, 9, 9], &device);
    let configs = [
        Conv2dConfig::new([4, 6], [3, 3])
            .with_groups(2)
            .with_padding(PaddingConfig2d::Same),
        Conv2dConfig::new([4, 6], [3, 3]).with_dilation([2, 2]),
        Conv2dConfig::new([4, 6], [3, 3])
            .with_bias(false)
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)),
    ];
    for config in configs {
        let conv = config.init(&device);
        let expected = widen(&to_vec(ops::composed::conv2d(&conv, x.clone())));
        assert_close(
            &to_vec(ops::conv2d(&conv, x.clone())),
            &expected,
            1e-5,
            &config.to_string(),
        );
    }
}
