//! The two training stages.
//!
//! Both have one shape: set up, go on from the newest checkpoint if asked to, then step by step until the end or until the
//! observer says stop, with a checkpoint at either. A step is a pure function of the checkpoint before it, the
//! configuration, and its own number, which keys every random draw: that is why a resumed run equals one that was
//! never stopped, bit for bit.

mod codebook;
mod components;
mod conditions;
mod damaged;
mod diagnose;
mod health;
pub(crate) mod images;
mod journal;
mod latent_cache;
mod latents;
mod logvar;
mod noise;
pub(crate) mod perceptual;
mod persist;
mod posterior;
mod precision;
mod recorder;
mod run_loop;
mod stage1;
mod stage2;
mod state;
mod together;
mod tokens;
mod validation;
mod waiting;

use std::{fmt, ops::ControlFlow, path::Path};

pub use diagnose::Culprit;
pub use stage1::train_vae;
pub use stage2::{check_diffusion, train_diffusion};
pub(crate) use validation::VALIDATION_ITEMS;

/// A part of the pipeline that is trained on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The autoencoder.
    Vae,
    /// The denoiser in its latent space.
    Diffusion,
}

impl Stage {
    /// Its folder in a run directory, and its section of a configuration.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Vae => "stage1",
            Self::Diffusion => "stage2",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vae => "autoencoder",
            Self::Diffusion => "diffusion",
        })
    }
}

/// What a stage tells whoever called it, while it works.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(StepReport<'a>),
    /// A part of the set-up or of the end is under way, such as the measuring of latents.
    Work {
        /// What is being done.
        what: &'a str,
        /// Parts done.
        done: usize,
        /// Parts in all.
        total: usize,
    },
    /// Something to know about the run.
    Note(&'a str),
    /// Something that shouldn't be, but doesn't stop the run.
    Warning(&'a str),
    /// A file or directory is complete.
    Saved(&'a Path),
}

/// One step of training.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// The stage.
    pub stage: Stage,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
    /// Images per step, over all processes.
    pub images: usize,
    /// Everything that went into `metrics.jsonl`.
    pub values: &'a [(&'static str, f64)],
}

/// Sees everything; may stop the run by `Break`, after which a checkpoint is written.
pub type Observer<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and the result is in the run's `model/`.
    Finished,
    /// The observer stopped it after this many steps; the run can go on from there.
    Stopped(u64),
}
