use burn::{
    optim::GradientsParams,
    tensor::{Tensor, module::conv2d_weight_backward, ops::ConvOptions},
};
use ldm_nn::ops;
use serde::Serialize;

use super::{
    Autoencoder, CodebookUsage, Penalty, ReconstructionLoss, Regularised, Stage1Objective, fetch,
};
use crate::{DiagonalGaussian, PatchDiscriminator};

/// Added to the adversarial gradient's norm in the adaptive weight.
const D_WEIGHT_EPSILON: f64 = 1e-4;
/// Upper bound of the adaptive weight.
const D_WEIGHT_MAX: f64 = 1e4;

/// The autoencoder's half of a training step.
#[derive(Debug)]
pub struct GeneratorStep {
    /// Gradients of the autoencoder's parameters.
    pub grads: GradientsParams,
    /// Gradient of the objective at the log-variance, `[1]`; `None` where it is a constant.
    pub logvar_grad: Option<Tensor<1>>,
    /// What the batch made of the codebook; `None` where there is none.
    pub codebook: Option<CodebookUsage>,
    /// What the batch was decoded to, `[N, 3, H, W]`, without gradients: the discriminator's step takes it.
    pub reconstruction: Tensor<4>,
    /// See [`DiagonalGaussian::channel_statistics`]; `None` without a posterior.
    pub posterior: Option<Tensor<2>>,
    /// What to log.
    pub terms: GeneratorTerms,
}

/// Scalars of a [`GeneratorStep`]; a part that is off reads 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GeneratorTerms {
    /// `nll + kl_weight * kl + codebook_weight * codebook + d_weight * disc_factor * g_loss`.
    pub total: f32,
    /// Negative log-likelihood: pixel and perceptual distance, per image summed over the elements, or with a codebook their mean.
    pub nll: f32,
    /// Pixel distance, mean over all elements.
    pub rec: f32,
    /// Perceptual distance, mean over the batch, before its weight.
    pub perceptual: f32,
    /// KL divergence, summed over the latent, per image, before its weight.
    pub kl: f32,
    /// Distance between latents and codes, before its weight.
    pub codebook: f32,
    /// Share of the codes that the batch used.
    pub codes_used: f32,
    /// Perplexity of the codes that the batch used, see [`CodebookUsage::perplexity`].
    pub codebook_perplexity: f32,
    /// Adversarial loss, `-mean(logits)`, before its weight.
    pub g_loss: f32,
    /// Adaptive weight of the adversarial loss, `disc_weight` included.
    pub d_weight: f32,
    /// `disc_factor` from `disc_start` on, 0 before.
    pub disc_factor: f32,
    /// Mean logit of the reconstructions.
    pub logits_fake: f32,
}

/// A loss of the reconstruction, and its gradient there.
struct Term<T> {
    value: T,
    gradient: Tensor<4>,
}

/// The likelihood's parts, each `[1]`.
struct Likelihood {
    nll: Tensor<1>,
    rec: Tensor<1>,
    perceptual: Tensor<1>,
    /// Derivative of `nll` with respect to the log-variance, if that is a variable.
    logvar_grad: Option<Tensor<1>>,
}

impl Stage1Objective {
    /// The autoencoder's gradients and the objective's terms for a batch.
    ///
    /// Without a `discriminator`, or before `disc_start`, the adversarial part is left out. The discriminator gets no
    /// gradients, but its norms' running statistics follow.
    ///
    /// The adaptive weight compares gradients at the last convolution, and burn can't traverse a graph twice. So the losses are
    /// differentiated with respect to the reconstruction `r` alone, each on a small graph of its own; the weight comes from
    /// those two gradients; and one backward pass of `sum(r * gradient) + weight * penalty` reaches the parameters.
    ///
    /// # Shapes
    /// - `images`: `[N, 3, H, W]` in `[-1, 1]`, sides divisible by the model's factor
    /// - `noise`: standard normal, `[N, c, H/f, W/f]`
    ///
    /// # Panics
    /// If `model` is not on an autodiff device.
    pub fn generator<M: Autoencoder>(
        &self,
        model: &M,
        discriminator: Option<&PatchDiscriminator>,
        images: Tensor<4>,
        noise: Tensor<4>,
        step: u64,
    ) -> GeneratorStep {
        self.generator_with_logvar(model, discriminator, images, noise, step, None)
    }

