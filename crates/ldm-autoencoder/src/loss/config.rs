use serde::{Deserialize, Serialize};

use crate::{ConfigError, PatchDiscriminatorConfig};

/// How a reconstruction is compared with its image, element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReconstructionLoss {
    /// `|x - r|`.
    #[default]
    L1,
    /// `(x - r)^2`.
    L2,
}

/// The discriminator's loss; the generator's is `-mean(logits)` with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscriminatorLoss {
    /// `1/2 (mean relu(1 - real) + mean relu(1 + fake))` (Lim & Ye 2017).
    #[default]
    Hinge,
    /// `1/2 (mean softplus(-real) + mean softplus(fake))` (Goodfellow et al. 2014).
    Vanilla,
}

/// Which of a codebook's two distances has the weight beta = 0.25; both have the same value, so only the gradients differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodebookBeta {
    /// `mean (z - sg(q))^2 + 0.25 mean (sg(z) - q)^2`: on the term that moves the codes, as in the original code, with which all
    /// published models were trained.
    #[default]
    Legacy,
    /// `mean (sg(z) - q)^2 + 0.25 mean (z - sg(q))^2`: on the commitment, which moves the encoder (van den Oord et al. 2017, equation
    /// 3; Esser et al. 2021, equation 2).
    Paper,
}

/// Weights of a [`Stage1Objective`](crate::Stage1Objective). The defaults are those of the paper's KL autoencoders.
///
/// A part whose weight is 0 is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage1LossConfig {
    /// Element-wise distance; `l1` by default.
    pub reconstruction: ReconstructionLoss,
    /// Log-variance of the observation model; 0 by default, which leaves the distance as it is.
    pub logvar: f64,
    /// Trains the log-variance, which starts at `logvar`; false by default: the reference's is a parameter that no optimiser has.
    pub learn_logvar: bool,
    /// Weight of the KL divergence; 1e-6 by default. The divergence is a sum over the latent, hence so small.
    pub kl_weight: f64,
    /// Weight of a codebook's loss, a mean; 1 by default. Beside a codebook the other terms are means as well.
    pub codebook_weight: f64,
    /// Which part of a codebook's loss has the weight 0.25; `legacy` by default.
    pub codebook_beta: CodebookBeta,
    /// Weight of the perceptual distance; 1 by default.
    pub perceptual_weight: f64,
    /// Weight of the adversarial term before it is adapted; 0.5 by default.
    pub disc_weight: f64,
    /// Factor of the adversarial term and of the discriminator's loss; 1 by default.
    pub disc_factor: f64,
    /// First step with an adversarial part; 50,001 by default.
    pub disc_start: u64,
    /// Loss of the discriminator; `hinge` by default.
    pub disc_loss: DiscriminatorLoss,
    /// Stride-2 layers of the discriminator; 3 by default.
    pub disc_layers: usize,
    /// Channels of the discriminator's first layer; 64 by default.
    pub disc_channels: usize,
    /// Runs the discriminator before `disc_start` as well, as the reference does; false by default. Costs two discriminator
    /// passes a step and changes only what is logged and the discriminator's running statistics.
    pub watch_before_start: bool,
}

impl Default for Stage1LossConfig {
    fn default() -> Self {
        Self {
            reconstruction: ReconstructionLoss::L1,
            logvar: 0.0,
            learn_logvar: false,
            kl_weight: 1e-6,
            codebook_weight: 1.0,
            codebook_beta: CodebookBeta::Legacy,
            perceptual_weight: 1.0,
            disc_weight: 0.5,
            disc_factor: 1.0,
            disc_start: 50_001,
            disc_loss: DiscriminatorLoss::Hinge,
            disc_layers: 3,
            disc_channels: 64,
            watch_before_start: false,
        }
    }
}

impl Stage1LossConfig {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let weights = [
            ("kl_weight", self.kl_weight),
            ("codebook_weight", self.codebook_weight),
            ("perceptual_weight", self.perceptual_weight),
            ("disc_weight", self.disc_weight),
            ("disc_factor", self.disc_factor),
        ];
        for (field, value) in weights {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::Range {
                    field,
                    value,
                    range: "finite and at least 0",
                });
            }
        }
        if !(-30.0..=20.0).contains(&self.logvar) {
            return Err(ConfigError::Range {
                field: "logvar",
                value: self.logvar,
                range: "within [-30, 20]",
            });
        }
        if self.disc_channels == 0 {
            return Err(ConfigError::Zero {
                field: "disc_channels",
            });
        }
        if !(1..=5).contains(&self.disc_layers) {
            return Err(ConfigError::Range {
                field: "disc_layers",
                value: self.disc_layers as f64,
                range: "within [1, 5]",
            });
        }
        Ok(())
    }

    /// The discriminator to train beside the autoencoder, `None` if the adversarial part is off.
    pub fn discriminator(&self) -> Option<PatchDiscriminatorConfig> {
        (self.disc_weight > 0.0 && self.disc_factor > 0.0).then(|| PatchDiscriminatorConfig {
            channels: self.disc_channels,
            layers: self.disc_layers,
            ..PatchDiscriminatorConfig::default()
        })
    }

    /// Factor of the adversarial part at `step`, `None` where it isn't computed.
    pub(crate) fn disc_factor_at(&self, step: u64) -> Option<f64> {
        self.discriminator()?;
        if step >= self.disc_start {
            Some(self.disc_factor)
        } else {
            self.watch_before_start.then_some(0.0)
        }
    }
}
