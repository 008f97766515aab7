//! The loss on held-out images, by timestep.

use burn::tensor::Device;
use ldm_diffusion::DiffusionLoss;

use super::{
    conditions::Conditions, images::load_images, latents::LatentBatch, run_loop::Validation,
};
use crate::{
    config::{RunConfig, Stage2Config},
    data::{Dataset, ImageDataset},
    error::Error,
    generate::noise_batch,
    model::{Denoiser, FirstStage},
    rng::Stream,
};

/// Images that the loss is measured on at most, at a timestep of every bin each.
pub(crate) const VALIDATION_ITEMS: usize = 32;

/// Names of the mean losses at the timesteps of each tenth of the forward process, from little noise to almost only noise.
const BINS: [&str; 10] = [
    "val_loss/0.0-0.1",
    "val_loss/0.1-0.2",
    "val_loss/0.2-0.3",
    "val_loss/0.3-0.4",
    "val_loss/0.4-0.5",
    "val_loss/0.5-0.6",
    "val_loss/0.6-0.7",
    "val_loss/0.7-0.8",
    "val_loss/0.8-0.9",
    "val_loss/0.9-1.0",
];

/// Held-out images as latents, and their conditions.
pub(super) struct HeldOut {
    batches: Vec<LatentBatch>,
    conditions: Conditions,
}

impl HeldOut {
    /// Encodes up to 32 images of `held_out`; `None` if there are none, or none with what the model is conditioned on.
    pub(super) fn new(
        config: &RunConfig,
        stage2: &Stage2Config,
        held_out: &ImageDataset,
        training_set: &ImageDataset,
        first_stage: &FirstStage,
        device: &Device,
    ) -> Option<Self> {
        if held_out.is_empty() {
            return None;
        }
        // What a held-out image lacks is no reason to refuse the training.
        let conditions = Conditions::new(config, stage2, held_out, training_set).ok()?;
        let count = held_out.len().min(VALIDATION_ITEMS);
        let size = stage2.training.batch_size;
        let batches: Vec<LatentBatch> = (0..count)
            .step_by(size)
            .filter_map(|first| {
                let (images, indices) =
                    load_images(held_out, first..count.min(first + size), device)?;
                Some(LatentBatch {
                    posterior: first_stage.encode(images),
                    indices,
                })
            })
            .collect();
        (!batches.is_empty()).then_some(Self {
            batches,
            conditions,
        })
    }

    /// The mean distance between the network's output and its target, without weights: over all bins and in each. Noise and timesteps are
    /// the same at every call.
    pub(super) fn validate(
        &self,
        denoiser: &Denoiser,
        loss: &DiffusionLoss,
        scaling_factor: f64,
        seed: u64,
        device: &Device,
    ) -> Result<Validation, Error> {
        let steps = loss.schedule().num_train_timesteps();
        let count: usize = self.batches.iter().map(|batch| batch.indices.len()).sum();
        let mut means = [0.0; BINS.len()];
        let mut first = 0;
        for batch in &self.batches {
            let shape = batch.posterior.mean.dims();
            let condition =
                (self.conditions).of_batch(denoiser.conditioner.as_ref(), batch, None, device)?;
            for (bin, mean) in means.iter_mut().enumerate() {
                let noise = |part: usize| {
                    noise_batch(seed, Stream::Validation, part as u64, first, shape, device)
                };
                let x0 =
                    (batch.posterior.sample(noise(BINS.len() + bin))).mul_scalar(scaling_factor);
                let noise = noise(bin);
                let timesteps: Vec<usize> = (0..shape[0])
                    .map(|item| timestep(bin, first as usize + item, count, steps))
                    .collect();
                let noisy = (loss.schedule()).add_noise(x0.clone(), noise.clone(), &timesteps);
                let output = condition.predict(&denoiser.unet, noisy, &timesteps);
                let distances = loss.forward(output, x0, noise, &timesteps).per_item;
                *mean += distances.into_data().iter::<f64>().sum::<f64>() / count as f64;
            }
            first += shape[0] as u64;
        }
        let total = means.iter().sum::<f64>() / BINS.len() as f64;
        let mut values = vec![("val_loss", total)];
        values.extend(BINS.into_iter().zip(means));
        Ok(Validation {
            values,
            score: Some(-total),
        })
    }
}

/// The timestep of an item in a bin: the items of a bin are spread evenly over it.
fn timestep(bin: usize, item: usize, items: usize, steps: usize) -> usize {
    let within = (item as f64 + 0.5) / items as f64;
    let share = (bin as f64 + within) / BINS.len() as f64;
    ((share * steps as f64) as usize).min(steps - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timesteps_stay_in_their_bin_and_fill_it() {
        for bin in 0..10 {
            let drawn: Vec<usize> = (0..32).map(|item| timestep(bin, item, 32, 1000)).collect();
            assert!(drawn.iter().all(|t| t / 100 == bin), "{drawn:?}");
            assert!(drawn[0] < 100 * bin + 3 && drawn[31] > 100 * bin + 96);
        }
        assert_eq!(timestep(9, 0, 1, 4), 3);
    }
}
