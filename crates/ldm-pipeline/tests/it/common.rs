//! Reading the fixtures, and comparing with them; a tiny run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::prelude::*;
use image::{Rgb, RgbImage};
use ldm_pipeline::{
    config::RunConfig,
    weights::{self, Tensors},
};

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

/// Both stages, but for the U-Net and its condition.
pub(crate) const TINY: &str = r#"
[data]
resolution = 16
validation = 0.0
workers = 1

[stage1.training]
steps = 4
batch_size = 2
accumulation = 2
lr = { rate = 1e-3 }
optimizer = { weight_decay = 0.01 }

[stage1.vae]
block_out_channels = [8, 8]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 2
norm_num_groups = 4

[stage1.loss]
perceptual_weight = 0.0
disc_start = 2
disc_layers = 2
disc_channels = 4

[stage2.training]
steps = 4
batch_size = 2
lr = { rate = 1e-3 }
optimizer = {}

[stage2.preview]
count = 1
steps = 2
"#;

/// What is missing in [`TINY`], for a model of texts.
const FROM_TEXT: &str = r#"
[stage2.unet]
_class_name = "UNet2DConditionModel"
sample_size = 8
in_channels = 2
out_channels = 2
block_out_channels = [8, 8]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 8
attention_head_dim = 2
norm_num_groups = 4

[stage2.text]
dropout = 0.0

[stage2.text.bert]
max_position_embeddings = 6
encoder_layers = 1
encoder_ffn_dim = 16
encoder_attention_heads = 2
head_dim = 4
d_model = 8
to_logits = false
"#;

/// A run of two tiny stages with some settings changed, on four captioned pictures that this writes below `dir`.
pub(crate) fn tiny(dir: &Path, settings: &[&str]) -> RunConfig {
    let data = dir.join("data");
    fs::create_dir(&data).unwrap();
    for number in 0..4_u8 {
        let picture = RgbImage::from_fn(16, 16, |x, y| {
            Rgb([60 * number, 16 * x as u8, 16 * y as u8])
        });
        picture.save(data.join(format!("{number}.png"))).unwrap();
        fs::write(data.join(format!("{number}.txt")), "a ramp").unwrap();
    }
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    let mut config = RunConfig::parse(
        &format!("{TINY}{FROM_TEXT}"),
        "the test's configuration",
        &settings,
    )
    .unwrap();
    config.data.path = Some(data);
    config
}
