//! What a training will cost, measured before it starts.
//!
//! [`make_plan`] has short pieces of the real training run, each in a process of its own, so that each has a peak of memory of its own, and
//! derives from them what a whole run takes. Whoever calls it starts the processes; in each of them [`run_probe`] does the work.

mod amount;
mod disk;
mod facts;
mod fit;
mod measured;
mod predict;
mod probe;
mod report;
mod stage;
mod stand_in;
mod table;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use amount::parse_bytes;
pub use disk::{Disk, Sizes};
pub use fit::{Line, Proposal, propose};
pub use measured::{Measured, Peaks};
pub use probe::{Happening, Probe, ProbeEnd, ProbeRun, ProbeTask, Reading, run_probe};
pub use stand_in::Images;

use crate::{
    config::RunConfig,
    error::Error,
    train::{Stage, check_diffusion, perceptual::find_vgg},
};

/// Images of a data set that isn't there to be counted.
pub const ASSUMED_IMAGES: usize = 10_000;
/// Steps of a probe that is no longer than it must be: one each to warm up, before and after a checkpoint, before and after a sheet.
pub const LEAST_STEPS: u64 = 6;

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a run may take, in bytes; `None` where nobody knows.
    pub memory: Option<u64>,
    /// What a probe may take here, in bytes.
    pub available: Option<u64>,
    /// Steps of the shortest probe, at least [`LEAST_STEPS`].
    pub probe_steps: u64,
    /// Time of a probe, in seconds, after which what it has measured must do.
    pub probe_seconds: f64,
    /// Images of the data set, where the configuration names none.
    pub images: usize,
    /// Whether the process' memory is that of the device.
    pub on_host: bool,
}

/// Predictions for a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What a run may take, in bytes.
    pub memory: Option<u64>,
    /// Of each stage, in order.
    pub stages: Vec<StagePlan>,
    /// Of all stages.
    pub seconds: f64,
    /// The largest of all stages, in bytes.
    pub peak_memory: Option<u64>,
    /// Of all stages, in bytes.
    pub disk: u64,
    /// What was taken for granted.
    pub assumptions: Vec<String>,
}

/// Predictions for a stage. Memory and files are in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// `autoencoder` or `diffusion`.
    pub stage: String,
    /// Parameters that are trained, a discriminator's included.
    pub parameters: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// Of a step, on average over the stage.
    pub step_seconds: f64,
    /// Of a step before `disc_start` and after, where both occur.
    pub adversarial: Option<Adversarial>,
    /// In training, without sheets and checkpoints.
    pub images_per_second: f64,
    /// What the stage's time consists of.
    pub time: Time,
    /// The most resident memory that the process ever has, where that can be measured.
    pub peak_memory: Option<u64>,
    /// What it consists of.
    pub memory: Option<Memory>,
    /// Whether that, without the file of latents, is within what a run may take, with 5% to spare.
    pub fits: Option<bool>,
    /// The largest micro-batch that fits, with the same images per step.
    pub proposal: Option<Proposal>,
    /// Files.
    pub disk: Disk,
    /// What was run.
    pub probes: Vec<ProbeFigures>,
    /// What to know about the figures.
    pub notes: Vec<String>,
}

/// Steps of stage 1 without and with the adversarial part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Adversarial {
    /// Seconds of a step before `disc_start`.
    pub before: f64,
    /// Seconds of a step from `disc_start` on.
    pub after: f64,
    /// Share of the steps from `disc_start` on.
    pub share: f64,
}

/// Seconds of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// Loading, drawing initial weights.
    pub setup: f64,
    /// Encoding of the images before the steps, or measuring of the latents after them.
    pub encoding: f64,
    /// All steps.
    pub steps: f64,
    /// All sheets.
    pub previews: f64,
    /// All checkpoints.
    pub checkpoints: f64,
    /// All of it.
    pub total: f64,
}

