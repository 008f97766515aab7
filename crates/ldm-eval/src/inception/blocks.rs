//! The five kinds of block of Inception v3 (Szegedy et al. 2016, figures 5 to 7 and 10), as they are in the network of 2015-12-05.

use burn::{
    module::Param,
    nn::{
        PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
    tensor::{
        activation::relu,
        module::{avg_pool2d, max_pool2d},
        ops::{AvgPoolOptions, MaxPoolOptions},
    },
};
use ldm_nn::ops;

const EPSILON: f64 = 1e-3;

/// A convolution, batch normalisation by fixed statistics, ReLU.
#[derive(Module, Debug)]
pub struct BasicConv2d {
    /// Without a bias.
    pub conv: Conv2d,
    /// The statistics, each `[C_out]`.
    pub bn: FixedBatchNorm,
}

/// What batch normalisation has learnt, under PyTorch's names.
#[derive(Module, Debug)]
pub struct FixedBatchNorm {
    /// Scale.
    pub weight: Param<Tensor<1>>,
    /// Shift.
    pub bias: Param<Tensor<1>>,
    /// Mean.
    pub running_mean: Param<Tensor<1>>,
    /// Variance.
    pub running_var: Param<Tensor<1>>,
}

/// How far the widths of a network are from the published ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths<'a> {
    pub(super) divisor: usize,
    pub(super) device: &'a Device,
}

impl Widths<'_> {
    /// A convolution whose output has the size of its input.
    pub(super) fn same(&self, channels: [usize; 2], [height, width]: [usize; 2]) -> BasicConv2d {
        let [y, x] = [(height - 1) / 2, (width - 1) / 2];
        let padding = PaddingConfig2d::Explicit(y, x, y, x);
        self.conv(channels, [height, width], 1, padding)
    }

    /// A convolution of 3x3 without padding.
    pub(super) fn valid(&self, channels: [usize; 2], stride: usize) -> BasicConv2d {
        self.conv(channels, [3, 3], stride, PaddingConfig2d::Valid)
    }

    fn conv(
        &self,
        channels: [usize; 2],
        kernel: [usize; 2],
        stride: usize,
        padding: PaddingConfig2d,
    ) -> BasicConv2d {
        let [inputs, outputs] = channels.map(|channels| self.of(channels));
        let full = |value: f32| Param::from_tensor(Tensor::full([outputs], value, self.device));
        BasicConv2d {
            conv: Conv2dConfig::new([inputs, outputs], kernel)
                .with_stride([stride; 2])
                .with_padding(padding)
                .with_bias(false)
                .init(self.device),
            bn: FixedBatchNorm {
                weight: full(1.0),
                bias: full(0.0),
                running_mean: full(0.0),
                running_var: full(1.0),
            },
        }
    }

    /// A width of the published network, brought to this one's. The image's three channels stay.
    pub(super) fn of(&self, channels: usize) -> usize {
        if channels == 3 {
            3
        } else {
            channels / self.divisor
        }
    }
}

impl BasicConv2d {
    /// `[N, C_in, H, W]` to `[N, C_out, H', W']`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        relu(ops::conv2d(&self.folded(), x))
    }

    /// The convolution with the normalisation in its weights and a bias.
    fn folded(&self) -> Conv2d {
        let bn = &self.bn;
        let deviation = bn.running_var.val().add_scalar(EPSILON).sqrt();
        let scale = bn.weight.val() / deviation;
        let bias = bn.bias.val() - bn.running_mean.val() * scale.clone();
        let [outputs] = scale.dims();
        let weight = self.conv.weight.val() * scale.reshape([outputs, 1, 1, 1]);
        Conv2d {
            weight: Param::initialized(self.conv.weight.id, weight),
            bias: Some(Param::initialized(bn.bias.id, bias)),
            ..self.conv.clone()
        }
    }
}

/// The mean of 3x3 neighbours, of those that there are: TensorFlow's, where PyTorch counts the padding as zeros.
fn average(x: Tensor<4>) -> Tensor<4> {
    let options = AvgPoolOptions::new([3, 3])
        .with_stride([1, 1])
        .with_padding([1, 1])
        .with_count_include_pad(false);
    avg_pool2d(x, options)
}

/// The largest of 3x3, at every second place.
pub(super) fn halved(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]))
}

