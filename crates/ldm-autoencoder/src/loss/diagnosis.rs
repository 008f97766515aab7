use burn::tensor::Tensor;

use super::{ReconstructionLoss, Stage1Objective};
use crate::PatchDiscriminator;

impl Stage1Objective {
    /// The gradient of each of the objective's terms at the reconstruction, `[N, 3, H, W]`, before adaptive weights: `rec`,
    /// `perceptual` and `g_loss`, where they are on. [`generator`](Self::generator) never has them apart; they are for finding
    /// the one that is no longer finite.
    ///
    /// # Shapes
    /// `images`, `reconstruction`: `[N, 3, H, W]`
    pub fn reconstruction_gradients(
        &self,
        discriminator: Option<&PatchDiscriminator>,
        images: Tensor<4>,
        reconstruction: Tensor<4>,
        step: u64,
    ) -> Vec<(&'static str, Tensor<4>)> {
        let images = images.inner();
        let [batch, c, h, w] = images.dims();
        let gradient = |loss: &dyn Fn(Tensor<4>) -> Tensor<1>| {
            let leaf = reconstruction.clone().inner().autodiff().require_grad();
            let loss = loss(leaf.clone());
            (leaf.grad_remove(&mut loss.backward())).expect("the loss depends on the leaf")
        };

        let rec = gradient(&|x| {
            let difference = images.clone() - x;
            match self.config.reconstruction {
                ReconstructionLoss::L1 => difference.abs(),
                ReconstructionLoss::L2 => difference.square(),
            }
            .sum()
            .div_scalar(batch as f64)
        });
        let mut gradients = vec![("rec", rec)];
        if let Some(lpips) = &self.lpips {
            let weight = self.config.perceptual_weight * (c * h * w) as f64 / batch as f64;
            let perceptual =
                gradient(&|x| lpips.forward(images.clone(), x).sum().mul_scalar(weight));
            gradients.push(("perceptual", perceptual));
        }
        if let Some(discriminator) = discriminator
            && self.config.disc_factor_at(step).is_some()
        {
            let frozen = discriminator.frozen();
            gradients.push(("g_loss", gradient(&|x| frozen.forward(x).mean().neg())));
        }
        gradients
    }

    /// The network of the perceptual term, where that is on.
    pub fn lpips(&self) -> Option<&crate::Lpips> {
        self.lpips.as_ref()
    }
}
