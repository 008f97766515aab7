//! The whole of latent diffusion (Rombach et al. 2022) on top of the model crates: from a folder of images to a trained model, and
//! from a prompt to an image.
//!
//! - [`config`] describes a run, [`run`] is its directory, [`train`] its two stages.
//! - [`model`] is a complete model as a diffusers directory, [`generate`] draws from it.
//! - [`quickstart`] does all of it on pictures that are part of the program.
//!
//! The parts underneath stand alone: [`data`] makes batches, [`optim`] and [`ema`] update weights, [`checkpoint`] and [`weights`] store
//! them, [`metrics`], [`plot`], [`sheet`] and [`report`] show what happens, [`parallel`] connects processes, [`rng`] is the only source of
//! randomness.

pub mod atomic;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod ema;
pub mod encode;
pub mod generate;
pub mod hardware;
pub mod hub;
pub mod info;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod nearest;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod plot;
pub mod quickstart;
pub mod reconstruct;
pub mod report;
pub mod rng;
pub mod run;
pub mod sheet;
pub mod train;
pub mod weights;

mod error;
mod latent_stats;
mod lines;
#[cfg(test)]
mod test_tensors;

pub use error::{ConfigError, Error};
pub use ldm_autoencoder as autoencoder;
pub use ldm_diffusion as diffusion;
pub use ldm_text as text;
