//! Reading the fixtures, and comparing with them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
};

use burn::{
    module::{ModuleVisitor, Param},
    prelude::*,
};
use burn_store::{KeyRemapper, ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use ldm_diffusion::{UNet, UNetConfig, weights};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// `tests/fixtures` of the workspace.
pub(crate) fn fixture(path: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/fixtures").join(path)
}

/// A fixture's JSON.
pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

/// The tensors of a fixture: f32, and i64, which become f32 too.
pub(crate) struct Tensors {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    device: Device,
}

impl Tensors {
    pub(crate) fn read(path: &str, device: &Device) -> Self {
        let bytes = fs::read(fixture(path)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = (file.tensors().into_iter()).filter_map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => floats(view.data()),
                Dtype::I64 => {
                    let (chunks, _) = view.data().as_chunks::<8>();
                    (chunks.iter().map(|bytes| i64::from_le_bytes(*bytes) as f32)).collect()
                }
                _ => return None,
            };
            Some((name, (view.shape().to_vec(), values)))
        });
        Self {
            tensors: tensors.collect(),
            device: device.clone(),
        }
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

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// One entry along the first axis.
    pub(crate) fn entry(&self, name: &str, index: usize) -> Tensor<4> {
        let all: Tensor<5> = self.get(name);
        all.narrow(0, index, 1).squeeze_dim(0)
    }
}

/// The f32 values of little-endian bytes.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<4>();
    (chunks.iter().map(|bytes| f32::from_le_bytes(*bytes))).collect()
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

/// Fails unless the largest difference is within `tolerance` of the largest expected value.
pub(crate) fn assert_relative(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    let scaled = |values: &[f32]| -> Vec<f32> { values.iter().map(|x| x / scale).collect() };
    assert_close(what, &scaled(actual), &scaled(expected), tolerance);
}

/// The U-Net of a fixture in diffusers' layout.
pub(crate) fn load_unet(model: &str, device: &Device) -> UNet {
    let folder = fixture(&format!("diffusers/{model}/unet"));
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let unet = UNetConfig::from_json(&config).unwrap().init(device);
    load_bytes(
        unet,
        fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap(),
    )
}

/// Loads a safetensors file with diffusers' names, every tensor of it.
pub(crate) fn load_bytes<M: ModuleSnapshot>(mut module: M, bytes: Vec<u8>) -> M {
    let keys = KeyRemapper::from_patterns(weights::KEY_MAP.to_vec()).unwrap();
    let mut store = SafetensorsStore::from_bytes(Some(bytes))
        .with_from_adapter(PyTorchToBurnAdapter)
        .remap(keys)
        .skip_enum_variants(true);
    let result = module.load_from(&mut store).unwrap();
    assert!(result.missing.is_empty(), "missing: {:?}", result.missing);
    assert!(result.unused.is_empty(), "unused: {:?}", result.unused);
    assert!(result.errors.is_empty(), "errors: {:?}", result.errors);
    module
}

/// A safetensors file of f32 tensors.
pub(crate) fn safetensors_bytes(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let bytes: Vec<_> = (tensors.iter())
        .map(|(name, (shape, values))| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name, shape.clone(), bytes)
        })
        .collect();
    let views = (bytes.iter())
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        })
        .collect::<Vec<_>>();
    safetensors::serialize(views, None).unwrap()
}

/// diffusers' name and shape of every tensor, without initialising any.
pub(crate) fn shapes(unet: &UNet) -> BTreeMap<String, Vec<usize>> {
    let mut visitor = Shapes::default();
    unet.visit(&mut visitor);
    visitor.shapes
}

#[derive(Default)]
struct Shapes {
    path: Vec<(String, String)>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((name.to_owned(), container_type.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let names: Vec<&str> = (self.path.iter())
            .filter(|(_, container)| !container.starts_with("Enum:"))
            .map(|(name, _)| match name.as_str() {
                "gamma" => "weight",
                "beta" => "bias",
                name => name,
            })
            .collect();
        let key = (names.join("."))
            .replace(".ff.proj_in.", ".ff.net.0.proj.")
            .replace(".ff.proj_out.", ".ff.net.2.");
        let mut shape = param.lazy_shape().to_vec();
        if (self.path.last()).is_some_and(|(_, container)| container == "Struct:Linear") {
            shape.reverse();
        }
        self.shapes.insert(key, shape);
    }
}
