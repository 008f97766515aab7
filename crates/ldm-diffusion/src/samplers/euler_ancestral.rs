use burn::prelude::*;

use super::{
    Sampler, Step,
    sigmas::{SigmaCurve, SigmaLevels},
};
use crate::{Error, SchedulerConfig};

/// Euler's method to a level below the next, and noise up to it, so that the variance is that of ancestral sampling (Song et al. 2021,
/// appendix F; k-diffusion's `euler_ancestral`).
pub struct EulerAncestral {
    levels: SigmaLevels,
}

impl EulerAncestral {
    /// Prepares `steps` steps over the schedule of `config`, at the levels of the timesteps whatever else it says of levels.
    ///
    /// # Errors
    /// If `config` makes no schedule, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let curve = SigmaCurve::new(&config.rescaled_schedule()?);
        Ok(Self {
            levels: SigmaLevels::spaced(config, &curve, steps)?,
        })
    }
}

impl Sampler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.levels.init_noise_sigma()
    }

    fn scale_model_input(&self, x: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::scale(x, self.levels.sigmas[step])
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::add_noise(x0, noise, self.levels.sigmas[step])
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let (from, to) = (self.levels.sigmas[step], self.levels.sigmas[step + 1]);
        let up = to * (1.0 - (to / from).powi(2)).max(0.0).sqrt();
        let down = to * to / from;
        let predicted = self.levels.denoise(output, x.clone(), from);
        Step {
            latents: x + predicted.eps.mul_scalar(down - from) + noise(step).mul_scalar(up),
            denoised: predicted.x0,
        }
    }
}
