//! Runs over data in the layouts of public data sets: ImageNet's class folders and names, COCO-Stuff's pictures and masks.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use serde_json::Value;

use ldm_pipeline::{
    Error,
    config::RunConfig,
    run::RunDir,
    train::{Outcome, Stage, train_diffusion, train_vae},
};

use crate::common::TINY;

const BY_CLASS: &str = r#"
[stage2.class]
n_classes = 1001
embed_dim = 4

[stage2.unet]
_class_name = "UNet2DConditionModel"
in_channels = 2
out_channels = 2
block_out_channels = [4, 4]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 4
attention_head_dim = 1
norm_num_groups = 2
"#;

const BY_MASK: &str = r#"
[stage2.semantic]
masks = "masks"
n_stages = 1
in_channels = 183
out_channels = 2

[stage2.unet]
_class_name = "UNet2DModel"
in_channels = 4
out_channels = 2
block_out_channels = [4, 4]
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
layers_per_block = 1
add_attention = false
norm_num_groups = 2
"#;

struct Trial {
    dir: tempfile::TempDir,
    condition: &'static str,
}

impl Trial {
    fn new(condition: &'static str) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            condition,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trains both stages on `data` and returns what `ldm.json` of the model says.
    fn train(&self, run: &str, settings: &[String]) -> Result<Value, Error> {
        let text = format!("{TINY}{}", self.condition);
        let mut config = RunConfig::parse(&text, "the test's configuration", settings)?;
        config.data.path = Some(self.path("data"));
        let run = self.path(run);
        let stages = [Stage::Vae, Stage::Diffusion];
        let dir = RunDir::open(&run, &config, &stages, run.exists())?;
        let device = Device::flex();
        for train in [train_vae, train_diffusion] {
            let outcome = train(&config, &dir, &device, &mut |_| ControlFlow::Continue(()))?;
            assert_eq!(outcome, Outcome::Finished);
        }
        let facts = fs::read(run.join("model/ldm.json")).unwrap();
        Ok(serde_json::from_slice(&facts).unwrap())
    }
}

fn picture(path: &Path, level: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(8, 8, Rgb([level, 90, 200]))
        .save(path)
        .unwrap();
}

/// A mask of the left and right half of a picture, with COCO-Stuff's palette of 256 colours or in grey.
fn mask(path: &Path, [left, right]: [u8; 2], color: png::ColorType) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 8, 8);
    encoder.set_color(color);
    let mut pixels: Vec<u8> = (0..64)
        .map(|i| if i % 8 < 4 { left } else { right })
        .collect();
    match color {
        png::ColorType::Indexed => {
            encoder.set_palette(
                (0..=255)
                    .flat_map(|value| [value, 255 - value, 7])
                    .collect::<Vec<u8>>(),
            );
        }
        png::ColorType::Rgb => {
            pixels = pixels
                .iter()
                .flat_map(|&value| [value, 255 - value, 7])
                .collect();
        }
        _ => {}
    }
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&pixels)
        .unwrap();
}

#[test]
fn a_thousand_synsets_have_their_numbers_and_names() {
    let trial = Trial::new(BY_CLASS);
    let mut list = String::new();
    for class in 0..1000 {
        // The list's order counts, not that of the names.
        let synset = format!("n{:08}", 20_000 - class);
        picture(
            &trial.path("data").join(&synset).join("a_1.JPEG"),
            class as u8,
        );
        list.push_str(&format!("{synset} no. {class}, also {class}\n"));
    }
    fs::write(trial.path("data/classes.txt"), list).unwrap();
    let facts = trial.train("run", &[]).unwrap();
    let names = facts["classes"].as_array().unwrap();
    assert_eq!(
        (names.len(), &names[281]),
        (1000, &Value::from("no. 281, also 281"))
    );

    picture(&trial.path("data/n99999999/b.JPEG"), 0);
    let error = trial.train("other", &[]).unwrap_err().to_string();
    assert!(
        error.contains("n99999999") && error.contains("classes.txt"),
        "{error}"
    );
}

#[test]
fn masks_with_a_value_for_the_unlabelled_are_learnt_from() {
    let trial = Trial::new(BY_MASK);
    for (number, values) in [[0, 181], [255, 13], [124, 255]].into_iter().enumerate() {
        picture(&trial.path(&format!("data/train/{number:012}.jpg")), 80);
        let color = match number {
            0 => png::ColorType::Indexed,
            _ => png::ColorType::Grayscale,
        };
        mask(
            &trial.path(&format!("masks/train/{number:012}.png")),
            values,
            color,
        );
    }
    let masks = format!("stage2.semantic.masks={}", trial.path("masks").display());
    let error = trial
        .train("unmapped", std::slice::from_ref(&masks))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("label 255") && error.contains("stage2.semantic.mapping"),
        "{error}"
    );

    let beyond = trial.train(
        "beyond",
        &[
            masks.clone(),
            "stage2.semantic.mapping={ 255 = 183 }".into(),
        ],
    );
    let error = beyond.unwrap_err().to_string();
    assert!(error.contains("255 to 183"), "{error}");

    let facts = trial
        .train(
            "run",
            &[masks, "stage2.semantic.mapping={ 255 = 182 }".into()],
        )
        .unwrap();
    assert_eq!(facts["label_mapping"], serde_json::json!({ "255": 182 }));
    let palette = facts["palette"].as_array().unwrap();
    assert_eq!(
        (palette.len(), &palette[182]),
        (183, &serde_json::json!([255, 0, 7]))
    );
    assert_eq!(palette[13], serde_json::json!([13, 242, 7]));
}

#[test]
fn masks_in_colour_are_learnt_from_by_a_palette() {
    let trial = Trial::new(BY_MASK);
    for (number, values) in [[0, 2], [1, 2]].into_iter().enumerate() {
        picture(&trial.path(&format!("data/{number}.jpg")), 80);
        mask(
            &trial.path(&format!("masks/{number}.png")),
            values,
            png::ColorType::Rgb,
        );
    }
    let masks = format!("stage2.semantic.masks={}", trial.path("masks").display());
    let error = trial
        .train("without", std::slice::from_ref(&masks))
        .unwrap_err()
        .to_string();
    assert!(error.contains("stage2.semantic.palette"), "{error}");

    let colors = trial.path("palette.txt");
    fs::write(&colors, "0 255 7 sky\n1 254 7 sea\n2 253 7 land\n").unwrap();
    let palette = format!("stage2.semantic.palette={}", colors.display());
    let facts = trial.train("run", &[masks, palette]).unwrap();
    assert_eq!(
        facts["palette"],
        serde_json::json!([[0, 255, 7], [1, 254, 7], [2, 253, 7]])
    );
}
