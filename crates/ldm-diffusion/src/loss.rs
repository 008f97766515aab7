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
    /// Logarithm of the error's variance that `L_simple` assumes at every step: the distance is divided by the variance and the
    /// logarithm is added, as in the reference. 0 leaves the distance alone.
    pub logvar_init: f64,
    /// Trains that logarithm, one per timestep, from `logvar_init` on; false by default, as in the reference, where it is then a
    /// constant. See [`DiffusionLoss::forward_with_logvar`].
    pub learn_logvar: bool,
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
            logvar_init: 0.0,
            learn_logvar: false,
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
    l_simple_weight: f64,
    logvar_init: f64,
    /// What multiplies an item's distance in `L_simple` with a variance of 1, per timestep.
    simple: Vec<f64>,
    /// What multiplies it in the variational term.
    elbo: Vec<f64>,
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
    /// If a weight is negative, both are 0, `logvar_init` isn't a number, or the schedule makes a step's weight infinite.
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
        if self.learn_logvar && self.l_simple_weight == 0.0 {
            return Err(invalid(
                "learn_logvar",
                "has nothing to learn from with `l_simple_weight` = 0",
            ));
        }
        if !self.logvar_init.is_finite() {
            return Err(invalid(
                "logvar_init",
                format!("is {}: it must be a finite number", self.logvar_init),
            ));
        }
        let steps = schedule.num_train_timesteps();
        let elbo = if self.original_elbo_weight > 0.0 {
            let lvlb = schedule.lvlb_weights(self.prediction_type);
            lvlb.iter()
                .map(|lvlb| self.original_elbo_weight * lvlb)
                .collect()
        } else {
            vec![0.0; steps]
        };
        if let Some(t) = elbo.iter().position(|weight| !weight.is_finite()) {
            return Err(invalid(
                "original_elbo_weight",
                format!("has an infinite weight at step {t}, which has no signal: use 0"),
            ));
        }
        Ok(DiffusionLoss {
            kind: self.kind,
            prediction_type: self.prediction_type,
            l_simple_weight: self.l_simple_weight,
            logvar_init: self.logvar_init,
            simple: (0..steps)
                .map(|t| self.l_simple_weight * self.snr_weight(schedule.snr(t)))
                .collect(),
            elbo,
            schedule,
        })
    }

    /// The clamped signal-to-noise ratio in terms of the prediction (Hang et al. 2023).
    fn snr_weight(&self, snr: f64) -> f64 {
        let Some(gamma) = self.min_snr_gamma else {
            return 1.0;
        };
        match self.prediction_type {
            PredictionType::Epsilon => (gamma / snr).min(1.0),
            PredictionType::Sample => snr.min(gamma),
            PredictionType::Velocity => snr.min(gamma) / (snr + 1.0),
        }
    }
}

impl DiffusionLoss {
    /// The schedule that noises the data.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// The mean over items of `l_simple_weight (m_t d / e^l + l) + original_elbo_weight v_t d`, computed in f32: `d` is the mean over an
    /// item's elements of `|target - output|^p`, `m_t` the signal-to-noise weight, `v_t` the variational one and `l` is `logvar_init`.
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
        let per_item = self.distances(output, x0, noise, timesteps);
        let precision = (-self.logvar_init).exp();
        let weights = timesteps
            .iter()
            .map(|&t| self.simple[t] * precision + self.elbo[t]);
        let weights = per_timestep(weights, &per_item.device());
        let constant = self.l_simple_weight * self.logvar_init;
        DiffusionLossOutput {
            loss: (per_item.clone() * weights).mean().add_scalar(constant),
            per_item: per_item.detach(),
        }
    }

    /// As [`forward`](Self::forward), with `logvar` `[T]` for the logarithm of the variance at each step. It may be a parameter that is
    /// trained along; `logvar_init` is its first value and has no part here.
    ///
    /// # Panics
    /// If a timestep lies outside the schedule.
    pub fn forward_with_logvar(
        &self,
        output: Tensor<4>,
        x0: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
        logvar: Tensor<1>,
    ) -> DiffusionLossOutput {
        let per_item = self.distances(output, x0, noise, timesteps);
        let device = per_item.device();
        let steps: Vec<i64> = timesteps.iter().map(|&t| t as i64).collect();
        let logvar = logvar.select(0, Tensor::<1, Int>::from_ints(steps.as_slice(), &device));
        let simple = per_timestep(timesteps.iter().map(|&t| self.simple[t]), &device);
        let elbo = per_timestep(timesteps.iter().map(|&t| self.elbo[t]), &device);
        let loss = per_item.clone() * (simple * logvar.clone().neg().exp() + elbo)
            + logvar.mul_scalar(self.l_simple_weight);
        DiffusionLossOutput {
            loss: loss.mean(),
            per_item: per_item.detach(),
        }
    }

    /// The mean distance of each item, `[N]`.
    fn distances(
        &self,
        output: Tensor<4>,
        x0: Tensor<4>,
        noise: Tensor<4>,
        timesteps: &[usize],
    ) -> Tensor<1> {
        let level = self.schedule.levels(timesteps, &output.device());
        let target = self.prediction_type.target(&level, x0, noise);
        let error = output.cast(FloatDType::F32) - target.cast(FloatDType::F32);
        let distance = match self.kind {
            LossKind::L2 => error.clone() * error,
            LossKind::L1 => error.abs(),
        };
        distance.flatten::<2>(1, 3).mean_dim(1).squeeze_dim(1)
    }
}

fn per_timestep(values: impl Iterator<Item = f64>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    Tensor::from_floats(values.as_slice(), device)
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::invalid("diffusion loss", field, problem)
}
