use burn::{module::Param, nn::conv::Conv2d, prelude::*};
use ldm_nn::Activations;

use super::{CodebookBeta, Stage1LossConfig};
use crate::{AutoencoderKl, DiagonalGaussian, VqModel};

/// Weight of one of a codebook's two distances, `beta` in the papers.
const BETA: f64 = 0.25;

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

    /// The codes `[K, c]`, where there are codes.
    fn codebook(&self) -> Option<&Param<Tensor<2>>> {
        None
    }
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
        /// Mean squared distance of the latents from codes that stand still: it moves the encoder.
        commitment: Tensor<1>,
        /// Mean squared distance of the codes from latents that stand still.
        codes: Tensor<1>,
        /// What the batch made of the codebook.
        usage: CodebookUsage,
    },
}

/// A batch and its codes, without gradients.
#[derive(Clone, Debug)]
pub struct CodebookUsage {
    /// Latents before quantisation, `[N, c, h, w]`.
    pub latents: Tensor<4>,
    /// How many of their pixels went to each code, `[K]`.
    pub hits: Tensor<1>,
}

impl CodebookUsage {
    /// Share of the codes that are in use: `[1]`, in `(0, 1]`.
    pub fn used(&self) -> Tensor<1> {
        self.hits.clone().greater_elem(0.0).float().mean()
    }

    /// `exp(-sum p ln p)` over the codes' frequencies p: the number of codes that would carry as much if all were used alike. `[1]`,
    /// from 1 to K.
    pub fn perplexity(&self) -> Tensor<1> {
        let frequencies = self.hits.clone() / self.hits.clone().sum();
        let logarithms = frequencies.clone().clamp_min(f32::MIN_POSITIVE).log();
        (frequencies * logarithms).sum().neg().exp()
    }
}

impl Penalty {
    /// Its weight in the objective.
    pub(super) fn weight(&self, config: &Stage1LossConfig) -> f64 {
        match self {
            Self::Kl(_) => config.kl_weight,
            Self::Codebook { .. } => config.codebook_weight,
        }
    }

    /// The divergence, or the codebook's loss with its `beta`.
    pub(crate) fn value(&self, config: &Stage1LossConfig) -> Tensor<1> {
        match self {
            Self::Kl(value) => value.clone(),
            Self::Codebook {
                commitment, codes, ..
            } => {
                let (whole, weighed) = match config.codebook_beta {
                    CodebookBeta::Legacy => (commitment, codes),
                    CodebookBeta::Paper => (codes, commitment),
                };
                whole.clone() + weighed.clone().mul_scalar(BETA)
            }
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
        let [commitment, codes] = quantized.distances(latents.clone());
        let penalty = Penalty::Codebook {
            commitment,
            codes,
            usage: CodebookUsage {
                latents: latents.clone().inner(),
                hits: self.quantize.hits(quantized.indices),
            },
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

    fn codebook(&self) -> Option<&Param<Tensor<2>>> {
        Some(&self.quantize.embedding.weight)
    }
}
