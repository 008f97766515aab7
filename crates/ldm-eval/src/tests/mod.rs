//! The numbers of `scripts/make-eval-fixture.py`: torch-fidelity's, scikit-image's and NumPy's.

mod distances;
mod extraction;
mod inception;
mod similarity;
mod statistics;

use std::{fs, path::PathBuf};

use image::RgbImage;
use safetensors::SafeTensors;

use crate::Features;

pub(crate) fn fixture(name: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "../../tests/fixtures/eval",
        name,
    ]
    .iter()
    .collect()
}

/// Shape and bytes of an array of the fixture.
fn array(name: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs::read(fixture("arrays.safetensors")).unwrap();
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    let array = arrays.tensor(name).unwrap();
    (array.shape().to_vec(), array.data().to_vec())
}

pub(crate) fn floats(name: &str) -> Vec<f32> {
    let (_, bytes) = array(name);
    let (values, _) = bytes.as_chunks::<4>();
    values
        .iter()
        .map(|&value| f32::from_le_bytes(value))
        .collect()
}

pub(crate) fn features(name: &str) -> Features {
    let (shape, _) = array(name);
    Features::from_values(shape[1], floats(name))
}

/// Pictures `[.., H, W, 3]` of the fixture.
pub(crate) fn pictures(name: &str) -> Vec<RgbImage> {
    let (shape, bytes) = array(name);
    let [.., height, width, 3] = shape[..] else {
        panic!("pictures of shape {shape:?}");
    };
    (bytes.chunks_exact(3 * height * width))
        .map(|pixels| RgbImage::from_raw(width as u32, height as u32, pixels.to_vec()).unwrap())
        .collect()
}

/// A number of the fixture.
pub(crate) fn expected(name: &str) -> f64 {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    let values: serde_json::Value = serde_json::from_str(&text).unwrap();
    values[name].as_f64().unwrap()
}

#[track_caller]
pub(crate) fn assert_near(found: f64, expected: f64, relative: f64) {
    let difference = (found - expected).abs();
    assert!(
        difference <= relative * expected.abs(),
        "{found}, not {expected}: {:e} apart",
        difference / expected.abs()
    );
}

/// `max |a - b| <= tolerance * max |b|`.
#[track_caller]
pub(crate) fn assert_all_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .fold(0.0f32, |largest, v| largest.max(v.abs()));
    let difference = (found.iter().zip(expected))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        difference <= tolerance * largest,
        "{difference:e} apart, of {largest}"
    );
}
