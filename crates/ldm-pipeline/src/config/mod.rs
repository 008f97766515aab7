//! The run configuration: one TOML file for both stages.

mod parse;
mod validate;

use std::path::PathBuf;

use ldm_autoencoder::{AutoencoderKlConfig, Stage1LossConfig, VqModelConfig};
use ldm_diffusion::{
    BetaSchedule, DiffusionLossConfig, SamplerKind, SchedulerConfig, UNetConfig,
    conditioning::{ClassEmbedderConfig, SpatialRescalerConfig},
};
use ldm_nn::Activations;
use ldm_text::LdmBertConfig;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Retention,
    data::DataConfig,
    ema::{EmaDecay, EmaWarmup},
    generate::LabelMapping,
    model::{ConditionerConfig, FirstStageConfig},
    optim::{AdamConfig, LrSchedule},
};

/// The sections that describe the first stage's autoencoder, one or the other.
const VAE: &str = "stage1.vae";
const VQ: &str = "stage1.vq";

/// Everything that decides a run's result, save the files that it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Key of all random draws.
    #[serde(default)]
    pub seed: u64,
    /// The images and how they are prepared.
    #[serde(default)]
    pub data: DataConfig,
    /// The autoencoder.
    pub stage1: Stage1Config,
    /// The diffusion model in its latent space; `None` trains only an autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage2: Option<Stage2Config>,
}

/// What both stages have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Optimiser steps in all.
    pub steps: u64,
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimiser step; their gradients are averaged.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Whether ResNet blocks, attentions and the layers of the text transformer compute their activations again in the backward
    /// pass in place of keeping them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
    /// What weights and activations are computed in; the weights that the optimiser keeps, norms and losses are f32.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// The rate at each step: absolute, not scaled by batch size or devices.
    pub lr: LrSchedule,
    /// Adam, with decoupled weight decay if any.
    #[serde(default)]
    pub optimizer: AdamConfig,
    /// Largest L2 norm of all gradients together; larger ones are scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Largest decay of the exponential moving average of the weights, which is then what is exported and sampled from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// How the average's decay rises to `ema_decay`.
    #[serde(default)]
    pub ema_warmup: EmaWarmup,
    /// Steps between checkpoints; the last step has one in any case.
    #[serde(default = "thousand")]
    pub checkpoint_every: u64,
    /// Checkpoints kept, newest first.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// Whether the checkpoint with the best validation figure is kept as well: the highest PSNR in stage 1, the lowest loss in stage 2.
    #[serde(default = "yes")]
    pub keep_best: bool,
    /// Checkpoints whose step this divides are never removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Seconds for which the last write of a run, or the one that stops it, is tried again where it fails, as on a full disk.
    #[serde(default = "two_minutes")]
    pub write_patience: u64,
    /// What happens when a loss or a gradient is not finite.
    #[serde(default)]
    pub non_finite: NonFiniteConfig,
    /// Steps between sheets of samples or reconstructions; the last step has one in any case.
    #[serde(default = "thousand")]
    pub sample_every: u64,
}

/// What happens when a loss or a gradient is not finite. In any case it is said which module, image or term it came from, and weights
/// that are not finite are taken from the last good checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NonFiniteConfig {
    /// How the run goes on.
    pub action: NonFiniteAction,
    /// Failures in a row, none of which a checkpoint came after, that are too many: the next one ends the run.
    pub limit: u32,
    /// What `lower_rate` multiplies the rate by.
    pub rate_factor: f64,
}

/// How a run goes on after a step that is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFiniteAction {
    /// Without that step: its batch is passed over.
    #[default]
    Skip,
    /// From the last checkpoint, at a lower rate from there on.
    LowerRate,
    /// Not at all.
    Stop,
}

impl Default for NonFiniteConfig {
    fn default() -> Self {
        Self {
            action: NonFiniteAction::Skip,
            limit: 3,
            rate_factor: 0.5,
        }
    }
}

/// The type that a network computes in while it is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits throughout.
    #[default]
    F32,
    /// 16 bits with the exponent of f32 (bfloat16), of a device that has them.
    Bf16,
}