    /// As [`generator`](Self::generator), with `logvar` `[1]`, if given, for the log-variance, a parameter that is trained along: its
    /// gradient is in [`GeneratorStep::logvar_grad`]. The configuration's `logvar` is its first value and then has no part here.
    ///
    /// # Panics
    /// If `model` is not on an autodiff device.
    pub fn generator_with_logvar<M: Autoencoder>(
        &self,
        model: &M,
        discriminator: Option<&PatchDiscriminator>,
        images: Tensor<4>,
        noise: Tensor<4>,
        step: u64,
        logvar: Option<Tensor<1>>,
    ) -> GeneratorStep {
        let images = images.inner();
        let Regularised {
            latents,
            penalty,
            posterior,
        } = model.regularised(images.clone(), noise);
        let posterior = (posterior.as_ref()).map(DiagonalGaussian::channel_statistics);
        let features = model.decode_features(latents);
        let tracked = ops::to_f32(ops::conv2d(model.conv_out(), features.clone()));
        let features = ops::to_f32(features.inner());
        let reconstruction = tracked.clone().inner();

        let Term {
            value:
                Likelihood {
                    nll,
                    rec,
                    perceptual,
                    logvar_grad,
                },
            mut gradient,
        } = self.likelihood(&images, &reconstruction, &penalty, logvar);

        let zero = || Tensor::<1>::zeros([1], &reconstruction.device());
        let (mut g_loss, mut d_weight, mut disc_factor) = (zero(), zero(), 0.0);
        let active = discriminator.zip(self.config.disc_factor_at(step));
        if let Some((discriminator, factor)) = active {
            let adversarial = adversarial(discriminator, &reconstruction);
            d_weight = adaptive_weight(
                last_layer_norm(model, features.clone(), gradient.clone()),
                last_layer_norm(model, features, adversarial.gradient.clone()),
            )
            .mul_scalar(self.config.disc_weight);
            gradient = gradient
                + adversarial.gradient * d_weight.clone().mul_scalar(factor).reshape([1, 1, 1, 1]);
            g_loss = adversarial.value;
            disc_factor = factor as f32;
        }

        let weight = penalty.weight(&self.config);
        let mut surrogate = (tracked * gradient).sum();
        if weight > 0.0 {
            surrogate = surrogate + penalty.value(&self.config).mul_scalar(weight);
        }
        let grads = GradientsParams::from_grads(surrogate.backward(), model);

        let value = penalty.value(&self.config);
        let ([kl, codebook, codes_used, perplexity], usage) = match penalty {
            Penalty::Kl(_) => ([value, zero(), zero(), zero()], None),
            Penalty::Codebook { usage, .. } => (
                [zero(), value, usage.used(), usage.perplexity()],
                Some(usage),
            ),
        };
        let [
            nll,
            rec,
            perceptual,
            kl,
            codebook,
            codes_used,
            codebook_perplexity,
            g_loss,
            d_weight,
        ] = fetch([
            nll, rec, perceptual, kl, codebook, codes_used, perplexity, g_loss, d_weight,
        ]);
        let terms = GeneratorTerms {
            total: nll + weight as f32 * (kl + codebook) + d_weight * disc_factor * g_loss,
            nll,
            rec,
            perceptual,
            kl,
            codebook,
            codes_used,
            codebook_perplexity,
            g_loss,
            d_weight,
            disc_factor,
            logits_fake: -g_loss,
        };
        GeneratorStep {
            grads,
            logvar_grad,
            codebook: usage,
            reconstruction,
            posterior,
            terms,
        }
    }

