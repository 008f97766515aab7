//! From a request to images.

mod check;
mod classes;
mod condition;
mod conditioning;
mod label_mapping;
mod labels;
mod noise;
mod palette;
mod prompts;
mod series;
mod source;

use std::ops::ControlFlow;

use burn::prelude::*;
use image::RgbImage;
use ldm_diffusion::{
    SamplerKind,
    samplers::{self, StepInfo},
};

pub(crate) use classes::listed;
pub use condition::{Blend, Condition};
pub(crate) use conditioning::class_tensor;
pub use label_mapping::LabelMapping;
pub use labels::LabelMap;
pub(crate) use noise::noise_batch;
use noise::noise_of;
pub use noise::{Noise, NoiseKey, slerp};
pub use palette::Palette;
pub use prompts::read_prompts;
pub use series::Series;
use source::{EncodedSource, KnownRegion};
pub use source::{Source, load_mask};

use crate::{error::Error, model::LatentDiffusion, rng::Stream, sheet::images_from_tensor};

/// What to draw, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// One image per condition, of the kind that the model takes.
    pub conditions: Vec<Condition>,
    /// What guidance leads a text-conditional model away from; empty is the unconditional prompt.
    pub negative: String,
    /// Key of all noise where `noise` is empty: image `i` has that of the seed and `i`, whatever the batch size.
    pub seed: u64,
    /// The noise of each image, one per condition; empty is that of `seed`.
    pub noise: Vec<Noise>,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Its steps, 1 to the number of training steps.
    pub steps: usize,
    /// DDIM's randomness: 0 is deterministic, 1 as random as DDPM.
    pub eta: f64,
    /// Classifier-free guidance; 1 is none. For models that attend to a context.
    pub guidance: f64,
    /// Share in which the guided prediction is brought back to the conditional one's standard deviation; 0 is none.
    pub guidance_rescale: f64,
    /// Height and width in pixels, divisible by the autoencoder's factor; `None` is the size of what the request holds (start, source
    /// or semantic mask), else the training size.
    pub size: Option<[usize; 2]>,
    /// Images that go through the network together.
    pub batch: usize,
    /// Noise of unit variance to start from in place of the seed's, `[N, c, h, w]`, one item per condition.
    pub init_latents: Option<Tensor<4>>,
    /// A picture to start from, for image-to-image and inpainting.
    pub source: Option<Source>,
    /// Side, in latent pixels, of the tiles to decode in; `None` decodes in one piece.
    pub tile: Option<usize>,
    /// Calls of the network between two pictures of what it makes of an image meanwhile, see [`Drawn::frames`]; `None` makes none.
    pub frames_every: Option<usize>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            conditions: vec![Condition::Nothing],
            negative: String::new(),
            seed: 0,
            noise: Vec::new(),
            sampler: SamplerKind::Ddim,
            steps: 50,
            eta: 0.0,
            guidance: 3.0,
            guidance_rescale: 0.0,
            size: None,
            batch: 8,
            init_latents: None,
            source: None,
            tile: None,
            frames_every: None,
        }
    }
}

/// Progress of [`LatentDiffusion::generate`], after each denoising step.
#[derive(Clone, Copy, Debug)]
pub struct GenerateProgress {
    /// Denoising steps done, over all batches.
    pub done: usize,
    /// Denoising steps in all.
    pub total: usize,
}

/// Images that went through the network together.
#[derive(Debug)]
pub struct Drawn {
    /// What the sampler left, `[N, c, h, w]`, scaled.
    pub latents: Tensor<4>,
    /// What the first stage made of them.
    pub images: Vec<RgbImage>,
    /// The guesses at them on the way, each of all images, and at last the images themselves; empty without [`Request::frames_every`].
    pub frames: Vec<Vec<RgbImage>>,
}

/// The part of a request that goes through the network together.
struct Batch<'a> {
    conditions: &'a [Condition],
    noise: &'a [Noise],
    /// Number of its first image within the request.
    first: usize,
    /// Height and width.
    latent_size: [usize; 2],
}

/// A step of a batch that is done.
struct StepDone<'a> {
    /// Steps done.
    done: usize,
    /// Steps in all.
    total: usize,
    /// The guess at the clean latents, `[N, c, h, w]`.
    denoised: &'a Tensor<4>,
}

impl<'a> StepDone<'a> {
    fn new(info: &StepInfo<'a>, first_step: usize) -> Self {
        Self {
            done: info.index + 1 - first_step,
            total: info.total - first_step,
            denoised: info.denoised,
        }
    }

    /// Whether a picture is due every so many steps. Of the last step there is the image itself.
    fn is_due(&self, every: usize) -> bool {
        self.done < self.total && self.done.is_multiple_of(every.max(1))
    }
}

impl Request {
    /// The noise of each image.
    fn noise(&self) -> Vec<Noise> {
        if !self.noise.is_empty() {
            return self.noise.clone();
        }
        let seed = self.seed;
        (0..self.conditions.len() as u64)
            .map(|index| Noise::Of(NoiseKey { seed, index }))
            .collect()
    }
}

