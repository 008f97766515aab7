//! Wrong checkpoints, requests and conversions: one error that says what and where, and nothing half-written.

mod support;

use std::{fs, path::Path};

use support::{
    CONFIG, Workspace, copy_folder,
    refusals::{case, check, refused_naming},
};

fn fixture(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    root.join(path).display().to_string()
}

#[test]
fn checkpoints_that_are_not_what_they_should_be() {
    let workspace = Workspace::empty();
    let model = fixture("compvis/class-vq-f4/model.ckpt");
    let yaml = fixture("compvis/class-vq-f4/config.yaml");
    let bytes = fs::read(&model).unwrap();

    // Without its yaml the heads of its attention can't be known.
    workspace.write("alone/model.ckpt", &bytes);
    refused_naming(
        &workspace,
        "sample --model alone/model.ckpt --class 1",
        1,
        &["model.ckpt", "--yaml"],
    );
    workspace.write("short/model.ckpt", &bytes[..bytes.len() / 2]);
    refused_naming(
        &workspace,
        &format!("sample --model short/model.ckpt --yaml {yaml} --class 1"),
        1,
        &["short/model.ckpt"],
    );
    workspace.write("text.ckpt", "no checkpoint at all");
    refused_naming(&workspace, "info text.ckpt", 1, &["text.ckpt"]);
    refused_naming(
        &workspace,
        "sample --model alone/model.ckpt --yaml nowhere.yaml --class 1",
        1,
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
        refused_naming(&workspace, &arguments, 1, &[expected]);
    }
    assert!(!workspace.path("sample.png").exists());
}

#[test]
fn requests_that_the_model_cannot_serve() {
    let workspace = Workspace::empty();
    let [class, text, mask, free] = ["class-vq-f4", "text-kl-f8", "semantic-vq-f4", "uncond-kl"]
        .map(|name| fixture(&format!("compvis/{name}/model.ckpt")));
    workspace.write("mask.txt", "no picture\nnor two\nnor three\n");
    workspace.write("empty.txt", "# nothing\n");
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
        (
            format!("--model {text} --prompts nowhere.txt"),
            "nowhere.txt",
        ),
        (
            format!("--model {text} --prompts mask.txt --grid 1x2"),
            "1 x 2",
        ),
        (format!("--model {text} --prompts empty.txt"), "empty.txt"),
        (format!("--model {free} --prompts mask.txt"), "no prompt"),
        (format!("--model {free} --negative rain"), "negative"),
        (format!("--model {free} --guidance-rescale nan"), "rescale"),
    ] {
        let arguments = format!("sample {arguments} --steps 2");
        refused_naming(&workspace, &arguments, 1, &[expected]);
    }
    for (arguments, expected) in [
        (format!("--model {class} --class -1"), "--class"),
        (format!("--model {free} --sampler magic"), "magic"),
        (format!("--model {free} --strength 0.5"), "--init-image"),
    ] {
        let arguments = format!("sample {arguments} --steps 2");
        refused_naming(&workspace, &arguments, 2, &[expected]);
    }
    assert!(!workspace.path("sample.png").exists());
}

