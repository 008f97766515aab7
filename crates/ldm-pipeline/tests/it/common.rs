//! Reading the fixtures, and comparing with them.

use std::{fs, path::PathBuf};

use burn::prelude::*;
use ldm_pipeline::weights::{self, Tensors};

/// `tests/fixtures` of the workspace.
pub(crate) fn fixture(path: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/fixtures").join(path)
}

/// A fixture's JSON.
pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

/// The tensors of a fixture.
pub(crate) struct Expected(Tensors);

impl Expected {
    pub(crate) fn open(path: &str) -> Self {
        Self(weights::open(&fixture(path)).unwrap())
    }

    pub(crate) fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let data = self.0.data(name).unwrap().convert::<f32>();
        Tensor::from_data(data, &Device::flex())
    }

    /// Entry `index` along the first axis, without it.
    pub(crate) fn entry(&self, name: &str, index: usize) -> Tensor<4> {
        let all: Tensor<5> = self.get(name);
        all.narrow(0, index, 1).squeeze_dim(0)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        self.0.data(name).unwrap().iter::<f64>().collect()
    }

    pub(crate) fn indices(&self, name: &str) -> Vec<usize> {
        self.values(name)
            .into_iter()
            .map(|value| value as usize)
            .collect()
    }
}

/// Compares in units of the largest expected value.
#[track_caller]
pub(crate) fn assert_close<const D: usize>(
    what: &str,
    found: Tensor<D>,
    expected: Tensor<D>,
    tolerance: f32,
) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let largest: f32 = expected.clone().abs().max().into_scalar::<f32>();
    let error: f32 = (found - expected).abs().max().into_scalar::<f32>() / largest;
    println!("{what}: {error:.1e}");
    assert!(error <= tolerance, "{what}: {error:e} > {tolerance:e}");
}

/// Euclidean.
pub(crate) fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values
        .into_iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt()
}
