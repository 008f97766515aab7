use burn::prelude::*;

use super::{Sampler, Step, check_signal, clip::Clip, invalid, predicted_mean};
use crate::{Error, NoiseLevel, PredictionType, SchedulerConfig};

/// Standard deviation of the data in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

/// Multistep sampling of a latent consistency model (Luo et al. 2023, algorithm 3): the clean sample at once, and noise again up to the
/// next level.
pub struct Lcm {
    timesteps: Vec<f64>,
    /// `abar` at each step.
    alphas: Vec<f64>,
    timestep_scaling: f64,
    prediction_type: PredictionType,
    clip: Clip,
}

impl Lcm {
    /// Prepares `steps` of the steps that the model was distilled on. The spacing that `config` gives has no part in it.
    ///
    /// # Errors
    /// If `config` makes no schedule, `steps` are more than `original_inference_steps`, these are more than the training's, or a noise
    /// prediction meets a level without signal.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let schedule = config.rescaled_schedule()?;
        let timesteps = timesteps(config, schedule.num_train_timesteps(), steps)?;
        let alphas: Vec<f64> = (timesteps.iter())
            .map(|&t| schedule.alphas_cumprod()[t])
            .collect();
        check_signal(config.prediction_type, alphas[0])?;
        Ok(Self {
            alphas,
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            timestep_scaling: config.timestep_scaling.unwrap_or(10.0),
            prediction_type: config.prediction_type,
            clip: Clip::new(config, false),
        })
    }
}

/// `steps` of the multiples of `T / original_inference_steps`, less 1, evenly from the noisiest down.
fn timesteps(
    config: &SchedulerConfig,
    train_steps: usize,
    steps: usize,
) -> Result<Vec<usize>, Error> {
    let original = config.original_inference_steps.unwrap_or(50);
    if original == 0 || original > train_steps {
        return Err(invalid(
            "original_inference_steps",
            format!(
                "is {original}: it must lie between 1 and the model's {train_steps} training steps"
            ),
        ));
    }
    if steps == 0 || steps > original {
        return Err(invalid(
            "steps",
            format!(
                "is {steps}: it must lie between 1 and the {original} of `original_inference_steps`"
            ),
        ));
    }
    let stride = train_steps / original;
    Ok((0..steps)
        .map(|step| {
            let skipped = (step as f64 * (original as f64 / steps as f64)).floor() as usize;
            (original - skipped) * stride - 1
        })
        .collect())
}

impl Sampler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        NoiseLevel::uniform(self.alphas[step]).add_noise(x0, noise)
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let level = NoiseLevel::uniform(self.alphas[step]);
        let output = predicted_mean(output, &x);
        let predicted = self.prediction_type.denoise(&level, output, x.clone());
        let x0 = self.clip.apply(predicted.x0);

        // Boundary condition: at timestep 0 the model is the identity.
        let scaled = self.timesteps[step] * self.timestep_scaling;
        let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, scaled / variance.sqrt());
        let denoised = x0.mul_scalar(out) + x.mul_scalar(skip);

        let latents = match self.alphas.get(step + 1) {
            Some(&next) => NoiseLevel::uniform(next).add_noise(denoised.clone(), noise(step)),
            None => denoised.clone(),
        };
        Step { latents, denoised }
    }
}
