use serde::{Deserialize, Serialize};

use crate::{BetaSchedule, Error, NoiseSchedule, PredictionType};

/// diffusers' `scheduler_config.json`: the noise schedule that a model was trained on and how to sample from it.
///
/// Unknown keys are ignored on reading; keys that only some samplers have are left out on writing where they are `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// diffusers' class, the sampler that the model's author recommends.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Number of training steps `T`.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Course of the betas; in the file under diffusers' name.
    #[serde(with = "DiffusersBetaSchedule")]
    pub beta_schedule: BetaSchedule,
    /// Explicit betas, which then replace the schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which training steps the sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of the `leading` spacing.
    pub steps_offset: usize,
    /// Rescales the schedule so that no signal is left at the last step.
    pub rescale_betas_zero_snr: bool,
    /// Clamps the predicted `x_0` to `[-clip_sample_range, clip_sample_range]`: for pixels, not for latents.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// Dynamic thresholding of the predicted `x_0` (Saharia et al. 2022, section 2.3): for pixels, not for latents.
    pub thresholding: bool,
    /// Quantile of `|x_0|` that becomes the threshold.
    pub dynamic_thresholding_ratio: f64,
    /// Largest threshold.
    pub sample_max_value: f64,
    /// DDIM: below the first step lies clean data (`true`, the default) or the first training level (`false`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// DDPM: variance of the reverse step, `fixed_small` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance_type: Option<VarianceType>,
}

/// Which training steps a sampler of fewer steps visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `T / steps` from 0, plus the offset; misses the last training step.
    #[default]
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
    /// The network's further output channels are the variance.
    Learned,
    /// The network's further output channels interpolate between the logarithms of the bounds (Nichol & Dhariwal 2021, eq. 15).
    LearnedRange,
}

impl Default for SchedulerConfig {
    /// diffusers' defaults for DDIM and DDPM, which stand for keys that a file lacks: made for pixels, so `clip_sample` is on.
    fn default() -> Self {
        Self {
            class_name: "DDIMScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::PlainLinear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            set_alpha_to_one: None,
            variance_type: None,
        }
    }
}

impl SchedulerConfig {
    /// The paper's setting for latents: 1000 steps, linear in `sqrt(beta)`, noise prediction, no clipping. Sampling visits the last
    /// training step whatever the number of steps (`trailing`), where the training has seen next to pure noise too, and ends at clean data.
    pub fn latent(beta_start: f64, beta_end: f64) -> Self {
        Self {
            beta_start,
            beta_end,
            beta_schedule: BetaSchedule::Linear,
            clip_sample: false,
            timestep_spacing: TimestepSpacing::Trailing,
            set_alpha_to_one: Some(true),
            ..Self::default()
        }
    }

    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// If it isn't JSON, or a value isn't among those that a field knows.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|source| Error::Json {
            file: "scheduler_config.json",
            source,
        })
    }

    /// The schedule described by the betas.
    ///
    /// # Errors
    /// If the betas are not variances, or a schedule without signal at its end is to serve a noise prediction.
    pub fn noise_schedule(&self) -> Result<NoiseSchedule, Error> {
        let schedule = match &self.trained_betas {
            Some(betas) => NoiseSchedule::from_betas(betas.clone())?,
            None => NoiseSchedule::new(
                self.beta_schedule,
                self.beta_start,
                self.beta_end,
                self.num_train_timesteps,
            )?,
        };
        if !self.rescale_betas_zero_snr {
            return Ok(schedule);
        }
        if self.prediction_type == PredictionType::Epsilon {
            return Err(Error::invalid(
                "noise schedule",
                "rescale_betas_zero_snr",
                "leaves no signal at the last step, where a noise prediction says nothing about the sample: \
                 use `prediction_type` \"v_prediction\" or \"sample\"",
            ));
        }
        Ok(schedule.rescaled_to_zero_terminal_snr())
    }
}

/// The beta schedules under diffusers' names, whose `linear` is not the paper's.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BetaSchedule")]
enum DiffusersBetaSchedule {
    #[serde(rename = "scaled_linear")]
    Linear,
    #[serde(rename = "linear")]
    PlainLinear,
    #[serde(rename = "squaredcos_cap_v2")]
    Cosine,
    #[serde(rename = "sigmoid")]
    Sigmoid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffusers_linear_is_not_ours() {
        let config = SchedulerConfig::from_json(r#"{"beta_schedule": "linear"}"#).unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::PlainLinear);
        let latent = SchedulerConfig::latent(0.0015, 0.0195);
        let json = serde_json::to_string(&latent).unwrap();
        assert!(
            json.contains(r#""beta_schedule":"scaled_linear""#),
            "{json}"
        );
        assert!(json.contains(r#""_class_name":"DDIMScheduler""#), "{json}");
        assert!(!json.contains("variance_type"), "{json}");
        assert_eq!(SchedulerConfig::from_json(&json).unwrap(), latent);
    }

    #[test]
    fn unknown_keys_pass_and_unknown_values_are_named() {
        assert!(SchedulerConfig::from_json(r#"{"skip_prk_steps": true}"#).is_ok());
        let error = SchedulerConfig::from_json(r#"{"prediction_type": "score"}"#).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            cause.contains("score") && cause.contains("v_prediction"),
            "{cause}"
        );
    }

    #[test]
    fn noise_cannot_be_predicted_where_no_signal_is_left() {
        let config = SchedulerConfig {
            rescale_betas_zero_snr: true,
            ..SchedulerConfig::default()
        };
        let error = config.noise_schedule().unwrap_err().to_string();
        assert!(error.contains("v_prediction"), "{error}");
    }
}
