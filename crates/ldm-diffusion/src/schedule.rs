use std::f64::consts::FRAC_PI_2;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, NoiseLevel, PredictionType};

/// How `beta_t` goes from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in `sqrt(beta)`: what the latent diffusion paper calls linear. diffusers: `scaled_linear`.
    #[default]
    Linear,
    /// Linear in `beta` (Ho et al. 2020). diffusers: `linear`.
    PlainLinear,
    /// `abar(t) = f(t) / f(0)`, `f(t) = cos^2((t/T + s) / (1 + s) pi/2)`, `s = 0.008`, betas at most 0.999 (Nichol & Dhariwal
    /// 2021, eq. 17). Ignores `beta_start` and `beta_end`. diffusers: `squaredcos_cap_v2`.
    Cosine,
    /// A logistic curve over [-6, 6] (GeoDiff, Xu et al. 2022). diffusers: `sigmoid`.
    Sigmoid,
    /// `abar(t) = e^(-12 t/T)`, betas at most 0.999; ignores `beta_start` and `beta_end`. diffusers: `exp`, for Heun's sampler.
    Exponential,
}

impl BetaSchedule {
    /// The variances of all `steps` training steps, in f64.
    ///
    /// `beta_start` and `beta_end` are the first and the last beta, in `(0, 1)`.
    pub fn betas(self, beta_start: f64, beta_end: f64, steps: usize) -> Vec<f64> {
        match self {
            Self::Linear => linspace(beta_start.sqrt(), beta_end.sqrt(), steps)
                .map(|root| root * root)
                .collect(),
            Self::PlainLinear => linspace(beta_start, beta_end, steps).collect(),
            Self::Cosine => {
                let f = |t: usize| {
                    let angle = (t as f64 / steps as f64 + 0.008) / 1.008 * FRAC_PI_2;
                    angle.cos().powi(2)
                };
                (0..steps)
                    .map(|t| (1.0 - f(t + 1) / f(t)).min(0.999))
                    .collect()
            }
            Self::Sigmoid => linspace(-6.0, 6.0, steps)
                .map(|x| beta_start + (beta_end - beta_start) / (1.0 + (-x).exp()))
                .collect(),
            Self::Exponential => vec![(1.0 - (-12.0 / steps as f64).exp()).min(0.999); steps],
        }
    }
}

/// More training steps than any model has; a number beyond is a mistake that would only exhaust the memory.
const MOST_STEPS: usize = 100_000;

