//! The reverse process: samplers, and the loop that drives one.

mod clip;
mod ddim;
mod ddpm;
mod spacing;

use std::{fmt, ops::ControlFlow, str::FromStr};

use burn::prelude::*;
use serde::{Deserialize, Serialize};

pub use ddim::Ddim;
pub use ddpm::Ddpm;

use crate::{Error, SchedulerConfig};

/// A discretisation of the reverse process. It holds its coefficients in f64 and whatever it remembers of earlier steps.
pub trait Sampler {
    /// The timesteps of the model's calls in their order, one per step; a sampler that calls the model twice between two
    /// levels lists both calls.
    fn timesteps(&self) -> &[f64];

    /// Standard deviation of the latents at the first step.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What the model is to see of the latents `x` at `step`, `[N, C, H, W]`.
    fn scale_model_input(&self, x: Tensor<4>, _step: usize) -> Tensor<4> {
        x
    }

    /// Noises clean latents to the level that `step` starts from; all `[N, C, H, W]`. For image-to-image and inpainting.
    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4>;

    /// Goes from the latents `x` of `step` to those of the next, given the model's `output`; all `[N, C, H, W]`.
    ///
    /// `noise(step)` is called at most once, and only if the step is random; it must give `[N, C, H, W]` of N(0, 1).
    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step;
}

/// Result of one [`Sampler::step`].
#[derive(Clone, Debug)]
pub struct Step {
    /// Latents of the next step, `[N, C, H, W]`.
    pub latents: Tensor<4>,
    /// The present guess at the clean sample, `[N, C, H, W]`.
    pub denoised: Tensor<4>,
}

/// Progress of [`sample`] after a step.
pub struct StepInfo<'a> {
    /// Index of the step that is done.
    pub index: usize,
    /// Number of steps in all.
    pub total: usize,
    /// Timestep that the model was called with.
    pub timestep: f64,
    /// Latents for the next step, `[N, C, H, W]`; may be replaced, as inpainting does.
    pub latents: &'a mut Tensor<4>,
    /// The present guess at the clean sample, `[N, C, H, W]`, good for a preview.
    pub denoised: &'a Tensor<4>,
}

/// Samples from unit-variance noise.
///
/// `model` answers latents and a timestep with a prediction; `noise` gives the noise of a step; `on_step` sees each step and may
/// stop with a value, which is returned as [`ControlFlow::Break`].
///
/// # Shapes
/// - `noise_latents` and everything that `model` and `noise` take or give: `[N, C, H, W]`
pub fn sample<B>(
    sampler: &mut dyn Sampler,
    noise_latents: Tensor<4>,
    model: impl FnMut(Tensor<4>, f64) -> Tensor<4>,
    noise: impl FnMut(usize) -> Tensor<4>,
    on_step: impl FnMut(StepInfo) -> ControlFlow<B>,
) -> ControlFlow<B, Tensor<4>> {
    let latents = noise_latents.mul_scalar(sampler.init_noise_sigma());
    sample_from(0, sampler, latents, model, noise, on_step)
}

/// Samples from `latents` that already are at the level of `first_step`, see [`Sampler::add_noise`]. Else as [`sample`].
pub fn sample_from<B>(
    first_step: usize,
    sampler: &mut dyn Sampler,
    mut latents: Tensor<4>,
    mut model: impl FnMut(Tensor<4>, f64) -> Tensor<4>,
    mut noise: impl FnMut(usize) -> Tensor<4>,
    mut on_step: impl FnMut(StepInfo) -> ControlFlow<B>,
) -> ControlFlow<B, Tensor<4>> {
    let total = sampler.timesteps().len();
    for index in first_step..total {
        let timestep = sampler.timesteps()[index];
        let input = sampler.scale_model_input(latents.clone(), index);
        let output = model(input, timestep);
        let step = sampler.step(index, output, latents, &mut noise);
        latents = step.latents;
        on_step(StepInfo {
            index,
            total,
            timestep,
            latents: &mut latents,
            denoised: &step.denoised,
        })?;
    }
    ControlFlow::Continue(latents)
}

/// The samplers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    /// [`Ddpm`].
    Ddpm,
    /// [`Ddim`].
    #[default]
    Ddim,
}

impl SamplerKind {
    /// All samplers.
    pub const ALL: [Self; 2] = [Self::Ddpm, Self::Ddim];

    /// The name that users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
        }
    }

    /// Prepares `steps` steps over the schedule of `config`. `eta` is [`Ddim`]'s; the others have no use for it.
    ///
    /// # Errors
    /// If `config` makes no schedule, or `steps` don't fit into it.
    pub fn build(
        self,
        config: &SchedulerConfig,
        steps: usize,
        eta: f64,
    ) -> Result<Box<dyn Sampler>, Error> {
        Ok(match self {
            Self::Ddpm => Box::new(Ddpm::new(config, steps)?),
            Self::Ddim => Box::new(Ddim::new(config, steps, eta)?),
        })
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                invalid(
                    "sampler",
                    format!("has no \"{name}\": choose one of {known}"),
                )
            })
    }
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::invalid("sampler", field, problem)
}
