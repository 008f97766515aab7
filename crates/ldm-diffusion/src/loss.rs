//! The training objective: a weighted distance between the network's output and its target.

use burn::{prelude::*, tensor::FloatDType};
use serde::{Deserialize, Serialize};

use crate::{Error, NoiseSchedule, PredictionType};

/// Distance between output and target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Squared error.
    #[default]
    L2,
    /// Absolute error.
    L1,
}

/// The objective's form and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionLossConfig {
    /// Distance between output and target.
    pub kind: LossKind,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Weight of `L_simple` (Ho et al. 2020, eq. 14).
    pub l_simple_weight: f64,
    /// Weight of the variational term, the same distance weighted by
    /// [`lvlb_weights`](NoiseSchedule::lvlb_weights).
    pub original_elbo_weight: f64,
    /// Weighs `L_simple` by the signal-to-noise ratio clamped to this value (Hang et al. 2023; they use 5).
    pub min_snr_gamma: Option<f64>,
}

impl Default for DiffusionLossConfig {
    /// `L_simple` alone, squared error of the noise.
    fn default() -> Self {
        Self {
            kind: LossKind::L2,
            prediction_type: PredictionType::Epsilon,
            l_simple_weight: 1.0,
            original_elbo_weight: 0.0,
            min_snr_gamma: None,
        }
    }
}

/// The objective over one noise schedule.
#[derive(Clone, Debug)]
pub struct DiffusionLoss {
    kind: LossKind,
    prediction_type: PredictionType,
    schedule: NoiseSchedule,
    /// Everything that multiplies an item's distance, per timestep.
    weights: Vec<f64>,
}

/// What [`DiffusionLoss::forward`] computes.
#[derive(Clone, Debug)]
pub struct DiffusionLossOutput {
    /// The objective, `[1]`.
    pub loss: Tensor<1>,
    /// Unweighted distance of every item, the mean over its elements, `[N]`; outside the autodiff graph, for logging.
    pub per_item: Tensor<1>,
}

impl DiffusionLossConfig {
    /// Joins the objective with the schedule that noises the data.
    ///
    /// # Errors
    /// If a weight is negative, both are 0, or the schedule makes a step's weight infinite.
    pub fn init(&self, schedule: NoiseSchedule) -> Result<DiffusionLoss, Error> {
        for (field, weight) in [
            ("l_simple_weight", self.l_simple_weight),
            ("original_elbo_weight", self.original_elbo_weight),
            ("min_snr_gamma", self.min_snr_gamma.unwrap_or(1.0)),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(invalid(field, format!("is {weight}: it must be 0 or more")));
            }
        }
        if self.l_simple_weight == 0.0 && self.original_elbo_weight == 0.0 {
            return Err(invalid(
                "l_simple_weight",
                "and `original_elbo_weight` are both 0, so there is nothing to learn",
            ));
        }
        let weights = self.weights(&schedule);
        if let Some(t) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(invalid(
                "original_elbo_weight",
                format!("has an infinite weight at step {t}, which has no signal: use 0"),
            ));
        }
        Ok(DiffusionLoss {
            kind: self.kind,
            prediction_type: self.prediction_type,
            schedule,
            weights,
        })
    }

    fn weights(&self, schedule: &NoiseSchedule) -> Vec<f64> {
        let snr_weight = |t: usize| match self.min_snr_gamma {
            None => 1.0,
            Some(gamma) => {
                let snr = schedule.snr(t);
                match self.prediction_type {
                    PredictionType::Epsilon => (gamma / snr).min(1.0),
                    PredictionType::Sample => snr.min(gamma),
                    PredictionType::Velocity => snr.min(gamma) / (snr + 1.0),
                }
            }
        };
        let mut weights: Vec<f64> = (0..schedule.num_train_timesteps())
            .map(|t| self.l_simple_weight * snr_weight(t))
            .collect();
        if self.original_elbo_weight > 0.0 {
            let lvlb = schedule.lvlb_weights(self.prediction_type);
            for (weight, lvlb) in weights.iter_mut().zip(lvlb) {
                *weight += self.original_elbo_weight * lvlb;
            }
        }
        weights
    }
}

impl DiffusionLoss {
    /// The schedule that noises the data.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// `mean over items of w_t mean over elements of |target - output|^p`, computed in f32.
    ///
    /// # Shapes
    /// - `output`: the network's answer to `x_t`, `[N, C, H, W]`
    /// - `x0`, `noise`: what `x_t` was mixed from, `[N, C, H, W]`
    /// - `timesteps`: `N` of them
    ///
    /// # Panics
    /// If a timestep lies outside the schedule.
    pub fn forward(
        &self,
        output: Tensor<4>,
        x0: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> DiffusionLossOutput {
        let device = output.device();
        let level = self.schedule.levels(timesteps, &device);
        let target = self.prediction_type.target(&level, x0, noise);
        let error = output.cast(FloatDType::F32) - target.cast(FloatDType::F32);
        let distance = match self.kind {
            LossKind::L2 => error.clone() * error,
            LossKind::L1 => error.abs(),
        };
        let per_item: Tensor<1> = distance.flatten::<2>(1, 3).mean_dim(1).squeeze_dim(1);
        let weights: Vec<f32> = timesteps.iter().map(|&t| self.weights[t] as f32).collect();
        let weights = Tensor::<1>::from_floats(weights.as_slice(), &device);
        DiffusionLossOutput {
            loss: (per_item.clone() * weights).mean(),
            per_item: per_item.detach(),
        }
    }
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::invalid("diffusion loss", field, problem)
}
