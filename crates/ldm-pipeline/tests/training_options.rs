//! The options of both stages' objectives in a whole run: they do something, a resumed run equals one that wasn't stopped, and what
//! is exported is a model like any other.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use ldm_pipeline::{
    config::RunConfig,
    metrics::read_metrics,
    run::RunDir,
    train::{Event, Outcome, Stage, train_diffusion, train_vae},
    weights,
};

/// An autoencoder with a codebook and an unconditional denoiser, with every option that is off by default.
const CONFIG: &str = r#"
seed = 3

[data]
resolution = 16
validation = 0.0
workers = 1

[stage1]
revive_codes_after = 2

[stage1.training]
steps = 8
batch_size = 2
accumulation = 2
lr = { rate = 2e-3 }
ema_decay = 0.9
ema_warmup = { kind = "power", power = 0.75 }
checkpoint_every = 100
keep_checkpoints = 9

[stage1.vq]
num_vq_embeddings = 64
block_out_channels = [8, 8]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 3
norm_num_groups = 4

[stage1.loss]
perceptual_weight = 0.0
disc_weight = 0.0
learn_logvar = true
logvar = -0.5
codebook_beta = "paper"

[stage2.training]
steps = 8
batch_size = 2
accumulation = 2
lr = { rate = 2e-3 }
ema_decay = 0.9
ema_warmup = { kind = "diffusers" }
checkpoint_every = 100
keep_checkpoints = 9

[stage2.unet]
_class_name = "UNet2DModel"
sample_size = 8
in_channels = 3
out_channels = 3
block_out_channels = [8, 16]
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 8
norm_num_groups = 4

[stage2.noise]
steps = 20
rescale_zero_terminal_snr = true
offset_noise = 0.1
input_perturbation = 0.1

[stage2.loss]
prediction_type = "v_prediction"
min_snr_gamma = 5.0
learn_logvar = true
logvar_init = 0.25

[stage2.preview]
count = 1
steps = 2
"#;

fn parse(changes: &[&str]) -> Result<RunConfig, String> {
    let changes: Vec<String> = changes.iter().map(|&change| change.into()).collect();
    RunConfig::parse(CONFIG, "the test's configuration", &changes)
        .map_err(|error| error.to_string())
}

fn write_pictures(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for number in 0..5u32 {
        let picture = RgbImage::from_fn(16, 16, |x, y| {
            let lit = (x / 4 + number) % 3 == 0 || y / 5 == number % 3;
            Rgb([
                if lit { 220 } else { 30 },
                (50 * number) as u8,
                (15 * x) as u8,
            ])
        });
        picture.save(folder.join(format!("{number}.png"))).unwrap();
    }
}

/// Trains both stages in `run`; with `stop_at` each is stopped there once and resumed.
fn train(config: &RunConfig, folder: PathBuf, stop_at: Option<u64>) -> RunDir {
    let stages = [Stage::Vae, Stage::Diffusion];
    let mut run = RunDir::open(&folder, config, &stages, false).unwrap();
    for stage in stages {
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        if let Some(stop_at) = stop_at {
            let outcome = train(config, &run, &Device::flex(), &mut |event| match event {
                Event::Step(report) if report.step == stop_at => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
            assert_eq!(outcome.unwrap(), Outcome::Stopped(stop_at));
            run = RunDir::open(&folder, config, &stages, true).unwrap();
        }
        let outcome = train(config, &run, &Device::flex(), &mut |_| {
            ControlFlow::Continue(())
        });
        assert_eq!(outcome.unwrap(), Outcome::Finished);
    }
    run
}

/// The figures of every step, without those of a clock.
fn figures(run: &RunDir, stage: Stage) -> Vec<BTreeMap<String, f64>> {
    let records = read_metrics(&run.metrics(stage)).unwrap();
    let timeless = |values: BTreeMap<String, f64>| {
        let kept = values.into_iter();
        kept.filter(|(name, _)| !name.contains("second") && *name != "memory_mib")
            .collect()
    };
    (records.into_iter())
        .map(|record| timeless(record.values.into_iter().collect()))
        .collect()
}

/// Every file of the last checkpoint that training goes on from.
fn last_checkpoint(run: &RunDir, stage: Stage) -> BTreeMap<String, Vec<u8>> {
    let folder = run.checkpoints(stage).join("step-00000008");
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(path).unwrap())
    });
    files.collect()
}

