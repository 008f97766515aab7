use burn::{
    nn::conv::{Conv2d, Conv2dConfig},
    prelude::*,
};
use ldm_nn::{downsample_mean_2x, ops, weights::KeyPair};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Configuration of a [`SpatialRescaler`], in the names of CompVis' `cond_stage_config.params`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpatialRescalerConfig {
    /// How many times height and width are halved.
    #[serde(default = "one")]
    pub n_stages: usize,
    /// Channels of the condition: for a label map, the number of labels.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels after the 1x1 convolution; `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_channels: Option<usize>,
    /// Whether the convolution has a bias.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
}

/// Brings an image-like condition to the latent's size and to few channels, to be concatenated after the latent.
#[derive(Module, Debug)]
pub struct SpatialRescaler {
    /// 1x1 convolution after the last halving.
    pub channel_mapper: Option<Conv2d>,
    /// See [`SpatialRescalerConfig::n_stages`].
    pub n_stages: usize,
    /// See [`SpatialRescalerConfig::in_channels`].
    pub in_channels: usize,
}

impl SpatialRescalerConfig {
    /// Checks that there are channels.
    ///
    /// # Errors
    /// Names the first field that is 0.
    pub fn validate(&self) -> Result<(), Error> {
        for (field, value) in [
            ("in_channels", Some(self.in_channels)),
            ("out_channels", self.out_channels),
        ] {
            if value == Some(0) {
                let problem = "is 0: it must be at least 1";
                return Err(Error::invalid("spatial rescaler", field, problem));
            }
        }
        Ok(())
    }

    /// Initialises the convolution on `device`.
    pub fn init(&self, device: &Device) -> SpatialRescaler {
        SpatialRescaler {
            channel_mapper: self.out_channels.map(|out_channels| {
                Conv2dConfig::new([self.in_channels, out_channels], [1, 1])
                    .with_bias(self.bias)
                    .init(device)
            }),
            n_stages: self.n_stages,
            in_channels: self.in_channels,
        }
    }

    /// Channels that it delivers.
    pub fn output_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Its tensors in a CompVis checkpoint, below `cond_stage_model.`.
    pub fn compvis_keys(&self) -> Vec<KeyPair> {
        let parts: &[&str] = match (self.out_channels, self.bias) {
            (None, _) => &[],
            (Some(_), false) => &["weight"],
            (Some(_), true) => &["weight", "bias"],
        };
        (parts.iter())
            .map(|part| format!("channel_mapper.{part}"))
            .map(|key| KeyPair::same(key.clone(), key))
            .collect()
    }
}

impl SpatialRescaler {
    /// `[N, in_channels, H, W]` to `[N, output_channels, H / 2^n_stages, W / 2^n_stages]`, rounded down at every stage.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = (0..self.n_stages).fold(x, |x, _| downsample_mean_2x(x));
        match &self.channel_mapper {
            Some(conv) => ops::to_f32(ops::conv2d(conv, x)),
            None => x,
        }
    }

    /// [`forward`](Self::forward) of a label map `[N, H, W]`, one channel per label. A label beyond the channels is 0 in all.
    pub fn forward_labels(&self, labels: Tensor<3, Int>) -> Tensor<4> {
        self.forward(one_hot(labels, self.in_channels))
    }
}

/// `[N, H, W]` to `[N, classes, H, W]`.
fn one_hot(labels: Tensor<3, Int>, classes: usize) -> Tensor<4> {
    let [n, h, w] = labels.dims();
    let shape = [n, classes, h, w];
    let channels = Tensor::<1, Int>::arange(0..classes as i64, &labels.device());
    let channels = channels.reshape([1, classes, 1, 1]).expand(shape);
    (labels.unsqueeze_dim::<4>(1).expand(shape))
        .equal(channels)
        .float()
}

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}
