//! The commands as a user types them, one after the other, on tiny data.

mod support;

use std::{fs, path::Path};

use support::{
    CONFIG, Workspace,
    pictures::{assert_alike, picture, record},
    stderr, succeeded, vq_config,
};

#[test]
fn from_pictures_to_samples() {
    let workspace = Workspace::new();
    let stdout = workspace.run("train all tiny.toml --data data --out run");
    assert!(
        stdout.contains("ldm sample"),
        "no hint at what to try next: {stdout}"
    );
    run_directory_is_as_documented(&workspace);
    sampling_is_reproducible(&workspace);
    pictures_carry_their_request(&workspace);
    reconstructions(&workspace);
    what_info_says(&workspace);
}

fn run_directory_is_as_documented(workspace: &Workspace) {
    let files = workspace.files("run");
    for expected in [
        "config.toml",
        "stage1/metrics.jsonl",
        "stage1/samples/step-00000005.png",
        "stage1/samples/step-00000008.png",
        "stage1/checkpoints/step-00000008/state.json",
        "stage1/checkpoints/step-00000008/vae.safetensors",
        "stage1/checkpoints/step-00000008/discriminator.safetensors",
        "stage2/metrics.jsonl",
        "stage2/samples/step-00000008.png",
        "stage2/checkpoints/step-00000008/denoiser.safetensors",
        "model/model_index.json",
        "model/ldm.json",
        "model/vqvae/config.json",
        "model/vqvae/diffusion_pytorch_model.safetensors",
        "model/unet/config.json",
        "model/unet/diffusion_pytorch_model.safetensors",
        "model/bert/config.json",
        "model/bert/model.safetensors",
        "model/tokenizer/vocab.txt",
        "model/scheduler/scheduler_config.json",
    ] {
        assert!(
            files.contains_key(expected),
            "no {expected} in {:?}",
            files.keys()
        );
    }
    for stage in ["stage1", "stage2"] {
        let events = format!("{stage}/events.out.tfevents.");
        assert!(
            files.keys().any(|name| name.starts_with(&events)),
            "no {events}*"
        );
        let checkpoints =
            fs::read_dir(workspace.path(&format!("run/{stage}/checkpoints"))).unwrap();
        assert_eq!(checkpoints.count(), 2, "{stage} keeps the newest two");

        let metrics = String::from_utf8(files[&format!("{stage}/metrics.jsonl")].clone()).unwrap();
        let steps: Vec<u64> = metrics
            .lines()
            .map(|line| json(line)["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, (1..=8).collect::<Vec<_>>());
    }
    // The discriminator starts at step 3, the fourth.
    let metrics = String::from_utf8(files["stage1/metrics.jsonl"].clone()).unwrap();
    for (step, line) in metrics.lines().enumerate() {
        let record = json(line);
        assert_eq!(record.get("disc_loss").is_some(), step >= 3, "{line}");
        let d_weight = record["d_weight"].as_f64().unwrap();
        assert!(
            if step >= 3 {
                d_weight > 0.0
            } else {
                d_weight == 0.0
            },
            "{line}"
        );
    }
    // The resolved configuration describes the same run.
    workspace.run("train all run/config.toml --out again --steps 1");
    let scaling = &json_file(&workspace.path("run/model/vqvae/config.json"))["scaling_factor"];
    assert!(
        scaling
            .as_f64()
            .is_some_and(|factor| factor > 0.0 && factor != 0.18215),
        "{scaling}"
    );
}

fn sampling_is_reproducible(workspace: &Workspace) {
    let sample = |options: &str| {
        workspace.run(&format!("sample picture --model run --steps 4 {options}"));
    };
    sample("--seed 3 --out once.png");
    sample("--seed 3 --out twice.png");
    let read = |name: &str| fs::read(workspace.path(name)).unwrap();
    assert_eq!(read("once.png"), read("twice.png"));
    sample("--seed 4 --out other.png");
    assert_ne!(
        picture(workspace, "once.png"),
        picture(workspace, "other.png")
    );

    // An image depends on its number, not on what it is drawn together with.
    sample("--sampler ddpm --count 3 --batch 3 --out together.png");
    sample("--sampler ddpm --count 3 --batch 1 --out alone.png");
    for number in 0..3 {
        let together = picture(workspace, &format!("together-{number}.png"));
        let alone = picture(workspace, &format!("alone-{number}.png"));
        assert_alike(&together, &alone, &format!("image {number}"));
    }
    assert_ne!(
        picture(workspace, "alone-0.png"),
        picture(workspace, "alone-1.png")
    );

    sample("--width 48 --height 16 --out wide.png");
    assert_eq!(picture(workspace, "wide.png").dimensions(), (48, 16));
}

fn pictures_carry_their_request(workspace: &Workspace) {
    let output = workspace
        .command("sample --model run --steps 3 --guidance 1.5 --seed 77 --count 2 --out new/folder/fox.png")
        .arg("ein Fuchs 🦊, \"rot\"")
        .output()
        .unwrap();
    succeeded(output);
    let text = record(workspace, "new/folder/fox-1.png");
    assert_eq!(text["prompt"], "ein Fuchs 🦊, \"rot\"");
    assert_eq!(
        (&text["seed"], &text["steps"], &text["image"]),
        (&77.into(), &3.into(), &1.into())
    );
    assert_eq!(
        (&text["sampler"], &text["guidance"]),
        (&"ddim".into(), &1.5.into())
    );
    assert_eq!(text["version"], env!("CARGO_PKG_VERSION"));
}

fn reconstructions(workspace: &Workspace) {
    let stdout = workspace.run("reconstruct data/0.png data/3.png --model run --out pairs");
    assert_eq!(stdout.matches("PSNR").count(), 2, "{stdout}");
    let files = workspace.files("pairs");
    assert_eq!(files.keys().collect::<Vec<_>>(), ["0.png", "3.png"]);
    // Original and reconstruction side by side, 40 pixels each.
    assert!(picture(workspace, "pairs/0.png").width() >= 80);
}

fn what_info_says(workspace: &Workspace) {
    let model = workspace.run("info run");
    for expected in [
        "KL-f4",
        "8x8x2",
        "scaling factor",
        "U-Net",
        "context of width 8",
        "text encoder",
        "8 + 8 steps",
    ] {
        assert!(model.contains(expected), "no \"{expected}\" in {model}");
    }
    assert_eq!(
        workspace.run("info run/model"),
        model.replace("model run/model/model", "model run/model")
    );
    let config = workspace.run("info tiny.toml");
    assert!(
        config.contains("stage 1: 8 steps of 2 x 2 images"),
        "{config}"
    );
    // The same networks have the same number of parameters.
    let counts = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.contains("parameters") && !line.contains("discriminator"));
        lines
            .map(|line| line.split(" parameters").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(counts(&config), counts(&model));
    assert_eq!(counts(&config).len(), 3);
}

#[test]
fn stages_one_by_one_equal_both_at_once() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out both --steps 3");
    let stdout = workspace.run("train vae tiny.toml --data data --out parts --steps 3");
    assert!(stdout.contains("ldm train diffusion"), "{stdout}");
    let output = workspace.output("info parts");
    assert!(output.status.success(), "{}", stderr(&output));
    workspace.run("reconstruct data/1.png --model parts --out pairs");
    workspace.run("train diffusion tiny.toml --data data --out parts --steps 3");
    for part in ["vqvae", "unet", "bert"] {
        let folder = |run: &str| workspace.files(&format!("{run}/model/{part}"));
        assert!(folder("both") == folder("parts"), "{part} differs");
        assert!(!folder("both").is_empty());
    }

    // On another run's autoencoder.
    workspace.run(
        "train diffusion tiny.toml --data data --out third --steps 3 --set stage2.first_stage=both",
    );
    assert!(workspace.files("third/model/unet") == workspace.files("both/model/unet"));
}

#[test]
fn a_first_stage_with_a_codebook() {
    let workspace = Workspace::new();
    workspace.write("vq.toml", vq_config());
    assert!(workspace.run("info vq.toml").contains("32 codes"));
    workspace.run("train all vq.toml --data data --out run");
    let files = workspace.files("run");
    let metrics = String::from_utf8(files["stage1/metrics.jsonl"].clone()).unwrap();
    for line in metrics.lines() {
        let record = json(line);
        let used = record["codes_used"].as_f64().unwrap();
        // Two pictures of 8x8 pixels have at least one code.
        assert!((1.0 / 32.0..=1.0).contains(&used), "{line}");
        assert!(record["codebook"].as_f64().unwrap() > 0.0, "{line}");
        assert!(record.get("kl").is_none(), "{line}");
    }
    let config = json_file(&workspace.path("run/model/vqvae/config.json"));
    assert_eq!(config["_class_name"], "VQModel");
    assert_eq!(config["sample_size"], 32);
    let index = json_file(&workspace.path("run/model/model_index.json"));
    assert_eq!(index["vqvae"][1], "VQModel");
    let info = workspace.run("info run");
    assert!(
        info.contains("VQ-f4") && info.contains("32 codes"),
        "{info}"
    );

    workspace.run("sample picture --model run --steps 2");
    assert_eq!(picture(&workspace, "sample.png").dimensions(), (32, 32));
    workspace.run("reconstruct data/1.png --model run --out pairs");

    // A longer training goes on where this one ended; another codebook is another model.
    workspace.run("train vae vq.toml --data data --out run --steps 9 --resume");
    let output = workspace.output(
        "train vae vq.toml --data data --out run --steps 9 --resume --set stage1.vq.num_vq_embeddings=16",
    );
    assert!(stderr(&output).contains("stage1.vq"), "{}", stderr(&output));
}

#[test]
fn without_text_there_is_nothing_to_prompt() {
    let workspace = Workspace::new();
    let without_text = CONFIG.split("[stage2.text]").next().unwrap();
    let without_text = (without_text.replace("UNet2DConditionModel", "UNet2DModel"))
        .replace("CrossAttnDownBlock2D", "AttnDownBlock2D")
        .replace("CrossAttnUpBlock2D", "AttnUpBlock2D")
        .replace("cross_attention_dim = 8\n", "");
    workspace.write("plain.toml", without_text);
    fs::remove_file(workspace.path("data/metadata.jsonl")).unwrap();
    workspace
        .run("train all plain.toml --data data --out run --steps 2 --set stage2.preview.steps=2");
    workspace.run("sample --model run --steps 2");
    assert_eq!(picture(&workspace, "sample.png").dimensions(), (32, 32));
    assert!(!workspace.path("run/model/bert").exists());
    assert!(workspace.run("info run").contains("unconditional"));
}

#[test]
fn devices_lists_what_this_build_has() {
    let stdout = Workspace::empty().run("devices");
    let flex = stdout
        .lines()
        .find(|line| line.starts_with("flex"))
        .expect("the default device");
    assert!(flex.ends_with("yes"), "{flex}");
    let rocm = stdout
        .lines()
        .find(|line| line.starts_with("rocm"))
        .expect("all devices are listed");
    assert!(rocm.contains("--features rocm"), "{rocm}");
}

#[test]
fn help_names_every_command_and_option() {
    let workspace = Workspace::empty();
    let help = workspace.run("--help");
    for command in [
        "quickstart",
        "data",
        "train",
        "sample",
        "reconstruct",
        "info",
        "devices",
    ] {
        assert!(help.contains(command), "{help}");
        assert!(
            workspace
                .run(&format!("{command} --help"))
                .contains("Usage: ldm")
        );
    }
    assert!(
        workspace
            .run("--version")
            .contains(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_embedded_data_set_is_written_with_captions() {
    let workspace = Workspace::empty();
    let stdout = workspace.run("data twemoji --count 8 --out emoji");
    assert!(
        stdout.contains("8 pictures") && stdout.contains("CC-BY"),
        "{stdout}"
    );
    let files = workspace.files("emoji");
    assert_eq!(
        files.keys().filter(|name| name.ends_with(".png")).count(),
        8
    );
    assert!(files.contains_key("ATTRIBUTION.md"));
    let metadata = String::from_utf8(files["metadata.jsonl"].clone()).unwrap();
    let records: Vec<_> = metadata.lines().map(json).collect();
    assert_eq!(records.len(), 8);
    for record in records {
        let name = record["file_name"].as_str().unwrap();
        assert!(files.contains_key(name), "{name}");
        assert!(
            record["text"]
                .as_str()
                .is_some_and(|caption| !caption.is_empty())
        );
    }
}

#[test]
fn quickstart_repeats_itself() {
    let workspace = Workspace::empty();
    let stdout = workspace.run("quickstart --steps 2 --seed 9 --out one");
    for expected in [
        "of 16 samples",
        "PSNR",
        "one/samples.png",
        "one/curves.png",
        "sample \"",
    ] {
        assert!(stdout.contains(expected), "no \"{expected}\" in {stdout}");
    }
    workspace.run("quickstart --steps 2 --seed 9 --out two");
    let (one, two) = (workspace.files("one"), workspace.files("two"));
    for name in [
        "samples.png",
        "reconstructions.png",
        "model/vqvae/diffusion_pytorch_model.safetensors",
        "model/unet/diffusion_pytorch_model.safetensors",
        "model/bert/model.safetensors",
    ] {
        assert!(one.contains_key(name), "no {name}");
        assert!(one[name] == two[name], "{name} differs");
    }
    assert!(one.contains_key("curves.png"));
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn json_file(path: &Path) -> serde_json::Value {
    json(&fs::read_to_string(path).unwrap())
}

/// The paper's numbers of parameters, as `ldm info` prints them for the presets.
#[test]
fn presets_are_the_papers_systems() {
    let workspace = Workspace::empty();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let expected: [(&str, &[&str]); 10] = [
        ("celebahq-256", &["55,312,063", "274,056,163"]),
        ("imagenet-256", &["55,312,063", "400,920,579", "512,512"]),
        (
            "landscapes-256",
            &["55,312,063", "215,229,315", "182 labels"],
        ),
        ("laion-256", &["83,653,863", "872,300,484", "581,994,042"]),
        ("autoencoder-kl-f4", &["55,312,063", "2,765,633"]),
        ("autoencoder-kl-f8", &["83,653,863"]),
        ("autoencoder-kl-f16", &["69,610,963"]),
        ("autoencoder-kl-f32", &["103,880,131"]),
        ("autoencoder-vq-f4", &["55,322,782", "2,765,633"]),
        ("autoencoder-vq-f8", &["67,717,295"]),
    ];
    for (name, numbers) in expected {
        let path = folder.join(format!("{name}.toml"));
        let output = workspace
            .command_of(&["info", path.to_str().unwrap()])
            .output();
        let text = succeeded(output.unwrap());
        for number in numbers {
            assert!(text.contains(number), "{name}: no {number} in\n{text}");
        }
    }
}
