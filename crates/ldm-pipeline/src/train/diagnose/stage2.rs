//! Stage 2: the denoiser, which is the U-Net and what makes its context.

use burn::{optim::GradientsParams, tensor::Tensor};
use ldm_nn::watch::{self, Paths};

use super::{
    Culprit,
    gradients::first_damaged_gradient,
    search::{damaged_items, damaged_weight, first_module, is_finite},
};
use crate::{error::Error, model::Denoiser, train::latents::LatentBatch};

/// The forward pass of one micro-batch.
pub(in crate::train) struct Forward {
    /// What was added to the latents, `[N, c, h, w]`.
    pub(in crate::train) noise: Tensor<4>,
    /// `[1]`
    pub(in crate::train) loss: Tensor<1>,
}

/// What took part in a step before it changed any weight.
pub(in crate::train) struct Stage2Suspects<'a> {
    pub(in crate::train) denoiser: &'a Denoiser,
    pub(in crate::train) batches: &'a [LatentBatch],
}

impl Stage2Suspects<'_> {
    /// Finds the culprit; `name_of` tells the files of images, and `forward` repeats the pass of a micro-batch of a given number.
    pub(in crate::train) fn culprit(
        &self,
        name_of: impl Fn(usize) -> String,
        forward: impl Fn(&LatentBatch, usize) -> Result<Forward, Error>,
    ) -> Result<Culprit, Error> {
        if let Some(path) = damaged_weight("", self.denoiser) {
            return Ok(Culprit::Weight(path));
        }
        let damaged = |batch: &LatentBatch| {
            damaged_items(&batch.posterior.moments(), |i| name_of(batch.indices[i]))
        };
        let names: Vec<String> = self.batches.iter().flat_map(damaged).collect();
        if !names.is_empty() {
            return Ok(Culprit::Latent(names));
        }
        let paths = Paths::default().with("", self.denoiser);
        for (number, batch) in self.batches.iter().enumerate() {
            let (pass, trace) = watch::record(|| forward(batch, number));
            let Forward { noise, loss } = pass?;
            if !is_finite(&noise) {
                return Ok(Culprit::Noise);
            }
            if let Some(found) = first_module(&trace, &paths) {
                return Ok(found);
            }
            if !is_finite(&loss) {
                let name = "loss";
                return Ok(Culprit::Term { name, module: None });
            }
            let denoiser = self.denoiser;
            let gradients = GradientsParams::from_grads(loss.backward(), denoiser);
            if let Some(path) = first_damaged_gradient("", denoiser, &gradients, &trace, &paths) {
                return Ok(Culprit::Gradient(path));
            }
        }
        Ok(Culprit::Unknown)
    }
}