/// Grids of 35x35: 1x1, 5x5, twice 3x3, and a pool.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionA {
    pub branch1x1: BasicConv2d,
    pub branch5x5_1: BasicConv2d,
    pub branch5x5_2: BasicConv2d,
    pub branch3x3dbl_1: BasicConv2d,
    pub branch3x3dbl_2: BasicConv2d,
    pub branch3x3dbl_3: BasicConv2d,
    pub branch_pool: BasicConv2d,
}

impl InceptionA {
    pub(super) fn new(inputs: usize, pool: usize, widths: Widths) -> Self {
        Self {
            branch1x1: widths.same([inputs, 64], [1, 1]),
            branch5x5_1: widths.same([inputs, 48], [1, 1]),
            branch5x5_2: widths.same([48, 64], [5, 5]),
            branch3x3dbl_1: widths.same([inputs, 64], [1, 1]),
            branch3x3dbl_2: widths.same([64, 96], [3, 3]),
            branch3x3dbl_3: widths.same([96, 96], [3, 3]),
            branch_pool: widths.same([inputs, pool], [1, 1]),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let five = self
            .branch5x5_2
            .forward(self.branch5x5_1.forward(x.clone()));
        let double = (self.branch3x3dbl_2).forward(self.branch3x3dbl_1.forward(x.clone()));
        let branches = vec![
            self.branch1x1.forward(x.clone()),
            five,
            self.branch3x3dbl_3.forward(double),
            self.branch_pool.forward(average(x)),
        ];
        Tensor::cat(branches, 1)
    }
}

/// From 35x35 to 17x17.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionB {
    pub branch3x3: BasicConv2d,
    pub branch3x3dbl_1: BasicConv2d,
    pub branch3x3dbl_2: BasicConv2d,
    pub branch3x3dbl_3: BasicConv2d,
}

impl InceptionB {
    pub(super) fn new(inputs: usize, widths: Widths) -> Self {
        Self {
            branch3x3: widths.valid([inputs, 384], 2),
            branch3x3dbl_1: widths.same([inputs, 64], [1, 1]),
            branch3x3dbl_2: widths.same([64, 96], [3, 3]),
            branch3x3dbl_3: widths.valid([96, 96], 2),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = (self.branch3x3dbl_2).forward(self.branch3x3dbl_1.forward(x.clone()));
        let branches = vec![
            self.branch3x3.forward(x.clone()),
            self.branch3x3dbl_3.forward(double),
            halved(x),
        ];
        Tensor::cat(branches, 1)
    }
}

/// Grids of 17x17: 1x1, 7x7 in two steps, twice that, and a pool.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionC {
    pub branch1x1: BasicConv2d,
    pub branch7x7_1: BasicConv2d,
    pub branch7x7_2: BasicConv2d,
    pub branch7x7_3: BasicConv2d,
    pub branch7x7dbl_1: BasicConv2d,
    pub branch7x7dbl_2: BasicConv2d,
    pub branch7x7dbl_3: BasicConv2d,
    pub branch7x7dbl_4: BasicConv2d,
    pub branch7x7dbl_5: BasicConv2d,
    pub branch_pool: BasicConv2d,
}

impl InceptionC {
    pub(super) fn new(inputs: usize, narrow: usize, widths: Widths) -> Self {
        let (row, column) = ([1, 7], [7, 1]);
        Self {
            branch1x1: widths.same([inputs, 192], [1, 1]),
            branch7x7_1: widths.same([inputs, narrow], [1, 1]),
            branch7x7_2: widths.same([narrow, narrow], row),
            branch7x7_3: widths.same([narrow, 192], column),
            branch7x7dbl_1: widths.same([inputs, narrow], [1, 1]),
            branch7x7dbl_2: widths.same([narrow, narrow], column),
            branch7x7dbl_3: widths.same([narrow, narrow], row),
            branch7x7dbl_4: widths.same([narrow, narrow], column),
            branch7x7dbl_5: widths.same([narrow, 192], row),
            branch_pool: widths.same([inputs, 192], [1, 1]),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let seven = self
            .branch7x7_2
            .forward(self.branch7x7_1.forward(x.clone()));
        let mut double = self.branch7x7dbl_1.forward(x.clone());
        for conv in [
            &self.branch7x7dbl_2,
            &self.branch7x7dbl_3,
            &self.branch7x7dbl_4,
            &self.branch7x7dbl_5,
        ] {
            double = conv.forward(double);
        }
        let branches = vec![
            self.branch1x1.forward(x.clone()),
            self.branch7x7_3.forward(seven),
            double,
            self.branch_pool.forward(average(x)),
        ];
        Tensor::cat(branches, 1)
    }
}

/// From 17x17 to 8x8.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionD {
    pub branch3x3_1: BasicConv2d,
    pub branch3x3_2: BasicConv2d,
    pub branch7x7x3_1: BasicConv2d,
    pub branch7x7x3_2: BasicConv2d,
    pub branch7x7x3_3: BasicConv2d,
    pub branch7x7x3_4: BasicConv2d,
}

