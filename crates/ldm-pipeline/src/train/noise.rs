//! The noise of a diffusion training step.

use burn::tensor::Tensor;

use crate::{config::NoiseConfig, rng::Stream};

/// What is mixed into the latents and what is to be found in the mixture, `[N, C, H, W]` each.
pub(super) struct TrainingNoise {
    /// Enters the noised latents.
    pub(super) mixed: Tensor<4>,
    /// Enters the target.
    pub(super) target: Tensor<4>,
}

impl TrainingNoise {
    /// Standard normal noise in the shape of latents, changed as `config` says; `draw` draws by stream and shape.
    pub(super) fn new(
        config: &NoiseConfig,
        shape: [usize; 4],
        draw: impl Fn(Stream, [usize; 4]) -> Tensor<4>,
    ) -> Self {
        let mut target = draw(Stream::DiffusionNoise, shape);
        if config.offset_noise > 0.0 {
            let offset = draw(Stream::OffsetNoise, [shape[0], shape[1], 1, 1]);
            target = target + offset.mul_scalar(config.offset_noise);
        }
        let mut mixed = target.clone();
        if config.input_perturbation > 0.0 {
            let further = draw(Stream::InputPerturbation, shape);
            mixed = mixed + further.mul_scalar(config.input_perturbation);
        }
        Self { mixed, target }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{generate::noise_batch, rng::normal};

    const SHAPE: [usize; 4] = [2, 3, 2, 2];

    /// Noise of the items 4 and 5 of step 7.
    fn noise(offset_noise: f64, input_perturbation: f64) -> [Vec<f32>; 2] {
        let config = NoiseConfig {
            offset_noise,
            input_perturbation,
            ..NoiseConfig::default()
        };
        let noise = TrainingNoise::new(&config, SHAPE, |stream, shape| {
            noise_batch(9, stream, 7, 4, shape, &Device::flex())
        });
        [noise.target, noise.mixed].map(|noise| noise.into_data().iter().collect())
    }

    #[test]
    fn nothing_is_added_unless_asked_for() {
        let plain: Vec<f32> = [4, 5]
            .into_iter()
            .flat_map(|item| normal(9, Stream::DiffusionNoise, 7, item, 12))
            .collect();
        assert_eq!(noise(0.0, 0.0), [plain.clone(), plain]);
    }

    #[test]
    fn an_offset_is_one_number_per_item_and_channel_and_part_of_the_target() {
        let ([plain, _], [target, mixed]) = (noise(0.0, 0.0), noise(0.1, 0.0));
        assert_eq!(target, mixed);
        for (item, number) in [4, 5].into_iter().enumerate() {
            let offsets = normal(9, Stream::OffsetNoise, 7, number, 3);
            for (channel, offset) in offsets.into_iter().enumerate() {
                for pixel in 0..4 {
                    let at = 12 * item + 4 * channel + pixel;
                    let expected = f64::from(plain[at]) + 0.1 * f64::from(offset);
                    assert!((f64::from(target[at]) - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_perturbation_enters_the_input_alone() {
        let ([plain, _], [target, mixed]) = (noise(0.0, 0.0), noise(0.0, 0.2));
        assert_eq!(target, plain);
        for (item, number) in [4, 5].into_iter().enumerate() {
            let further = normal(9, Stream::InputPerturbation, 7, number, 12);
            for (pixel, further) in further.into_iter().enumerate() {
                let at = 12 * item + pixel;
                let expected = f64::from(plain[at]) + 0.2 * f64::from(further);
                assert!((f64::from(mixed[at]) - expected).abs() < 1e-6);
            }
        }
    }
}
