use burn::prelude::*;

use super::{Sampler, Step, clip::Clip, invalid, spacing};
use crate::{Error, NoiseLevel, NoiseSchedule, PredictionType, SchedulerConfig};

/// Denoising diffusion implicit models (Song et al. 2021, eq. 12), with diffusers' choice of levels.
pub struct Ddim {
    timesteps: Vec<f64>,
    /// `abar` at each step, and at the level that it leads to.
    alphas: Vec<(f64, f64)>,
    eta: f64,
    prediction_type: PredictionType,
    clip: Clip,
}

impl Ddim {
    /// Prepares `steps` steps over the schedule of `config`. `eta` is the share of the ancestral sampler's noise that each step adds: 0 is deterministic, 1 like DDPM.
    ///
    /// # Errors
    /// If `config` makes no schedule, `steps` don't fit into it, or `eta` isn't within `[0, 1]`.
    pub fn new(config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(invalid(
                "eta",
                format!("is {eta}: it must lie between 0 and 1"),
            ));
        }
        let schedule = config.noise_schedule()?;
        let timesteps = spacing::timesteps(config, schedule.num_train_timesteps(), steps)?;
        Ok(Self {
            alphas: levels(config, &schedule, &timesteps),
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            eta,
            prediction_type: config.prediction_type,
            clip: Clip::new(config),
        })
    }
}

/// `abar` at each timestep and `T / steps` training steps below it, wherever the next timestep lies: the reference's rule.
fn levels(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
) -> Vec<(f64, f64)> {
    let alphas = schedule.alphas_cumprod();
    let stride = alphas.len() / timesteps.len();
    let clean = match config.set_alpha_to_one {
        Some(false) => alphas[0],
        _ => 1.0,
    };
    timesteps
        .iter()
        .map(|&t| {
            (
                alphas[t],
                t.checked_sub(stride).map_or(clean, |next| alphas[next]),
            )
        })
        .collect()
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        NoiseLevel::uniform(self.alphas[step].0).add_noise(x0, noise)
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let (alpha, alpha_next) = self.alphas[step];
        let predicted = self
            .prediction_type
            .denoise(&NoiseLevel::uniform(alpha), output, x);
        let x0 = self.clip.apply(predicted.x0);

        let variance = (1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next);
        let sigma = self.eta * variance.max(0.0).sqrt();
        // Rounding may take this below 0 where eta is 1.
        let direction = (1.0 - alpha_next - sigma * sigma).max(0.0).sqrt();
        let mut latents =
            x0.clone().mul_scalar(alpha_next.sqrt()) + predicted.eps.mul_scalar(direction);
        if self.eta > 0.0 {
            latents = latents + noise(step).mul_scalar(sigma);
        }
        Step {
            latents,
            denoised: x0,
        }
    }
}