impl Precision {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The first stage: an autoencoder and the objective it is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage1Config {
    /// Length, batch, rate.
    pub training: TrainingConfig,
    /// A KL autoencoder, under the names of its `config.json`. `scaling_factor` is measured at the end of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<AutoencoderKlConfig>,
    /// In its place one with a codebook, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vq: Option<VqModelConfig>,
    /// Weights of the objective's terms.
    #[serde(default)]
    pub loss: Stage1LossConfig,
    /// Steps without use after which a code is replaced by a latent of the present batch; `None` leaves dead codes alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revive_codes_after: Option<u64>,
    /// VGG16 for the perceptual term: a safetensors file with torchvision's key names, or a hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgg: Option<String>,
    /// LPIPS heads for it, a safetensors file; without them the features of all channels count alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lpips_heads: Option<PathBuf>,
}

/// The second stage: a U-Net in the frozen autoencoder's latent space, and the text encoder that is trained with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage2Config {
    /// Length, batch, rate.
    pub training: TrainingConfig,
    /// A model or run directory whose autoencoder to use, in place of the run's own stage 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_stage: Option<PathBuf>,
    /// The U-Net, under the names of its `config.json`.
    pub unet: UNetConfig,
    /// The forward process.
    #[serde(default)]
    pub noise: NoiseConfig,
    /// The objective.
    #[serde(default)]
    pub loss: DiffusionLossConfig,
    /// How the captions enter. Of `text`, `class` and `semantic` there is one; with none of them the model is unconditional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// How the class of an image enters, which is the folder it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassConfig>,
    /// How a semantic mask enters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semantic: Option<SemanticConfig>,
    /// The sample sheets that are drawn while training.
    #[serde(default)]
    pub preview: PreviewConfig,
}

/// The noise that is added in training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoiseConfig {
    /// Course of the betas.
    pub schedule: BetaSchedule,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Number of training steps `T`.
    pub steps: usize,
    /// How the timesteps of a batch are drawn.
    pub timesteps: TimestepSampling,
    /// Shifts and scales the schedule so that no signal is left at its last step (Lin et al. 2024, algorithm 1).
    pub rescale_zero_terminal_snr: bool,
    /// Deviation of a number that is added to all of an item's noise in a channel, by which a model learns to change an image's mean
    /// colour; 0 adds none. It is part of the noise that is predicted, as in diffusers' scripts.
    pub offset_noise: f64,
    /// Deviation of further noise that is mixed into the latents but isn't predicted (Ning et al. 2023); 0 adds none.
    pub input_perturbation: f64,
}

/// How the timesteps of a batch are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSampling {
    /// Independently and uniformly, as in the paper.
    #[default]
    Uniform,
    /// One from each of N equal parts of `[0, T)` for a batch of N: the same distribution, less variance between batches.
    Stratified,
}

impl Default for NoiseConfig {
    /// The paper's for its unconditional models (table 15 has .00085 and .012 for text).
    fn default() -> Self {
        Self {
            schedule: BetaSchedule::Linear,
            beta_start: 0.0015,
            beta_end: 0.0195,
            steps: 1000,
            timesteps: TimestepSampling::Uniform,
            rescale_zero_terminal_snr: false,
            offset_noise: 0.0,
            input_perturbation: 0.0,
        }
    }
}

/// How captions become the U-Net's context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// The text transformer, under the names of its `config.json`. `max_position_embeddings` tokens of a caption are read.
    pub bert: LdmBertConfig,
    /// Share of captions replaced by the empty one, which is what guidance needs.
    #[serde(default = "tenth")]
    pub dropout: f64,
}

/// How classes become the U-Net's context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassConfig {
    /// Rows of the embedding: one per class, and a last one for no class.
    pub n_classes: usize,
    /// Width of the context.
    pub embed_dim: usize,
    /// Share of the classes replaced by the last one, which is what guidance needs.
    #[serde(default = "tenth")]
    pub dropout: f64,
}

