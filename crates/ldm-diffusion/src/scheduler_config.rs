mod keys;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use keys::{
    AlgorithmType, ClipConfig, FinalSigma, Interpolation, SigmaConfig, SolverConfig, SolverType,
    TimestepSpacing, TimestepType, VarianceType,
};

use crate::{BetaSchedule, Error, NoiseSchedule, PredictionType};

/// diffusers' `scheduler_config.json`: the noise schedule that a model was trained on and how to sample from it.
///
/// Unknown keys are ignored on reading. A key that only some samplers have is `None` where the file lacks it, stands then for
/// the default of whichever sampler is chosen, and isn't written.
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
    /// Which training steps the sampler visits: `leading` by default for DDPM, DDIM and PLMS, `linspace` for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep of the `leading` spacing.
    pub steps_offset: usize,
    /// As many steps of the `leading` spacing as its stride `T / steps` has room for, which is what CompVis' code does: 31 for 30.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compvis_steps: bool,
    /// Rescales the schedule so that no signal is left at the last step. Heun, LMS, DPM2 and PLMS don't know it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescale_betas_zero_snr: bool,
    /// DDIM, LCM: below the first step lies clean data (`true`, the default) or the first training level (`false`). PLMS: the same,
    /// `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// DDPM: variance of the reverse step, `fixed_small` by default. `learned` and `learned_range` say that the network has twice
    /// the channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance_type: Option<VarianceType>,
    /// PLMS: whether the first steps go without the Runge-Kutta method; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_prk_steps: Option<bool>,
    /// LCM: number of steps that the model was distilled on; 50 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_inference_steps: Option<usize>,
    /// LCM: factor of the timesteps in the boundary condition; 10 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_scaling: Option<f64>,
    /// What is done to the predicted clean sample.
    #[serde(flatten)]
    pub clip: ClipConfig,
    /// How levels are chosen by samplers that count in `sigma = noise / signal`.
    #[serde(flatten)]
    pub sigmas: SigmaConfig,
    /// Settings of DPM-Solver and UniPC.
    #[serde(flatten)]
    pub solver: SolverConfig,
}

impl Default for SchedulerConfig {
    /// diffusers' defaults for DDIM, which stand for keys that a file lacks: made for pixels, so samples are clipped.
    fn default() -> Self {
        Self {
            class_name: "DDIMScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::PlainLinear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            compvis_steps: false,
            rescale_betas_zero_snr: false,
            set_alpha_to_one: None,
            variance_type: None,
            skip_prk_steps: None,
            original_inference_steps: None,
            timestep_scaling: None,
            clip: ClipConfig::default(),
            sigmas: SigmaConfig::default(),
            solver: SolverConfig::default(),
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
            clip: ClipConfig {
                clip_sample: Some(false),
                ..ClipConfig::default()
            },
            timestep_spacing: Some(TimestepSpacing::Trailing),
            set_alpha_to_one: Some(true),
            ..Self::default()
        }
    }

    /// What CompVis' samplers do with the same schedule: multiples of `T / steps` from 1, ending at the first training level.
    pub fn compvis(beta_start: f64, beta_end: f64) -> Self {
        Self {
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: 1,
            set_alpha_to_one: Some(false),
            skip_prk_steps: Some(true),
            ..Self::latent(beta_start, beta_end)
        }
    }

    /// Reads a `scheduler_config.json`, which may have Python's `Infinity`, `-Infinity` and `NaN` for a key without a value.
    ///
    /// # Errors
    /// If it isn't JSON, or a value isn't among those that a field knows.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        serde_json::from_str(&strict_json(text)).map_err(|source| Error::Json {
            file: "scheduler_config.json",
            source,
        })
    }

    /// The schedule described by the betas.
    ///
    /// # Errors
    /// If the betas are not variances, or a schedule without signal at its end is to serve a noise prediction.
    pub fn noise_schedule(&self) -> Result<NoiseSchedule, Error> {
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            return Err(no_signal());
        }
        self.rescaled_schedule()
    }

    /// The schedule for a sampler, which may get along with a noise prediction where there is no signal at the end, or not go there.
    pub(crate) fn rescaled_schedule(&self) -> Result<NoiseSchedule, Error> {
        let schedule = self.plain_schedule()?;
        Ok(if self.rescale_betas_zero_snr {
            schedule.rescaled_to_zero_terminal_snr()
        } else {
            schedule
        })
    }

    /// The schedule for a sampler that doesn't know of zero terminal SNR.
    pub(crate) fn plain_schedule(&self) -> Result<NoiseSchedule, Error> {
        match &self.trained_betas {
            Some(betas) => NoiseSchedule::from_betas(betas.clone()),
            None => NoiseSchedule::new(
                self.beta_schedule,
                self.beta_start,
                self.beta_end,
                self.num_train_timesteps,
            ),
        }
    }
}

/// A noise prediction meets a level without signal.
pub(crate) fn no_signal() -> Error {
    Error::invalid(
        "noise schedule",
        "rescale_betas_zero_snr",
        "leaves no signal at the last step, where a noise prediction says nothing about the sample: \
         use `prediction_type` \"v_prediction\" or \"sample\"",
    )
}

/// Python's JSON to JSON: `null` for the bare words `Infinity`, `-Infinity` and `NaN`.
fn strict_json(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut strict = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if !quoted && let Some(word) = WORDS.iter().find(|word| rest.starts_with(**word)) {
            strict.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        quoted ^= character == '"' && !escaped;
        escaped = quoted && character == '\\' && !escaped;
        strict.push(character);
        rest = &rest[character.len_utf8()..];
    }
    Cow::Owned(strict)
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
    #[serde(rename = "exp")]
    Exponential,
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
        assert!(SchedulerConfig::from_json(r#"{"solver_p": null}"#).is_ok());
        for (json, value, known) in [
            (r#"{"prediction_type": "score"}"#, "score", "v_prediction"),
            (r#"{"timestep_spacing": "even"}"#, "even", "trailing"),
            (r#"{"solver_type": "rk4"}"#, "rk4", "midpoint"),
            (r#"{"final_sigmas_type": "one"}"#, "one", "sigma_min"),
        ] {
            let error = SchedulerConfig::from_json(json).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains(value) && cause.contains(known), "{cause}");
        }
    }

    #[test]
    fn pythons_infinity_is_no_limit_and_strings_keep_theirs() {
        let text = r#"{"_class_name": "a\"Infinity", "lambda_min_clipped": -Infinity, "sigma_max":Infinity, "sigma_min": NaN}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.class_name, "a\"Infinity");
        assert_eq!(config.solver.lambda_min_clipped, None);
        assert_eq!(config.sigmas, SigmaConfig::default());
        let limited = SchedulerConfig::from_json(r#"{"lambda_min_clipped": -5.1}"#).unwrap();
        assert_eq!(limited.solver.lambda_min_clipped, Some(-5.1));
        assert!(SchedulerConfig::from_json("{\"beta_start\": NaN}").is_err());
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
