//! Model directories, written.

use std::path::Path;

use burn::module::Module;
use ldm_text::Tokenizer;
use serde_json::json;

use super::{
    ConditionerConfig, FirstStage, FirstStageConfig, LatentDiffusion, ModelConfigs,
    files::{
        CONFIG, DIFFUSION_STEM, FACTS, INDEX, SCHEDULER, TOKENIZER, TRANSFORMERS_STEM, UNET, VAE,
        write, write_json,
    },
};
use crate::{
    atomic::PartialDir,
    error::Error,
    weights::{self, KeyMap, SaveOptions},
};

impl LatentDiffusion {
    /// Writes the model as a directory that diffusers loads, `half` in 16-bit floats. It appears complete or not at all.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save(&self, path: &Path, half: bool) -> Result<(), Error> {
        let partial = PartialDir::create(path)?;
        let dir = partial.path();
        write_configs(&self.configs, self.tokenizer.as_ref(), dir)?;
        let file = |folder: &str, stem: &str| dir.join(folder).join(format!("{stem}.safetensors"));
        save_first_stage_weights(&self.first_stage, &dir.join(VAE), half)?;
        save_weights(
            &self.denoiser.unet,
            &file(UNET, DIFFUSION_STEM),
            ldm_diffusion::weights::KEY_MAP_OUT,
            half,
        )?;
        if let Some((conditioner, config)) = self
            .denoiser
            .conditioner
            .as_ref()
            .zip(self.configs.conditioner.as_ref())
        {
            let path = file(config.folder(), conditioner_stem(config));
            save_weights(conditioner, &path, config.key_map_out(), half)?;
        }
        partial.commit()?;
        Ok(())
    }
}

/// Name of a conditioner's weights without its extension: transformers' for its models, else diffusers'.
pub(super) fn conditioner_stem(config: &ConditionerConfig) -> &'static str {
    if config.is_text() {
        TRANSFORMERS_STEM
    } else {
        DIFFUSION_STEM
    }
}

/// Writes everything of a model directory but the weights.
pub(super) fn write_configs(
    configs: &ModelConfigs,
    tokenizer: Option<&Tokenizer>,
    dir: &Path,
) -> Result<(), Error> {
    write_first_stage_config(&configs.first_stage, &dir.join(VAE))?;
    write_json(&dir.join(UNET).join(CONFIG), &configs.unet)?;
    if let Some(conditioner) = &configs.conditioner {
        write_json(&dir.join(conditioner.folder()).join(CONFIG), conditioner)?;
        if let Some((tokenizer, length)) = tokenizer.zip(conditioner.text_length()) {
            let folder = dir.join(TOKENIZER);
            write(&folder.join("vocab.txt"), tokenizer.vocab())?;
            let mut config = json!(tokenizer.config());
            config["tokenizer_class"] = json!("BertTokenizer");
            config["model_max_length"] = json!(length);
            write_json(&folder.join("tokenizer_config.json"), &config)?;
        }
    }
    write_json(&dir.join(SCHEDULER), &configs.scheduler)?;
    write_json(&dir.join(INDEX), &index(configs))?;
    write_json(&dir.join(FACTS), &configs.facts)
}

/// `model_index.json`, of the pipeline of diffusers that runs the model where there is one.
fn index(configs: &ModelConfigs) -> serde_json::Value {
    let pipeline = match (&configs.first_stage, &configs.conditioner) {
        (FirstStageConfig::Identity { .. }, None) => "DDPMPipeline",
        (_, None) => "LDMPipeline",
        (_, Some(conditioner)) if conditioner.is_text() => "LDMTextToImagePipeline",
        (_, Some(ConditionerConfig::Class(_))) => "LDMClassToImagePipeline",
        (_, Some(_)) => "LDMSemanticToImagePipeline",
    };
    let mut index = json!({
        "_class_name": pipeline,
        "_diffusers_version": "0.36.0",
        "unet": ["diffusers", configs.unet.class_name],
        "scheduler": ["diffusers", configs.scheduler.class_name],
    });
    match &configs.first_stage {
        FirstStageConfig::Kl(_) => index[VAE] = json!(["diffusers", "AutoencoderKL"]),
        FirstStageConfig::Vq(_) => index[VAE] = json!(["diffusers", "VQModel"]),
        FirstStageConfig::Identity { .. } => {}
    }
    match &configs.conditioner {
        Some(ConditionerConfig::LdmBert(_)) => {
            index["bert"] = json!(["latent_diffusion", "LDMBertModel"]);
        }
        Some(ConditionerConfig::Bert(_)) => index["bert"] = json!(["transformers", "BertModel"]),
        _ => {}
    }
    if configs
        .conditioner
        .as_ref()
        .is_some_and(ConditionerConfig::is_text)
    {
        index[TOKENIZER] = json!(["transformers", "BertTokenizer"]);
    }
    index
}

/// Writes an autoencoder's `config.json` and weights into `dir`, created if missing; nothing for the identity.
///
/// # Errors
/// If they can't be written.
pub fn save_first_stage(
    model: &FirstStage,
    config: &FirstStageConfig,
    dir: &Path,
    half: bool,
) -> Result<(), Error> {
    write_first_stage_config(config, dir)?;
    save_first_stage_weights(model, dir, half)
}

pub(super) fn write_first_stage_config(config: &FirstStageConfig, dir: &Path) -> Result<(), Error> {
    let file = dir.join(CONFIG);
    match config {
        FirstStageConfig::Kl(config) => write_json(&file, config),
        FirstStageConfig::Vq(config) => write_json(&file, config),
        FirstStageConfig::Identity { .. } => Ok(()),
    }
}

fn save_first_stage_weights(model: &FirstStage, dir: &Path, half: bool) -> Result<(), Error> {
    let file = dir.join(format!("{DIFFUSION_STEM}.safetensors"));
    let keys = ldm_autoencoder::weights::KEY_MAP_OUT;
    match model {
        FirstStage::Kl(model) => save_weights(model, &file, keys, half),
        FirstStage::Vq(model) => save_weights(model, &file, keys, half),
        FirstStage::Identity => Ok(()),
    }
}

fn save_weights<M: Module>(
    module: &M,
    path: &Path,
    key_map: KeyMap,
    half: bool,
) -> Result<(), Error> {
    let options = SaveOptions {
        key_map,
        half,
        ..SaveOptions::default()
    };
    Ok(weights::save(module, path, &options)?)
}
