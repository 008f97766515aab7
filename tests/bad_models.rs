//! Wrong checkpoints, requests and conversions: one error that says what and where, and nothing half-written.

mod support;

use std::{fs, path::Path};

use support::{Workspace, stderr};

fn fixture(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    root.join(path).display().to_string()
}

#[track_caller]
fn refused(workspace: &Workspace, arguments: &str, expected: &[&str]) {
    let output = workspace.output(arguments);
    let text = stderr(&output);
    let status = output.status.code();
    assert!(
        matches!(status, Some(1 | 2)),
        "{arguments}: {status:?}\n{text}"
    );
    assert!(text.contains("error: "), "{arguments}:\n{text}");
    assert!(!text.contains("panicked"), "{arguments}:\n{text}");
    for expected in expected {
        assert!(
            text.contains(expected),
            "{arguments}: no {expected:?} in\n{text}"
        );
    }
}

#[test]
fn checkpoints_that_are_not_what_they_should_be() {
    let workspace = Workspace::empty();
    let model = fixture("compvis/class-vq-f4/model.ckpt");
    let yaml = fixture("compvis/class-vq-f4/config.yaml");
    let bytes = fs::read(&model).unwrap();

    // Without its yaml the heads of its attention can't be known.
    workspace.write("alone/model.ckpt", &bytes);
    refused(
        &workspace,
        "sample --model alone/model.ckpt --class 1",
        &["model.ckpt", "--yaml"],
    );
    workspace.write("short/model.ckpt", &bytes[..bytes.len() / 2]);
    refused(
        &workspace,
        &format!("sample --model short/model.ckpt --yaml {yaml} --class 1"),
        &["short/model.ckpt"],
    );
    workspace.write("text.ckpt", "no checkpoint at all");
    refused(&workspace, "info text.ckpt", &["text.ckpt"]);
    refused(
        &workspace,
        "sample --model alone/model.ckpt --yaml nowhere.yaml --class 1",
        &["nowhere.yaml"],
    );

    let text = fs::read_to_string(&yaml).unwrap();
    for (name, from, to, expected) in [
        ("syntax", "model:", "model: [", "yaml"),
        ("key", "model_channels", "model_chanels", "model_chanels"),
        (
            "width",
            "context_dim: 24",
            "context_dim: 32",
            "cross_attention_dim",
        ),
        (
            "codes",
            "n_embed: 48",
            "n_embed: 64",
            "quantize.embedding.weight",
        ),
        ("condition", "ClassEmbedder", "CLIPEmbedder", "CLIPEmbedder"),
        (
            "schedule",
            "linear_start: 0.0015",
            "linear_start: 7",
            "beta_start",
        ),
        ("target", "ddpm.LatentDiffusion", "ddpm.Other", "Other"),
    ] {
        assert!(text.contains(from), "{from}");
        workspace.write(&format!("{name}.yaml"), text.replacen(from, to, 1));
        let arguments =
            format!("sample --model alone/model.ckpt --yaml {name}.yaml --class 1 --steps 1");
        refused(&workspace, &arguments, &[expected]);
    }
    assert!(!workspace.path("sample.png").exists());
}

#[test]
fn requests_that_the_model_cannot_serve() {
    let workspace = Workspace::empty();
    let [class, text, mask, free] = ["class-vq-f4", "text-kl-f8", "semantic-vq-f4", "uncond-kl"]
        .map(|name| fixture(&format!("compvis/{name}/model.ckpt")));
    workspace.write("mask.txt", "no picture");
    image::RgbImage::new(32, 32)
        .save(workspace.path("colour.png"))
        .unwrap();
    image::GrayImage::from_pixel(32, 32, image::Luma([99]))
        .save(workspace.path("high.png"))
        .unwrap();
    image::GrayImage::new(40, 40)
        .save(workspace.path("large.png"))
        .unwrap();
    image::RgbImage::new(16, 16)
        .save(workspace.path("start.png"))
        .unwrap();
    for (arguments, expected) in [
        (format!("--model {class}"), "--class"),
        (format!("--model {class} --class 11"), "0 to 10"),
        (format!("--model {class} --class -1"), "--class"),
        (format!("cat --model {class}"), "--class"),
        (format!("--model {text}"), "prompt"),
        (format!("--model {text} --class 1"), "prompt"),
        (format!("--model {mask}"), "--semantic"),
        (format!("--model {mask} --semantic mask.txt"), "mask.txt"),
        (format!("--model {mask} --semantic colour.png"), "palette"),
        (format!("--model {mask} --semantic high.png"), "label 99"),
        (
            format!("--model {mask} --semantic large.png --width 32 --height 32"),
            "40 x 40",
        ),
        (format!("--model {free} --class 1"), "no classes"),
        (
            format!("--model {free} --semantic large.png"),
            "no semantic mask",
        ),
        (format!("--model {free} --sampler magic"), "magic"),
        (format!("--model {free} --strength 0.5"), "--init-image"),
        (
            format!("--model {free} --init-image start.png --strength 7"),
            "strength",
        ),
        (
            format!("--model {free} --init-image start.png --strength 0.01"),
            "no step",
        ),
        (
            format!("--model {free} --init-image nowhere.png"),
            "nowhere.png",
        ),
        (
            format!("--model {free} --init-latents nowhere.safetensors"),
            "nowhere.safetensors",
        ),
        (format!("--model {free} --negative rain"), "negative"),
        (format!("--model {free} --guidance-rescale nan"), "rescale"),
    ] {
        refused(
            &workspace,
            &format!("sample {arguments} --steps 2"),
            &[expected],
        );
    }
    assert!(!workspace.path("sample.png").exists());
}

#[test]
fn conversions_that_cannot_be() {
    let workspace = Workspace::empty();
    let model = fixture("compvis/uncond-kl/model.ckpt");
    workspace.write("there/file", "");
    refused(
        &workspace,
        &format!("convert {model} there"),
        &["there", "exists"],
    );
    refused(&workspace, "convert nowhere.ckpt new", &["nowhere.ckpt"]);
    refused(
        &workspace,
        "convert there/nothing new",
        &["there/nothing", "does not exist"],
    );
    refused(
        &workspace,
        "convert some/body new",
        &["some/body", "HF_HUB_OFFLINE"],
    );
    workspace.write("taken.yaml", "mine");
    refused(
        &workspace,
        &format!("convert {model} taken.ckpt"),
        &["taken.yaml", "exists"],
    );
    workspace.run(&format!("convert {model} good"));
    let config = workspace.path("good/unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replacen("\"layers_per_block\": 1", "\"layers_per_block\": 2", 1),
    )
    .unwrap();
    refused(
        &workspace,
        "convert good bad.ckpt",
        &["good/unet", "missing"],
    );
    assert!(!workspace.path("bad.ckpt").exists() && !workspace.path("bad.yaml").exists());
}
