//! Whole runs whose data change, vanish, or lie elsewhere.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::tensor::Device;
use image::{Rgb, RgbImage};

use ldm_pipeline::{
    Error,
    config::RunConfig,
    data::{DataError, LatentCaching, Size},
    metrics::read_metrics,
    run::RunDir,
    train::{Event, Outcome, Stage, train_diffusion, train_vae},
};

const CONFIG: &str = r#"
seed = 3

[data]
resolution = 8
validation = 0.0
workers = 1
cache_mib = 0
flip = 0.5

[stage1.training]
steps = 14
batch_size = 2
lr.rate = 1e-3

[stage1.vae]
block_out_channels = [4, 4]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 2
norm_num_groups = 2
mid_block_add_attention = false

[stage1.loss]
perceptual_weight = 0.0
disc_weight = 0.0

[stage2.training]
steps = 8
batch_size = 2
lr.rate = 1e-3

[stage2.unet]
_class_name = "UNet2DConditionModel"
sample_size = 4
in_channels = 2
out_channels = 2
block_out_channels = [4, 4]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 4
attention_head_dim = 1
norm_num_groups = 2

[stage2.noise]
timesteps = "uniform"

[stage2.text]
dropout = 0.3

[stage2.text.bert]
max_position_embeddings = 6
encoder_layers = 1
encoder_ffn_dim = 8
encoder_attention_heads = 1
head_dim = 4
d_model = 4
to_logits = false

[stage2.preview]
count = 1
steps = 1
"#;

/// Initial weights come from a generator of the whole process: one trial at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Trial {
    _alone: MutexGuard<'static, ()>,
    dir: tempfile::TempDir,
    config: RunConfig,
}

impl Trial {
    /// Five captioned pictures.
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        for number in 0..5 {
            let picture = RgbImage::from_fn(8, 8, |x, y| {
                Rgb([(x * 30) as u8, (y * 30) as u8, 50 * number as u8])
            });
            picture.save(data.join(format!("{number}.png"))).unwrap();
            fs::write(data.join(format!("{number}.txt")), format!("no. {number}")).unwrap();
        }
        let mut config = RunConfig::parse(CONFIG, "the test's configuration", &[]).unwrap();
        config.data.path = Some(data);
        Self {
            _alone: alone,
            dir,
            config,
        }
    }

    /// With pictures of three shapes, and a size for each.
    fn of_several_shapes() -> Self {
        let mut trial = Self::new();
        for (number, [width, height]) in [[8, 9], [20, 8], [12, 30], [9, 8], [24, 9]]
            .into_iter()
            .enumerate()
        {
            let picture = RgbImage::from_fn(width, height, |x, y| {
                Rgb([(x * 10) as u8, (y * 8) as u8, 50 * number as u8])
            });
            picture
                .save(trial.data().join(format!("{number}.png")))
                .unwrap();
        }
        trial.config.data.buckets = [[8, 8], [16, 8], [8, 16]].map(Size::from).to_vec();
        trial
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self, name: &str) -> RunDir {
        let path = self.dir.path().join(name);
        let stages = [Stage::Vae, Stage::Diffusion];
        let resume = path.exists();
        RunDir::open(&path, &self.config, &stages, resume).unwrap()
    }

    /// Trains and calls `after` with each finished step; returns the warnings too.
    fn train(
        &self,
        run: &RunDir,
        stage: Stage,
        mut after: impl FnMut(u64),
    ) -> (Result<Outcome, Error>, Vec<String>) {
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        let mut warnings = Vec::new();
        let outcome = train(&self.config, run, &Device::flex(), &mut |event| {
            match event {
                Event::Step(report) => after(report.step),
                Event::Warning(text) => warnings.push(text.to_owned()),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        (outcome, warnings)
    }

    /// Trains to the end and returns the course of a figure.
    fn curve(&self, run: &RunDir, stage: Stage, name: &str) -> Vec<f64> {
        assert_eq!(self.train(run, stage, |_| {}).0.unwrap(), Outcome::Finished);
        course(run, stage, name)
    }
}

fn course(run: &RunDir, stage: Stage, name: &str) -> Vec<f64> {
    let records = read_metrics(&run.metrics(stage)).unwrap();
    records.iter().map(|record| record.values[name]).collect()
}

/// Packs a folder's files into tar files of two samples each.
fn pack(folder: &Path, shards: &Path) {
    fs::create_dir(shards).unwrap();
    let mut tars: Vec<_> = (0..3)
        .map(|number| {
            let file = fs::File::create(shards.join(format!("{number}.tar"))).unwrap();
            tar::Builder::new(file)
        })
        .collect();
    for number in 0..5 {
        for extension in ["png", "txt"] {
            let name = format!("{number}.{extension}");
            tars[number / 2]
                .append_path_with_name(folder.join(&name), &name)
                .unwrap();
        }
    }
    for mut tar in tars {
        tar.finish().unwrap();
    }
}

#[test]
fn folders_shards_and_latents_encoded_on_the_way_train_alike() {
    let mut trial = Trial::new();
    let run = trial.run("folder");
    let rec = trial.curve(&run, Stage::Vae, "rec");
    let loss = trial.curve(&run, Stage::Diffusion, "loss");
    assert!(
        course(&run, Stage::Vae, "data_wait_seconds")
            .iter()
            .all(|&s| s >= 0.0)
    );
    assert!(course(&run, Stage::Diffusion, "data_wait_seconds").len() == loss.len());

    let shards = trial.dir.path().join("shards");
    pack(&trial.data(), &shards);
    trial.config.data.path = Some(shards);
    let run = trial.run("of-shards");
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), rec);
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss"), loss);
    assert!(
        run.stage(Stage::Diffusion)
            .join("latents.safetensors")
            .exists()
    );

    trial.config.data.latent_cache = LatentCaching::Off;
    let run = trial.run("uncached");
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), rec);
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss"), loss);
    assert!(
        !run.stage(Stage::Diffusion)
            .join("latents.safetensors")
            .exists()
    );
}

