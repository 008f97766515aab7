//! What is known of a stage without running it.

use burn::tensor::Device;

use super::{Images, Probe};
use crate::{
    config::{RunConfig, TrainingConfig},
    data::{Crop, LatentCaching},
    error::Error,
    info::count,
    model::FirstStageConfig,
    train::{Stage, VALIDATION_ITEMS},
};

/// Images in a sheet of reconstructions.
pub(super) const SHEET: usize = 16;
/// Bytes of a parameter.
pub(super) const FLOAT: u64 = 4;

/// What is known of a stage without running it.
pub(super) struct Facts<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) stage: Stage,
    pub(super) training: &'a TrainingConfig,
    pub(super) images: Images,
    /// Parameters that are trained, and those of them that are averaged.
    pub(super) trained: u64,
    pub(super) averaged: u64,
    /// Parameters of the frozen autoencoder.
    pub(super) frozen: u64,
    /// Share of the steps with the adversarial part.
    pub(super) adversarial: f64,
    /// Steps of the sampler of sheets.
    pub(super) preview_steps: usize,
}

impl<'a> Facts<'a> {
    pub(super) fn of(config: &'a RunConfig, stage: Stage, images: Images) -> Result<Self, Error> {
        let device = Device::default();
        let autoencoder = match config.stage1.autoencoder() {
            FirstStageConfig::Kl(vae) => count(&vae.init(&device)),
            FirstStageConfig::Vq(vq) => count(&vq.init(&device)),
            FirstStageConfig::Identity { .. } => 0,
        } as u64;
        Ok(match stage {
            Stage::Vae => {
                let discriminator = config.stage1.loss.discriminator();
                let training = &config.stage1.training;
                let share = match discriminator {
                    Some(_) => {
                        let before = config.stage1.loss.disc_start.min(training.steps);
                        (training.steps - before) as f64 / training.steps as f64
                    }
                    None => 0.0,
                };
                let discriminator =
                    discriminator.map_or(0, |disc| disc.init(&device).num_trained_params());
                Self {
                    config,
                    stage,
                    training,
                    images,
                    trained: autoencoder + discriminator as u64,
                    averaged: autoencoder,
                    frozen: 0,
                    adversarial: share,
                    preview_steps: 1,
                }
            }
            Stage::Diffusion => {
                let stage2 = crate::run::stage2(config)?;
                let conditioner = stage2.conditioner();
                let conditioner =
                    conditioner.map_or(0, |conditioner| count(&conditioner.init(&device)));
                let trained = (count(&stage2.unet.init(&device)) + conditioner) as u64;
                Self {
                    config,
                    stage,
                    training: &stage2.training,
                    images,
                    trained,
                    averaged: trained,
                    frozen: autoencoder,
                    adversarial: 0.0,
                    preview_steps: stage2.preview.steps,
                }
            }
        })
    }

    /// Images per step.
    pub(super) fn images_per_step(&self) -> usize {
        self.training.batch_size * self.training.accumulation
    }

    pub(super) fn ema(&self) -> u64 {
        FLOAT * self.averaged * u64::from(self.training.ema_decay.is_some())
    }

    /// What is in memory whatever the micro-batch, without working memory.
    pub(super) fn floor(&self) -> u64 {
        FLOAT * (4 * self.trained + self.frozen) + self.ema()
    }

    /// What accumulated gradients add.
    pub(super) fn accumulated(&self, accumulation: usize) -> u64 {
        FLOAT * self.trained * u64::from(accumulation > 1)
    }

    /// Bytes of the file of latents of the data set, if there is one.
    pub(super) fn latents(&self) -> u64 {
        let data = &self.config.data;
        if self.stage == Stage::Vae
            || data.crop == Crop::Random
            || data.latent_cache == LatentCaching::Off
        {
            return 0;
        }
        let autoencoder = self.config.stage1.autoencoder();
        let pixels = data.largest_size().area() / (autoencoder.factor() as u64).pow(2);
        let variants = if data.flip > 0.0 { 2 } else { 1 };
        let moments = 2 * autoencoder.latent_channels() as u64 * pixels;
        self.images.training as u64 * variants * moments * FLOAT
    }

    /// Bytes that `images` prepared images take in the cache.
    pub(super) fn cached_images(&self, images: usize) -> u64 {
        if self.latents() > 0 {
            return 0;
        }
        let picture = 3 * self.config.data.largest_size().area();
        (images as u64 * picture).min((self.config.data.cache_mib as u64) << 20)
    }

    /// Bytes of the images and reconstructions that stage 1 keeps until the discriminator's turn, for each micro-batch.
    pub(super) fn kept_pairs(&self, size: usize) -> u64 {
        let image = 3 * self.config.data.largest_size().area() * FLOAT;
        match self.stage {
            Stage::Vae => 2 * image * size as u64,
            Stage::Diffusion => 0,
        }
    }

    pub(super) fn probe(
        &self,
        size: usize,
        accumulation: usize,
        steps: u64,
        preview_steps: usize,
    ) -> Probe {
        // As many as a sheet shows, or as the loss beside it is measured on.
        let held_out = self.images.held_out.min(match self.stage {
            Stage::Vae => SHEET,
            Stage::Diffusion => VALIDATION_ITEMS,
        });
        // Two parts to encode, and a whole sheet.
        let least = if held_out > 0 { 2 } else { SHEET };
        let whole = self.cached_images(self.images.training);
        Probe {
            stage: self.stage,
            batch_size: size,
            accumulation,
            steps,
            adversarial: self.adversarial > 0.0,
            preview_steps,
            steps_only: false,
            images: Images {
                training: self.images.training.min((2 * size).max(least)),
                held_out,
            },
            cached: whole < (self.config.data.cache_mib as u64) << 20,
        }
    }
}
