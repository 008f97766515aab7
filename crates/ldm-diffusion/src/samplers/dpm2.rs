use burn::prelude::*;

use super::{
    Sampler, Step,
    sigmas::{Course, SigmaCurve, SigmaLevels},
};
use crate::{Error, SchedulerConfig};

/// DPM-Solver-2 (Lu et al. 2022, algorithm 1) in `sigma`: the midpoint method with the midpoint in `log sigma`. The last step, to clean
/// data, is Euler's alone. diffusers calls it KDPM2.
pub struct Dpm2 {
    /// One timestep per call.
    timesteps: Vec<f64>,
    levels: SigmaLevels,
    /// Where a step begins, and the index of its first call.
    first: Option<(usize, Tensor<4>)>,
}

impl Dpm2 {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule or asks for levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let curve = SigmaCurve::new(&config.plain_schedule()?);
        let mut levels = SigmaLevels::new(config, &curve, steps)?;
        if Course::new(config)? == Course::Karras {
            for t in &mut levels.timesteps {
                *t = t.round_ties_even();
            }
        }
        let middles = (0..levels.timesteps.len() - 1)
            .map(|level| curve.timestep(middle(&levels.sigmas, level)));
        let later = middles.zip(&levels.timesteps[1..]);
        Ok(Self {
            timesteps: std::iter::once(levels.timesteps[0])
                .chain(later.flat_map(|(middle, end)| [middle, *end]))
                .collect(),
            levels,
            first: None,
        })
    }

    /// The level that a call's latents are at.
    fn sigma(&self, step: usize) -> f64 {
        match step % 2 {
            0 => self.levels.sigmas[step / 2],
            _ => middle(&self.levels.sigmas, step / 2),
        }
    }
}

/// The geometric mean of a level and the next, which is 0 at the end.
fn middle(sigmas: &[f64], level: usize) -> f64 {
    (sigmas[level] * sigmas[level + 1]).sqrt()
}

impl Sampler for Dpm2 {
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

    /// Half-way through a step the level is that of the step's end, as in diffusers.
    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::add_noise(x0, noise, self.levels.sigmas[step.div_ceil(2)])
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let level = step / 2;
        let from = self.levels.sigmas[level];
        let predicted = self.levels.denoise(output, x.clone(), self.sigma(step));
        let first = self.first.take().filter(|(first, _)| first + 1 == step);
        let latents = match (step % 2, first) {
            (0, _) => {
                self.first = Some((step, x.clone()));
                x + predicted
                    .eps
                    .mul_scalar(middle(&self.levels.sigmas, level) - from)
            }
            (_, Some((_, start))) => {
                start
                    + predicted
                        .eps
                        .mul_scalar(self.levels.sigmas[level + 1] - from)
            }
            // Begun within a step: the latents wait for the next.
            (_, None) => x,
        };
        Step {
            latents,
            denoised: predicted.x0,
        }
    }
}
