//! Both stages learn one batch by heart: whatever is wrong with a gradient, an optimiser or a loss, it shows here first.

use std::{ops::ControlFlow, path::Path};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use ldm_pipeline::{
    config::RunConfig,
    metrics::read_metrics,
    run::RunDir,
    train::{Outcome, Stage, train_diffusion, train_vae},
};

/// Four pictures, all of them in every batch. Without averaging, what is measured is the last step's network.
const CONFIG: &str = r#"
seed = 1

[data]
resolution = 16
validation = 0.0
workers = 1

[stage1.training]
steps = 200
batch_size = 4
lr = { rate = 4e-3, warmup_steps = 10, decay = "cosine" }
optimizer = { betas = [0.9, 0.99], weight_decay = 0.0 }
max_grad_norm = 1e4

[stage1.vae]
block_out_channels = [24, 24]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4

[stage1.loss]
perceptual_weight = 0.0
disc_weight = 0.0

[stage2.training]
steps = 250
batch_size = 4
lr = { rate = 4e-3, warmup_steps = 10, decay = "cosine" }
optimizer = { betas = [0.9, 0.99], weight_decay = 0.0 }
max_grad_norm = 1.0

[stage2.unet]
_class_name = "UNet2DConditionModel"
sample_size = 8
in_channels = 4
out_channels = 4
block_out_channels = [16, 32]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 16
attention_head_dim = 2
norm_num_groups = 4

[stage2.noise]
timesteps = "stratified"

[stage2.text]
dropout = 0.0

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

#[test]
fn both_stages_overfit_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    write_pictures(&data);
    let mut config = RunConfig::parse(CONFIG, "the test's configuration", &[]).unwrap();
    config.data.path = Some(data);
    let run = RunDir::open(
        &dir.path().join("run"),
        &config,
        &[Stage::Vae, Stage::Diffusion],
        false,
    )
    .unwrap();

    let rec = curve(&config, &run, Stage::Vae, "rec");
    let (first, last) = (mean(&rec[..5]), mean(&rec[rec.len() - 5..]));
    assert!(
        last < 0.1 * first,
        "the reconstruction loss went from {first} to {last}"
    );

    // A batch of four timesteps is a noisy measure, hence the longer means. What noise was added can't be known near the
    // clean end, so the loss has a floor.
    let loss = curve(&config, &run, Stage::Diffusion, "loss");
    let (first, last) = (mean(&loss[..10]), mean(&loss[loss.len() - 50..]));
    assert!(
        last < 0.2 * first,
        "the diffusion loss went from {first} to {last}"
    );
}

/// Trains a stage and returns the course of one of its figures.
fn curve(config: &RunConfig, run: &RunDir, stage: Stage, name: &str) -> Vec<f64> {
    let train = match stage {
        Stage::Vae => train_vae,
        Stage::Diffusion => train_diffusion,
    };
    let outcome = train(config, run, &Device::flex(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let records = read_metrics(&run.metrics(stage)).unwrap();
    records.iter().map(|record| record.values[name]).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Four pictures that differ in colour and pattern.
fn write_pictures(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let names = ["red stripes", "green squares", "blue bars", "white corner"];
    for (number, name) in names.into_iter().enumerate() {
        let picture = RgbImage::from_fn(16, 16, |x, y| {
            let lit = match number {
                0 => y / 4 % 2 == 0,
                1 => (x / 8 + y / 8) % 2 == 0,
                2 => x / 4 % 2 == 0,
                _ => x + y < 16,
            };
            let colour = [[230, 40, 30], [30, 200, 60], [40, 60, 220], [240, 240, 240]][number];
            if lit { Rgb(colour) } else { Rgb([20, 20, 20]) }
        });
        picture.save(folder.join(format!("{number}.png"))).unwrap();
        std::fs::write(folder.join(format!("{number}.txt")), name).unwrap();
    }
}
