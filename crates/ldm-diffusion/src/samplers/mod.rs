//! The reverse process: samplers, and the loop that drives one.

mod clip;
mod ddim;
mod ddpm;
mod dpm2;
mod dpm_multistep;
mod euler;
mod euler_ancestral;
mod heun;
mod history;
mod kind;
mod lcm;
mod lms;
mod plms;
mod sigmas;
mod spacing;
mod unipc;

use std::ops::ControlFlow;

use burn::prelude::*;

pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use dpm_multistep::DpmMultistep;
pub use dpm2::Dpm2;
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use heun::Heun;
pub use kind::SamplerKind;
pub use lcm::Lcm;
pub use lms::Lms;
pub use plms::Plms;
pub use unipc::UniPc;

use crate::{Denoised, Error, PredictionType, scheduler_config::no_signal};

/// A discretisation of the reverse process. It holds its coefficients in f64 and whatever it remembers of earlier steps.
pub trait Sampler {
    /// The timesteps of the model's calls in their order, one per step; a sampler that calls the model twice between two
    /// levels lists both calls.
    fn timesteps(&self) -> &[f64];

    /// Standard deviation of the latents at the first step.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// Number of levels that the latents go through: the steps that were asked for. Some samplers call the model more often.
    fn levels(&self) -> usize {
        self.timesteps().len()
    }

    /// Index of the step that leaves level `level`, counted from the noisiest; the number of steps for the level after the last.
    fn step_of_level(&self, level: usize) -> usize {
        level
    }

    /// The step to begin with in image-to-image, where `strength` in `[0, 1]` is the share of the levels that are to be run, rounded
    /// down: 1 starts from noise, 0 leaves nothing to do and gives the number of steps. To be used with [`add_noise`](Self::add_noise)
    /// and [`sample_from`].
    fn img2img_start(&self, strength: f64) -> usize {
        let levels = self.levels();
        let run = ((levels as f64 * strength) as usize).min(levels);
        self.step_of_level(levels - run)
    }

    /// What the model is to see of the latents `x` at `step`, `[N, C, H, W]`.
    fn scale_model_input(&self, x: Tensor<4>, _step: usize) -> Tensor<4> {
        x
    }

    /// Noises clean latents to the level that `step` starts from; all `[N, C, H, W]`. For image-to-image and inpainting.
    ///
    /// # Panics
    /// If there is no such step.
    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4>;

    /// Goes from the latents `x` of `step` to those of the next, given the model's `output`; all `[N, C, H, W]`.
    ///
    /// `noise(step)` is called at most once, and only if the step is random; it must give `[N, C, H, W]` of N(0, 1). What is remembered
    /// of other steps counts only if they led here one after another.
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
///
/// `first_step` should be one that leaves a level, see [`Sampler::step_of_level`]; a step within a level does nothing without
/// those before it. From the number of steps on, `latents` are the result.
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

/// The part of a model's `output` that is a prediction, where it also predicts a variance: the first `C` channels for `x`
/// `[N, C, H, W]`.
fn predicted_mean(output: Tensor<4>, x: &Tensor<4>) -> Tensor<4> {
    let channels = x.dims()[1];
    output.narrow(1, 0, channels)
}

/// Goes to the level of `abar` along a straight line of noise (DDIM without randomness, Song et al. 2021, eq. 12).
fn at_level(predicted: Denoised, abar: f64) -> Tensor<4> {
    predicted.x0.mul_scalar(abar.sqrt()) + predicted.eps.mul_scalar((1.0 - abar).sqrt())
}

/// # Errors
/// If a noise is to be predicted where there is nothing else.
fn check_signal(prediction_type: PredictionType, first_abar: f64) -> Result<(), Error> {
    if first_abar == 0.0 && prediction_type == PredictionType::Epsilon {
        return Err(no_signal());
    }
    Ok(())
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::invalid("sampler", field, problem)
}
