use burn::prelude::*;

use super::{
    Step,
    history::History,
    sigmas::{OneCall, SigmaCurve, SigmaLevels},
};
use crate::{Error, SchedulerConfig};

/// Order of the method once there are enough steps.
const ORDER: usize = 4;

/// Linear multistep method of order 4 for the probability flow ODE: the polynomial through the latest derivatives, integrated over the
/// step (Adams-Bashforth for uneven steps; k-diffusion's `lms`).
pub struct Lms {
    levels: SigmaLevels,
    derivatives: History,
}

impl Lms {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule or asks for levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let curve = SigmaCurve::new(&config.plain_schedule()?);
        Ok(Self {
            levels: SigmaLevels::new(config, &curve, steps)?,
            derivatives: History::new(ORDER),
        })
    }
}

/// Weights of the derivatives at `sigmas[step]`, `sigmas[step - 1]`, ... (`order` of them, at most 4) in the step to
/// `sigmas[step + 1]`: integrals of Lagrange's polynomials.
fn weights(sigmas: &[f64], step: usize, order: usize) -> Vec<f64> {
    let node = |age: usize| sigmas[step - age];
    let (from, to) = (sigmas[step], sigmas[step + 1]);
    (0..order)
        .map(|age| {
            let lagrange = |sigma: f64| -> f64 {
                (0..order)
                    .filter(|other| *other != age)
                    .map(|other| (sigma - node(other)) / (node(age) - node(other)))
                    .product()
            };
            // Simpson's rule is exact up to the third degree.
            (to - from) / 6.0
                * (lagrange(from) + 4.0 * lagrange(f64::midpoint(from, to)) + lagrange(to))
        })
        .collect()
}

impl OneCall for Lms {
    fn sigma_levels(&self) -> &SigmaLevels {
        &self.levels
    }

    fn advance(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let predicted = self
            .levels
            .denoise(output, x.clone(), self.levels.sigmas[step]);
        self.derivatives.push(step, predicted.eps);
        let weights = weights(&self.levels.sigmas, step, self.derivatives.len());
        Step {
            latents: x + self.derivatives.combine(&weights),
            denoised: predicted.x0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_integrate_cubics_exactly() {
        let sigmas = [9.0, 6.5, 5.0, 3.5, 1.0];
        let cubic = |s: f64| 0.3 * s.powi(3) - s * s + 2.0 * s - 5.0;
        let integral = |s: f64| 0.075 * s.powi(4) - s.powi(3) / 3.0 + s * s - 5.0 * s;
        let sum: f64 = (weights(&sigmas, 3, 4).iter().enumerate())
            .map(|(age, weight)| weight * cubic(sigmas[3 - age]))
            .sum();
        assert!((sum - (integral(1.0) - integral(3.5))).abs() < 1e-10);
        assert_eq!(weights(&sigmas, 0, 1), [-2.5]);
    }
}