/// What a stage keeps in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Trained weights.
    pub weights: u64,
    /// Their gradients, twice with accumulation.
    pub gradients: u64,
    /// Adam's two moments.
    pub optimizer: u64,
    /// Averaged weights.
    pub ema: u64,
    /// What grows with each image of a micro-batch: activations and their gradients.
    pub per_image: u64,
    /// Prepared images of the data set.
    pub data: u64,
    /// Pages of the file of latents. The system drops them where others need the room, so they never make a training not fit.
    pub latents: u64,
    /// All else: frozen networks, working memory, sheets, the program.
    pub other: u64,
}

/// What a probe measured.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeFigures {
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// With the adversarial part.
    pub adversarial: bool,
    /// Steps measured, the first ones to warm up included.
    pub steps: usize,
    /// Median of a step.
    pub step_seconds: f64,
    /// Peak of memory, in bytes.
    pub peak_memory: Option<u64>,
    /// Whether all of it was run.
    pub complete: bool,
}

/// Whoever starts processes: makes a probe of a configuration and returns what it told, or `None` if the user wants to stop.
pub type Runner<'a> = dyn FnMut(&RunConfig, &Probe) -> Result<Option<ProbeRun>, Error> + 'a;

/// Measures and predicts; `None` if the runner was stopped. `tell` hears what is being measured. With buckets all images count as ones of
/// the largest.
///
/// # Errors
/// If the configuration has no such stage, its data or VGG16 can't be had, or a probe fails.
pub fn make_plan(
    config: &RunConfig,
    stages: &[Stage],
    options: &Options,
    run: &mut Runner,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<Plan>, Error> {
    let config = &of_largest_size(config);
    if stages.contains(&Stage::Diffusion) {
        crate::run::stage2(config)?;
    }
    if stages.contains(&Stage::Vae) && config.stage1.loss.perceptual_weight > 0.0 {
        let vgg = config.stage1.vgg.as_deref();
        find_vgg(vgg.ok_or(Error::PerceptualNetworkMissing)?)?;
    }
    if stages.contains(&Stage::Diffusion) && config.data.path.is_some() {
        check_diffusion(config)?;
    }
    let images = stand_in::count_images(config, options.images)?;
    let mut plan = Plan {
        memory: options.memory,
        stages: Vec::new(),
        seconds: 0.0,
        peak_memory: None,
        disk: 0,
        assumptions: assumptions(config, images, options),
    };
    for &stage in stages {
        let Some(part) = stage::plan_stage(config, stage, images, options, run, tell)? else {
            return Ok(None);
        };
        plan.seconds += part.time.total;
        plan.peak_memory = plan.peak_memory.max(part.peak_memory);
        plan.disk += part.disk.total;
        plan.stages.push(part);
    }
    Ok(Some(plan))
}

/// The configuration with the largest of its buckets alone, which takes most memory and time.
fn of_largest_size(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    if !config.data.buckets.is_empty() {
        config.data.buckets = vec![config.data.largest_size()];
    }
    config
}

fn assumptions(config: &RunConfig, images: Images, options: &Options) -> Vec<String> {
    let mut list = vec![format!(
        "{} training and {} held-out images{}",
        images.training,
        images.held_out,
        match config.data.path.is_some() {
            true => ", as found in the data folder",
            false => ", assumed: no data folder was named",
        }
    )];
    list.push(match config.data.path.is_some() {
        true => "images as quick to read and decode as a few of the folder's, whose files the system had at hand".into(),
        false => "images as quick to read as PNG files of the training's size".to_owned(),
    });
    if let Some(size) = config.data.buckets.first() {
        list.push(format!(
            "every training image of {size}, the largest bucket"
        ));
    }
    list.push("a machine as busy as while it was measured".into());
    if !options.on_host {
        list.push(
            "memory is that of the process on the host; the device's own is not measured".into(),
        );
    }
    list
}