/// The forward process: how much of `x_0` is left at every training step. All in f64 on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// A schedule of `steps` training steps.
    ///
    /// # Errors
    /// Unless `steps > 0` and, where the schedule uses them, `0 < beta_start <= beta_end < 1`.
    pub fn new(
        schedule: BetaSchedule,
        beta_start: f64,
        beta_end: f64,
        steps: usize,
    ) -> Result<Self, Error> {
        if !matches!(schedule, BetaSchedule::Cosine | BetaSchedule::Exponential) {
            if !(beta_start > 0.0 && beta_start < 1.0) {
                return Err(invalid(
                    "beta_start",
                    format!("is {beta_start}: it must lie between 0 and 1"),
                ));
            }
            if !(beta_end >= beta_start && beta_end < 1.0) {
                return Err(invalid(
                    "beta_end",
                    format!("is {beta_end}: it must lie between `beta_start` ({beta_start}) and 1"),
                ));
            }
        }
        if steps > MOST_STEPS {
            return Err(invalid(
                "num_train_timesteps",
                format!("is {steps}: it may be at most {MOST_STEPS}"),
            ));
        }
        Self::from_betas(schedule.betas(beta_start, beta_end, steps))
    }

    /// A schedule with the given variances, each in `(0, 1]`.
    ///
    /// # Errors
    /// If there are none, or one lies outside.
    pub fn from_betas(betas: Vec<f64>) -> Result<Self, Error> {
        if betas.is_empty() {
            return Err(invalid(
                "num_train_timesteps",
                "is 0: a schedule needs at least one step",
            ));
        }
        if let Some((t, beta)) = betas
            .iter()
            .enumerate()
            .find(|(_, beta)| !(**beta > 0.0 && **beta <= 1.0))
        {
            return Err(invalid(
                "betas",
                format!("has {beta} at step {t}: each must lie in (0, 1]"),
            ));
        }
        let alphas_cumprod = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Ok(Self {
            betas,
            alphas_cumprod,
        })
    }

    /// The same schedule shifted and scaled so that no signal is left at the last step (Lin et al. 2024, algorithm 1).
    pub fn rescaled_to_zero_terminal_snr(&self) -> Self {
        let roots: Vec<f64> = self.alphas_cumprod.iter().map(|a| a.sqrt()).collect();
        let (first, last) = (roots[0], roots[roots.len() - 1]);
        if first == last {
            return self.clone();
        }
        let alphas_cumprod: Vec<f64> = roots
            .iter()
            .map(|root| ((root - last) * first / (first - last)).powi(2))
            .collect();
        let betas = (0..alphas_cumprod.len())
            .map(|t| match t {
                0 => 1.0 - alphas_cumprod[0],
                _ => 1.0 - alphas_cumprod[t] / alphas_cumprod[t - 1],
            })
            .collect();
        Self {
            betas,
            alphas_cumprod,
        }
    }

    /// The same schedule with the roundings of the reference's samplers, which keep `beta_t`, `1 - beta_t` and `abar_t` in f32. Where
    /// `abar` is next to 1, and at the end of the cosine, they change a sample more than the roundings of its tensors.
    pub(crate) fn rounded_to_f32(&self) -> Self {
        let mut product = 1.0;
        let abar = |beta: &f64| {
            product *= f64::from(1.0 - *beta as f32);
            f64::from(product as f32)
        };
        Self {
            alphas_cumprod: self.betas.iter().map(abar).collect(),
            betas: self.betas.clone(),
        }
    }

    /// Number of training steps `T`.
    pub fn num_train_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// `beta_t`, the variance that step `t` adds.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// `abar_t`, the product of `1 - beta_s` over all `s <= t`.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Signal-to-noise ratio `abar_t / (1 - abar_t)`.
    pub fn snr(&self, t: usize) -> f64 {
        self.alphas_cumprod[t] / (1.0 - self.alphas_cumprod[t])
    }

    /// Variance of `q(x_{t-1} | x_t, x_0)`: `beta_t (1 - abar_{t-1}) / (1 - abar_t)` (Ho et al. 2020, eq. 7).
    pub fn posterior_variance(&self, t: usize) -> f64 {
        let previous = if t == 0 {
            1.0
        } else {
            self.alphas_cumprod[t - 1]
        };
        self.betas[t] * (1.0 - previous) / (1.0 - self.alphas_cumprod[t])
    }

    /// Weights of the squared error in the variational bound, one per step, as the reference implementation has them:
    /// for the noise `beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t))` (Ho et al. 2020, eq. 12), for `x_0`
    /// `0.5 sqrt(abar_t) / (2 - abar_t)`, for the velocity 1. Step 0, where the first is infinite, gets step 1's weight.
    pub fn lvlb_weights(&self, prediction_type: PredictionType) -> Vec<f64> {
        let weight = |t: usize| {
            let abar = self.alphas_cumprod[t];
            match prediction_type {
                PredictionType::Epsilon => {
                    let beta = self.betas[t];
                    beta * beta / (2.0 * self.posterior_variance(t) * (1.0 - beta) * (1.0 - abar))
                }
                PredictionType::Sample => 0.5 * abar.sqrt() / (2.0 - abar),
                PredictionType::Velocity => 1.0,
            }
        };
        let last = self.num_train_timesteps() - 1;
        (0..=last).map(|t| weight(t.max(1).min(last))).collect()
    }

    /// The levels of a batch, one timestep per item.
    ///
    /// # Panics
    /// If a timestep is not below [`num_train_timesteps`](Self::num_train_timesteps).
    pub fn levels(&self, timesteps: &[usize], device: &Device) -> NoiseLevel {
        let alphas: Vec<f64> = timesteps.iter().map(|&t| self.alphas_cumprod[t]).collect();
        NoiseLevel::per_item(&alphas, device)
    }

    /// `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps` (Ho et al. 2020, eq. 4), one timestep per item.
    ///
    /// # Shapes
    /// - `x0`, `noise`, output: `[N, C, H, W]`
    /// - `timesteps`: `N` of them
    pub fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        self.levels(timesteps, &x0.device()).add_noise(x0, noise)
    }

    /// `v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0`; shapes as in [`add_noise`](Self::add_noise).
    pub fn velocity(&self, x0: Tensor<4>, noise: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        self.levels(timesteps, &x0.device()).velocity(x0, noise)
    }
}

