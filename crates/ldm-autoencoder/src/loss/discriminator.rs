use burn::{
    optim::GradientsParams,
    tensor::{
        Tensor,
        activation::{relu, softplus},
    },
};
use serde::Serialize;

use super::{DiscriminatorLoss, Stage1Objective, fetch};
use crate::PatchDiscriminator;

/// The discriminator's half of a training step.
#[derive(Debug)]
pub struct DiscriminatorStep {
    /// Gradients of the discriminator's parameters; empty before `disc_start`.
    pub grads: GradientsParams,
    /// What to log.
    pub terms: DiscriminatorTerms,
}

/// Scalars of a [`DiscriminatorStep`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiscriminatorTerms {
    /// The loss times `disc_factor`.
    pub loss: f32,
    /// Mean logit of images.
    pub logits_real: f32,
    /// Mean logit of reconstructions.
    pub logits_fake: f32,
    /// Share of patches judged rightly, real and fake with equal weight; 0.5 is guessing.
    pub accuracy: f32,
}

impl Stage1Objective {
    /// The discriminator's gradients, or `None` where the adversarial part is off or `step` is before `disc_start`.
    ///
    /// Images and reconstructions pass in that order and one batch at a time, so that each is normalised by its own statistics.
    ///
    /// # Shapes
    /// `images`, `reconstruction`: `[N, 3, H, W]`; gradients of the latter are cut.
    pub fn discriminator(
        &self,
        discriminator: &PatchDiscriminator,
        images: Tensor<4>,
        reconstruction: Tensor<4>,
        step: u64,
    ) -> Option<DiscriminatorStep> {
        let factor = self.config.disc_factor_at(step)?;
        let real = discriminator.forward(images.inner());
        let fake = discriminator.forward(reconstruction.inner());
        let loss = self
            .config
            .disc_loss
            .of(real.clone(), fake.clone())
            .mul_scalar(factor);
        let grads = if factor > 0.0 {
            GradientsParams::from_grads(loss.backward(), discriminator)
        } else {
            GradientsParams::new()
        };

        let (real, fake) = (real.inner(), fake.inner());
        let right = real.clone().greater_elem(0.0).float().mean()
            + fake.clone().lower_elem(0.0).float().mean();
        let [loss, logits_real, logits_fake, right] =
            fetch([loss, real.mean(), fake.mean(), right]);
        Some(DiscriminatorStep {
            grads,
            terms: DiscriminatorTerms {
                loss,
                logits_real,
                logits_fake,
                accuracy: right / 2.0,
            },
        })
    }
}

impl DiscriminatorLoss {
    /// The loss of logits of real and fake patches, of any shape: `[1]`.
    fn of(self, real: Tensor<4>, fake: Tensor<4>) -> Tensor<1> {
        let (real, fake) = match self {
            Self::Hinge => (relu(real.neg().add_scalar(1.0)), relu(fake.add_scalar(1.0))),
            Self::Vanilla => (softplus(real.neg(), 1.0), softplus(fake, 1.0)),
        };
        (real.mean() + fake.mean()).mul_scalar(0.5)
    }
}
