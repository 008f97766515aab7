use burn::{
    module::{Initializer, ModuleVisitor, Param},
    nn::{
        BatchNorm, BatchNormConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
    tensor::activation::leaky_relu,
};
use ldm_nn::{ops, watch};

use crate::batch_norm::{RunningStatistics, batch_norm};

/// Slope of the leaky ReLUs below zero.
const NEGATIVE_SLOPE: f64 = 0.2;
/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.02;
/// Channel counts stop doubling at this multiple of the first layer's.
const MAX_MULTIPLIER: usize = 8;

/// Configuration of a [`PatchDiscriminator`]. The default is the paper's, with 2,765,633 parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchDiscriminatorConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels after the first layer.
    pub channels: usize,
    /// Layers of stride 2; there are two more of stride 1.
    pub layers: usize,
}

impl Default for PatchDiscriminatorConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            channels: 64,
            layers: 3,
        }
    }
}

/// Convolutional classifier of overlapping patches (PatchGAN; Isola et al. 2017, section 3.2.2).
#[derive(Module, Debug)]
pub struct PatchDiscriminator {
    /// Convolutions of size 4, each but the last followed by a leaky ReLU.
    pub layers: Vec<PatchLayer>,
}

/// A convolution with the norm after it.
#[derive(Module, Debug)]
pub struct PatchLayer {
    /// The convolution; without a bias where a norm follows.
    pub conv: Conv2d,
    /// The norm; the first and the last layer have none.
    pub norm: Option<BatchNorm>,
}

impl PatchDiscriminatorConfig {
    /// Smallest side of an image, in pixels, that leaves one patch.
    pub fn min_image_size(&self) -> usize {
        3 << self.layers
    }

    /// Initialises the discriminator on `device`: weights `N(0, 0.02)`, norm scales `N(1, 0.02)`.
    pub fn init(&self, device: &Device) -> PatchDiscriminator {
        let width = |index: usize| self.channels * MAX_MULTIPLIER.min(1 << index.min(3));
        let layers = (0..self.layers + 2)
            .map(|index| {
                let first = index == 0;
                let last = index == self.layers + 1;
                let in_channels = if first {
                    self.in_channels
                } else {
                    width(index - 1)
                };
                let out_channels = if last { 1 } else { width(index) };
                let stride = if index < self.layers { 2 } else { 1 };
                PatchLayer::new(
                    [in_channels, out_channels],
                    stride,
                    !(first || last),
                    device,
                )
            })
            .collect();
        PatchDiscriminator { layers }
    }
}

impl PatchLayer {
    fn new(channels: [usize; 2], stride: usize, normalised: bool, device: &Device) -> Self {
        let normal = |mean| Initializer::Normal {
            mean,
            std: INIT_STD,
        };
        let mut conv = Conv2dConfig::new(channels, [4, 4])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .with_bias(!normalised)
            .init(device);
        // Set afterwards: a config's initialiser would also draw the bias, which keeps its default in the reference.
        conv.weight = normal(0.0).init(conv.weight.lazy_shape(), device);
        let norm = normalised.then(|| {
            let mut norm = BatchNormConfig::new(channels[1]).init(device);
            norm.gamma = normal(1.0).init([channels[1]], device);
            norm
        });
        Self { conv, norm }
    }
}

impl PatchDiscriminator {
    /// One logit per patch, above zero for "real": `[N, 3, H, W]` to `[N, 1, H/8 - 2, W/8 - 2]` with three layers.
    ///
    /// On an autodiff device the norms use the batch's statistics and update the running ones; after `valid()` they use
    /// the running ones.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let last = self.layers.len() - 1;
        let mut x = images;
        for (index, layer) in self.layers.iter().enumerate() {
            x = ops::conv2d(&layer.conv, x);
            if let Some(norm) = &layer.norm {
                x = watch::layer(norm.gamma.id, x, |x| batch_norm(norm, x));
            }
            if index < last {
                x = leaky_relu(x, NEGATIVE_SLOPE);
            }
        }
        x
    }

    /// A view for the generator's step: gradients reach the images but not the weights, and the norms behave as in training and
    /// share their running statistics with `self`.
    pub fn frozen(&self) -> Self {
        // A parameter that isn't initialised yet shares its state with its clones, `requires grad` included.
        self.visit(&mut Initialise);
        self.clone().no_grad()
    }

    /// The norms' running statistics as they are now.
    pub fn running_statistics(&self) -> RunningStatistics {
        RunningStatistics::of(self.norms())
    }

    /// Undoes what forward passes did to the running statistics since `statistics` were taken.
    pub fn restore_running_statistics(&self, statistics: &RunningStatistics) {
        statistics.restore(self.norms());
    }

    fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.layers.iter().filter_map(|layer| layer.norm.as_ref())
    }

    /// Number of trained parameters: [`Module::num_params`] without the norms' running statistics.
    pub fn num_trained_params(&self) -> usize {
        let running: usize = self
            .norms()
            .map(|norm| 2 * norm.gamma.lazy_shape().num_elements())
            .sum();
        self.num_params() - running
    }
}

struct Initialise;

impl ModuleVisitor for Initialise {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}
