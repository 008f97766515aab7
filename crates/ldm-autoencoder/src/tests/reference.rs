//! What the tests and the example `lpips_parity` share: numbers and weights of the references.

use std::{collections::BTreeMap, path::PathBuf};

use burn::{
    module::{ModuleVisitor, Param},
    optim::GradientsParams,
    prelude::*,
};
use burn_store::{KeyRemapper, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use ldm_nn::weights::{KeyPair, Layout};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().iter::<f32>().collect()
}

pub(crate) fn scalar<const D: usize>(tensor: Tensor<D>) -> f32 {
    values(tensor)[0]
}

/// L2 norm of each parameter's gradient by its path, under PyTorch's names for the norms' parameters.
/// Parameters without a gradient are absent.
pub(crate) fn gradient_norms<M: Module>(
    module: &M,
    grads: &GradientsParams,
) -> BTreeMap<String, f32> {
    struct Norms<'a> {
        path: Vec<String>,
        grads: &'a GradientsParams,
        norms: BTreeMap<String, f32>,
    }
    impl ModuleVisitor for Norms<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path
                .push(name.replace("gamma", "weight").replace("beta", "bias"));
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.grads.get::<D>(param.id) {
                let norm = scalar(gradient.square().sum().sqrt());
                self.norms.insert(self.path.join("."), norm);
            }
        }
    }
    let mut visitor = Norms {
        path: Vec::new(),
        grads,
        norms: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.norms
}

/// A file under the workspace's `tests/fixtures`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures", path]
        .iter()
        .collect()
}

/// The bytes of a file under `tests/fixtures`, or of any other named by its whole path.
fn read(path: &str) -> Vec<u8> {
    std::fs::read(fixture(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// Tensors of a safetensors file of f32 and i32.
pub(crate) struct Expected(BTreeMap<String, TensorData>);

impl Expected {
    pub(crate) fn load(path: &str) -> Self {
        let bytes = read(path);
        let file = SafeTensors::deserialize(&bytes).expect("the fixture is a safetensors file");
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let words = view
                .data()
                .chunks_exact(4)
                .map(|b| [b[0], b[1], b[2], b[3]]);
            let shape = view.shape().to_vec();
            let data = match view.dtype() {
                Dtype::F32 => TensorData::new(words.map(f32::from_le_bytes).collect(), shape),
                Dtype::I32 => TensorData::new(words.map(i32::from_le_bytes).collect(), shape),
                other => panic!("{path}: {name} is {other:?}"),
            };
            (name, data)
        });
        Self(tensors.collect())
    }

    pub(crate) fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        Tensor::from_data(self.0[name].clone(), &Device::flex())
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i32> {
        self.0[name].iter::<i32>().collect()
    }

    pub(crate) fn scalar(&self, name: &str) -> f32 {
        self.0[name].iter::<f32>().next().expect("one value")
    }
}

/// Loads PyTorch weights; every parameter must be in the file, and of the file's only those named in `unused` may be left.
pub(crate) fn load<M: Module>(module: &mut M, path: &str, key_map: &[(&str, &str)], unused: &str) {
    let remapper =
        KeyRemapper::from_pattern_iter(key_map.iter().copied()).expect("the key map is valid");
    let store = SafetensorsStore::from_bytes(Some(read(path))).remap(remapper);
    apply(module, store, path, unused);
}

/// Loads a file of the original code's names, all of which must be in `keys` and the other way round.
pub(crate) fn load_compvis<M: Module>(module: &mut M, path: &str, keys: &[KeyPair]) {
    let bytes = read(path);
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is a safetensors file");
    assert_eq!(file.len(), keys.len(), "tensors of {path} and of the model");
    let tensors = keys.iter().map(|key| {
        let tensor = file
            .tensor(&key.compvis)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let axes = match key.layout {
            Layout::Same => 0,
            Layout::Pointwise { axes } => axes,
            Layout::Qkv { .. } => panic!("no autoencoder has a fused projection"),
        };
        let (shape, kernel) = tensor.shape().split_at(tensor.shape().len() - axes);
        assert!(kernel.iter().all(|side| *side == 1), "{}", key.compvis);
        let tensor = TensorView::new(tensor.dtype(), shape.to_vec(), tensor.data());
        (&key.diffusers, tensor.expect("the shape fits the data"))
    });
    let renamed = safetensors::serialize(tensors, None).expect("tensors can be written");
    apply(
        module,
        SafetensorsStore::from_bytes(Some(renamed)),
        path,
        "",
    );
}

fn apply<M: Module>(module: &mut M, store: SafetensorsStore, path: &str, unused: &str) {
    let mut store = store.with_from_adapter(PyTorchToBurnAdapter);
    let result = module.load_from(&mut store).expect("the fixture loads");
    assert_eq!(result.missing, [], "missing from {path}");
    assert!(result.errors.is_empty(), "{:?}", result.errors);
    let left: Vec<_> = result
        .unused
        .iter()
        .filter(|key| unused.is_empty() || !key.ends_with(unused))
        .collect();
    assert!(left.is_empty(), "unused keys of {path}: {left:?}");
}
