use burn::{
    nn::{
        PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    prelude::*,
    tensor::{activation::relu, module::max_pool2d, ops::MaxPoolOptions},
};
use ldm_nn::ops;

/// Convolutions in each of VGG16's five stages; a stage's last activation is compared, then pooled.
const STAGES: [usize; 5] = [2, 2, 3, 3, 3];
/// Centre and scale of the images that the reference feeds to VGG, for RGB in `[-1, 1]`.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Squared length below which a feature vector no longer gets unit length. Inside the root, so that the gradient at an
/// all-zero vector is finite; the reference adds its root, 1e-10, to the length, which is the same to f32.
const EPSILON: f64 = 1e-20;

/// Configuration of an [`Lpips`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpipsConfig {
    /// Channels of the five stages; VGG16's by default.
    pub channels: [usize; 5],
    /// Whether learnt per-channel weights are applied to the squared differences.
    pub heads: bool,
}

impl Default for LpipsConfig {
    fn default() -> Self {
        Self {
            channels: [64, 128, 256, 512, 512],
            heads: true,
        }
    }
}

/// Learned perceptual image patch similarity (Zhang et al. 2018): a distance between images in the feature space of VGG16.
///
/// The weights are constants: gradients flow to the images only. Freshly initialised weights are random; load a VGG16's
/// (see [`weights::VGG16_KEY_MAP`](crate::weights::VGG16_KEY_MAP)).
#[derive(Module, Debug)]
pub struct Lpips {
    /// The thirteen convolutions of VGG16.
    pub convs: Vec<Conv2d>,
    /// 1x1 convolutions to one channel, one per stage; without them every channel weighs 1.
    pub heads: Option<Vec<Conv2d>>,
}

impl LpipsConfig {
    /// Initialises the network on `device`, without gradients.
    pub fn init(&self, device: &Device) -> Lpips {
        let mut convs = Vec::new();
        let mut in_channels = 3;
        for (&depth, &channels) in STAGES.iter().zip(&self.channels) {
            for _ in 0..depth {
                convs.push(
                    Conv2dConfig::new([in_channels, channels], [3, 3])
                        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                        .init(device),
                );
                in_channels = channels;
            }
        }
        let head = |&channels: &usize| {
            Conv2dConfig::new([channels, 1], [1, 1])
                .with_bias(false)
                .init(device)
        };
        let heads = self.heads.then(|| self.channels.iter().map(head).collect());
        Lpips { convs, heads }.no_grad()
    }
}

impl Lpips {
    /// Smallest side of an image, in pixels, that leaves one feature in the last stage.
    pub const MIN_IMAGE_SIZE: usize = 16;

    /// Distance of each pair of images: `[N]`, zero for equal ones.
    ///
    /// # Shapes
    /// `a` and `b`: `[N, 3, H, W]` in `[-1, 1]`, at least [`MIN_IMAGE_SIZE`](Self::MIN_IMAGE_SIZE) a side.
    pub fn forward(&self, a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
        let [first, rest @ ..] = self.stage_distances(a, b);
        rest.into_iter().fold(first, |sum, distance| sum + distance)
    }

    /// The five terms of [`forward`](Self::forward), each `[N]`, from the finest features to the coarsest:
    /// `mean_hw sum_c w_c (a_c / |a| - b_c / |b|)^2`.
    pub fn stage_distances(&self, a: Tensor<4>, b: Tensor<4>) -> [Tensor<1>; 5] {
        let (mut a, mut b) = (standardise(a), standardise(b));
        let mut convs = self.convs.iter();
        std::array::from_fn(|stage| {
            if stage > 0 {
                (a, b) = (pool(a.clone()), pool(b.clone()));
            }
            for conv in convs.by_ref().take(STAGES[stage]) {
                a = relu(ops::conv2d(conv, a.clone()));
                b = relu(ops::conv2d(conv, b.clone()));
            }
            let squares = (unit_length(a.clone()) - unit_length(b.clone())).square();
            let weighted = match &self.heads {
                Some(heads) => ops::conv2d(&heads[stage], squares),
                None => squares.sum_dim(1),
            };
            weighted.flatten::<2>(1, 3).mean_dim(1).squeeze_dim(1)
        })
    }
}

impl Lpips {
    /// Activations of VGG16's last stage after their ReLU, before the pool: `[N, 512, H / 16, W / 16]`.
    ///
    /// # Shapes
    /// `images`: `[N, 3, H, W]` in `[-1, 1]`, at least [`MIN_IMAGE_SIZE`](Self::MIN_IMAGE_SIZE) a side.
    pub fn last_stage(&self, images: Tensor<4>) -> Tensor<4> {
        let mut x = standardise(images);
        let mut convs = self.convs.iter();
        for (stage, &depth) in STAGES.iter().enumerate() {
            if stage > 0 {
                x = pool(x);
            }
            for conv in convs.by_ref().take(depth) {
                x = relu(ops::conv2d(conv, x));
            }
        }
        x
    }
}

fn standardise(images: Tensor<4>) -> Tensor<4> {
    let device = images.device().inner();
    let channels =
        |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
    (images - channels(SHIFT)) / channels(SCALE)
}

fn pool(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([2, 2]).with_stride([2, 2]))
}

/// Scales the channel vector of every pixel to length 1.
fn unit_length(x: Tensor<4>) -> Tensor<4> {
    let length = x.clone().square().sum_dim(1).add_scalar(EPSILON).sqrt();
    x / length
}