    /// `sum((|x - r| + perceptual_weight * LPIPS(x, r)) / exp(logvar) + logvar) / N`, where an image's perceptual distance counts
    /// once for each of its elements; beside a codebook the mean over all elements.
    fn likelihood(
        &self,
        images: &Tensor<4>,
        reconstruction: &Tensor<4>,
        penalty: &Penalty,
        logvar: Option<Tensor<1>>,
    ) -> Term<Likelihood> {
        let [n, c, h, w] = images.dims();
        let (batch, elements) = (n as f64, (c * h * w) as f64);
        let reconstruction = leaf(reconstruction);

        let difference = images.clone() - reconstruction.clone();
        let pixel = match self.config.reconstruction {
            ReconstructionLoss::L1 => difference.abs(),
            ReconstructionLoss::L2 => difference.square(),
        }
        .sum();
        let rec = pixel.clone().div_scalar(batch * elements);
        let (distance, perceptual) = match &self.lpips {
            Some(lpips) => {
                let distance = lpips.forward(images.clone(), reconstruction.clone()).sum();
                let weight = self.config.perceptual_weight * elements;
                (
                    pixel + distance.clone().mul_scalar(weight),
                    distance.div_scalar(batch),
                )
            }
            None => (pixel, rec.zeros_like()),
        };
        let logvar = logvar.map(|logvar| logvar.inner().autodiff().require_grad());
        let nll = match &logvar {
            Some(logvar) => {
                distance.div_scalar(batch) * logvar.clone().neg().exp()
                    + logvar.clone().mul_scalar(elements)
            }
            None => distance
                .div_scalar(self.config.logvar.exp() * batch)
                .add_scalar(self.config.logvar * elements),
        }
        .div_scalar(penalty.likelihood_divisor(elements));
        let mut gradients = nll.backward();
        let gradient = reconstruction.grad_remove(&mut gradients);
        Term {
            value: Likelihood {
                nll,
                rec,
                perceptual,
                logvar_grad: logvar.and_then(|logvar| logvar.grad_remove(&mut gradients)),
            },
            gradient: gradient.expect("the likelihood depends on the reconstruction"),
        }
    }
}

/// The generator's loss `-mean(D(r))`.
fn adversarial(discriminator: &PatchDiscriminator, reconstruction: &Tensor<4>) -> Term<Tensor<1>> {
    let reconstruction = leaf(reconstruction);
    let loss = discriminator
        .frozen()
        .forward(reconstruction.clone())
        .mean()
        .neg();
    let gradient = gradient_at(&reconstruction, &loss);
    Term {
        value: loss.inner(),
        gradient,
    }
}

/// `clamp(|grad nll| / (|grad g| + 1e-4), 0, 1e4)` (Esser et al. 2021, equation 7).
fn adaptive_weight(nll_norm: Tensor<1>, adversarial_norm: Tensor<1>) -> Tensor<1> {
    (nll_norm / adversarial_norm.add_scalar(D_WEIGHT_EPSILON)).clamp(0.0, D_WEIGHT_MAX)
}

/// Norm of a loss's gradient at the last convolution's weight, given its gradient at the reconstruction.
fn last_layer_norm<M: Autoencoder>(
    model: &M,
    features: Tensor<4>,
    gradient: Tensor<4>,
) -> Tensor<1> {
    let weight = ops::to_f32(model.conv_out().weight.val().inner());
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    conv2d_weight_backward(features, weight, gradient, options)
        .square()
        .sum()
        .sqrt()
}

/// A copy that a graph of its own can start from.
fn leaf(x: &Tensor<4>) -> Tensor<4> {
    x.clone().autodiff().require_grad()
}

fn gradient_at(leaf: &Tensor<4>, loss: &Tensor<1>) -> Tensor<4> {
    leaf.grad_remove(&mut loss.backward())
        .expect("the loss depends on the leaf")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::tests::{assert_near, assert_relative, compvis, scalar};

    /// CompVis' likelihood gradient, perceptual part included, stands in for ours: the network behind it is too big a file.
    #[test]
    fn adaptive_weight_and_adversarial_gradient_are_the_references() {
        let device = Device::flex().autodiff();
        let expected = compvis::expected();
        let model = compvis::autoencoder(&device);
        let posterior = model.encode(expected.tensor("image"));
        let features = model
            .decode_features(posterior.sample(expected.tensor("noise")))
            .inner();
        let (nll, expected_adversarial) = compvis::reconstruction_gradients(&expected);
        let adversarial = adversarial(
            &compvis::discriminator(&device),
            &expected.tensor("reconstruction"),
        );
        let d_weight = adaptive_weight(
            last_layer_norm(&model, features.clone(), nll),
            last_layer_norm(&model, features, adversarial.gradient.clone()),
        );
        let d_weight = scalar(d_weight.mul_scalar(0.5));
        assert_near(d_weight, expected.scalar("gen.after.d_weight"), 2e-4);
        assert_relative(adversarial.gradient, expected_adversarial, 1e-2);
    }

    #[test]
    fn adaptive_weight_is_bounded() {
        let of = |nll: f32, adversarial: f32| {
            let tensor = |value| Tensor::<1>::from_floats([value], &Device::flex());
            scalar(adaptive_weight(tensor(nll), tensor(adversarial)))
        };
        assert_near(of(3.0, 2.0), 3.0 / 2.0001, 1e-6);
        assert_eq!(of(3.0, 0.0), 1e4);
        assert_eq!(of(0.0, 2.0), 0.0);
    }
}
