//! The stage-1 objective (Rombach et al. 2022, appendix G; Esser et al. 2021, section 3).

mod autoencoder;
mod config;
mod diagnosis;
mod discriminator;
mod generator;

pub use autoencoder::{Autoencoder, CodebookUsage, Penalty, Regularised};
pub use config::{CodebookBeta, DiscriminatorLoss, ReconstructionLoss, Stage1LossConfig};
pub use discriminator::{DiscriminatorStep, DiscriminatorTerms};
pub use generator::{GeneratorStep, GeneratorTerms};

use burn::{prelude::*, tensor::Tensor};

use crate::{ConfigError, Lpips};

/// What an [`Autoencoder`] and its discriminator are trained against: reconstruction, perceptual distance, an adversarial term, and
/// a KL divergence or a codebook's loss.
///
/// [`generator`](Self::generator) gives the autoencoder's gradients for a batch, then
/// [`discriminator`](Self::discriminator) the discriminator's on the same images and reconstructions. The order is
/// the reference's: the autoencoder's update comes first.
#[derive(Clone, Debug)]
pub struct Stage1Objective {
    config: Stage1LossConfig,
    lpips: Option<Lpips>,
}

impl Stage1Objective {
    /// An objective with these weights; `lpips` is dropped if `perceptual_weight` is 0.
    ///
    /// # Errors
    /// If a weight is out of range, or `perceptual_weight` is above 0 without an `lpips`.
    pub fn new(config: Stage1LossConfig, lpips: Option<Lpips>) -> Result<Self, ConfigError> {
        config.validate()?;
        let lpips = if config.perceptual_weight > 0.0 {
            let lpips = lpips.ok_or(ConfigError::PerceptualNetworkMissing(
                config.perceptual_weight,
            ))?;
            // On a plain device its weights are constants of whatever graph the images belong to.
            Some(lpips.valid())
        } else {
            None
        };
        Ok(Self { config, lpips })
    }

    /// The weights.
    pub fn config(&self) -> &Stage1LossConfig {
        &self.config
    }
}

/// Brings scalars to the host in one transfer.
fn fetch<const N: usize>(scalars: [Tensor<1>; N]) -> [f32; N] {
    let scalars = scalars.map(Tensor::inner).to_vec();
    let data = Tensor::cat(scalars, 0).into_data();
    let mut values = data.iter::<f32>();
    std::array::from_fn(|_| values.next().expect("one value per scalar"))
}
