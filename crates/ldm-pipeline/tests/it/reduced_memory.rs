//! Runs in bf16 that compute their activations again: stopped and resumed they end with the same bytes, and what they store is f32.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use burn::tensor::Device;
use ldm_pipeline::{
    config::{Precision, RunConfig},
    run::RunDir,
    train::{Event, Outcome, Stage, train_diffusion, train_vae},
};
use safetensors::{Dtype, SafeTensors};

use crate::common::tiny;

/// What takes less memory, in both stages.
const SETTINGS: [&str; 12] = [
    "stage1.training.steps=6",
    "stage1.training.accumulation=2",
    "stage1.training.ema_decay=0.9",
    "stage1.training.precision=bf16",
    "stage1.training.activation_checkpointing=true",
    "stage1.loss.disc_channels=8",
    "stage2.training.steps=6",
    "stage2.training.batch_size=2",
    "stage2.training.accumulation=2",
    "stage2.training.ema_decay=0.9",
    "stage2.training.precision=bf16",
    "stage2.training.activation_checkpointing=true",
];

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
    let mut config = tiny(dir.path(), &SETTINGS);

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
