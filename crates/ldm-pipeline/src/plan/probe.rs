//! A short piece of a training run, in a process of its own.

use std::{ops::ControlFlow, path::Path, time::Instant};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{
    disk::Sizes,
    stand_in::{Images, make_data, write_first_stage},
};
use crate::{
    atomic::write_file,
    config::{RunConfig, TrainingConfig},
    error::Error,
    memory::peak_memory,
    run::RunDir,
    train::{Event, Stage, train_diffusion, train_vae},
};

/// Classes of drawn pictures, at most.
pub(super) const CLASSES: usize = 4;
/// What a stage calls its work on the images before its steps, or after them.
const ENCODING: [&str; 2] = ["encoding images", "measuring latents"];
/// What a probe's folder holds.
const CONFIG: &str = "probe.toml";
const DATA: &str = "data";
const MASKS: &str = "masks";
const FIRST_STAGE: &str = "first_stage";
const RUN: &str = "run";

/// A piece of a training run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is trained.
    pub stage: Stage,
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// Steps, at least [`LEAST_STEPS`](super::LEAST_STEPS).
    pub steps: u64,
    /// Whether stage 1 has its adversarial part, from the first step on.
    pub adversarial: bool,
    /// Steps of the sampler that draws the sheets of stage 2.
    pub preview_steps: usize,
    /// Whether the steps are all that matters: whoever runs it ends it after them.
    pub steps_only: bool,
    /// Images to train on and to hold out.
    pub images: Images,
    /// Whether the images of the real data set fit into its cache, as those of the probe do.
    pub cached: bool,
}

/// What a process is to do for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeTask {
    /// Draw an autoencoder for the second stage.
    FirstStage,
    /// Train.
    Train(Stage),
}

/// What a probe tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Since the process began.
    pub seconds: f64,
    /// The most memory that the process has had so far, in bytes.
    pub peak: Option<u64>,
    /// What has just happened.
    pub happening: Happening,
}

/// What happens in a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A part of the images was encoded, before stage 2 or after stage 1.
    Encoded {
        /// Parts done.
        done: usize,
    },
    /// A step is done, and its sheet if there was one, but not its checkpoint.
    Step {
        /// Its number, from 1.
        step: u64,
        /// How long it took, without its sheet.
        seconds: f64,
    },
    /// All is done, the model exported.
    Finished {
        /// Of the files.
        sizes: Sizes,
    },
}

/// A probe that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeRun {
    /// In order.
    pub readings: Vec<Reading>,
    /// How it ended.
    pub end: ProbeEnd,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeEnd {
    /// As it should.
    Complete,
    /// By its limit of time.
    TimeUp,
    /// By its limit of memory, or by the system for the same reason.
    MemoryUp,
}

impl Probe {
    /// Whether [`ProbeTask::FirstStage`] has to come before the training.
    pub fn needs_first_stage(&self, config: &RunConfig) -> bool {
        let has_none = |stage2: &crate::config::Stage2Config| stage2.first_stage.is_none();
        self.stage == Stage::Diffusion && config.stage2.as_ref().is_some_and(has_none)
    }

    /// Fills `dir` with all that [`run_probe`] needs for this probe of `config`.
    ///
    /// # Errors
    /// If the data can't be read, or `dir` not be written to.
    pub fn prepare(&self, config: &RunConfig, dir: &Path) -> Result<(), Error> {
        let mut probe = config.clone();
        let masks = dir.join(MASKS);
        probe.data.validation = make_data(config, self.images, &dir.join(DATA), &masks)?;
        probe.data.path = Some(dir.join(DATA));
        if !self.cached {
            probe.data.cache_mib = 0;
        }
        match (self.stage, &mut probe.stage2) {
            (Stage::Diffusion, Some(stage2)) => {
                self.shorten(&mut stage2.training);
                stage2.preview.steps = self.preview_steps;
                if let Some(semantic) = &mut stage2.semantic {
                    semantic.masks = masks;
                }
                if self.needs_first_stage(config) {
                    stage2.first_stage = Some(dir.join(FIRST_STAGE));
                }
            }
            _ => {
                self.shorten(&mut probe.stage1.training);
                probe.stage1.loss.disc_start = match self.adversarial {
                    true => 0,
                    false => self.steps + 2,
                };
                // Its data may be anywhere, and its lengths not fit.
                probe.stage2 = None;
            }
        }
        Ok(write_file(&dir.join(CONFIG), probe.to_toml().as_bytes())?)
    }

    /// A checkpoint and a sheet, with steps of which neither is part before, between and after them.
    fn shorten(&self, training: &mut TrainingConfig) {
        training.batch_size = self.batch_size;
        training.accumulation = self.accumulation;
        training.keep_checkpoints = 1;
        if self.steps_only {
            let never = self.steps + 1;
            training.steps = never;
            training.checkpoint_every = never;
            training.sample_every = never;
        } else {
            training.steps = self.steps;
            training.checkpoint_every = self.checkpoint_step();
            training.sample_every = self.preview_step();
        }
    }

    /// The step after which there is a checkpoint.
    pub(super) fn checkpoint_step(&self) -> u64 {
        self.steps - 3
    }

    /// The step with a sheet; the last one has another.
    pub(super) fn preview_step(&self) -> u64 {
        self.steps - 1
    }
}

/// Does its part of a probe that [`Probe::prepare`] prepared in `dir`, and calls `emit` with every reading.
///
/// # Errors
/// As for training.
pub fn run_probe(
    dir: &Path,
    task: ProbeTask,
    device: &Device,
    emit: &mut dyn FnMut(&Reading),
) -> Result<(), Error> {
    let began = Instant::now();
    let config = RunConfig::load(&dir.join(CONFIG), &[])?;
    let stage = match task {
        ProbeTask::FirstStage => return write_first_stage(&config, &dir.join(FIRST_STAGE), device),
        ProbeTask::Train(stage) => stage,
    };
    let run = RunDir::open(&dir.join(RUN), &config, &[stage], false)?;
    let mut tell = |happening| {
        emit(&Reading {
            seconds: began.elapsed().as_secs_f64(),
            peak: peak_memory(None),
            happening,
        });
    };
    let mut steps = 0;
    let mut observer = |event: Event| {
        match event {
            Event::Work { what, done, .. } if ENCODING.contains(&what) => {
                tell(Happening::Encoded { done });
            }
            Event::Step(report) => {
                steps = report.step;
                let seconds = (report.values.iter()).find(|(name, _)| *name == "seconds_per_step");
                let (step, seconds) = (report.step, seconds.map_or(0.0, |(_, seconds)| *seconds));
                tell(Happening::Step { step, seconds });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    };
    match stage {
        Stage::Vae => train_vae(&config, &run, device, &mut observer)?,
        Stage::Diffusion => train_diffusion(&config, &run, device, &mut observer)?,
    };
    let sizes = Sizes::of(&run, stage, steps)?;
    tell(Happening::Finished { sizes });
    Ok(())
}