impl InceptionD {
    pub(super) fn new(inputs: usize, widths: Widths) -> Self {
        Self {
            branch3x3_1: widths.same([inputs, 192], [1, 1]),
            branch3x3_2: widths.valid([192, 320], 2),
            branch7x7x3_1: widths.same([inputs, 192], [1, 1]),
            branch7x7x3_2: widths.same([192, 192], [1, 7]),
            branch7x7x3_3: widths.same([192, 192], [7, 1]),
            branch7x7x3_4: widths.valid([192, 192], 2),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let seven = (self.branch7x7x3_2).forward(self.branch7x7x3_1.forward(x.clone()));
        let seven = self
            .branch7x7x3_4
            .forward(self.branch7x7x3_3.forward(seven));
        let branches = vec![
            self.branch3x3_2
                .forward(self.branch3x3_1.forward(x.clone())),
            seven,
            halved(x),
        ];
        Tensor::cat(branches, 1)
    }
}

/// How the last blocks pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Average,
    /// In the last block of this network, where the paper has the average.
    Largest,
}

/// Grids of 8x8: 1x1, 3x3 split into a row and a column, the same after another 3x3, and a pool.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionE {
    pub branch1x1: BasicConv2d,
    pub branch3x3_1: BasicConv2d,
    pub branch3x3_2a: BasicConv2d,
    pub branch3x3_2b: BasicConv2d,
    pub branch3x3dbl_1: BasicConv2d,
    pub branch3x3dbl_2: BasicConv2d,
    pub branch3x3dbl_3a: BasicConv2d,
    pub branch3x3dbl_3b: BasicConv2d,
    pub branch_pool: BasicConv2d,
}

impl InceptionE {
    pub(super) fn new(inputs: usize, widths: Widths) -> Self {
        Self {
            branch1x1: widths.same([inputs, 320], [1, 1]),
            branch3x3_1: widths.same([inputs, 384], [1, 1]),
            branch3x3_2a: widths.same([384, 384], [1, 3]),
            branch3x3_2b: widths.same([384, 384], [3, 1]),
            branch3x3dbl_1: widths.same([inputs, 448], [1, 1]),
            branch3x3dbl_2: widths.same([448, 384], [3, 3]),
            branch3x3dbl_3a: widths.same([384, 384], [1, 3]),
            branch3x3dbl_3b: widths.same([384, 384], [3, 1]),
            branch_pool: widths.same([inputs, 192], [1, 1]),
        }
    }

    pub(super) fn forward(&self, x: Tensor<4>, pool: Pool) -> Tensor<4> {
        let three = self.branch3x3_1.forward(x.clone());
        let double = (self.branch3x3dbl_2).forward(self.branch3x3dbl_1.forward(x.clone()));
        let pooled = match pool {
            Pool::Average => average(x.clone()),
            Pool::Largest => {
                let options = MaxPoolOptions::new([3, 3])
                    .with_stride([1, 1])
                    .with_padding([1, 1]);
                max_pool2d(x.clone(), options)
            }
        };
        let branches = vec![
            self.branch1x1.forward(x),
            self.branch3x3_2a.forward(three.clone()),
            self.branch3x3_2b.forward(three),
            self.branch3x3dbl_3a.forward(double.clone()),
            self.branch3x3dbl_3b.forward(double),
            self.branch_pool.forward(pooled),
        ];
        Tensor::cat(branches, 1)
    }
}
