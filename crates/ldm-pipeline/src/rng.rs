//! Random numbers as a pure function of where they are used.
//!
//! Every draw of a run is named by (seed, stream, step, index): what it is for, at which step (or epoch) and for
//! which item. So a resumed run needs no saved generator state, worker threads can draw in any order, and a seed
//! means the same noise on every backend and platform.
//!
//! The four numbers are the 256-bit key of a ChaCha8 generator, so that two different names can't share a sequence.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What a draw is for. The numbers are part of the meaning of a seed: never change or reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stream {
    /// The seed of the backend's generator, which draws a part's initial weights; the step is the part's number.
    Init = 1,
    /// The order of the samples in an epoch.
    Order = 2,
    /// Whether an image is mirrored.
    Flip = 3,
    /// The position of a random crop.
    Crop = 4,
    /// The noise that samples a latent from its posterior.
    PosteriorNoise = 5,
    /// The noise that a diffusion model learns to predict.
    DiffusionNoise = 6,
    /// The timestep of a training item.
    Timestep = 7,
    /// Whether a training item loses its caption.
    CaptionDropout = 8,
    /// The noise that sampling starts from.
    InitLatents = 9,
    /// The noise that a stochastic sampler adds at its steps.
    SamplerNoise = 10,
    /// A choice of samples to look at, such as a sheet's.
    Preview = 11,
    /// The noise of a validation; the step is the part of the forward process.
    Validation = 12,
    /// The offset of a training item's noise, one number per channel.
    OffsetNoise = 13,
    /// The noise beside the noise that is to be predicted, see `stage2.noise.input_perturbation`.
    InputPerturbation = 14,
    /// Which latents take the places of dead codes; the order of all latents of a step.
    CodeRevival = 15,
    /// In which order the buckets of an epoch take turns.
    BucketTurns = 16,
}

/// The generator of one named sequence.
pub fn rng(seed: u64, stream: Stream, step: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key
        .chunks_exact_mut(8)
        .zip([seed, stream as u64, step, index])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// `len` independent draws from N(0, 1), the beginning of the sequence named by (seed, stream, step, index).
///
/// A longer request continues a shorter one. The same numbers come out everywhere: the logarithm, sine and cosine
/// of the Box-Muller transform (Box & Muller 1958) are computed in software, not by the platform's library.
pub fn normal(seed: u64, stream: Stream, step: u64, index: u64, len: usize) -> Vec<f32> {
    let mut rng = rng(seed, stream, step, index);
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // In (0, 1], so that the logarithm is finite.
        let u = (f64::from(rng.next_u32()) + 1.0) * 2f64.powi(-32);
        let radius = libm::sqrt(-2.0 * libm::log(u));
        let angle = f64::from(rng.next_u32()) * (std::f64::consts::TAU * 2f64.powi(-32));
        let (sin, cos) = libm::sincos(angle);
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(len);
    values
}

/// One draw from the uniform distribution over [0, 1), with 53 random bits.
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * 2f64.powi(-53)
}

/// One draw from 0, ..., `bound - 1`, each equally likely (Lemire 2019).
///
/// # Panics
/// When `bound` is 0.
pub fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    assert!(bound > 0, "no number is below 0");
    let bound = bound as u64;
    let biased = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= biased {
            return (product >> 64) as usize;
        }
    }
}

/// The numbers 0, ..., `len - 1` in the random order named by (seed, stream, step); the index is 0.
pub fn permutation(seed: u64, stream: Stream, step: u64, len: usize) -> Vec<usize> {
    permutation_of(seed, stream, step, 0, len)
}

/// The numbers 0, ..., `len - 1` in the random order named by (seed, stream, step, index).
pub fn permutation_of(seed: u64, stream: Stream, step: u64, index: u64, len: usize) -> Vec<usize> {
    let mut rng = rng(seed, stream, step, index);
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, below(&mut rng, last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_part_of_the_name_matters() {
        let names = [
            (1, Stream::Flip, 2, 3),
            (2, Stream::Flip, 1, 3),
            (1, Stream::Crop, 2, 3),
            (1, Stream::Flip, 3, 2),
            (1, Stream::Flip, 2 + (1 << 32), 3),
            (1, Stream::Flip, 2, 3 + (1 << 32)),
        ];
        let first: HashSet<u64> = names
            .iter()
            .map(|&(a, b, c, d)| rng(a, b, c, d).next_u64())
            .collect();
        assert_eq!(first.len(), names.len());
        assert_eq!(
            rng(1, Stream::Flip, 2, 3).next_u64(),
            rng(1, Stream::Flip, 2, 3).next_u64()
        );
    }

    /// Computed by an independent implementation in Python. A change here changes what every seed means.
    #[test]
    fn numbers_never_change() {
        let bits: Vec<u32> = normal(42, Stream::InitLatents, 7, 3, 4)
            .iter()
            .map(|x| x.to_bits())
            .collect();
        assert_eq!(
            bits,
            [1_055_845_334, 1_038_953_728, 3_211_872_149, 1_059_359_407]
        );
        assert_eq!(
            permutation(42, Stream::Order, 1, 8),
            [3, 1, 0, 7, 5, 2, 6, 4]
        );
    }

    #[test]
    fn longer_requests_continue_shorter_ones() {
        let long = normal(0, Stream::DiffusionNoise, 0, 0, 1001);
        assert_eq!(long.len(), 1001);
        assert_eq!(normal(0, Stream::DiffusionNoise, 0, 0, 5), long[..5]);
        assert!(normal(0, Stream::DiffusionNoise, 0, 0, 0).is_empty());
    }

    #[test]
    fn normal_has_the_moments_and_tails_of_a_normal() {
        let count = 200_000;
        let draws = normal(1, Stream::DiffusionNoise, 0, 0, count);
        let moment = |power: i32| {
            draws.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / count as f64
        };
        // Five standard errors each.
        assert!(
            moment(1).abs() < 5.0 * (1.0 / count as f64).sqrt(),
            "{}",
            moment(1)
        );
        assert!(
            (moment(2) - 1.0).abs() < 5.0 * (2.0 / count as f64).sqrt(),
            "{}",
            moment(2)
        );
        assert!(
            moment(3).abs() < 5.0 * (15.0 / count as f64).sqrt(),
            "{}",
            moment(3)
        );
        assert!(
            (moment(4) - 3.0).abs() < 5.0 * (96.0 / count as f64).sqrt(),
            "{}",
            moment(4)
        );
        let beyond_two = draws.iter().filter(|x| x.abs() > 2.0).count() as f64 / count as f64;
        assert!((beyond_two - 0.0455).abs() < 0.0025, "{beyond_two}");
        // Neighbours come from one pair of uniforms and must still be uncorrelated.
        let products = draws
            .chunks_exact(2)
            .map(|pair| f64::from(pair[0] * pair[1]))
            .sum::<f64>();
        assert!((products / (count / 2) as f64).abs() < 0.016);
    }

    #[test]
    fn integers_are_in_range_and_even() {
        let mut rng = rng(3, Stream::Crop, 0, 0);
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            counts[below(&mut rng, 5)] += 1;
        }
        assert!(
            counts.iter().all(|&count| (1800..2200).contains(&count)),
            "{counts:?}"
        );
        assert_eq!(below(&mut rng, 1), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&uniform(&mut rng))));
    }

    #[test]
    fn permutations_hold_every_number_once() {
        let mut order = permutation(9, Stream::Order, 0, 1000);
        assert_ne!(order, permutation(9, Stream::Order, 1, 1000));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
        assert!(permutation(9, Stream::Order, 0, 0).is_empty());
    }
}
