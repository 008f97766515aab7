//! From a request to images.

mod conditioning;
mod labels;
mod source;

use std::ops::ControlFlow;

use burn::{prelude::*, tensor::TensorData};
use image::RgbImage;
use ldm_diffusion::{SamplerKind, samplers};

pub use conditioning::Condition;
pub(crate) use conditioning::class_tensor;
pub use labels::LabelMap;
use source::{EncodedSource, KnownRegion};
pub use source::{Source, load_mask};

use crate::{
    error::Error,
    model::LatentDiffusion,
    rng::{Stream, normal},
    sheet::images_from_tensor,
};

/// What to draw, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// One image per condition, of the kind that the model takes.
    pub conditions: Vec<Condition>,
    /// What guidance leads a text-conditional model away from; empty is the unconditional prompt.
    pub negative: String,
    /// Key of all noise. Image `i` of a request starts from noise keyed by the seed and `i`, whatever the batch size.
    pub seed: u64,
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
}

impl Default for Request {
    fn default() -> Self {
        Self {
            conditions: vec![Condition::Nothing],
            negative: String::new(),
            seed: 0,
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
}

/// The part of a request that goes through the network together.
struct Batch<'a> {
    conditions: &'a [Condition],
    /// Number of its first image within the request.
    first: usize,
    /// Height and width.
    latent_size: [usize; 2],
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
        let batch = request.batch.max(1);
        let batches = request.conditions.len().div_ceil(batch);
        let mut progress = GenerateProgress { done: 0, total: 0 };
        for (index, conditions) in request.conditions.chunks(batch).enumerate() {
            let part = Batch {
                conditions,
                first: index * batch,
                latent_size,
            };
            let latents = self.draw_latents(request, &part, source.as_ref(), |steps| {
                progress.done += 1;
                progress.total = steps * batches;
                on_step(progress)
            })?;
            let ControlFlow::Continue(latents) = latents else {
                break;
            };
            let decoded = self.decode(latents.clone(), request.tile);
            let mut images = images_from_tensor(decoded);
            if let Some(source) = &request.source {
                source.restore_known_pixels(&mut images);
            }
            on_batch(Drawn { latents, images })?;
        }
        Ok(())
    }

    /// `[N, c, h, w]` as the sampler leaves them to images `[N, 3, H, W]` in about `[-1, 1]`, in one piece or in tiles of `tile` latent
    /// pixels a side.
    pub fn decode(&self, latents: Tensor<4>, tile: Option<usize>) -> Tensor<4> {
        let config = &self.configs.first_stage;
        self.first_stage.decode_scaled(latents, config, tile)
    }

    /// Latents of one batch. `on_step` gets the number of steps.
    fn draw_latents(
        &self,
        request: &Request,
        batch: &Batch,
        source: Option<&EncodedSource>,
        mut on_step: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Tensor<4>>, Error> {
        let device = self.device();
        let (first, count) = (batch.first, batch.conditions.len());
        let [height, width] = batch.latent_size;
        let channels = self.configs.first_stage.latent_channels();
        let shape = [count, channels, height, width];
        let noise = |stream, step: usize| {
            let (step, first) = (step as u64, first as u64);
            noise_batch(request.seed, stream, step, first, shape, &device)
        };
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
                |info| on_step(info.total),
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
                on_step(info.total - first_step)
            },
        ))
    }

    /// Finds out whether a request fits the model, before anything is drawn.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        self.check_conditions(request)?;
        for (name, value) in [
            ("guidance", request.guidance),
            ("guidance rescale", request.guidance_rescale),
        ] {
            if !value.is_finite() {
                return refuse(format!("the {name} is {value}: it must be a finite number"));
            }
        }
        let sampler =
            (request.sampler).build(&self.configs.scheduler, request.steps, request.eta)?;
        let size = self.pixel_size(request)?;
        let factor = self.configs.first_stage.factor();
        if size.iter().any(|&side| side == 0 || side % factor != 0) {
            return refuse(format!(
                "{} x {} pixels don't fit the autoencoder: both sides must be multiples of {factor}",
                size[1], size[0]
            ));
        }
        let [height, width] = self.latent_size(request)?;
        let least = self.configs.unet.smallest_side();
        if height.min(width) < least {
            return refuse(format!(
                "{} x {} pixels are too small: the U-Net needs latents of {least} x {least}, which are {} x {} pixels",
                size[1],
                size[0],
                least * factor,
                least * factor
            ));
        }
        if let Some(latents) = &request.init_latents {
            let expected = [
                request.conditions.len(),
                self.configs.first_stage.latent_channels(),
                height,
                width,
            ];
            if latents.dims() != expected {
                return refuse(format!(
                    "the initial latents have shape {:?}, but {expected:?} are needed",
                    latents.dims()
                ));
            }
        }
        match &request.source {
            Some(source) => source.check(self, size, sampler.as_ref()),
            None if self.takes_masked_image() => {
                refuse("this model fills a region of a picture: give an image and a mask".into())
            }
            None => Ok(()),
        }
    }

    /// Height and width of the latents.
    fn latent_size(&self, request: &Request) -> Result<[usize; 2], Error> {
        let factor = self.configs.first_stage.factor();
        Ok(self.pixel_size(request)?.map(|side| side / factor))
    }

    /// Height and width of the images.
    fn pixel_size(&self, request: &Request) -> Result<[usize; 2], Error> {
        let factor = self.configs.first_stage.factor();
        let of_latents = || {
            let [_, _, height, width] = request.init_latents.as_ref()?.dims();
            Some([height * factor, width * factor])
        };
        let of_source = || Some(request.source.as_ref()?.size());
        let of_mask = || match request.conditions.first()? {
            Condition::Labels(map) => Some([map.height, map.width]),
            _ => None,
        };
        (request.size)
            .or_else(of_latents)
            .or_else(of_source)
            .or_else(of_mask)
            .or_else(|| self.native_size().map(|side| [side, side]))
            .ok_or_else(|| {
                Error::Request("the model doesn't say its size: give --width and --height".into())
            })
    }

    /// Where the model's parameters are.
    pub fn device(&self) -> Device {
        self.denoiser.unet.conv_in.weight.device()
    }
}

/// Standard normal noise `[N, C, H, W]`, item `i` keyed by (`seed`, `stream`, `step`, `first + i`).
pub(crate) fn noise_batch(
    seed: u64,
    stream: Stream,
    step: u64,
    first: u64,
    shape: [usize; 4],
    device: &Device,
) -> Tensor<4> {
    let [n, c, h, w] = shape;
    let values: Vec<f32> = (first..first + n as u64)
        .flat_map(|index| normal(seed, stream, step, index, c * h * w))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
