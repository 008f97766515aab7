//! The Inception v3 of 2015-12-05 that FID, KID and the Inception Score are defined by.
//!
//! It differs from torchvision's: its average pools leave the padding out, its last block pools by the maximum, and it has 1008 classes.

mod blocks;

use burn::{
    nn::{Linear, LinearConfig},
    prelude::*,
};
use ldm_nn::ops;

pub use blocks::{
    BasicConv2d, FixedBatchNorm, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE,
};
use blocks::{Pool, Widths, halved};

/// Side of the pictures that the network sees, in pixels.
pub const INPUT_SIZE: usize = 299;
/// Channels of the intermediate features of which sFID takes each place.
const SPATIAL_CHANNELS: usize = 7;

/// Names in pytorch-fid's and torch-fidelity's files to the fields here.
pub const KEY_MAP: &[(&str, &str)] = &[(r"^Conv2d_", "conv2d_"), (r"^Mixed_", "mixed_")];
/// Tensors of such files, and of torchvision's, that nothing here needs.
pub const SKIP: &[&str] = &[r"\.num_batches_tracked$"];

/// Configuration of an [`InceptionV3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InceptionV3Config {
    /// By what all widths are divided; 1 is the published network, up to 16 are smaller ones to test with.
    pub width_divisor: usize,
}

impl Default for InceptionV3Config {
    fn default() -> Self {
        Self { width_divisor: 1 }
    }
}

/// The network. Its fields have the names of the published files, in lower case.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "the fields have the published names")]
pub struct InceptionV3 {
    pub conv2d_1a_3x3: BasicConv2d,
    pub conv2d_2a_3x3: BasicConv2d,
    pub conv2d_2b_3x3: BasicConv2d,
    pub conv2d_3b_1x1: BasicConv2d,
    pub conv2d_4a_3x3: BasicConv2d,
    pub mixed_5b: InceptionA,
    pub mixed_5c: InceptionA,
    pub mixed_5d: InceptionA,
    pub mixed_6a: InceptionB,
    pub mixed_6b: InceptionC,
    pub mixed_6c: InceptionC,
    pub mixed_6d: InceptionC,
    pub mixed_6e: InceptionC,
    pub mixed_7a: InceptionD,
    pub mixed_7b: InceptionE,
    pub mixed_7c: InceptionE,
    pub fc: Linear,
}

/// What [`InceptionV3`] makes of pictures.
#[derive(Clone, Debug)]
pub struct InceptionFeatures {
    /// The last pool, `[N, 2048]`: FID, KID, precision and recall.
    pub pool3: Tensor<2>,
    /// `[N, 1008]`, without the last layer's bias: the Inception Score, whose first implementation forgot it.
    pub logits_unbiased: Tensor<2>,
    /// The first 7 channels of the 1x1 branch of `Mixed_6d` at each place, `[N, 7 * 17 * 17]`: sFID (Nash et al. 2021).
    pub spatial: Tensor<2>,
}

impl InceptionV3Config {
    /// Initialises the network on `device`, without gradients.
    pub fn init(&self, device: &Device) -> InceptionV3 {
        let widths = Widths {
            divisor: self.width_divisor,
            device,
        };
        InceptionV3 {
            conv2d_1a_3x3: widths.valid([3, 32], 2),
            conv2d_2a_3x3: widths.valid([32, 32], 1),
            conv2d_2b_3x3: widths.same([32, 64], [3, 3]),
            conv2d_3b_1x1: widths.same([64, 80], [1, 1]),
            conv2d_4a_3x3: widths.valid([80, 192], 1),
            mixed_5b: InceptionA::new(192, 32, widths),
            mixed_5c: InceptionA::new(256, 64, widths),
            mixed_5d: InceptionA::new(288, 64, widths),
            mixed_6a: InceptionB::new(288, widths),
            mixed_6b: InceptionC::new(768, 128, widths),
            mixed_6c: InceptionC::new(768, 160, widths),
            mixed_6d: InceptionC::new(768, 160, widths),
            mixed_6e: InceptionC::new(768, 192, widths),
            mixed_7a: InceptionD::new(768, widths),
            mixed_7b: InceptionE::new(1280, widths),
            mixed_7c: InceptionE::new(2048, widths),
            fc: LinearConfig::new(widths.of(2048), widths.of(1008)).init(device),
        }
        .no_grad()
    }
}

impl InceptionV3 {
    /// Features of pictures `[N, 3, 299, 299]` in `[-1, 1]`.
    pub fn forward(&self, images: Tensor<4>) -> InceptionFeatures {
        let x = self.conv2d_1a_3x3.forward(images);
        let x = self.conv2d_2a_3x3.forward(x);
        let x = halved(self.conv2d_2b_3x3.forward(x));
        let x = self.conv2d_3b_1x1.forward(x);
        let x = halved(self.conv2d_4a_3x3.forward(x));
        let x = self.mixed_5b.forward(x);
        let x = self.mixed_5c.forward(x);
        let x = self.mixed_5d.forward(x);
        let x = self.mixed_6a.forward(x);
        let x = self.mixed_6b.forward(x);
        let x = self.mixed_6c.forward(x);
        // The block's output begins with its 1x1 branch.
        let x = self.mixed_6d.forward(x);
        let spatial = x.clone().narrow(1, 0, SPATIAL_CHANNELS).flatten(1, 3);
        let x = self.mixed_6e.forward(x);
        let x = self.mixed_7a.forward(x);
        let x = self.mixed_7b.forward(x, Pool::Average);
        let x = self.mixed_7c.forward(x, Pool::Largest);
        let [n, channels, ..] = x.dims();
        let pool3 = x.flatten::<3>(2, 3).mean_dim(2).reshape([n, channels]);
        let unbiased = Linear {
            bias: None,
            ..self.fc.clone()
        };
        InceptionFeatures {
            logits_unbiased: ops::linear(&unbiased, pool3.clone()),
            pool3,
            spatial,
        }
    }

    /// Widths of the three outputs: `[pool3, logits_unbiased, spatial]`.
    pub fn dims(&self) -> [usize; 3] {
        let [pool, classes] = self.fc.weight.dims();
        [pool, classes, SPATIAL_CHANNELS * 17 * 17]
    }
}