#[test]
fn a_run_with_every_option_resumes_bit_for_bit_and_exports_a_plain_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    write_pictures(&data);
    let mut config = parse(&[]).unwrap();
    config.data.path = Some(data);
    let whole = train(&config, dir.path().join("whole"), None);
    let parts = train(&config, dir.path().join("parts"), Some(3));
    for stage in [Stage::Vae, Stage::Diffusion] {
        assert_eq!(figures(&whole, stage), figures(&parts, stage), "{stage}");
        let [expected, found] = [&whole, &parts].map(|run| last_checkpoint(run, stage));
        assert!(expected.contains_key("logvar.safetensors"));
        assert!(expected.contains_key("logvar_optimizer.safetensors"));
        assert!(!expected.contains_key("logvar_ema.safetensors"));
        assert_eq!(
            expected.keys().collect::<Vec<_>>(),
            found.keys().collect::<Vec<_>>()
        );
        for (name, bytes) in &expected {
            assert!(*bytes == found[name], "{stage}: {name} differs");
        }
    }

    let stage1 = figures(&whole, Stage::Vae);
    let logvar = |figures: &[BTreeMap<String, f64>]| -> Vec<f64> {
        figures.iter().map(|values| values["logvar"]).collect()
    };
    for (found, first) in [
        (logvar(&stage1), -0.5),
        (logvar(&figures(&whole, Stage::Diffusion)), 0.25),
    ] {
        assert_eq!(found[0], first);
        let rest = found.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(rest, "{found:?}");
    }
    let revived: f64 = stage1.iter().map(|values| values["codes_revived"]).sum();
    assert!(revived > 0.0);
    for values in &stage1 {
        let (used, window) = (values["codes_used"], values["codes_used_window"]);
        assert!(used > 0.0 && window >= used && window <= 1.0, "{values:?}");
        assert!(values["codebook_perplexity"] >= 1.0);
    }

    let scheduler = fs::read_to_string(whole.model().join("scheduler/scheduler_config.json"));
    let scheduler: serde_json::Value = serde_json::from_str(&scheduler.unwrap()).unwrap();
    assert_eq!(scheduler["rescale_betas_zero_snr"], true);
    assert_eq!(scheduler["timestep_spacing"], "trailing");
    for part in ["unet", "vqvae"] {
        let path = whole.model().join(part);
        let tensors = weights::open(&path.join("diffusion_pytorch_model.safetensors")).unwrap();
        assert!(!tensors.contains("logvar"));
    }
}

#[test]
fn values_that_do_not_fit_are_named_with_the_way_out() {
    for (change, key, way_out) in [
        (
            "stage1.revive_codes_after=0",
            "stage1.revive_codes_after",
            "leave it out",
        ),
        (
            "stage2.noise.offset_noise=-0.1",
            "stage2.noise.offset_noise",
            "0 or more",
        ),
        (
            "stage2.noise.input_perturbation=nan",
            "stage2.noise.input_perturbation",
            "0 or more",
        ),
        (
            "stage2.loss.prediction_type=epsilon",
            "stage2.noise.rescale_zero_terminal_snr",
            "v_prediction",
        ),
        (
            "stage2.preview.sampler=heun",
            "stage2.preview.sampler",
            "ddim",
        ),
        (
            "stage2.loss.l_simple_weight=0",
            "stage2.loss",
            "l_simple_weight",
        ),
        (
            "stage1.training.ema_warmup.power=0",
            "stage1.training",
            "ema_warmup.power",
        ),
        (
            "stage1.training.ema_warmup.kind=linear",
            "ema_warmup",
            "compvis",
        ),
        ("stage1.loss.codebook_beta=new", "codebook_beta", "legacy"),
        (
            "stage1.training.ema_warmup.gama=1",
            "ema_warmup.gama",
            "unknown",
        ),
    ] {
        let error = RunConfig::parse(CONFIG, "test.toml", &[change.into()]).unwrap_err();
        let text = format!(
            "{error} {:?}",
            std::error::Error::source(&error).map(ToString::to_string)
        );
        assert!(
            text.contains(key) && text.contains(way_out),
            "{change}: {text}"
        );
    }
    let kl = CONFIG.replace("[stage1.vq]\nnum_vq_embeddings = 64", "[stage1.vae]");
    let error = RunConfig::parse(&kl, "test.toml", &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("revive_codes_after") && error.contains("stage1.vq"),
        "{error}"
    );
}

/// What the options default to is the reference's way.
#[test]
fn the_defaults_are_the_references() {
    let plain = CONFIG
        .lines()
        .filter(|line| {
            ![
                "revive",
                "ema_warmup",
                "learn_logvar",
                "logvar",
                "codebook_beta",
                "rescale",
                "offset",
                "input_",
            ]
            .iter()
            .any(|option| line.starts_with(option))
        })
        .collect::<Vec<_>>()
        .join("\n");
    let config = RunConfig::parse(&plain, "test.toml", &[]).unwrap();
    let stage2 = config.stage2.as_ref().unwrap();
    assert_eq!(config.stage1.revive_codes_after, None);
    assert!(!config.stage1.loss.learn_logvar && !stage2.loss.learn_logvar);
    assert_eq!(
        (stage2.noise.offset_noise, stage2.noise.input_perturbation),
        (0.0, 0.0)
    );
    assert!(!stage2.noise.scheduler(&stage2.loss).rescale_betas_zero_snr);
    let ema = config.stage1.training.ema().unwrap();
    assert_eq!(ema, 0.9.into());
}
