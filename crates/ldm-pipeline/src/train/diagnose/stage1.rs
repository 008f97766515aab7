//! Stage 1: the autoencoder, the perceptual network and the discriminator.

use burn::tensor::Tensor;
use ldm_autoencoder::{
    Autoencoder, GeneratorStep, GeneratorTerms, PatchDiscriminator, Stage1Objective,
};
use ldm_nn::watch::{self, Entry, Paths};

use super::{
    Culprit,
    gradients::first_damaged_gradient,
    search::{damaged_items, damaged_weight, first_module, is_finite},
};

/// One micro-batch of a step.
pub(in crate::train) struct Micro {
    /// `[N, 3, H, W]`
    pub(in crate::train) images: Tensor<4>,
    /// The images' numbers in the data set.
    pub(in crate::train) indices: Vec<usize>,
    /// Of the posterior, `[N, c, h, w]`.
    pub(in crate::train) noise: Tensor<4>,
}

/// What took part in a step before it changed any weight.
pub(in crate::train) struct Stage1Suspects<'a, M> {
    pub(in crate::train) objective: &'a Stage1Objective,
    pub(in crate::train) vae: &'a M,
    pub(in crate::train) discriminator: Option<&'a PatchDiscriminator>,
    pub(in crate::train) batches: &'a [Micro],
    pub(in crate::train) step: u64,
}

impl<M: Autoencoder> Stage1Suspects<'_, M> {
    /// Finds the culprit; `name_of` tells the files of images. The discriminator's running statistics move as in a step.
    pub(in crate::train) fn culprit(&self, name_of: impl Fn(usize) -> String) -> Culprit {
        self.weights()
            .or_else(|| self.batch(name_of))
            .or_else(|| self.passes())
            .unwrap_or(Culprit::Unknown)
    }

    fn weights(&self) -> Option<Culprit> {
        let of_discriminator = |d: &PatchDiscriminator| damaged_weight("discriminator", d);
        damaged_weight("vae", self.vae)
            .or_else(|| self.discriminator.and_then(of_discriminator))
            .map(Culprit::Weight)
    }

    fn batch(&self, name_of: impl Fn(usize) -> String) -> Option<Culprit> {
        let damaged = |batch: &Micro| damaged_items(&batch.images, |i| name_of(batch.indices[i]));
        let names: Vec<String> = self.batches.iter().flat_map(damaged).collect();
        if !names.is_empty() {
            return Some(Culprit::Image(names));
        }
        let noisy = self.batches.iter().any(|batch| !is_finite(&batch.noise));
        noisy.then_some(Culprit::Noise)
    }

    fn passes(&self) -> Option<Culprit> {
        let mut paths = Paths::default().with("vae", self.vae);
        if let Some(discriminator) = self.discriminator {
            paths = paths.with("discriminator", discriminator);
        }
        let vgg = match self.objective.lpips() {
            Some(lpips) => Paths::default().with("vgg", lpips),
            None => Paths::default(),
        };
        let mut reconstructions = Vec::new();
        for batch in self.batches {
            let (output, trace) = watch::record(|| self.generator(batch));
            let found = first_module(&trace, &paths)
                .or_else(|| of_vgg(&trace, &vgg))
                .or_else(|| term(&output.terms))
                .or_else(|| self.gradient_at(batch, &output.reconstruction))
                .or_else(|| {
                    let vae = self.vae;
                    first_damaged_gradient("vae", vae, &output.grads, &trace, &paths)
                        .map(Culprit::Gradient)
                });
            if found.is_some() {
                return found;
            }
            reconstructions.push(output.reconstruction);
        }
        let discriminator = self.discriminator?;
        (self.batches.iter().zip(reconstructions))
            .find_map(|(batch, r)| self.discriminate(discriminator, batch, r, &paths))
    }

    fn generator(&self, batch: &Micro) -> GeneratorStep {
        self.objective.generator(
            self.vae,
            self.discriminator,
            batch.images.clone(),
            batch.noise.clone(),
            self.step,
        )
    }

    /// The term whose gradient at the reconstruction is not finite.
    fn gradient_at(&self, batch: &Micro, reconstruction: &Tensor<4>) -> Option<Culprit> {
        let (images, reconstruction) = (batch.images.clone(), reconstruction.clone());
        let gradients = self.objective.reconstruction_gradients(
            self.discriminator,
            images,
            reconstruction,
            self.step,
        );
        let damaged = |(name, gradient): (_, Tensor<4>)| (!is_finite(&gradient)).then_some(name);
        let name = gradients.into_iter().find_map(damaged)?;
        Some(Culprit::Term { name, module: None })
    }

    /// What goes wrong in the discriminator's own pass.
    fn discriminate(
        &self,
        discriminator: &PatchDiscriminator,
        batch: &Micro,
        reconstruction: Tensor<4>,
        paths: &Paths,
    ) -> Option<Culprit> {
        let images = batch.images.clone();
        let (output, trace) = watch::record(|| {
            (self.objective).discriminator(discriminator, images, reconstruction, self.step)
        });
        let output = output?;
        first_module(&trace, paths)
            .or_else(|| {
                (!output.terms.loss.is_finite()).then_some(Culprit::Term {
                    name: "disc_loss",
                    module: None,
                })
            })
            .or_else(|| {
                let name = "discriminator";
                first_damaged_gradient(name, discriminator, &output.grads, &trace, paths)
                    .map(Culprit::Gradient)
            })
    }
}

/// The perceptual term, if the first module that made something not finite is of its network.
fn of_vgg(trace: &[Entry], vgg: &Paths) -> Option<Culprit> {
    let Some(Culprit::Module(path) | Culprit::Input(path)) = first_module(trace, vgg) else {
        return None;
    };
    Some(Culprit::Term {
        name: "perceptual",
        module: Some(path),
    })
}

/// The first term that is not finite.
fn term(terms: &GeneratorTerms) -> Option<Culprit> {
    let terms = [
        ("kl", terms.kl),
        ("codebook", terms.codebook),
        ("rec", terms.rec),
        ("perceptual", terms.perceptual),
        ("nll", terms.nll),
        ("g_loss", terms.g_loss),
        ("d_weight", terms.d_weight),
        ("total", terms.total),
    ];
    let (name, _) = terms.into_iter().find(|(_, value)| !value.is_finite())?;
    Some(Culprit::Term { name, module: None })
}