/// `count` evenly spaced values from `start` to `end`, both included.
pub(crate) fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count).map(move |i| start + step * i as f64)
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::invalid("noise schedule", field, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [BetaSchedule; 5] = [
        BetaSchedule::Linear,
        BetaSchedule::PlainLinear,
        BetaSchedule::Cosine,
        BetaSchedule::Sigmoid,
        BetaSchedule::Exponential,
    ];

    #[test]
    fn linear_is_linear_in_the_square_root() {
        let betas = BetaSchedule::Linear.betas(0.0015, 0.0195, 1000);
        assert!((betas[0] - 0.0015).abs() < 1e-15);
        assert!((betas[999] - 0.0195).abs() < 1e-15);
        let (a, b, c) = (betas[100].sqrt(), betas[101].sqrt(), betas[102].sqrt());
        assert!((a + c - 2.0 * b).abs() < 1e-15);
        let plain = BetaSchedule::PlainLinear.betas(1e-4, 0.02, 1000);
        assert!((plain[499] + plain[501] - 2.0 * plain[500]).abs() < 1e-15);
        assert!(betas[500] < (0.0015 + 0.0195) / 2.0);
    }

    #[test]
    fn cosine_follows_its_closed_form() {
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 0.0, 0.0, 1000).unwrap();
        let f = |t: f64| ((t / 1000.0 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        for t in [0, 1, 10, 500, 900, 990] {
            let expected = f(t as f64 + 1.0) / f(0.0);
            let error = (schedule.alphas_cumprod()[t] - expected).abs() / expected;
            assert!(error < 1e-10, "t = {t}: relative error {error}");
        }
        assert_eq!(schedule.betas()[999], 0.999);
    }

    #[test]
    fn alphas_cumprod_falls_from_nearly_one() {
        for kind in ALL {
            let schedule = NoiseSchedule::new(kind, 0.00085, 0.012, 1000).unwrap();
            let alphas = schedule.alphas_cumprod();
            assert!(alphas[0] > 0.98, "{kind:?}");
            assert!(alphas.windows(2).all(|pair| pair[1] < pair[0]), "{kind:?}");
            assert!(alphas[999] > 0.0 && alphas[999] < 0.1, "{kind:?}");
            assert!(schedule.snr(0) > schedule.snr(1));
            assert_eq!(schedule.posterior_variance(0), 0.0);
            assert!(schedule.posterior_variance(500) < schedule.betas()[500]);
        }
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_level_and_empties_the_last() {
        let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap();
        let rescaled = schedule.rescaled_to_zero_terminal_snr();
        assert_eq!(rescaled.alphas_cumprod()[999], 0.0);
        let first = rescaled.alphas_cumprod()[0] - schedule.alphas_cumprod()[0];
        assert!(first.abs() < 1e-12);
        assert_eq!(rescaled.betas()[999], 1.0);
    }

    #[test]
    fn wrong_numbers_are_named() {
        for (start, end, steps, field) in [
            (0.0, 0.02, 1000, "beta_start"),
            (f64::NAN, 0.02, 1000, "beta_start"),
            (0.02, 0.001, 1000, "beta_end"),
            (0.02, 1.5, 1000, "beta_end"),
            (0.001, 0.02, 0, "num_train_timesteps"),
        ] {
            let error = NoiseSchedule::new(BetaSchedule::Linear, start, end, steps).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
