use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// What the network predicts; serde names are diffusers'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredictionType {
    /// The noise `eps` (Ho et al. 2020).
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean sample `x_0`.
    #[serde(rename = "sample")]
    Sample,
    /// The velocity `v = signal eps - noise x_0` (Salimans & Ho 2022, appendix D).
    #[serde(rename = "v_prediction")]
    Velocity,
}

/// The two halves that a network's output splits `x_t` into.
#[derive(Clone, Debug)]
pub struct Denoised {
    /// Predicted clean sample, `[N, C, H, W]`.
    pub x0: Tensor<4>,
    /// Predicted noise, `[N, C, H, W]`.
    pub eps: Tensor<4>,
}

/// The mixture of one timestep: `x_t = signal x_0 + noise eps` with `signal^2 = abar_t`, `noise^2 = 1 - abar_t`.
///
/// One level for the whole batch while sampling, one per item while training.
#[derive(Clone, Debug)]
pub struct NoiseLevel {
    signal: Factor,
    noise: Factor,
}

impl NoiseLevel {
    /// One level for every item, from `alphas_cumprod[t]` in `[0, 1]`.
    pub fn uniform(alpha_cumprod: f64) -> Self {
        Self {
            signal: Factor::Uniform(alpha_cumprod.sqrt()),
            noise: Factor::Uniform((1.0 - alpha_cumprod).sqrt()),
        }
    }

    /// One level for every item, at which the noise is `sigma >= 0` times as strong as the signal.
    pub fn from_sigma(sigma: f64) -> Self {
        let signal = signal(sigma);
        Self {
            signal: Factor::Uniform(signal),
            noise: Factor::Uniform(sigma * signal),
        }
    }

    /// One level per item, from each item's `alphas_cumprod[t]` in `[0, 1]`.
    pub fn per_item(alphas_cumprod: &[f64], device: &Device) -> Self {
        let factor = |f: fn(f64) -> f64| {
            let values: Vec<f32> = alphas_cumprod.iter().map(|&a| f(a).sqrt() as f32).collect();
            let n = values.len();
            Factor::PerItem(
                Tensor::<1>::from_floats(values.as_slice(), device).reshape([n, 1, 1, 1]),
            )
        };
        Self {
            signal: factor(|a| a),
            noise: factor(|a| 1.0 - a),
        }
    }

    /// `x_t = signal x_0 + noise eps` (Ho et al. 2020, eq. 4); all `[N, C, H, W]`.
    pub fn add_noise(&self, x0: Tensor<4>, eps: Tensor<4>) -> Tensor<4> {
        self.signal.times(x0) + self.noise.times(eps)
    }

    /// `v = signal eps - noise x_0`; all `[N, C, H, W]`.
    pub fn velocity(&self, x0: Tensor<4>, eps: Tensor<4>) -> Tensor<4> {
        self.signal.times(eps) - self.noise.times(x0)
    }
}

/// Signal that goes with noise of `sigma` times its strength: `1 / sqrt(1 + sigma^2)`.
pub(crate) fn signal(sigma: f64) -> f64 {
    (1.0 + sigma * sigma).sqrt().recip()
}

impl PredictionType {
    /// What a perfect network would answer; all `[N, C, H, W]`.
    pub fn target(self, level: &NoiseLevel, x0: Tensor<4>, eps: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Epsilon => eps,
            Self::Sample => x0,
            Self::Velocity => level.velocity(x0, eps),
        }
    }

    /// Inverse of [`target`](Self::target): splits `x_t` by the network's `output` into clean sample and noise.
    ///
    /// `epsilon` is undefined at a level without signal, `sample` at one without noise.
    pub fn denoise(self, level: &NoiseLevel, output: Tensor<4>, x_t: Tensor<4>) -> Denoised {
        let NoiseLevel { signal, noise } = level;
        match self {
            Self::Epsilon => Denoised {
                x0: signal.divide(x_t - noise.times(output.clone())),
                eps: output,
            },
            Self::Sample => Denoised {
                eps: noise.divide(x_t - signal.times(output.clone())),
                x0: output,
            },
            Self::Velocity => Denoised {
                x0: signal.times(x_t.clone()) - noise.times(output.clone()),
                eps: signal.times(output) + noise.times(x_t),
            },
        }
    }
}

/// A factor for the whole batch, or one per item as `[N, 1, 1, 1]`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "lives for one step")]
enum Factor {
    Uniform(f64),
    PerItem(Tensor<4>),
}

impl Factor {
    fn times(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Uniform(factor) => x.mul_scalar(*factor),
            Self::PerItem(factor) => x * factor.clone(),
        }
    }

    fn divide(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Uniform(factor) => x.div_scalar(*factor),
            Self::PerItem(factor) => x / factor.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Tensor<4>, Tensor<4>) {
        let device = Device::flex();
        let x0 = Tensor::<1>::from_floats([0.5, -1.0, 2.0, 0.25], &device).reshape([2, 1, 1, 2]);
        let eps = Tensor::<1>::from_floats([-0.3, 0.8, 1.1, -1.7], &device).reshape([2, 1, 1, 2]);
        (x0, eps)
    }

    #[test]
    fn denoise_inverts_target_for_every_type_and_kind_of_level() {
        let (x0, eps) = pair();
        for level in [
            NoiseLevel::uniform(0.3),
            NoiseLevel::per_item(&[0.9, 0.2], &Device::flex()),
        ] {
            let x_t = level.add_noise(x0.clone(), eps.clone());
            for kind in [
                PredictionType::Epsilon,
                PredictionType::Sample,
                PredictionType::Velocity,
            ] {
                let target = kind.target(&level, x0.clone(), eps.clone());
                let split = kind.denoise(&level, target, x_t.clone());
                split.x0.into_data().assert_approx_eq::<f32>(
                    &x0.to_data(),
                    burn::tensor::Tolerance::absolute(1e-5),
                );
                split.eps.into_data().assert_approx_eq::<f32>(
                    &eps.to_data(),
                    burn::tensor::Tolerance::absolute(1e-5),
                );
            }
        }
    }

    #[test]
    fn velocity_needs_no_signal() {
        let (x0, eps) = pair();
        let level = NoiseLevel::uniform(0.0);
        let x_t = level.add_noise(x0.clone(), eps.clone());
        let v = level.velocity(x0.clone(), eps);
        let split = PredictionType::Velocity.denoise(&level, v, x_t);
        split
            .x0
            .into_data()
            .assert_approx_eq::<f32>(&x0.to_data(), burn::tensor::Tolerance::absolute(1e-6));
    }
}
