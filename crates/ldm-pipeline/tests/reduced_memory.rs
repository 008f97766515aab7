//! Runs in bf16 that compute their activations again: stopped and resumed they end with the same bytes, and what they store is f32.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use ldm_pipeline::{
    config::{Precision, RunConfig},
    run::RunDir,
    train::{Event, Outcome, Stage, train_diffusion, train_vae},
};
use safetensors::{Dtype, SafeTensors};

const CONFIG: &str = r#"
seed = 3

[data]
resolution = 16
validation = 0.0
workers = 1

[stage1.training]
steps = 6
batch_size = 2
accumulation = 2
lr = { rate = 1e-3 }
ema_decay = 0.9
precision = "bf16"
activation_checkpointing = true

[stage1.vae]
block_out_channels = [8, 8]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4

[stage1.loss]
perceptual_weight = 0.0
disc_start = 2
disc_layers = 1
disc_channels = 8

[stage2.training]
steps = 6
batch_size = 2
accumulation = 2
lr = { rate = 1e-3 }
ema_decay = 0.9
precision = "bf16"
activation_checkpointing = true

[stage2.unet]
_class_name = "UNet2DConditionModel"
in_channels = 4
out_channels = 4
block_out_channels = [8, 16]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 16
attention_head_dim = 2
norm_num_groups = 4

[stage2.text]

[stage2.text.bert]
max_position_embeddings = 6
encoder_layers = 1
encoder_ffn_dim = 32
encoder_attention_heads = 2
head_dim = 8
d_model = 16
to_logits = false

[stage2.preview]
count = 1
steps = 2
"#;

/// Trains both stages, each in two parts if `stop` says after how many steps; the tensors of the model by file.
fn train(config: &RunConfig, path: &Path, stop: Option<u64>) -> BTreeMap<String, Vec<u8>> {
    let stages = [Stage::Vae, Stage::Diffusion];
    let mut run = RunDir::open(path, config, &stages, false).unwrap();
    for stage in stages {
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        let device = Device::flex();
        if let Some(stop) = stop {
            let outcome = train(config, &run, &device, &mut |event| match event {
                Event::Step(report) if report.step == stop => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
            assert_eq!(outcome.unwrap(), Outcome::Stopped(stop));
            run = RunDir::open(path, config, &stages, true).unwrap();
        }
        let outcome = train(config, &run, &device, &mut |_| ControlFlow::Continue(()));
        assert_eq!(outcome.unwrap(), Outcome::Finished);
    }
    let mut tensors = BTreeMap::new();
    collect(path, &mut tensors);
    // The cache of latents isn't rewritten by a resumed run, nor need it be.
    tensors.retain(|name, _| !name.contains("latents"));
    tensors
}

/// All safetensors files below `folder`, by their paths within it.
fn collect(folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    fn walk(root: &Path, folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, into);
            } else if path.extension().is_some_and(|it| it == "safetensors") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                into.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    walk(folder, folder, into);
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for number in 0..4u8 {
        let picture = RgbImage::from_fn(16, 16, |x, y| {
            Rgb([60 * number, 16 * x as u8, if x < y { 200 } else { 20 }])
        });
        picture.save(data.join(format!("{number}.png"))).unwrap();
        std::fs::write(
            data.join(format!("{number}.txt")),
            format!("number {number}"),
        )
        .unwrap();
    }
    let mut config = RunConfig::parse(CONFIG, "the test's configuration", &[]).unwrap();
    config.data.path = Some(data);

    let whole = train(&config, &dir.path().join("whole"), None);
    for (name, bytes) in &whole {
        for (key, tensor) in SafeTensors::deserialize(bytes).unwrap().tensors() {
            assert!(tensor.dtype() != Dtype::BF16, "{key} in {name} is bf16");
        }
    }
    let resumed = train(&config, &dir.path().join("resumed"), Some(3));
    let final_step = |name: &&String| name.contains("model") || resumed.contains_key(*name);
    assert!(
        whole.keys().filter(final_step).count() > 3,
        "{:?}",
        whole.keys()
    );
    for name in whole.keys().filter(final_step) {
        assert!(whole[name] == resumed[name], "{name} differs");
    }

    // The precision is felt.
    config.stage1.training.precision = Precision::F32;
    let exact = train(&config, &dir.path().join("exact"), None);
    assert!(exact != whole);
}