#[test]
fn a_single_bucket_trains_as_the_square_does() {
    let mut trial = Trial::new();
    let run = trial.run("square");
    let rec = trial.curve(&run, Stage::Vae, "rec");
    let loss = trial.curve(&run, Stage::Diffusion, "loss");
    trial.config.data.buckets = vec![Size::square(8)];
    let run = trial.run("bucket");
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), rec);
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss"), loss);
}

#[test]
fn images_of_several_shapes_train_alike_however_they_are_read() {
    let mut trial = Trial::of_several_shapes();
    trial.config.stage2.as_mut().unwrap().training.accumulation = 2;
    let run = trial.run("folder");
    let rec = trial.curve(&run, Stage::Vae, "rec");
    let loss = trial.curve(&run, Stage::Diffusion, "loss");

    let shards = trial.dir.path().join("shards");
    pack(&trial.data(), &shards);
    trial.config.data.path = Some(shards);
    trial.config.data.workers = 3;
    let run = trial.run("of-shards");
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), rec);
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss"), loss);
    let latents = run.stage(Stage::Diffusion).join("latents.safetensors");
    let bytes = fs::read(&latents).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    // Two rows for each image, as the run mirrors.
    assert_eq!(shape("moments.8x8"), [4, 4, 4, 4]);
    assert_eq!(shape("moments.16x8"), [4, 4, 4, 8]);
    assert_eq!(shape("moments.8x16"), [2, 4, 8, 4]);

    trial.config.data.buckets.pop();
    trial.config.stage2.as_mut().unwrap().training.steps += 2;
    let (refused, _) = trial.train(&run, Stage::Diffusion, |_| {});
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("preparation of images") && error.contains("buckets"),
        "{error}"
    );

    trial.config.data.buckets.push(Size::from([8, 16]));
    trial.config.stage2.as_mut().unwrap().training.steps -= 2;
    trial.config.data.latent_cache = LatentCaching::Off;
    let run = trial.run("uncached");
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), rec);
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss"), loss);
}

#[test]
fn a_bucket_that_fills_no_step_is_named() {
    let mut trial = Trial::of_several_shapes();
    trial.config.data.crop = ldm_pipeline::data::Crop::Random;
    let warnings = trial.train(&trial.run("run"), Stage::Vae, |_| {}).1;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("the bucket 8x16 has 1 of the images, fewer than the 2 of a step"),
        "{warnings:?}"
    );
}

#[test]
fn latents_of_other_images_are_refused_or_replaced() {
    let mut trial = Trial::new();
    let run = trial.run("run");
    trial.curve(&run, Stage::Vae, "rec");
    trial.curve(&run, Stage::Diffusion, "loss");

    fs::copy(trial.data().join("0.png"), trial.data().join("9.png")).unwrap();
    trial.config.stage2.as_mut().unwrap().training.steps += 2;
    let (refused, _) = trial.train(&run, Stage::Diffusion, |_| {});
    let error = refused.unwrap_err();
    assert!(
        error.to_string().contains("differs by the training images"),
        "{error}"
    );
    assert!(error.help().unwrap().contains("data.latent_cache=rebuild"));

    trial.config.data.latent_cache = LatentCaching::Rebuild;
    assert_eq!(trial.curve(&run, Stage::Diffusion, "loss").len(), 10);
}

#[test]
fn a_run_whose_data_vanished_goes_on_when_they_are_back() {
    let trial = Trial::new();
    let whole = trial.curve(&trial.run("whole"), Stage::Vae, "rec");

    let run = trial.run("interrupted");
    let elsewhere = trial.dir.path().join("elsewhere");
    let mut done = 0;
    let (ended, warnings) = trial.train(&run, Stage::Vae, |step| {
        done = step;
        if step == 3 {
            fs::rename(trial.data(), &elsewhere).unwrap();
        }
    });
    let error = ended.unwrap_err();
    assert!(
        matches!(&error, Error::Data(DataError::Vanished { .. })),
        "{error}"
    );
    assert!(warnings.len() <= 1, "{warnings:?}");
    let kept = run
        .checkpoints(Stage::Vae)
        .join(format!("step-{done:08}/state.json"));
    assert!((3..14).contains(&done) && kept.exists(), "{done}");

    fs::rename(&elsewhere, trial.data()).unwrap();
    assert_eq!(trial.curve(&run, Stage::Vae, "rec"), whole);
}

#[test]
fn a_damaged_image_is_named_once_in_the_life_of_a_run() {
    let mut trial = Trial::new();
    fs::write(trial.data().join("2.png"), "no image").unwrap();
    let run = trial.run("run");
    let mut warnings = trial.train(&run, Stage::Vae, |_| {}).1;
    trial.config.stage1.training.steps += 6;
    warnings.extend(trial.train(&run, Stage::Vae, |_| {}).1);
    warnings.extend(trial.train(&run, Stage::Diffusion, |_| {}).1);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("2.png isn't an image"), "{warnings:?}");
    let listed = fs::read_to_string(run.path().join("damaged.txt")).unwrap();
    assert_eq!(
        listed,
        format!("{}\n", trial.data().join("2.png").display())
    );
}