/// How semantic masks become channels beside the latent's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SemanticConfig {
    /// The folder of masks: `a/b.png` belongs to the image `a/b.jpg`.
    pub masks: PathBuf,
    /// Halvings from the picture's size to the latent's.
    pub n_stages: usize,
    /// Number of labels.
    pub in_channels: usize,
    /// Channels that the U-Net gets beside the latent's.
    pub out_channels: usize,
    /// The colours of the labels, for masks in colour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub palette: Option<PathBuf>,
    /// Labels of values that aren't labels themselves.
    #[serde(default)]
    pub mapping: LabelMapping,
}

/// A sheet of samples, drawn every `sample_every` steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreviewConfig {
    /// One sample per prompt; with no prompts, captions of the data.
    pub prompts: Vec<String>,
    /// Samples of an unconditional model, or captions taken from the data.
    pub count: usize,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Its steps.
    pub steps: usize,
    /// DDIM's randomness: 0 is deterministic, 1 as random as DDPM.
    pub eta: f64,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f64,
}

impl Default for PreviewConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            count: 16,
            sampler: SamplerKind::Ddim,
            steps: 50,
            eta: 0.0,
            guidance: 3.0,
        }
    }
}

impl TrainingConfig {
    /// Which checkpoints stay.
    pub fn retention(&self) -> Retention {
        Retention {
            last: self.keep_checkpoints,
            best: self.keep_best,
            every: self.keep_every,
        }
    }

    /// What becomes of the activations between forward and backward pass.
    pub fn activations(&self) -> Activations {
        match self.activation_checkpointing {
            true => Activations::Recompute,
            false => Activations::Keep,
        }
    }
}

impl NoiseConfig {
    /// The same as diffusers' `scheduler_config.json`.
    pub fn scheduler(&self, loss: &DiffusionLossConfig) -> SchedulerConfig {
        SchedulerConfig {
            beta_schedule: self.schedule,
            num_train_timesteps: self.steps,
            prediction_type: loss.prediction_type,
            rescale_betas_zero_snr: self.rescale_zero_terminal_snr,
            ..SchedulerConfig::latent(self.beta_start, self.beta_end)
        }
    }
}

impl TrainingConfig {
    /// The decay of the average; `None` without one.
    pub fn ema(&self) -> Option<EmaDecay> {
        self.ema_decay.map(|max| EmaDecay {
            max,
            warmup: self.ema_warmup,
        })
    }
}

impl Stage1Config {
    /// The autoencoder's architecture, of either kind.
    ///
    /// # Panics
    /// If neither `vae` nor `vq` is there, which no configuration that was read lacks.
    pub fn autoencoder(&self) -> FirstStageConfig {
        match (&self.vae, &self.vq) {
            (Some(vae), _) => FirstStageConfig::Kl(vae.clone()),
            (None, Some(vq)) => FirstStageConfig::Vq(vq.clone()),
            (None, None) => panic!("stage 1 needs `vae` or `vq`"),
        }
    }
}

impl Stage2Config {
    /// The architecture of what turns captions, classes or masks into tensors; `None` for an unconditional model.
    pub fn conditioner(&self) -> Option<ConditionerConfig> {
        let text = || Some(ConditionerConfig::LdmBert(self.text.as_ref()?.bert.clone()));
        let class = || Some(ConditionerConfig::Class(self.class.as_ref()?.embedder()));
        let mask = || {
            Some(ConditionerConfig::Semantic(
                self.semantic.as_ref()?.rescaler(),
            ))
        };
        text().or_else(class).or_else(mask)
    }
}

impl ClassConfig {
    /// The embedding's architecture.
    pub fn embedder(&self) -> ClassEmbedderConfig {
        ClassEmbedderConfig {
            n_classes: self.n_classes,
            embed_dim: self.embed_dim,
            key: "class_label".into(),
        }
    }
}

impl SemanticConfig {
    /// The architecture of what brings a mask to the latent's size.
    pub fn rescaler(&self) -> SpatialRescalerConfig {
        SpatialRescalerConfig {
            n_stages: self.n_stages,
            in_channels: self.in_channels,
            out_channels: Some(self.out_channels),
            bias: false,
        }
    }
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

fn two_minutes() -> u64 {
    120
}

fn thousand() -> u64 {
    1000
}

fn tenth() -> f64 {
    0.1
}
