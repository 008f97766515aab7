//! The first stage of a latent diffusion model (Rombach et al. 2022, section 3.1): an autoencoder whose latent space is
//! kept near a standard normal, and the objective that trains it.
//!
//! - [`AutoencoderKl`] maps images `[N, 3, H, W]` in `[-1, 1]` to a [`DiagonalGaussian`] over latents
//!   `[N, c, H/f, W/f]` and back.
//! - [`Stage1Objective`] is reconstruction + KL divergence + perceptual distance ([`Lpips`]) + an adversarial term against a
//!   [`PatchDiscriminator`], with the adversarial weight adapted at every step.
//!
//! Nothing here draws random numbers except the initialisation of weights: noise enters as an argument. Nothing reads
//! a file: [`weights`] says which key of a published checkpoint belongs to which field.

pub mod weights;

mod autoencoder;
mod batch_norm;
mod blocks;
mod config;
mod decoder;
mod discriminator;
mod encoder;
mod gaussian;
mod loss;
mod lpips;

pub use autoencoder::AutoencoderKl;
pub use blocks::{DownEncoderBlock, MidBlock, UpDecoderBlock};
pub use config::{
    Activation, AutoencoderKlConfig, ClassName, ConfigError, DownBlockType, UpBlockType,
};
pub use decoder::Decoder;
pub use discriminator::{PatchDiscriminator, PatchDiscriminatorConfig, PatchLayer};
pub use encoder::Encoder;
pub use gaussian::DiagonalGaussian;
pub use loss::{
    DiscriminatorLoss, DiscriminatorStep, DiscriminatorTerms, GeneratorStep, GeneratorTerms,
    ReconstructionLoss, Stage1LossConfig, Stage1Objective,
};
pub use lpips::{Lpips, LpipsConfig};

#[cfg(test)]
mod tests;
