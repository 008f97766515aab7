//! Reading the fixtures, and comparing with them.

use std::{collections::HashMap, fs, path::PathBuf};

use burn::prelude::*;
use burn_store::{KeyRemapper, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use ldm_diffusion::{UNet, UNetConfig, weights};
use safetensors::SafeTensors;

/// `tests/fixtures` of the workspace.
pub(crate) fn fixture(path: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/fixtures").join(path)
}

/// A fixture's JSON.
pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

/// The f32 tensors of a fixture.
pub(crate) struct Tensors {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    device: Device,
}

impl Tensors {
    pub(crate) fn read(path: &str, device: &Device) -> Self {
        let bytes = fs::read(fixture(path)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = (file.tensors().into_iter())
            .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
            .map(|(name, view)| {
                let (chunks, _) = view.data().as_chunks::<4>();
                let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
                (name, (view.shape().to_vec(), values.collect()))
            });
        Self {
            tensors: tensors.collect(),
            device: device.clone(),
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn values(&self, name: &str) -> &[f32] {
        let (_, values) = (self.tensors.get(name)).unwrap_or_else(|| panic!("no tensor {name}"));
        values
    }

    pub(crate) fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let values = self.values(name).to_vec();
        let shape = self.tensors[name].0.clone();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// One entry along the first axis.
    pub(crate) fn entry(&self, name: &str, index: usize) -> Tensor<4> {
        let all: Tensor<5> = self.get(name);
        all.narrow(0, index, 1).squeeze_dim(0)
    }
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Largest difference, relative to `max(1, max|expected|)`.
pub(crate) fn error(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(1f32, |max, x| max.max(x.abs()));
    let worst = (actual.iter().zip(expected))
        .map(|(a, e)| (a - e).abs())
        .fold(
            0f32,
            |max, d| if d.is_nan() { f32::NAN } else { max.max(d) },
        );
    worst / scale
}

/// Fails unless [`error`] is within `tolerance`.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let error = error(actual, expected);
    assert!(error <= tolerance, "{what}: error {error} over {tolerance}");
}

/// The U-Net of a fixture in diffusers' layout.
pub(crate) fn load_unet(model: &str, device: &Device) -> UNet {
    let folder = fixture(&format!("diffusers/{model}/unet"));
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let mut unet = UNetConfig::from_json(&config).unwrap().init(device);
    let keys = KeyRemapper::from_patterns(weights::KEY_MAP.to_vec()).unwrap();
    let mut store = SafetensorsStore::from_file(folder.join("diffusion_pytorch_model.safetensors"))
        .with_from_adapter(PyTorchToBurnAdapter)
        .remap(keys)
        .skip_enum_variants(true);
    let result = unet.load_from(&mut store).unwrap();
    assert!(result.missing.is_empty(), "missing: {:?}", result.missing);
    assert!(result.unused.is_empty(), "unused: {:?}", result.unused);
    assert!(result.errors.is_empty(), "errors: {:?}", result.errors);
    unet
}
