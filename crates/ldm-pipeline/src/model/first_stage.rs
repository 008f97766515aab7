//! The first stage of a model: an autoencoder of either kind, or none.

use burn::tensor::{Device, Tensor};
use ldm_autoencoder::{
    AutoencoderKl, AutoencoderKlConfig, DiagonalGaussian, VqModel, VqModelConfig,
    compvis::FirstStageConfig as Autoencoder,
};

use super::files::{malformed, read_json};
use crate::error::Error;

/// Log-variance that stands for a posterior without any: a standard deviation of 3e-7, the least that
/// [`DiagonalGaussian`] knows.
const NO_VARIANCE: f64 = -30.0;

/// Architecture and scaling factor of a first stage, the `config.json` beside its weights.
#[derive(Clone, Debug, PartialEq)]
pub enum FirstStageConfig {
    /// KL-regularised.
    Kl(AutoencoderKlConfig),
    /// Vector-quantised.
    Vq(VqModelConfig),
    /// None: the diffusion model works on pixels.
    Identity {
        /// Channels of the pixels.
        channels: usize,
    },
}

/// An autoencoder, or the identity in its place.
#[derive(Clone, Debug)]
pub enum FirstStage {
    /// KL-regularised.
    Kl(AutoencoderKl),
    /// Vector-quantised: what diffuses is the latent before quantisation, and decoding quantises it.
    Vq(VqModel),
    /// Latents are pixels.
    Identity,
}

impl FirstStageConfig {
    /// Reads a `config.json`, whose `_class_name` decides on the kind.
    ///
    /// # Errors
    /// If it is missing, malformed, or describes another or no valid model.
    pub(super) fn read(path: &std::path::Path) -> Result<Self, Error> {
        let value: serde_json::Value = read_json(path)?;
        let wrong = |error: &dyn std::fmt::Display| malformed(path, error);
        if value["_class_name"] == "VQModel" {
            let config: VqModelConfig = serde_json::from_value(value).map_err(|e| wrong(&e))?;
            config.validate().map_err(|e| wrong(&e))?;
            return Ok(Self::Vq(config));
        }
        let config: AutoencoderKlConfig = serde_json::from_value(value).map_err(|e| wrong(&e))?;
        config.validate().map_err(|e| wrong(&e))?;
        Ok(Self::Kl(config))
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.latent_channels,
            Self::Vq(config) => config.embed_dim(),
            Self::Identity { channels } => *channels,
        }
    }

    /// Channels of an image.
    pub fn image_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.out_channels,
            Self::Vq(config) => config.out_channels,
            Self::Identity { channels } => *channels,
        }
    }

    /// Pixels of an image per pixel of its latent, along one side.
    pub fn factor(&self) -> usize {
        match self {
            Self::Kl(config) => config.factor(),
            Self::Vq(config) => config.factor(),
            Self::Identity { .. } => 1,
        }
    }

    /// What latents are multiplied with before diffusion.
    pub fn scaling_factor(&self) -> f64 {
        match self {
            Self::Kl(config) => config.scaling_factor,
            Self::Vq(config) => config.scaling_factor,
            Self::Identity { .. } => 1.0,
        }
    }

    /// Side in pixels that the autoencoder's file names as that of its training images.
    pub fn sample_size(&self) -> Option<usize> {
        match self {
            Self::Kl(config) => Some(config.sample_size),
            Self::Vq(config) => Some(config.sample_size),
            Self::Identity { .. } => None,
        }
    }

    /// The same with another scaling factor; pixels have none.
    pub(crate) fn with_scaling_factor(mut self, factor: f64) -> Self {
        match &mut self {
            Self::Kl(config) => config.scaling_factor = factor,
            Self::Vq(config) => config.scaling_factor = factor,
            Self::Identity { .. } => {}
        }
        self
    }

    /// The same for images of `resolution` pixels a side.
    pub(crate) fn with_sample_size(mut self, resolution: usize) -> Self {
        match &mut self {
            Self::Kl(config) => config.sample_size = resolution,
            Self::Vq(config) => config.sample_size = resolution,
            Self::Identity { .. } => {}
        }
        self
    }

    /// The model with its weights still undrawn.
    pub fn init(&self, device: &Device) -> FirstStage {
        match self {
            Self::Kl(config) => FirstStage::Kl(config.init(device)),
            Self::Vq(config) => FirstStage::Vq(config.init(device)),
            Self::Identity { .. } => FirstStage::Identity,
        }
    }
}

impl From<Autoencoder> for FirstStageConfig {
    fn from(autoencoder: Autoencoder) -> Self {
        match autoencoder {
            Autoencoder::Kl(config) => Self::Kl(config),
            Autoencoder::Vq(config) => Self::Vq(config),
        }
    }
}

impl From<AutoencoderKl> for FirstStage {
    fn from(model: AutoencoderKl) -> Self {
        Self::Kl(model)
    }
}

impl From<VqModel> for FirstStage {
    fn from(model: VqModel) -> Self {
        Self::Vq(model)
    }
}

impl FirstStage {
    /// The posterior of images `[N, 3, H, W]` in `[-1, 1]` over latents `[N, c, H/f, W/f]`, not scaled. That of anything but a
    /// KL autoencoder has no variance to speak of.
    pub fn encode(&self, images: Tensor<4>) -> DiagonalGaussian {
        let exact = |latents: Tensor<4>| {
            let logvar = latents.full_like(NO_VARIANCE);
            DiagonalGaussian::from_moments(Tensor::cat(vec![latents, logvar], 1))
        };
        match self {
            Self::Kl(model) => model.encode(images),
            Self::Vq(model) => exact(model.encode(images)),
            Self::Identity => exact(images),
        }
    }

    /// Latents, not scaled, `[N, c, h, w]`, to images `[N, 3, f h, f w]` in about `[-1, 1]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Kl(model) => model.decode(latents),
            Self::Vq(model) => model.decode(latents),
            Self::Identity => latents,
        }
    }

    /// Latents as a diffusion model leaves them, scaled as `config` says, to images, in one piece or in tiles of `tile` latent pixels a
    /// side.
    pub fn decode_scaled(
        &self,
        latents: Tensor<4>,
        config: &FirstStageConfig,
        tile: Option<usize>,
    ) -> Tensor<4> {
        let unscaled = latents.div_scalar(config.scaling_factor());
        match tile {
            None => self.decode(unscaled),
            Some(tile) => self.decode_tiled(unscaled, tile),
        }
    }

    /// [`decode`](Self::decode) in overlapping tiles of `tile` latent pixels a side, whose seams are blended: memory for one tile
    /// at a time, in exchange for norms and attention that see a tile only.
    pub fn decode_tiled(&self, latents: Tensor<4>, tile: usize) -> Tensor<4> {
        match self {
            Self::Kl(model) => model.decode_tiled(latents, tile),
            Self::Vq(model) => model.decode_tiled(latents, tile),
            Self::Identity => latents,
        }
    }
}
