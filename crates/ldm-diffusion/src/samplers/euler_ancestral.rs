use burn::prelude::*;

use super::{
    Step,
    sigmas::{OneCall, SigmaCurve, SigmaLevels},
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

impl OneCall for EulerAncestral {
    fn sigma_levels(&self) -> &SigmaLevels {
        &self.levels
    }

    fn advance(
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
