//! Fixtures, and modules filled from them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use burn_store::{KeyRemapper, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use safetensors::{SafeTensors, tensor::TensorView};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

pub(crate) fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// Fills `module` from safetensors in memory, and returns the names of tensors that it doesn't have.
pub(crate) fn load<M: Module>(
    module: &mut M,
    bytes: Vec<u8>,
    key_map: &[(&str, &str)],
) -> Vec<String> {
    let keys = KeyRemapper::from_pattern_iter(key_map.iter().copied()).unwrap();
    let mut store = SafetensorsStore::from_bytes(Some(bytes))
        .with_from_adapter(PyTorchToBurnAdapter)
        .remap(keys);
    let result = module.load_from(&mut store).unwrap();
    assert!(
        result.missing.is_empty() && result.errors.is_empty(),
        "{result}"
    );
    result.unused
}

/// Tensors of a safetensors file.
pub(crate) struct Tensors(pub(crate) Vec<u8>);

impl Tensors {
    pub(crate) fn open(name: &str) -> Self {
        Self(fs::read(fixture(name)).unwrap())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.clone()
    }

    pub(crate) fn with<R>(&self, name: &str, read: impl FnOnce(TensorView) -> R) -> R {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        read(tensors.tensor(name).unwrap())
    }

    pub(crate) fn float<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let data = self.with(name, |view| {
            let values = numbers(view.data(), f32::from_le_bytes);
            TensorData::new(values, view.shape().to_vec())
        });
        Tensor::from_data(data, device)
    }

    pub(crate) fn int<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let data = self.with(name, |view| {
            let values = numbers(view.data(), i64::from_le_bytes);
            TensorData::new(values, view.shape().to_vec())
        });
        Tensor::from_data(data, device)
    }
}

pub(crate) fn numbers<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    (bytes.chunks_exact(N))
        .map(|bytes| from(bytes.try_into().unwrap()))
        .collect()
}

/// Fails where `found` is further from `expected` than `tolerance` times the largest expected value, or `tolerance`.
pub(crate) fn assert_close<const D: usize>(
    what: &str,
    found: Tensor<D>,
    expected: Tensor<D>,
    tolerance: f32,
) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let scale = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
    let error = (found - expected).abs().max().into_scalar::<f32>();
    println!("{what}: error {error} at scale {scale}");
    assert!(
        error <= tolerance * scale,
        "{what}: error {error} at scale {scale}"
    );
}

/// Name and shape in a file of every tensor of `module`, without initialising any.
pub(crate) fn shapes<M: Module>(module: &M) -> BTreeMap<String, Vec<usize>> {
    let mut visitor = Shapes::default();
    module.visit(&mut visitor);
    visitor.shapes
}

#[derive(Default)]
struct Shapes {
    path: Vec<(String, String)>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let names = self.path.iter().map(|(name, _)| match name.as_str() {
            "gamma" => "weight",
            "beta" => "bias",
            name => name,
        });
        let name = names.collect::<Vec<_>>().join(".");
        let mut shape = param.lazy_shape().to_vec();
        if (self.path.last()).is_some_and(|(_, container)| container == "Struct:Linear") {
            shape.reverse();
        }
        self.shapes.insert(name, shape);
    }
}
