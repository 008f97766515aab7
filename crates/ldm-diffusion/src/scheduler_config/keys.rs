//! Keys that only some samplers have: `None` where a file lacks them.

use serde::{Deserialize, Serialize};

/// Limits of the predicted clean sample: for pixels, not for latents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Clamps to `[-clip_sample_range, clip_sample_range]`: by default on for DDPM and DDIM, off for Heun and LCM; no others know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_sample: Option<bool>,
    /// See `clip_sample`; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_sample_range: Option<f64>,
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): DDPM, DDIM, LCM, DPM-Solver and UniPC, off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thresholding: Option<bool>,
    /// Quantile of `|x_0|` that becomes the threshold; 0.995 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_thresholding_ratio: Option<f64>,
    /// Largest threshold; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_max_value: Option<f64>,
}

/// Choice of levels in `sigma = noise / signal`, for Euler, Heun, LMS, DPM2, DPM-Solver and UniPC. At most one of the `use_` keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SigmaConfig {
    /// Evenly spaced in `sigma^(1/7)` (Karras et al. 2022, eq. 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// Evenly spaced in `log sigma`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_exponential_sigmas: Option<bool>,
    /// DPM-Solver: evenly spaced in `log sigma`, at whole timesteps (Lu et al. 2022).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_lu_lambdas: Option<bool>,
    /// Spaced by a beta distribution; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_beta_sigmas: Option<bool>,
    /// Levels of a flow-matching model; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_flow_sigmas: Option<bool>,
    /// Euler: smallest level of the Karras and exponential spacing, instead of the schedule's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// Euler: largest level of the Karras and exponential spacing, instead of the schedule's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Euler, DPM-Solver, UniPC: where the last step leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_sigmas_type: Option<FinalSigma>,
    /// Euler: levels between training levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation_type: Option<Interpolation>,
    /// Euler: what a velocity model is told of the level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_type: Option<TimestepType>,
}

/// Settings of the multistep solvers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SolverConfig {
    /// Order of DPM-Solver (1 to 3) and UniPC; 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_order: Option<usize>,
    /// DPM-Solver: the equation that is solved, `dpmsolver++` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm_type: Option<AlgorithmType>,
    /// Variant of the second-order step: `midpoint` (default) or `heun` for DPM-Solver, `bh1` or `bh2` (default) for UniPC. A value
    /// of the other solver stands for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_type: Option<SolverType>,
    /// Lower orders in the last steps, for DPM-Solver only below 15 steps; `true` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower_order_final: Option<bool>,
    /// DPM-Solver: a first-order last step whatever the number of steps; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub euler_at_final: Option<bool>,
    /// DPM-Solver: leaves out levels with `log(signal / noise)` below it, for the cosine schedule; a file's `-Infinity` is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min_clipped: Option<f64>,
    /// UniPC: solves for the clean sample (`true`, the default) or for the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predict_x0: Option<bool>,
    /// UniPC: steps after which nothing is corrected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disable_corrector: Vec<usize>,
}

/// Which training steps a sampler of fewer steps visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `T / steps` from 0, plus the offset; misses the last training step.
    Leading,
    /// Multiples of `T / steps` down from the last training step; misses the first.
    Trailing,
    /// First and last training step and evenly between.
    Linspace,
}

/// Variance of the ancestral sampler's reverse step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior variance, the lower bound (Ho et al. 2020, section 3.2).
    #[default]
    FixedSmall,
    /// The same, computed by way of its logarithm in the reference.
    FixedSmallLog,
    /// `beta_t`, the upper bound.
    FixedLarge,
    /// The same; the reference takes the root of the logarithm, which isn't a number.
    FixedLargeLog,
    /// The network's further output channels are the variance.
    Learned,
    /// The network's further output channels interpolate between the logarithms of the bounds (Nichol & Dhariwal 2021, eq. 15).
    LearnedRange,
}

/// Where the last step of a sampler in `sigma` leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// Clean data.
    #[default]
    Zero,
    /// The first training level.
    SigmaMin,
}

/// How Euler's sampler finds levels between those of the training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Between neighbours, linear in `sigma`.
    #[default]
    Linear,
    /// Evenly in `log sigma` from the largest to the smallest, wherever the timesteps are.
    LogLinear,
}

/// What Euler's sampler tells a velocity model of the level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// The training step.
    #[default]
    Discrete,
    /// `log(sigma) / 4`.
    Continuous,
}

/// What DPM-Solver solves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlgorithmType {
    /// The ODE in the predicted noise (Lu et al. 2022a).
    #[serde(rename = "dpmsolver")]
    Dpm,
    /// The ODE in the predicted clean sample (Lu et al. 2022b).
    #[default]
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmPlusPlus,
    /// The SDE in the predicted noise.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpm,
    /// The SDE in the predicted clean sample.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmPlusPlus,
}

/// Variants of the second-order step of the multistep solvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    /// DPM-Solver's midpoint.
    Midpoint,
    /// DPM-Solver's Heun.
    Heun,
    /// DEIS' one.
    Logrho,
    /// UniPC's `B(h) = h`.
    Bh1,
    /// UniPC's `B(h) = e^h - 1`.
    Bh2,
}
