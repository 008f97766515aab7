//! Denoising diffusion in a latent space: the U-Net, its conditions, noise schedules, the training objective and samplers.
//!
//! Every formula is about `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps` (Ho et al. 2020, eq. 4). [`NoiseSchedule`]
//! holds the `abar_t` in f64 on the host; [`PredictionType`] says what the network predicts of `x_0` and `eps`, for the
//! loss and for the samplers alike; [`samplers::sample`] runs the reverse process.
//!
//! Nothing here draws random numbers: noise is an argument.

mod error;
mod prediction;
mod schedule;
mod scheduler_config;

pub mod compvis;
pub mod conditioning;
pub mod guidance;
pub mod loss;
pub mod samplers;
pub mod unet;
pub mod weights;

pub use compvis::CompVisUNet;
pub use conditioning::{
    ClassEmbedder, ClassEmbedderConfig, SpatialRescaler, SpatialRescalerConfig,
};
pub use error::Error;
pub use guidance::Guidance;
pub use loss::{DiffusionLoss, DiffusionLossConfig, DiffusionLossOutput, LossKind};
pub use prediction::{Denoised, NoiseLevel, PredictionType};
pub use samplers::{Sampler, SamplerKind};
pub use schedule::{BetaSchedule, NoiseSchedule};
pub use scheduler_config::{
    AlgorithmType, ClipConfig, FinalSigma, Interpolation, SchedulerConfig, SigmaConfig,
    SolverConfig, SolverType, TimestepSpacing, TimestepType, VarianceType,
};
pub use unet::{UNet, UNetConfig};
