use burn::prelude::*;

use super::{Sampler, Step, check_signal, clip::Clip, predicted_mean, spacing};
use crate::{Error, NoiseLevel, PredictionType, SchedulerConfig, VarianceType};

/// Ancestral sampling (Ho et al. 2020, algorithm 2), over all training steps or a subset of them.
pub struct Ddpm {
    timesteps: Vec<f64>,
    /// `abar` at each step, and at the next one (1 after the last).
    alphas: Vec<(f64, f64)>,
    variance_type: VarianceType,
    prediction_type: PredictionType,
    clip: Clip,
}

impl Ddpm {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule, `steps` don't fit into it, or a noise prediction meets a level without signal.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let schedule = config.rescaled_schedule()?;
        let train_steps = schedule.num_train_timesteps();
        // All training steps need no offset to begin at the noisiest: with the one of CompVis' DDIM they would begin beyond it.
        let timesteps = if steps == train_steps {
            (0..train_steps).rev().collect()
        } else {
            spacing::whole(config, train_steps, steps)?
        };
        let alphas: Vec<f64> = timesteps
            .iter()
            .map(|&t| schedule.alphas_cumprod()[t])
            .collect();
        check_signal(config.prediction_type, alphas[0])?;
        let next = alphas[1..].iter().chain(&[1.0]);
        Ok(Self {
            alphas: alphas.iter().copied().zip(next.copied()).collect(),
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            variance_type: config.variance_type.unwrap_or_default(),
            prediction_type: config.prediction_type,
            clip: Clip::new(config, true),
        })
    }

    /// The channels that predict the variance; without them the lower bound is taken.
    fn predicted_variance(&self, output: &Tensor<4>, channels: usize) -> Option<Tensor<4>> {
        let learned = matches!(
            self.variance_type,
            VarianceType::Learned | VarianceType::LearnedRange
        );
        (learned && output.dims()[1] == 2 * channels)
            .then(|| output.clone().narrow(1, channels, channels))
    }

    /// `noise` times the standard deviation of a step between the bounds `small` and `large` of its variance.
    fn scaled_noise(
        &self,
        noise: Tensor<4>,
        predicted: Option<Tensor<4>>,
        small: f64,
        large: f64,
    ) -> Tensor<4> {
        match (self.variance_type, predicted) {
            (VarianceType::FixedLarge | VarianceType::FixedLargeLog, _) => {
                noise.mul_scalar(large.sqrt())
            }
            (VarianceType::Learned, Some(variance)) => noise * variance.sqrt(),
            (VarianceType::LearnedRange, Some(v)) => {
                // v in [-1, 1] goes from log(small) to log(large); half of it is the log of the deviation.
                let (low, high) = (small.ln(), large.ln());
                let log_variance = v
                    .mul_scalar((high - low) / 2.0)
                    .add_scalar((high + low) / 2.0);
                noise * log_variance.mul_scalar(0.5).exp()
            }
            _ => noise.mul_scalar(small.sqrt()),
        }
    }
}

impl Sampler for Ddpm {
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
        let (abar, abar_next) = self.alphas[step];
        // alpha and beta of the jump to the next visited level.
        let alpha = abar / abar_next;
        let beta = 1.0 - alpha;
        let predicted_variance = self.predicted_variance(&output, x.dims()[1]);
        let output = predicted_mean(output, &x);
        let x0 = self
            .prediction_type
            .denoise(&NoiseLevel::uniform(abar), output, x.clone())
            .x0;
        let x0 = self.clip.apply(x0);

        // Mean of q(x_next | x, x_0), eq. 7.
        let x0_weight = abar_next.sqrt() * beta / (1.0 - abar);
        let x_weight = alpha.sqrt() * (1.0 - abar_next) / (1.0 - abar);
        let mut latents = x0.clone().mul_scalar(x0_weight) + x.mul_scalar(x_weight);
        if self.timesteps[step] > 0.0 {
            let small = (beta * (1.0 - abar_next) / (1.0 - abar)).max(1e-20);
            latents = latents + self.scaled_noise(noise(step), predicted_variance, small, beta);
        }
        Step {
            latents,
            denoised: x0,
        }
    }
}
