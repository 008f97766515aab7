use burn::prelude::*;

use super::{
    Step,
    sigmas::{Course, OneCall, SigmaCurve, SigmaLevels, ends, final_sigma},
};
use crate::{
    Error, Interpolation, PredictionType, SchedulerConfig, TimestepType, schedule::linspace,
};

/// Euler's method for the probability flow ODE `dx/dsigma = eps` (Karras et al. 2022, algorithm 1 without its correction).
pub struct Euler {
    levels: SigmaLevels,
}

impl Euler {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule or asks for levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let curve = SigmaCurve::new(&config.rescaled_schedule()?);
        let keys = &config.sigmas;
        let mut levels = SigmaLevels::spaced(config, &curve, steps)?;
        if keys.interpolation_type.unwrap_or_default() == Interpolation::LogLinear {
            let (smallest, largest) = curve.range();
            let logs = linspace(largest.ln(), smallest.ln(), steps + 1);
            levels.sigmas = logs.map(f64::exp).chain([0.0]).collect();
        }
        let last = levels.sigmas[levels.sigmas.len() - 2];
        let ends = ends(config, (last, levels.sigmas[0]));
        levels.follow(Course::new(config)?, ends, &curve);
        if let Some(last) = levels.sigmas.last_mut() {
            *last = final_sigma(config, curve.range().0);
        }
        if keys.timestep_type.unwrap_or_default() == TimestepType::Continuous
            && config.prediction_type == PredictionType::Velocity
        {
            let (_, starts) = levels.sigmas.split_last().expect("there is a last level");
            levels.timesteps = starts.iter().map(|sigma| 0.25 * sigma.ln()).collect();
        }
        Ok(Self { levels })
    }
}

impl OneCall for Euler {
    fn sigma_levels(&self) -> &SigmaLevels {
        &self.levels
    }

    fn advance(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let (from, to) = (self.levels.sigmas[step], self.levels.sigmas[step + 1]);
        let predicted = self.levels.denoise(output, x.clone(), from);
        Step {
            latents: x + predicted.eps.mul_scalar(to - from),
            denoised: predicted.x0,
        }
    }
}