#[test]
fn conversions_that_cannot_be() {
    let workspace = Workspace::empty();
    let model = fixture("compvis/uncond-kl/model.ckpt");
    workspace.write("there/file", "");
    refused_naming(
        &workspace,
        &format!("convert {model} there"),
        1,
        &["there", "exists"],
    );
    refused_naming(&workspace, "convert nowhere.ckpt new", 1, &["nowhere.ckpt"]);
    refused_naming(
        &workspace,
        "convert there/nothing new",
        1,
        &["there/nothing", "does not exist"],
    );
    refused_naming(
        &workspace,
        "convert some/body new",
        1,
        &["some/body", "HF_HUB_OFFLINE"],
    );
    workspace.write("taken.yaml", "mine");
    refused_naming(
        &workspace,
        &format!("convert {model} taken.ckpt"),
        1,
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
    refused_naming(
        &workspace,
        "convert good bad.ckpt",
        1,
        &["good/unet", "missing"],
    );
    assert!(!workspace.path("bad.ckpt").exists() && !workspace.path("bad.yaml").exists());
}

#[test]
fn wrong_models_and_requests() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out run --steps 1");
    let model = workspace.path("run/model");
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let variant = |name: &str| {
        copy_folder(&model, &workspace.path(name));
        workspace.path(name)
    };
    let truncated = variant("truncated").join(weights);
    let bytes = fs::read(&truncated).unwrap();
    fs::write(truncated, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(variant("headless").join(weights)).unwrap();
    fs::write(variant("garbage").join("unet/config.json"), "{").unwrap();
    let change = |name: &str, file: &str, from: &str, to: &str| {
        let path = variant(name).join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    change(
        "wider",
        "vqvae/config.json",
        "8,\n    8,\n    16",
        "8,\n    8,\n    32",
    );
    change(
        "latents",
        "unet/config.json",
        "\"in_channels\": 2",
        "\"in_channels\": 3",
    );
    change(
        "context",
        "bert/config.json",
        "\"d_model\": 8",
        "\"d_model\": 16",
    );
    fs::remove_dir_all(variant("mute").join("bert")).unwrap();
    fs::write(variant("wordless").join("tokenizer/vocab.txt"), "a\nb\n").unwrap();
    // Without its text parts, and the layers that would attend to them, a model is unconditional.
    let unconditional = CONFIG.split("[stage2.text]").next().unwrap();
    let unconditional = (unconditional.replace("UNet2DConditionModel", "UNet2DModel"))
        .replace("CrossAttnDownBlock2D", "DownBlock2D")
        .replace("CrossAttnUpBlock2D", "UpBlock2D")
        .replace("cross_attention_dim = 8\n", "");
    workspace.write("unconditional.toml", unconditional);
    workspace.run("train all unconditional.toml --data data --out free --steps 1 --set stage2.preview.steps=2");

    check(
        &workspace,
        &[
            case(
                "sample cat --model nowhere",
                "nowhere is no model",
                "model_index.json",
            ),
            case(
                "sample cat --model data",
                "data is no model",
                "model_index.json",
            ),
            case("sample cat --model truncated", "truncated: ", "again"),
            case(
                "sample cat --model headless",
                "headless",
                "export the model again",
            ),
            case("sample cat --model garbage", "garbage/unet/config.json", ""),
            case(
                "sample cat --model wider",
                "has shape [16, 2, 3, 3], expected [32, 2, 3, 3]",
                "configuration",
            ),
            case("sample cat --model latents", "latents/unet/config.json", ""),
            case(
                "sample cat --model context",
                "`cross_attention_dim` is 8",
                "",
            ),
            case(
                "sample cat --model mute",
                "the model has no text encoder",
                "",
            ),
            case(
                "sample cat --model wordless",
                "wordless/tokenizer/vocab.txt",
                "",
            ),
            case("sample --model run", "give one", ""),
            case("sample cat --model free", "takes no prompt", ""),
            case(
                "sample --model free --negative dog",
                "takes no negative prompt",
                "",
            ),
            case("sample cat --model run --steps 1001", "`steps` is 1001", ""),
            case(
                "sample cat --model run --guidance nan",
                "guidance is NaN",
                "",
            ),
            case(
                "sample cat --model run --guidance inf",
                "guidance is inf",
                "",
            ),
            case("sample cat --model run --eta -1", "`eta` is -1", ""),
            case(
                "sample cat --model run --width 30 --height 32",
                "30 x 32",
                "",
            ),
            case(
                "sample cat --model run --out new/cat.jpeg",
                "new/cat.jpeg",
                "",
            ),
            case("sample cat --model run --out data", "not data", ""),
            case(
                "sample cat --model run --out tiny.toml/cat.png",
                "tiny.toml",
                "--out",
            ),
            case(
                "reconstruct data/0.png --model nowhere --out out",
                "nowhere is no model",
                "",
            ),
            case(
                "reconstruct data/none.png --model run --out out",
                "data/none.png",
                "check the path",
            ),
            case(
                "reconstruct tiny.toml --model run --out out",
                "tiny.toml isn't an image",
                "replace",
            ),
            case(
                "reconstruct data/0.png --model run --out data",
                "would overwrite data/0.png",
                "",
            ),
            case(
                "reconstruct data/0.png data/../data/0.png --model run --out out",
                "would overwrite out/0.png",
                "",
            ),
            case("info nowhere", "nowhere is no model", "model_index.json"),
            case("info garbage", "garbage/unet/config.json", ""),
            // A run that is already there.
            case(
                "train all tiny.toml --data data --out run",
                "run already holds a run",
                "--resume",
            ),
            case(
                "quickstart --out run",
                "run already holds a run",
                "--resume",
            ),
            case(
                "train vae tiny.toml --data data --out run --resume --set seed=6",
                "another seed",
                "configuration",
            ),
            case(
                "train vae tiny.toml --data data --out run --resume --set stage1.vae.layers_per_block=2",
                "another autoencoder",
                "configuration",
            ),
            case(
                "train vae tiny.toml --data data --out run --resume --set stage1.loss.disc_channels=16",
                "another discriminator",
                "configuration",
            ),
            case(
                "train all tiny.toml --data data --out run --resume --set stage2.unet.layers_per_block=2",
                "another U-Net",
                "configuration",
            ),
            case(
                "train diffusion tiny.toml --data data --out other --set stage2.first_stage=run --set stage1.vae.latent_channels=3 --set stage2.unet.in_channels=3 --set stage2.unet.out_channels=3",
                "2 latent channels",
                "model_index.json",
            ),
        ],
    );
}
