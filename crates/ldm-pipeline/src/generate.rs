//! From prompts to images.

use std::ops::ControlFlow;

use burn::{
    prelude::*,
    tensor::{Int, TensorData},
};
use image::RgbImage;
use ldm_diffusion::{Guidance, SamplerKind, samplers};

use crate::{
    error::Error,
    model::LatentDiffusion,
    rng::{Stream, normal},
    sheet::images_from_tensor,
};

/// What to draw, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// One image per prompt. An unconditional model takes empty ones.
    pub prompts: Vec<String>,
    /// What guidance leads away from; empty is the unconditional prompt.
    pub negative: String,
    /// Key of all noise. Image `i` of a request starts from noise keyed by the seed and `i`, whatever the batch size.
    pub seed: u64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Its steps, 1 to the number of training steps.
    pub steps: usize,
    /// DDIM's randomness: 0 is deterministic, 1 as random as DDPM.
    pub eta: f64,
    /// Classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Height and width in pixels, divisible by the autoencoder's factor; `None` is the training size.
    pub size: Option<[usize; 2]>,
    /// Images that go through the network together.
    pub batch: usize,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompts: vec![String::new()],
            negative: String::new(),
            seed: 0,
            sampler: SamplerKind::Ddim,
            steps: 50,
            eta: 0.0,
            guidance: 3.0,
            size: None,
            batch: 8,
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

impl LatentDiffusion {
    /// Draws one image per prompt. `on_step` may stop the work by `Break`; the images finished until then are returned.
    ///
    /// # Errors
    /// If the request doesn't fit the model: its size, its steps, or prompts for an unconditional model.
    pub fn generate(
        &self,
        request: &Request,
        mut on_step: impl FnMut(GenerateProgress) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>, Error> {
        self.check(request)?;
        let latent_size = self
            .pixel_size(request)?
            .map(|side| side / self.vae_config.factor());
        let batches: Vec<&[String]> = request.prompts.chunks(request.batch.max(1)).collect();
        let mut progress = GenerateProgress { done: 0, total: 0 };
        let mut images = Vec::with_capacity(request.prompts.len());
        for (index, prompts) in batches.iter().enumerate() {
            let first = index * request.batch.max(1);
            let latents = self.sample_latents(request, prompts, first, latent_size, |steps| {
                progress.done += 1;
                progress.total = steps * batches.len();
                on_step(progress)
            })?;
            let ControlFlow::Continue(latents) = latents else {
                break;
            };
            images.extend(images_from_tensor(self.decode(latents)));
        }
        Ok(images)
    }

    /// `[N, C, h, w]` as the sampler leaves them to images `[N, 3, H, W]` in about `[-1, 1]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let unscaled = latents.div_scalar(self.vae_config.scaling_factor);
        self.vae.decode(unscaled)
    }

    /// Latents of one batch, whose first image is number `first` of the request. `on_step` gets the number of steps.
    fn sample_latents(
        &self,
        request: &Request,
        prompts: &[String],
        first: usize,
        [height, width]: [usize; 2],
        mut on_step: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Tensor<4>>, Error> {
        let device = self.device();
        let shape = [
            prompts.len(),
            self.vae_config.latent_channels,
            height,
            width,
        ];
        let noise = |stream, step: usize| {
            noise_batch(
                request.seed,
                stream,
                step as u64,
                first as u64,
                shape,
                &device,
            )
        };
        let guidance = self.guidance(prompts, &request.negative, request.guidance);
        let mut sampler = request
            .sampler
            .build(&self.scheduler, request.steps, request.eta)?;
        let unet = &self.denoiser.unet;
        let call = |x: Tensor<4>, timestep: f64, context| {
            let timesteps = Tensor::<1>::full([x.dims()[0]], timestep, &x.device());
            unet.forward(x, timesteps, context)
        };
        Ok(samplers::sample(
            sampler.as_mut(),
            noise(Stream::InitLatents, 0),
            |x, timestep| match &guidance {
                Some(guidance) => {
                    guidance.predict(x, |x, context| call(x, timestep, Some(context)))
                }
                None => call(x, timestep, None),
            },
            |step| noise(Stream::SamplerNoise, step),
            |info| on_step(info.total),
        ))
    }

    /// The context of `prompts` and of what guidance leads away from; `None` for an unconditional model.
    fn guidance(&self, prompts: &[String], negative: &str, scale: f64) -> Option<Guidance> {
        let (text, bert) = self.text.as_ref().zip(self.denoiser.bert.as_ref())?;
        let device = self.device();
        let length = text.config.max_position_embeddings;
        let encode = |texts: &[String]| -> Tensor<3> {
            let ids: Tensor<2, Int> = text.tokenizer.encode_batch(texts, length, &device);
            bert.forward(ids)
        };
        let negative = encode(&[negative.to_owned()]).repeat_dim(0, prompts.len());
        Some(Guidance::new(negative, encode(prompts), scale))
    }

    /// Finds out whether a request fits the model, before anything is drawn.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        if self.text.is_none() && request.prompts.iter().any(|prompt| !prompt.is_empty()) {
            return refuse("this model is unconditional: it takes no prompt".into());
        }
        if self.text.is_none() && !request.negative.is_empty() {
            return refuse("this model is unconditional: it takes no negative prompt".into());
        }
        if !request.guidance.is_finite() {
            return refuse(format!(
                "the guidance is {}: it must be a finite number",
                request.guidance
            ));
        }
        request
            .sampler
            .build(&self.scheduler, request.steps, request.eta)?;
        let size = self.pixel_size(request)?;
        let factor = self.vae_config.factor();
        if size.iter().any(|&side| side == 0 || side % factor != 0) {
            return refuse(format!(
                "{} x {} pixels don't fit the autoencoder: both sides must be multiples of {factor}",
                size[1], size[0]
            ));
        }
        Ok(())
    }

    /// Height and width of the images.
    fn pixel_size(&self, request: &Request) -> Result<[usize; 2], Error> {
        (request.size)
            .or(self.native_size().map(|side| [side, side]))
            .ok_or_else(|| {
                Error::Request("the model doesn't say its size: give --width and --height".into())
            })
    }

    /// Where the model's parameters are.
    fn device(&self) -> Device {
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
