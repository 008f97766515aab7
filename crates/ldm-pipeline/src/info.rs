//! What a model, a run or a configuration holds.

use std::{fmt::Write as _, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use ldm_diffusion::{SchedulerConfig, UNetConfig};

use crate::{
    config::RunConfig,
    error::Error,
    generate::listed,
    model::{ConditionerConfig, FirstStageConfig, FirstStageFiles, ModelConfigs, ModelFiles},
};

/// Describes a model, a run directory or a configuration file, without loading or drawing any weights. A model is whatever
/// [`ModelFiles::open`] opens, or an autoencoder alone.
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
        return Ok(text);
    }
    match ModelFiles::open(path, None) {
        Ok(files) => {
            let _ = writeln!(text, "model {}", files.path.display());
            describe_model(&mut text, &files.configs);
            describe_skipped(&mut text, &files.skipped);
        }
        Err(Error::NoModel { .. }) if run_config.is_file() => {
            let _ = writeln!(text, "run {}, no model yet", path.display());
            describe_run(&mut text, &RunConfig::load(&run_config, &[])?);
        }
        Err(error @ Error::NoModel { .. }) => {
            let Ok(files) = FirstStageFiles::open(path, None) else {
                return Err(error);
            };
            let _ = writeln!(text, "autoencoder {}", path.display());
            describe_first_stage(&mut text, &files.config, None);
            describe_skipped(&mut text, &files.skipped);
        }
        Err(error) => return Err(error),
    }
    Ok(text)
}

fn describe_run(text: &mut String, config: &RunConfig) {
    if !config.data.buckets.is_empty() {
        let sizes: Vec<String> = config
            .data
            .buckets
            .iter()
            .map(ToString::to_string)
            .collect();
        let _ = writeln!(text, "training images of {}", sizes.join(", "));
    }
    let training = &config.stage1.training;
    let _ = writeln!(
        text,
        "stage 1: {} steps of {} x {} images, learning rate {:e}",
        training.steps, training.accumulation, training.batch_size, training.lr.rate
    );
    let first_stage = config.stage1.autoencoder();
    describe_first_stage(text, &first_stage, Some(config.data.resolution));
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
    if let Some(conditioner) = stage2.conditioner() {
        describe_conditioner(text, &conditioner);
    }
    describe_schedule(text, &stage2.noise.scheduler(&stage2.loss));
}

fn describe_model(text: &mut String, model: &ModelConfigs) {
    let facts = &model.facts;
    describe_first_stage(text, &model.first_stage, facts.resolution);
    describe_unet(text, &model.unet);
    if let Some(conditioner) = &model.conditioner {
        describe_conditioner(text, conditioner);
    }
    if !facts.classes.is_empty() {
        let _ = writeln!(text, "  classes: {}", listed(&facts.classes));
    }
    if !facts.palette.is_empty() {
        let _ = writeln!(text, "  colours of {} labels", facts.palette.len());
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

fn describe_skipped(text: &mut String, skipped: &[String]) {
    if !skipped.is_empty() {
        let _ = writeln!(
            text,
            "  {} further tensors that sampling doesn't need, from `{}` on",
            skipped.len(),
            skipped[0]
        );
    }
}

/// `resolution` is that of the training images, if it is known better than by the autoencoder's file.
fn describe_first_stage(text: &mut String, config: &FirstStageConfig, resolution: Option<usize>) {
    let device = Device::default();
    let (kind, parameters, channels) = match config {
        FirstStageConfig::Kl(config) => (
            "KL",
            count(&config.init(&device)),
            &config.block_out_channels,
        ),
        FirstStageConfig::Vq(config) => (
            "VQ",
            count(&config.init(&device)),
            &config.block_out_channels,
        ),
        FirstStageConfig::Identity { channels } => {
            let _ = writeln!(text, "  no autoencoder, {channels} channels of pixels");
            return;
        }
    };
    let resolution = resolution.or(config.sample_size()).unwrap_or_default();
    let side = resolution / config.factor();
    let codes = match config {
        FirstStageConfig::Vq(config) => format!(", {} codes", config.num_vq_embeddings),
        _ => String::new(),
    };
    let what = format!(
        "{kind}-f{}: {resolution}x{resolution}x{} to {side}x{side}x{}, channels {channels:?}{codes}",
        config.factor(),
        config.image_channels(),
        config.latent_channels(),
    );
    line(text, "autoencoder", parameters, &what);
    let _ = writeln!(
        text,
        "  {:16} {:>13.4}",
        "scaling factor",
        config.scaling_factor()
    );
}

fn describe_conditioner(text: &mut String, config: &ConditionerConfig) {
    let device = Device::default();
    let (name, what) = match config {
        ConditionerConfig::LdmBert(config) => (
            "text encoder",
            format!(
                "{} layers, width {}, {} tokens",
                config.encoder_layers, config.d_model, config.max_position_embeddings
            ),
        ),
        ConditionerConfig::Bert(config) => (
            "text encoder",
            format!(
                "BERT, {} layers, width {}",
                config.num_hidden_layers, config.hidden_size
            ),
        ),
        ConditionerConfig::Class(config) => (
            "class embedding",
            format!(
                "{} classes, the last of which is none, width {}",
                config.n_classes, config.embed_dim
            ),
        ),
        ConditionerConfig::Semantic(config) => (
            "semantic mask",
            format!(
                "{} labels to {} channels, halved {} times",
                config.in_channels,
                config.output_channels(),
                config.n_stages
            ),
        ),
    };
    line(text, name, count(&config.init(&device)), &what);
}

fn describe_unet(text: &mut String, config: &UNetConfig) {
    let added = config.in_channels.saturating_sub(config.out_channels);
    let context = match config.cross_attention_dim {
        Some(width) => format!("context of width {width}"),
        None if config.has_classes() => "classes".into(),
        None if added > 0 => format!("{added} channels beside the latent's"),
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
pub(crate) fn grouped(number: impl ToString) -> String {
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
    use ldm_autoencoder::AutoencoderKlConfig;

    use super::*;

    /// The paper's counts of its autoencoders with a codebook.
    #[test]
    fn vq_presets_are_the_papers() {
        use ldm_autoencoder::VqModelConfig;

        let presets = [
            (
                include_str!("../../../configs/autoencoder-vq-f4.toml"),
                VqModelConfig::vq_f4(),
                55_322_782,
            ),
            (
                include_str!("../../../configs/autoencoder-vq-f8.toml"),
                VqModelConfig::vq_f8(),
                67_717_295,
            ),
        ];
        for (text, expected, parameters) in presets {
            let config = RunConfig::parse(text, "preset", &[]).unwrap();
            let autoencoder = (config.stage1.autoencoder())
                .with_scaling_factor(1.0)
                .with_sample_size(256);
            let FirstStageConfig::Vq(vq) = autoencoder else {
                panic!("no codebook in {text}");
            };
            assert_eq!(vq, expected);
            assert_eq!(count(&vq.init(&Device::default())), parameters);
        }
    }

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
