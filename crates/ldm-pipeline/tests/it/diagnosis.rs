//! A training stage that fails says where its NaN came from.

use std::{ops::ControlFlow, path::Path};

use burn::tensor::Device;
use ldm_pipeline::{
    Error,
    config::{NonFiniteAction, RunConfig},
    metrics::read_metrics,
    run::RunDir,
    train::{Culprit, Event, Stage, train_diffusion, train_vae},
};
use safetensors::{Dtype, tensor::TensorView};

use crate::common::tiny;

/// A tiny run with some settings changed, and its folder.
fn run(settings: &[&str]) -> (tempfile::TempDir, RunConfig, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny(dir.path(), settings);
    config.stage1.training.non_finite.action = NonFiniteAction::Stop;
    if let Some(stage2) = &mut config.stage2 {
        stage2.training.non_finite.action = NonFiniteAction::Stop;
    }
    let stages = [Stage::Vae, Stage::Diffusion];
    let run = RunDir::open(&dir.path().join("run"), &config, &stages, false).unwrap();
    (dir, config, run)
}

fn train(stage: Stage, config: &RunConfig, run: &RunDir) -> Result<(), Error> {
    let observer = &mut |_: Event| ControlFlow::Continue(());
    match stage {
        Stage::Vae => train_vae(config, run, &Device::flex(), observer),
        Stage::Diffusion => train_diffusion(config, run, &Device::flex(), observer),
    }
    .map(drop)
}

#[track_caller]
fn culprit(result: Result<(), Error>) -> (Culprit, String) {
    let error = result.expect_err("the training has to fail");
    let message = error.to_string();
    match error {
        Error::NotFinite { culprit, .. } => (culprit, message),
        other => panic!("{other}"),
    }
}

/// VGG16's convolutions, small random values, with a NaN in one weight.
fn write_damaged_vgg(path: &Path, damaged: &str) {
    const CONVOLUTIONS: [(usize, usize, usize); 13] = [
        (0, 3, 64),
        (2, 64, 64),
        (5, 64, 128),
        (7, 128, 128),
        (10, 128, 256),
        (12, 256, 256),
        (14, 256, 256),
        (17, 256, 512),
        (19, 512, 512),
        (21, 512, 512),
        (24, 512, 512),
        (26, 512, 512),
        (28, 512, 512),
    ];
    let mut seed = 1_u32;
    let mut bytes = |count: usize, damaged: bool| {
        let values = (0..count).map(|index| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (seed >> 8) as f32 / (1 << 24) as f32 - 0.5;
            if damaged && index == 7 {
                f32::NAN
            } else {
                value * 0.1
            }
        });
        values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
    };
    let mut tensors = Vec::new();
    for (number, inputs, outputs) in CONVOLUTIONS {
        for (name, shape) in [
            (
                format!("features.{number}.weight"),
                vec![outputs, inputs, 3, 3],
            ),
            (format!("features.{number}.bias"), vec![outputs]),
        ] {
            let values = bytes(shape.iter().product(), name == damaged);
            tensors.push((name, shape, values));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_damaged_perceptual_network_is_named() {
    let (dir, config, run) = run(&[]);
    let vgg = dir.path().join("vgg.safetensors");
    write_damaged_vgg(&vgg, "features.7.weight");
    let mut config = config;
    config.stage1.loss.perceptual_weight = 1.0;
    config.stage1.vgg = Some(vgg.to_str().unwrap().to_owned());
    let (found, message) = culprit(train(Stage::Vae, &config, &run));
    let expected = Culprit::Term {
        name: "perceptual",
        module: Some("vgg.convs.3".into()),
    };
    assert_eq!(found, expected);
    assert_eq!(
        message,
        "the loss is NaN at step 0: first produced by the loss term `perceptual`, in `vgg.convs.3`"
    );
    assert!(!found.is_state_damaged());
}

#[test]
fn steps_that_are_too_large_are_traced_to_a_module() {
    let (_dir, config, run) = run(&["stage1.training.lr.rate=1e30"]);
    let (found, message) = culprit(train(Stage::Vae, &config, &run));
    let Culprit::Module(path) = &found else {
        panic!("{found:?}");
    };
    assert!(path.starts_with("vae.encoder."), "{message}");
    assert!(
        message.contains("at step 1: first produced by `vae.encoder."),
        "{message}"
    );
}

#[test]
fn norms_add_up_and_a_denoiser_that_overflows_is_traced() {
    let (_dir, mut config, run) = run(&[]);
    train(Stage::Vae, &config, &run).unwrap();
    let records = read_metrics(&run.metrics(Stage::Vae)).unwrap();
    assert_eq!(records.len(), 4);
    for record in &records {
        for norm in ["grad_norm", "update_norm"] {
            let components = ["encoder", "decoder", "quant_conv", "post_quant_conv"];
            assert_norm(&record.values, norm, &components);
        }
        let learns = record.step > 2;
        for name in ["disc_grad_norm", "disc_update_norm"] {
            assert_eq!(
                record.values.contains_key(name),
                learns,
                "{name} at {}",
                record.step
            );
        }
        let channels = record.values["kl/0"] + record.values["kl/1"];
        let kl = record.values["kl"];
        assert!((channels - kl).abs() < 1e-4 * kl, "{channels} {kl}");
        for name in ["posterior_mean/1", "posterior_std/1", "posterior_max/1"] {
            assert!(record.values[name].is_finite());
        }
    }

    config.stage2.as_mut().unwrap().training.steps = 1;
    train(Stage::Diffusion, &config, &run).unwrap();
    let records = read_metrics(&run.metrics(Stage::Diffusion)).unwrap();
    let components = [
        "unet/input",
        "unet/down_blocks",
        "unet/mid_block",
        "unet/up_blocks",
        "unet/output",
        "conditioner",
    ];
    for norm in ["grad_norm", "update_norm"] {
        assert_norm(&records[0].values, norm, &components);
    }

    let stage2 = config.stage2.as_mut().unwrap();
    stage2.training.steps = 4;
    stage2.training.lr.rate = 1e30;
    let (found, message) = culprit(train(Stage::Diffusion, &config, &run));
    let Culprit::Module(path) = found else {
        panic!("{found:?}");
    };
    assert!(
        path.starts_with("conditioner.model.") || path.starts_with("unet."),
        "{message}"
    );
}

#[track_caller]
fn assert_norm(values: &std::collections::BTreeMap<String, f64>, norm: &str, components: &[&str]) {
    let squares = components.iter().map(|component| {
        let name = format!("{norm}/{component}");
        values
            .get(&name)
            .unwrap_or_else(|| panic!("no {name}"))
            .powi(2)
    });
    let (sum, total) = (squares.sum::<f64>().sqrt(), values[norm]);
    assert!(
        total > 0.0 && (sum - total).abs() < 1e-9 * total,
        "{norm}: {sum} {total}"
    );
}
