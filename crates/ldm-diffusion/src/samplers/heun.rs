use burn::prelude::*;

use super::{
    Sampler, Step,
    clip::Clip,
    sigmas::{SigmaCurve, SigmaLevels},
};
use crate::{Error, SchedulerConfig};

/// Heun's method for the probability flow ODE (Karras et al. 2022, algorithm 1): a step of Euler's, then the same step with the mean
/// of the derivatives at both its ends. The last step, to clean data, is Euler's alone.
pub struct Heun {
    /// One timestep and level per call.
    timesteps: Vec<f64>,
    levels: SigmaLevels,
    clip: Clip,
    first: Option<FirstCall>,
}

/// What the second call of a step needs of the first.
struct FirstCall {
    step: usize,
    x: Tensor<4>,
    derivative: Tensor<4>,
}

impl Heun {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule or asks for levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let curve = SigmaCurve::new(&config.plain_schedule()?);
        let levels = SigmaLevels::new(config, &curve, steps)?;
        let calls = 2 * levels.timesteps.len() - 1;
        Ok(Self {
            timesteps: (0..calls)
                .map(|call| levels.timesteps[call.div_ceil(2)])
                .collect(),
            levels,
            clip: Clip::clamping(config, false),
            first: None,
        })
    }

    /// The level that a call's latents are at.
    fn sigma(&self, step: usize) -> f64 {
        self.levels.sigmas[step.div_ceil(2)]
    }
}

impl Sampler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn levels(&self) -> usize {
        self.levels.timesteps.len()
    }

    fn step_of_level(&self, level: usize) -> usize {
        (2 * level).min(self.timesteps.len())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.levels.init_noise_sigma()
    }

    fn scale_model_input(&self, x: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::scale(x, self.sigma(step))
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::add_noise(x0, noise, self.sigma(step))
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let level = step / 2;
        let (from, to) = (self.levels.sigmas[level], self.levels.sigmas[level + 1]);
        let sigma = self.sigma(step);
        let predicted = self.levels.denoise(output, x.clone(), sigma);
        let (x0, derivative) = match self.clip {
            Clip::Nothing => (predicted.x0, predicted.eps),
            clip => {
                let x0 = clip.apply(predicted.x0);
                (x0.clone(), (x.clone() - x0).div_scalar(sigma))
            }
        };
        let first = self.first.take().filter(|first| first.step + 1 == step);
        let latents = match (step % 2, first) {
            (0, _) => {
                self.first = Some(FirstCall {
                    step,
                    x: x.clone(),
                    derivative: derivative.clone(),
                });
                x + derivative.mul_scalar(to - from)
            }
            (_, Some(first)) => {
                first.x + (first.derivative + derivative).mul_scalar((to - from) / 2.0)
            }
            // Begun within a step: the latents wait for the next.
            (_, None) => x,
        };
        Step {
            latents,
            denoised: x0,
        }
    }
}
