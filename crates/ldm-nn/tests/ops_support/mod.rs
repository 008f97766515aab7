//! What the tests of the operators share: reproducible values, comparisons, finite differences.
#![allow(dead_code)]

use burn::tensor::{Device, Tensor, TensorData};

/// `len` reproducible values, roughly standard normal.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len)
        .map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * 1.732)
        .collect()
}

/// A tensor of these values.
pub(crate) fn tensor<const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The values of a tensor.
pub(crate) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("an f32 tensor")
}

/// `values` in double precision.
pub(crate) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Asserts that the largest difference is at most `tolerance` times the largest expected magnitude.
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let scale = expected
        .iter()
        .fold(1e-6f64, |scale, value| scale.max(value.abs()));
    let worst = actual
        .iter()
        .zip(expected)
        .map(|(&actual, &expected)| (f64::from(actual) - expected).abs())
        // `max` would lose a NaN.
        .fold(
            0.0,
            |worst: f64, error| if error <= worst { worst } else { error },
        );
    assert!(
        worst <= tolerance * scale,
        "{what}: error {worst:e} at scale {scale:e}, tolerance {tolerance:e}"
    );
}

/// Checks `gradient` of `loss` at `at` by central differences in double precision, at up to 24 places.
pub(crate) fn assert_gradient(
    loss: &dyn Fn(&[f64]) -> f64,
    at: &[f64],
    gradient: &[f32],
    tolerance: f64,
    what: &str,
) {
    const STEP: f64 = 1e-5;
    assert_eq!(gradient.len(), at.len(), "{what}: length");
    let places: Vec<usize> = (0..at.len()).step_by(at.len().div_ceil(24)).collect();
    let expected: Vec<f64> = places
        .iter()
        .map(|&place| {
            let moved = |step: f64| {
                let mut at = at.to_vec();
                at[place] += step;
                loss(&at)
            };
            (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
        })
        .collect();
    let actual: Vec<f32> = places.iter().map(|&place| gradient[place]).collect();
    assert_close(&actual, &expected, tolerance, what);
}
