use burn::prelude::*;

use super::{Sampler, Step, check_signal, clip::Clip, invalid, predicted_mean, spacing};
use crate::{Error, NoiseLevel, PredictionType, SchedulerConfig};

/// Denoising diffusion implicit models (Song et al. 2021, eq. 12), with diffusers' choice of levels.
pub struct Ddim {
    timesteps: Vec<f64>,
    /// `abar` at each step, and at the level that it leads to.
    alphas: Vec<(f64, f64)>,
    eta: f64,
    prediction_type: PredictionType,
    clip: Clip,
}

impl Ddim {
    /// Prepares `steps` steps over the schedule of `config`. `eta` is the share of the ancestral sampler's noise that each step adds: 0 is deterministic, 1 like DDPM.
    ///
    /// # Errors
    /// If `config` makes no schedule, `steps` don't fit into it, a noise prediction meets a level without signal, or `eta` isn't within
    /// `[0, 1]`.
    pub fn new(config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(invalid(
                "eta",
                format!("is {eta}: it must lie between 0 and 1"),
            ));
        }
        let schedule = config.rescaled_schedule()?;
        let alphas = schedule.alphas_cumprod();
        let timesteps = spacing::whole(config, alphas.len(), steps)?;
        check_signal(config.prediction_type, alphas[timesteps[0]])?;
        let clean = if config.set_alpha_to_one.unwrap_or(true) {
            1.0
        } else {
            alphas[0]
        };
        // `T / steps` training steps below, wherever the next timestep lies: the reference's rule.
        let stride = alphas.len() / steps;
        let next = |t: usize| t.checked_sub(stride).map_or(clean, |next| alphas[next]);
        Ok(Self {
            alphas: timesteps.iter().map(|&t| (alphas[t], next(t))).collect(),
            timesteps: timesteps.into_iter().map(|t| t as f64).collect(),
            eta,
            prediction_type: config.prediction_type,
            clip: Clip::new(config, true),
        })
    }
}

impl Ddim {
    /// Standard deviation of a step's noise (Song et al. 2021, eq. 16).
    fn sigma(&self, step: usize) -> f64 {
        let (alpha, alpha_next) = self.alphas[step];
        let variance = (1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next);
        self.eta * variance.max(0.0).sqrt()
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        NoiseLevel::uniform(self.alphas[step].0).add_noise(x0, noise)
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let (alpha, alpha_next) = self.alphas[step];
        let predicted = self.prediction_type.denoise(
            &NoiseLevel::uniform(alpha),
            predicted_mean(output, &x),
            x,
        );
        let x0 = self.clip.apply(predicted.x0);

        let sigma = self.sigma(step);
        // Rounding may take this below 0 where eta is 1.
        let direction = (1.0 - alpha_next - sigma * sigma).max(0.0).sqrt();
        let mut latents =
            x0.clone().mul_scalar(alpha_next.sqrt()) + predicted.eps.mul_scalar(direction);
        if self.eta > 0.0 {
            latents = latents + noise(step).mul_scalar(sigma);
        }
        Step {
            latents,
            denoised: x0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Fails unless `actual`, from the noisiest down, are the numbers `expected` to `tolerance`.
    fn assert_reversed(
        what: &str,
        actual: impl Iterator<Item = f64>,
        expected: &Value,
        tolerance: f64,
    ) {
        let actual: Vec<f64> = actual.collect();
        let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (a, e) in actual.iter().rev().zip(expected) {
            assert!((a - e).abs() <= tolerance, "{what}: {a}, not {e}");
        }
    }

    #[test]
    fn coefficients_are_compvis() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/compvis/samplers/ddim.json"
        );
        let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for (name, case) in cases.as_object().unwrap() {
            let beta = |key: &str| case[key].as_f64().unwrap();
            let config = SchedulerConfig::compvis(beta("linear_start"), beta("linear_end"));
            let ddim = Ddim::new(&config, 20, 0.0).unwrap();
            let alphas = || ddim.alphas.iter();
            assert_reversed(
                name,
                ddim.timesteps.iter().copied(),
                &case["timesteps"],
                0.0,
            );
            // A product here has diffusers' rounding of every `1 - beta` to f32, CompVis' is rounded once.
            assert_reversed(name, alphas().map(|pair| pair.0), &case["alphas"], 2e-6);
            assert_reversed(
                name,
                alphas().map(|pair| pair.1),
                &case["alphas_prev"],
                2e-6,
            );
            let random = Ddim::new(&config, 10, 1.0).unwrap();
            let sigmas = (0..10).map(|step| random.sigma(step));
            assert_reversed(name, sigmas, &case["sigmas"], 2e-6);
        }
        assert_eq!(cases.as_object().map(serde_json::Map::len), Some(3));
    }
}
