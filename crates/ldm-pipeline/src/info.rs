//! What a model, a run or a configuration holds.

use std::{fmt::Write as _, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use ldm_autoencoder::AutoencoderKlConfig;
use ldm_diffusion::{SchedulerConfig, UNetConfig};
use ldm_text::LdmBertConfig;

use crate::{
    config::RunConfig,
    error::Error,
    model::{ModelConfigs, find_model},
};

/// Describes a model directory, a run directory or a configuration file, without loading or drawing any weights.
///
/// # Errors
/// If it is none of them, or damaged.
pub fn describe(path: &Path) -> Result<String, Error> {
    let is_toml = path
        .extension()
        .is_some_and(|extension| extension == "toml");
    let run_config = path.join("config.toml");
    let mut text = String::new();
    if is_toml {
        describe_run(&mut text, &RunConfig::load(path, &[])?);
    } else {
        match find_model(path) {
            Ok(dir) => {
                let _ = writeln!(text, "model {}", dir.display());
                describe_model(&mut text, &ModelConfigs::read(&dir)?);
            }
            Err(_) if run_config.is_file() => {
                let _ = writeln!(text, "run {}, no model yet", path.display());
                describe_run(&mut text, &RunConfig::load(&run_config, &[])?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

fn describe_run(text: &mut String, config: &RunConfig) {
    let training = &config.stage1.training;
    let _ = writeln!(
        text,
        "stage 1: {} steps of {} x {} images, learning rate {:e}",
        training.steps, training.accumulation, training.batch_size, training.lr.rate
    );
    describe_vae(text, &config.stage1.vae, config.data.resolution);
    if let Some(discriminator) = config.stage1.loss.discriminator() {
        let count = discriminator.init(&Device::default()).num_trained_params();
        line(
            text,
            "discriminator",
            count,
            &format!("PatchGAN, {} layers", discriminator.layers),
        );
    }
    let Some(stage2) = &config.stage2 else {
        return;
    };
    let training = &stage2.training;
    let _ = writeln!(
        text,
        "stage 2: {} steps of {} x {} images, learning rate {:e}",
        training.steps, training.accumulation, training.batch_size, training.lr.rate
    );
    describe_unet(text, &stage2.unet);
    if let Some(bert) = &stage2.text {
        describe_bert(text, &bert.bert);
    }
    describe_schedule(text, &stage2.noise.scheduler(&stage2.loss));
}

fn describe_model(text: &mut String, model: &ModelConfigs) {
    let facts = &model.facts;
    describe_vae(
        text,
        &model.vae,
        facts.resolution.unwrap_or(model.vae.sample_size),
    );
    let _ = writeln!(
        text,
        "  {:16} {:>13.4}",
        "scaling factor", model.vae.scaling_factor
    );
    describe_unet(text, &model.unet);
    if let Some(bert) = &model.bert {
        describe_bert(text, bert);
    }
    describe_schedule(text, &model.scheduler);
    if facts.training_steps != [0, 0] {
        let [stage1, stage2] = facts.training_steps;
        let _ = writeln!(
            text,
            "trained by ldm {}: {stage1} + {stage2} steps, seed {}",
            facts.ldm_version, facts.seed
        );
    }
}

fn describe_vae(text: &mut String, config: &AutoencoderKlConfig, resolution: usize) {
    let side = resolution / config.factor();
    let what = format!(
        "KL-f{}: {resolution}x{resolution}x{} to {side}x{side}x{}, channels {:?}",
        config.factor(),
        config.in_channels,
        config.latent_channels,
        config.block_out_channels
    );
    line(
        text,
        "autoencoder",
        count(&config.init(&Device::default())),
        &what,
    );
}

fn describe_unet(text: &mut String, config: &UNetConfig) {
    let context = match config.cross_attention_dim {
        Some(width) => format!("context of width {width}"),
        None => "unconditional".into(),
    };
    let what = format!("channels {:?}, {context}", config.block_out_channels);
    line(
        text,
        "U-Net",
        count(&config.init(&Device::default())),
        &what,
    );
}

fn describe_bert(text: &mut String, config: &LdmBertConfig) {
    let what = format!(
        "{} layers, width {}, {} tokens",
        config.encoder_layers, config.d_model, config.max_position_embeddings
    );
    line(
        text,
        "text encoder",
        count(&config.init(&Device::default())),
        &what,
    );
}

fn describe_schedule(text: &mut String, config: &SchedulerConfig) {
    let _ = writeln!(
        text,
        "  noise schedule        {:?}, beta {} to {}, {} steps, predicts {:?}",
        config.beta_schedule,
        config.beta_start,
        config.beta_end,
        config.num_train_timesteps,
        config.prediction_type
    );
}

fn line(text: &mut String, name: &str, parameters: usize, what: &str) {
    let _ = writeln!(
        text,
        "  {name:16} {:>13} parameters   {what}",
        grouped(parameters)
    );
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Number of parameters, by their shapes alone: nothing is drawn or allocated.
pub fn count<M: Module>(module: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += param.lazy_shape().num_elements();
        }
    }
    let mut total = Count(0);
    module.visit(&mut total);
    total.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_models_are_counted_without_drawing_them() {
        let device = Device::default();
        assert_eq!(
            count(&AutoencoderKlConfig::kl_f4().init(&device)),
            55_312_063
        );
        assert_eq!(count(&UNetConfig::celebahq().init(&device)), 274_056_163);
        assert_eq!(grouped(872_300_484), "872,300,484");
        assert_eq!([grouped(7), grouped(1000)], ["7", "1,000"]);
    }
}
