//! The first stage of a latent diffusion model (Rombach et al. 2022, section 3.1): an autoencoder whose latent space is
//! kept near a standard normal or snaps to a codebook, and the objective that trains it.
//!
//! - [`AutoencoderKl`] maps images `[N, 3, H, W]` in `[-1, 1]` to a [`DiagonalGaussian`] over latents
//!   `[N, c, H/f, W/f]` and back.
//! - [`VqModel`] maps them to latents, and back through the nearest codes of a [`VectorQuantizer`].
//! - [`Stage1Objective`] trains either as an [`Autoencoder`]: reconstruction + [`Penalty`] + perceptual distance ([`Lpips`]) + an
//!   adversarial term against a [`PatchDiscriminator`], with the adversarial weight adapted at every step.
//!
//! Nothing here draws random numbers except the initialisation of weights: noise enters as an argument. Nothing reads
//! a file: [`weights`] and [`compvis`] say which key of a published checkpoint belongs to which field.

pub mod compvis;
pub mod weights;

mod architecture;
mod autoencoder;
mod batch_norm;
mod blocks;
mod config;
mod decoder;
mod discriminator;
mod encoder;
mod error;
mod gaussian;
mod loss;
mod lpips;
mod quantizer;
mod tiling;
mod vq;
mod vq_config;

pub use architecture::{Activation, DownBlockType, UpBlockType};
pub use autoencoder::AutoencoderKl;
pub use batch_norm::RunningStatistics;
pub use blocks::{DownEncoderBlock, MidBlock, UpDecoderBlock};
pub use config::{AutoencoderKlConfig, ClassName};
pub use decoder::Decoder;
pub use discriminator::{PatchDiscriminator, PatchDiscriminatorConfig, PatchLayer};
pub use encoder::Encoder;
pub use error::ConfigError;
pub use gaussian::DiagonalGaussian;
pub use loss::{
    Autoencoder, CodebookBeta, CodebookUsage, DiscriminatorLoss, DiscriminatorStep,
    DiscriminatorTerms, GeneratorStep, GeneratorTerms, Penalty, ReconstructionLoss, Regularised,
    Stage1LossConfig, Stage1Objective,
};
pub use lpips::{Lpips, LpipsConfig};
pub use quantizer::{Quantized, VectorQuantizer};
pub use vq::VqModel;
pub use vq_config::{NormType, VqClassName, VqModelConfig};

#[cfg(test)]
mod tests;
