//! A complete model: first stage, denoiser and noise schedule, in memory and on disk.
//!
//! The native format is diffusers' directory ([`files`] reads it, [`LatentDiffusion::save`] writes it). CompVis' checkpoints are mapped to
//! it at the border, in [`compvis`].

pub mod compvis;
pub mod files;

mod conditioner;
mod convert;
mod first_stage;
mod save;
mod shipped;

use std::path::Path;

use burn::{module::Module, tensor::Device};
use ldm_diffusion::{SchedulerConfig, UNet, UNetConfig, VarianceType};
use ldm_text::Tokenizer;
use serde::{Deserialize, Serialize};

pub use conditioner::{Conditioner, ConditionerConfig};
pub use convert::convert;
pub use files::{FirstStageFiles, ModelFiles};
pub use first_stage::{FirstStage, FirstStageConfig};
pub use save::save_first_stage;
pub use shipped::{SHIPPED, find_shipped};

use crate::{error::Error, generate::LabelMapping};

/// What the second stage trains: the U-Net, and what makes the context that it attends to.
#[derive(Module, Debug)]
pub struct Denoiser {
    /// Predicts the noise.
    pub unet: UNet,
    /// Encodes the condition; `None` in an unconditional model.
    pub conditioner: Option<Conditioner>,
}

/// Everything that sampling needs.
#[derive(Debug)]
pub struct LatentDiffusion {
    /// The first stage.
    pub first_stage: FirstStage,
    /// The second stage.
    pub denoiser: Denoiser,
    /// Makes ids of prompts; `None` in a model without a text encoder.
    pub tokenizer: Option<Tokenizer>,
    /// Architectures, scaling factor, noise schedule.
    pub configs: ModelConfigs,
}

/// Everything about a model but its weights.
#[derive(Clone, Debug)]
pub struct ModelConfigs {
    /// `vqvae/config.json`; the identity in a model of pixels.
    pub first_stage: FirstStageConfig,
    /// `unet/config.json`.
    pub unet: UNetConfig,
    /// `bert/config.json`, or that of another conditioner; `None` in an unconditional model.
    pub conditioner: Option<ConditionerConfig>,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: SchedulerConfig,
    /// `ldm.json`, or nothing where another program wrote the model.
    pub facts: ModelFacts,
}

/// `ldm.json`: what `ldm` knows of a model beyond diffusers' files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// Version of `ldm` that wrote the model.
    pub ldm_version: String,
    /// Side of the training images in pixels.
    pub resolution: Option<usize>,
    /// Steps of stage 1 and stage 2.
    pub training_steps: [u64; 2],
    /// Largest EMA decay of stage 2, whose averaged weights these are; `None`: the last weights.
    pub ema_decay: Option<f64>,
    /// Seed of the run.
    pub seed: u64,
    /// Whether padding is hidden from a frozen BERT.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub text_mask: bool,
    /// What a network for filling regions sees beside the latents.
    #[serde(skip_serializing_if = "InpaintInput::is_default")]
    pub inpaint_input: InpaintInput,
    /// Names of the classes by their numbers, where they have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Colours of the labels of semantic masks by their numbers, red, green and blue, where they have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub palette: Vec<[u8; 3]>,
    /// Labels of values in masks that aren't labels themselves.
    #[serde(skip_serializing_if = "LabelMapping::is_empty")]
    pub label_mapping: LabelMapping,
}

/// Order of the channels that a network for filling regions gets after the latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InpaintInput {
    /// The mask, 1 where to draw and 0 elsewhere, then the latents of the rest of the picture: diffusers.
    #[default]
    MaskThenImage,
    /// The latents of the rest of the picture, then the mask, 1 where to draw and -1 elsewhere: CompVis.
    ImageThenMask,
}

impl InpaintInput {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ModelConfigs {
    /// Whether the parts fit together; if not, what about the U-Net is wrong.
    fn check_fit(&self) -> Result<(), String> {
        let (unet, latent) = (&self.unet, self.first_stage.latent_channels());
        let concatenated =
            (self.conditioner.as_ref()).map_or(0, ConditionerConfig::concatenated_channels);
        let expected = latent + concatenated;
        let fills_regions = concatenated == 0 && unet.in_channels == 2 * latent + 1;
        if unet.in_channels != expected && !fills_regions {
            return Err(format!(
                "it takes {} channels, but the latents have {latent}{}",
                unet.in_channels,
                match concatenated {
                    0 => String::new(),
                    n => format!(" and the condition {n}"),
                }
            ));
        }
        // Twice as many where the variance is predicted as well.
        if ![latent, 2 * latent].contains(&unet.out_channels) {
            return Err(format!(
                "it gives {} channels, but the latents have {latent}",
                unet.out_channels
            ));
        }
        let predicts_variance = matches!(
            self.scheduler.variance_type,
            Some(VarianceType::Learned | VarianceType::LearnedRange)
        );
        if predicts_variance && unet.out_channels != 2 * latent {
            return Err(format!(
                "it gives {} channels, but with a learned variance (`variance_type` in {}) there must be {}",
                unet.out_channels,
                files::SCHEDULER,
                2 * latent
            ));
        }
        let context_dim = (self.conditioner.as_ref()).and_then(ConditionerConfig::context_dim);
        match (unet.cross_attention_dim, context_dim) {
            (Some(width), None) => Err(format!(
                "it attends to a context of width {width}, but the model has no text encoder and no class embedder"
            )),
            (Some(width), Some(context)) if context != width => Err(format!(
                "its `cross_attention_dim` is {width}, but the condition's width is {context}"
            )),
            _ => Ok(()),
        }
    }

    /// Height and width in pixels that the model was trained at.
    pub fn native_size(&self) -> Option<usize> {
        let of_unet = || match self.unet.sample_size {
            Some(ldm_diffusion::unet::SampleSize::Square(side)) => {
                Some(side * self.first_stage.factor())
            }
            _ => None,
        };
        self.facts.resolution.or_else(of_unet)
    }

    /// Whether the U-Net sees the rest of a picture in which it fills a region.
    pub fn takes_masked_image(&self) -> bool {
        let conditioned = (self.conditioner.as_ref())
            .is_some_and(|conditioner| conditioner.concatenated_channels() > 0);
        !conditioned && self.unet.in_channels == 2 * self.first_stage.latent_channels() + 1
    }
}

impl LatentDiffusion {
    /// Loads a model: a model directory, a run directory, a CompVis checkpoint, or a hub id.
    ///
    /// # Errors
    /// If it is none of them, or a part of it is missing, damaged or doesn't fit its configuration.
    pub fn load(path: &Path, device: &Device) -> Result<Self, Error> {
        ModelFiles::open(path, None)?.load(device)
    }

    /// Height and width in pixels that the model was trained at.
    pub fn native_size(&self) -> Option<usize> {
        self.configs.native_size()
    }

    /// Whether the U-Net sees the rest of a picture in which it fills a region.
    pub fn takes_masked_image(&self) -> bool {
        self.configs.takes_masked_image()
    }
}

/// Loads the first stage of a model or run directory or of a CompVis checkpoint, or one that stands alone.
///
/// # Errors
/// If there is none, or its weights don't fit its configuration.
pub fn load_first_stage(
    path: &Path,
    device: &Device,
) -> Result<(FirstStage, FirstStageConfig), Error> {
    let files = FirstStageFiles::open(path, None)?;
    Ok((files.load(device)?, files.config))
}
