//! The noise of each image: a function of its key alone, whatever it is drawn together with.

use burn::{prelude::*, tensor::TensorData};

use crate::rng::{Stream, normal};

/// Sine of the angle between two vectors below which they count as parallel.
const PARALLEL: f64 = 1e-6;

/// The name of an image's noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// The seed.
    pub seed: u64,
    /// Which of the seed's images, from 0.
    pub index: u64,
}

/// The noise of an image, at its start and at the steps of a stochastic sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// That of a key.
    Of(NoiseKey),
    /// Something between those of two keys, by [`slerp`].
    Between {
        /// The key at a share of 0.
        from: NoiseKey,
        /// The key at a share of 1.
        to: NoiseKey,
        /// Share of `to`, in `[0, 1]`.
        share: f64,
    },
}

impl NoiseKey {
    fn draw(self, stream: Stream, step: u64, len: usize) -> Vec<f32> {
        normal(self.seed, stream, step, self.index, len)
    }
}

impl Noise {
    fn draw(self, stream: Stream, step: u64, len: usize) -> Vec<f32> {
        match self {
            Self::Of(key) => key.draw(stream, step, len),
            Self::Between { from, to, share } => slerp(
                &from.draw(stream, step, len),
                &to.draw(stream, step, len),
                share,
            ),
        }
    }
}

/// Spherical linear interpolation (Shoemake 1985): `sin((1 - share) w) / sin(w) from + sin(share w) / sin(w) to` with the angle `w` between
/// the two. Between two draws of unit variance it has unit variance itself, where a straight line would come too near to zero for a model of
/// noise (White 2016). Parallel vectors are mixed linearly.
///
/// # Panics
/// If the two differ in length.
#[must_use]
pub fn slerp(from: &[f32], to: &[f32], share: f64) -> Vec<f32> {
    assert_eq!(from.len(), to.len(), "vectors of one length");
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    let lengths = (dot(from, from) * dot(to, to)).sqrt();
    // In software, like the draws: the same on every platform.
    let angle = libm::acos((dot(from, to) / lengths).clamp(-1.0, 1.0));
    let sine = libm::sin(angle);
    let [near, far] = if sine > PARALLEL {
        [1.0 - share, share].map(|share| libm::sin(share * angle) / sine)
    } else {
        [1.0 - share, share]
    };
    from.iter()
        .zip(to)
        .map(|(&from, &to)| (near * f64::from(from) + far * f64::from(to)) as f32)
        .collect()
}

/// The noise of some images, `[N, C, H, W]` of N(0, 1).
pub(super) fn noise_of(
    images: &[Noise],
    stream: Stream,
    step: u64,
    [c, h, w]: [usize; 3],
    device: &Device,
) -> Tensor<4> {
    let values: Vec<f32> = (images.iter())
        .flat_map(|noise| noise.draw(stream, step, c * h * w))
        .collect();
    Tensor::from_data(TensorData::new(values, [images.len(), c, h, w]), device)
}

/// Standard normal noise `[N, C, H, W]`, item `i` keyed by (`seed`, `stream`, `step`, `first + i`).
pub(crate) fn noise_batch(
    seed: u64,
    stream: Stream,
    step: u64,
    first: u64,
    shape: [usize; 4],
    device: &Device,
) -> Tensor<4> {
    let [n, c, h, w] = shape;
    let images: Vec<Noise> = (first..first + n as u64)
        .map(|index| Noise::Of(NoiseKey { seed, index }))
        .collect();
    noise_of(&images, stream, step, [c, h, w], device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u64) -> NoiseKey {
        NoiseKey { seed, index: 0 }
    }

    #[test]
    fn a_quarter_circle_is_walked_at_a_steady_pace() {
        let (from, to) = ([2.0, 0.0], [0.0, 2.0]);
        for (share, degrees) in [(0.0f64, 0.0f64), (0.25, 22.5), (0.5, 45.0), (1.0, 90.0)] {
            let found = slerp(&from, &to, share);
            let radians = degrees.to_radians();
            for (found, expected) in found.iter().zip([radians.cos(), radians.sin()]) {
                assert!((f64::from(*found) - 2.0 * expected).abs() < 1e-6, "{share}");
            }
        }
        // 60 degrees: the middle has the length of both.
        let found = slerp(&[1.0, 0.0], &[0.5, 0.75f32.sqrt()], 0.5);
        assert!((found[0].hypot(found[1]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn parallel_and_vanishing_vectors_are_mixed_linearly() {
        assert_eq!(slerp(&[1.0, 2.0], &[3.0, 6.0], 0.5), [2.0, 4.0]);
        assert_eq!(slerp(&[1.0, -1.0], &[-1.0, 1.0], 0.25), [0.5, -0.5]);
        assert_eq!(slerp(&[0.0, 0.0], &[2.0, 4.0], 0.5), [1.0, 2.0]);
    }

    #[test]
    fn the_ends_are_the_draws_themselves_and_the_middle_keeps_its_variance() {
        let len = 4096;
        let draw = |noise: Noise| noise.draw(Stream::InitLatents, 0, len);
        let [a, b] = [3, 4].map(|seed| draw(Noise::Of(key(seed))));
        let between = |share| {
            let [from, to] = [key(3), key(4)];
            draw(Noise::Between { from, to, share })
        };
        assert_eq!(between(0.0), a);
        assert_eq!(between(1.0), b);
        let variance =
            |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / len as f64;
        // A straight line would leave half of it.
        let expected = (variance(&a) + variance(&b)) / 2.0;
        assert!((variance(&between(0.5)) - expected).abs() < 1e-2);
    }
}