impl LatentDiffusion {
    /// Draws one image per condition. `on_step` may stop the work by `Break`; the images finished until then are returned.
    ///
    /// # Errors
    /// If the request doesn't fit the model.
    pub fn generate(
        &self,
        request: &Request,
        on_step: impl FnMut(GenerateProgress) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>, Error> {
        let mut images = Vec::with_capacity(request.conditions.len());
        self.generate_batches(request, on_step, |drawn| {
            images.extend(drawn.images);
            Ok(())
        })?;
        Ok(images)
    }

    /// [`generate`](Self::generate), which hands over each batch as it is done.
    ///
    /// # Errors
    /// If the request doesn't fit the model, and those of `on_batch`.
    pub fn generate_batches(
        &self,
        request: &Request,
        mut on_step: impl FnMut(GenerateProgress) -> ControlFlow<()>,
        mut on_batch: impl FnMut(Drawn) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.check(request)?;
        let latent_size = self.latent_size(request)?;
        let source = (request.source.as_ref()).map(|source| source.encode(self));
        let noise = request.noise();
        let batch = request.batch.max(1);
        let batches = request.conditions.len().div_ceil(batch);
        let mut progress = GenerateProgress { done: 0, total: 0 };
        let parts = request.conditions.chunks(batch).zip(noise.chunks(batch));
        for (index, (conditions, noise)) in parts.enumerate() {
            let part = Batch {
                conditions,
                noise,
                first: index * batch,
                latent_size,
            };
            let mut frames = Vec::new();
            let latents = self.draw_latents(request, &part, source.as_ref(), |step| {
                progress.done += 1;
                progress.total = step.total * batches;
                if (request.frames_every).is_some_and(|every| step.is_due(every)) {
                    frames.push(self.pictures(request, step.denoised.clone()));
                }
                on_step(progress)
            })?;
            let ControlFlow::Continue(latents) = latents else {
                break;
            };
            let images = self.pictures(request, latents.clone());
            if request.frames_every.is_some() {
                frames.push(images.clone());
            }
            on_batch(Drawn {
                latents,
                images,
                frames,
            })?;
        }
        Ok(())
    }

    /// What the request is to show of latents `[N, c, h, w]`.
    fn pictures(&self, request: &Request, latents: Tensor<4>) -> Vec<RgbImage> {
        let mut images = images_from_tensor(self.decode(latents, request.tile));
        if let Some(source) = &request.source {
            source.restore_known_pixels(&mut images);
        }
        images
    }

    /// `[N, c, h, w]` as the sampler leaves them to images `[N, 3, H, W]` in about `[-1, 1]`, in one piece or in tiles of `tile` latent
    /// pixels a side.
    pub fn decode(&self, latents: Tensor<4>, tile: Option<usize>) -> Tensor<4> {
        let config = &self.configs.first_stage;
        self.first_stage.decode_scaled(latents, config, tile)
    }

    /// Latents of one batch.
    fn draw_latents(
        &self,
        request: &Request,
        batch: &Batch,
        source: Option<&EncodedSource>,
        mut on_step: impl FnMut(StepDone) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Tensor<4>>, Error> {
        let device = self.device();
        let (first, count) = (batch.first, batch.conditions.len());
        let [height, width] = batch.latent_size;
        let channels = self.configs.first_stage.latent_channels();
        let shape = [channels, height, width];
        let noise =
            |stream, step: usize| noise_of(batch.noise, stream, step as u64, shape, &device);
        let start = match &request.init_latents {
            Some(latents) => latents.clone().narrow(0, first, count),
            None => noise(Stream::InitLatents, 0),
        };
        let network = self.network(request, batch.conditions, source);
        let build = || (request.sampler).build(&self.configs.scheduler, request.steps, request.eta);
        let mut sampler = build()?;
        let model = |x, timestep| network.predict(x, timestep);
        let step_noise = |step| noise(Stream::SamplerNoise, step);
        let Some(source) = source.filter(|source| source.starts_here) else {
            return Ok(samplers::sample(
                sampler.as_mut(),
                start,
                model,
                step_noise,
                |info| on_step(StepDone::new(&info, 0)),
            ));
        };

        let first_step = sampler.img2img_start(source.strength);
        let picture = source.latents.clone().repeat_dim(0, count);
        let noised = sampler.add_noise(picture.clone(), start.clone(), first_step);
        let known = match &source.mask {
            // With a sampler of its own: the other is at work.
            Some(mask) => Some(KnownRegion::new(mask.clone(), picture, start, build()?)),
            None => None,
        };
        Ok(samplers::sample_from(
            first_step,
            sampler.as_mut(),
            noised,
            model,
            step_noise,
            |info| {
                if let Some(known) = &known {
                    known.restore(info.latents, info.index + 1, info.total);
                }
                on_step(StepDone::new(&info, first_step))
            },
        ))
    }

    /// Where the model's parameters are.
    pub fn device(&self) -> Device {
        self.denoiser.unet.conv_in.weight.device()
    }
}
