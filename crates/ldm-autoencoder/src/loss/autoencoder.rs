use burn::{nn::conv::Conv2d, prelude::*};
use ldm_nn::Activations;

use super::Stage1LossConfig;
use crate::{AutoencoderKl, DiagonalGaussian, VqModel};

/// An autoencoder as [`Stage1Objective`](crate::Stage1Objective) trains it.
pub trait Autoencoder: Module {
    /// The latents that training decodes, and what they are penalised for.
    ///
    /// # Shapes
    /// - `images`: `[N, 3, H, W]` in `[-1, 1]`
    /// - `noise`: standard normal, `[N, c, H/f, W/f]`; a posterior is sampled with it, where there is one
    fn regularised(&self, images: Tensor<4>, noise: Tensor<4>) -> Regularised;

    /// What enters the decoder's last convolution, `[N, c, h, w]` to `[N, C, f h, f w]`; latents of codes if there are codes.
    fn decode_features(&self, latents: Tensor<4>) -> Tensor<4>;

    /// The decoder's last convolution, to the image; its weight's gradients set the adversarial weight.
    fn conv_out(&self) -> &Conv2d;

    /// The same model, whose ResNet blocks and attentions keep their activations for the backward pass or compute them again.
    /// Neither the record nor the configuration knows of it.
    #[must_use]
    fn with_activations(self, activations: Activations) -> Self;
}

/// Latents on their way from encoder to decoder in training.
#[derive(Clone, Debug)]
pub struct Regularised {
    /// What is decoded, `[N, c, h, w]`.
    pub latents: Tensor<4>,
    /// What keeps them in shape.
    pub penalty: Penalty,
    /// The posterior that the latents are a sample of, where there is one.
    pub posterior: Option<DiagonalGaussian>,
}

/// The regularisation of a latent space (Rombach et al. 2022, section 3.1); scalars are `[1]`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a step")]
pub enum Penalty {
    /// "KL-reg.": the divergence of the posterior from the standard normal, summed over the latent, per image.
    Kl(Tensor<1>),
    /// "VQ-reg.".
    Codebook {
        /// Distance between latents and codes, see [`Quantized::loss`](crate::Quantized::loss).
        loss: Tensor<1>,
        /// Share of the codes that the batch uses, without gradients.
        used: Tensor<1>,
    },
}

impl Penalty {
    /// Its weight in the objective.
    pub(super) fn weight(&self, config: &Stage1LossConfig) -> f64 {
        match self {
            Self::Kl(_) => config.kl_weight,
            Self::Codebook { .. } => config.codebook_weight,
        }
    }

    pub(super) fn value(&self) -> Tensor<1> {
        match self {
            Self::Kl(value) | Self::Codebook { loss: value, .. } => value.clone(),
        }
    }

    /// What the likelihood of an image, a sum over its `elements`, is divided by: like its penalty it is a sum beside a KL
    /// divergence, and a mean beside a codebook.
    pub(super) fn likelihood_divisor(&self, elements: f64) -> f64 {
        match self {
            Self::Kl(_) => 1.0,
            Self::Codebook { .. } => elements,
        }
    }
}

impl Autoencoder for AutoencoderKl {
    fn regularised(&self, images: Tensor<4>, noise: Tensor<4>) -> Regularised {
        let batch = images.dims()[0] as f64;
        let posterior = self.encode(images);
        let kl = posterior.kl().sum().div_scalar(batch);
        Regularised {
            latents: posterior.sample(noise),
            penalty: Penalty::Kl(kl),
            posterior: Some(posterior),
        }
    }

    fn decode_features(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_features(latents)
    }

    fn conv_out(&self) -> &Conv2d {
        &self.decoder.conv_out
    }

    fn with_activations(mut self, activations: Activations) -> Self {
        self.encoder.set_activations(activations);
        self.decoder.set_activations(activations);
        self
    }
}

impl Autoencoder for VqModel {
    /// The decoder gets the codes, the encoder the codes' gradient: `z + sg(q(z) - z)`.
    fn regularised(&self, images: Tensor<4>, _noise: Tensor<4>) -> Regularised {
        let latents = self.encode(images);
        let quantized = self.quantize(latents.clone());
        let penalty = Penalty::Codebook {
            loss: quantized.loss(latents.clone()),
            used: self.quantize.usage(quantized.indices),
        };
        let step = (quantized.latents - latents.clone()).detach();
        Regularised {
            latents: latents + step,
            penalty,
            posterior: None,
        }
    }

    fn decode_features(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_features(latents)
    }

    fn conv_out(&self) -> &Conv2d {
        &self.decoder.conv_out
    }

    fn with_activations(mut self, activations: Activations) -> Self {
        self.encoder.set_activations(activations);
        self.decoder.set_activations(activations);
        self
    }
}
