//! A complete model: autoencoder, denoiser and noise schedule, in memory and as a diffusers directory.

use std::path::{Path, PathBuf};

use burn::{module::Module, tensor::Device};
use ldm_autoencoder::{AutoencoderKl, AutoencoderKlConfig};
use ldm_diffusion::{SchedulerConfig, UNet, UNetConfig};
use ldm_text::{LdmBert, LdmBertConfig, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    atomic::{self, PartialDir},
    error::Error,
    weights::{self, KeyMap, LoadOptions, SaveOptions},
};

/// Folder of the autoencoder, the name of diffusers' latent diffusion pipelines.
const VAE: &str = "vqvae";
const UNET: &str = "unet";
const BERT: &str = "bert";
const TOKENIZER: &str = "tokenizer";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const INDEX: &str = "model_index.json";
const FACTS: &str = "ldm.json";
const CONFIG: &str = "config.json";
const DIFFUSERS_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const TRANSFORMERS_WEIGHTS: &str = "model.safetensors";

/// What the second stage trains: the U-Net, and the text encoder that it attends to.
#[derive(Module, Debug)]
pub struct Denoiser {
    /// Predicts the noise.
    pub unet: UNet,
    /// Encodes the prompt; `None` in an unconditional model.
    pub bert: Option<LdmBert>,
}

/// Everything that sampling needs.
#[derive(Debug)]
pub struct LatentDiffusion {
    /// The first stage.
    pub vae: AutoencoderKl,
    /// Its architecture and scaling factor.
    pub vae_config: AutoencoderKlConfig,
    /// The second stage.
    pub denoiser: Denoiser,
    /// Architecture of the U-Net.
    pub unet_config: UNetConfig,
    /// Tokenizer and architecture of the text encoder; `None` in an unconditional model.
    pub text: Option<TextEncoder>,
    /// The noise schedule that the model was trained on.
    pub scheduler: SchedulerConfig,
    /// Facts that diffusers' files have no place for.
    pub facts: ModelFacts,
}

/// How prompts become token ids, and the shape of what reads them.
#[derive(Debug)]
pub struct TextEncoder {
    /// WordPiece.
    pub tokenizer: Tokenizer,
    /// Architecture of the transformer.
    pub config: LdmBertConfig,
}

/// `ldm.json`: what `ldm` knows of a model beyond diffusers' files. It decides nothing but the default size of samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// Version of `ldm` that wrote the model.
    pub ldm_version: String,
    /// Side of the training images in pixels.
    pub resolution: Option<usize>,
    /// Steps of stage 1 and stage 2.
    pub training_steps: [u64; 2],
    /// Largest EMA decay of stage 2, whose averaged weights these are; `None`: the last weights.
    pub ema_decay: Option<f64>,
    /// Seed of the run.
    pub seed: u64,
}

impl ModelFacts {
    /// The facts of the model in `dir`, none where another program wrote it.
    pub(crate) fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FACTS);
        match path.is_file() {
            true => read_json(&path),
            false => Ok(Self::default()),
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join(FACTS), self)
    }
}

/// The configurations of a model directory, which say everything but the weights.
#[derive(Clone, Debug)]
pub struct ModelConfigs {
    /// `vqvae/config.json`.
    pub vae: AutoencoderKlConfig,
    /// `unet/config.json`.
    pub unet: UNetConfig,
    /// `bert/config.json`; `None` in an unconditional model.
    pub bert: Option<LdmBertConfig>,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: SchedulerConfig,
    /// `ldm.json`, or nothing where another program wrote the model.
    pub facts: ModelFacts,
}

impl ModelConfigs {
    /// Reads them all.
    ///
    /// # Errors
    /// If one is missing or malformed.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let unet_path = dir.join(UNET).join(CONFIG);
        let scheduler_path = dir.join(SCHEDULER);
        let bert_path = dir.join(BERT).join(CONFIG);
        let configs = Self {
            vae: read_vae_config(&vae_dir(dir)?)?,
            unet: UNetConfig::from_json(&read(&unet_path)?)
                .map_err(|error| malformed(&unet_path, error))?,
            bert: match bert_path.parent().is_some_and(Path::is_dir) {
                true => Some(read_json(&bert_path)?),
                false => None,
            },
            scheduler: SchedulerConfig::from_json(&read(&scheduler_path)?)
                .map_err(|error| malformed(&scheduler_path, error))?,
            facts: ModelFacts::read(dir)?,
        };
        configs
            .check_fit()
            .map_err(|problem| malformed(&unet_path, problem))?;
        Ok(configs)
    }

    /// Whether the parts fit together; if not, what about the U-Net is wrong.
    fn check_fit(&self) -> Result<(), String> {
        let (unet, latent) = (&self.unet, self.vae.latent_channels);
        if [unet.in_channels, unet.out_channels] != [latent; 2] {
            return Err(format!(
                "it maps {} channels to {}, but the autoencoder's latents have {latent}",
                unet.in_channels, unet.out_channels
            ));
        }
        if unet.num_class_embeds.is_some() {
            return Err("class-conditional models are not supported".into());
        }
        match (unet.cross_attention_dim, &self.bert) {
            (Some(_), None) => Err(format!(
                "it attends to a text, but there is no {BERT}/{CONFIG}"
            )),
            (Some(width), Some(bert)) if bert.d_model != width => Err(format!(
                "its `cross_attention_dim` is {width}, but the text encoder's `d_model` is {}",
                bert.d_model
            )),
            _ => Ok(()),
        }
    }
}

impl LatentDiffusion {
    /// Loads a model directory, or the `model/` of a run directory.
    ///
    /// # Errors
    /// If it is no such directory, or a file in it is missing, damaged or doesn't fit its `config.json`.
    pub fn load(path: &Path, device: &Device) -> Result<Self, Error> {
        let dir = find_model(path)?;
        let configs = ModelConfigs::read(&dir)?;
        let (vae, vae_config) = load_vae(&dir, device)?;
        let unet = load_weights(
            configs.unet.init(device),
            &dir.join(UNET).join(DIFFUSERS_WEIGHTS),
            ldm_diffusion::weights::KEY_MAP,
        )?;
        let (bert, text) = match configs.bert {
            Some(config) => {
                let (bert, text) = load_text(config, &dir, device)?;
                (Some(bert), Some(text))
            }
            None => (None, None),
        };
        Ok(Self {
            vae,
            vae_config,
            denoiser: Denoiser { unet, bert },
            unet_config: configs.unet,
            text,
            scheduler: configs.scheduler,
            facts: configs.facts,
        })
    }

    /// Writes the model as a directory that diffusers loads, `half` in 16-bit floats. It appears complete or not at all.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save(&self, path: &Path, half: bool) -> Result<(), Error> {
        let partial = PartialDir::create(path)?;
        let dir = partial.path();
        save_vae(&self.vae, &self.vae_config, &dir.join(VAE), half)?;
        write_json(&dir.join(UNET).join(CONFIG), &self.unet_config)?;
        save_weights(
            &self.denoiser.unet,
            &dir.join(UNET).join(DIFFUSERS_WEIGHTS),
            ldm_diffusion::weights::KEY_MAP_OUT,
            half,
        )?;
        if let (Some(text), Some(bert)) = (&self.text, &self.denoiser.bert) {
            write_json(&dir.join(BERT).join(CONFIG), &text.config)?;
            let path = dir.join(BERT).join(TRANSFORMERS_WEIGHTS);
            save_weights(bert, &path, &[], half)?;
            write(
                &dir.join(TOKENIZER).join("vocab.txt"),
                text.tokenizer.vocab(),
            )?;
            write_json(
                &dir.join(TOKENIZER).join("tokenizer_config.json"),
                &json!({
                    "tokenizer_class": "BertTokenizer",
                    "do_lower_case": true,
                    "model_max_length": text.config.max_position_embeddings,
                }),
            )?;
        }
        write_json(&dir.join(SCHEDULER), &self.scheduler)?;
        write_json(&dir.join(INDEX), &self.index())?;
        self.facts.write(dir)?;
        partial.commit()?;
        Ok(())
    }

    /// `model_index.json`.
    fn index(&self) -> serde_json::Value {
        let mut index = json!({
            "_class_name": if self.text.is_some() { "LDMTextToImagePipeline" } else { "LDMPipeline" },
            "_diffusers_version": "0.36.0",
            "vqvae": ["diffusers", "AutoencoderKL"],
            "unet": ["diffusers", self.unet_config.class_name],
            "scheduler": ["diffusers", self.scheduler.class_name],
        });
        if self.text.is_some() {
            index["bert"] = json!(["latent_diffusion", "LDMBertModel"]);
            index["tokenizer"] = json!(["transformers", "BertTokenizer"]);
        }
        index
    }

    /// Height and width in pixels that the model was trained at.
    pub fn native_size(&self) -> Option<usize> {
        self.facts
            .resolution
            .or(match self.unet_config.sample_size {
                Some(ldm_diffusion::unet::SampleSize::Square(side)) => {
                    Some(side * self.vae_config.factor())
                }
                _ => None,
            })
    }
}

/// Writes an autoencoder's `config.json` and weights into `dir`, created if missing.
///
/// # Errors
/// If they can't be written.
pub fn save_vae(
    vae: &AutoencoderKl,
    config: &AutoencoderKlConfig,
    dir: &Path,
    half: bool,
) -> Result<(), Error> {
    write_json(&dir.join(CONFIG), config)?;
    save_weights(
        vae,
        &dir.join(DIFFUSERS_WEIGHTS),
        ldm_autoencoder::weights::KEY_MAP_OUT,
        half,
    )
}

/// A checksum of the weights that [`load_vae`] reads.
///
/// # Errors
/// If there are none, or they can't be read.
pub(crate) fn vae_key(path: &Path) -> Result<String, Error> {
    let file = vae_dir(path)?.join(DIFFUSERS_WEIGHTS);
    let bytes = std::fs::read(&file).map_err(|source| Error::Read { path: file, source })?;
    Ok(format!("{:08x}", crc32c::crc32c(&bytes)))
}

/// Loads the autoencoder of a model or run directory, or one that stands alone.
///
/// # Errors
/// If there is none, or its weights don't fit its configuration.
pub fn load_vae(
    path: &Path,
    device: &Device,
) -> Result<(AutoencoderKl, AutoencoderKlConfig), Error> {
    let dir = vae_dir(path)?;
    let config = read_vae_config(&dir)?;
    let vae = load_weights(
        config.init(device),
        &dir.join(DIFFUSERS_WEIGHTS),
        ldm_autoencoder::weights::KEY_MAP,
    )?;
    Ok((vae, config))
}

fn read_vae_config(dir: &Path) -> Result<AutoencoderKlConfig, Error> {
    let path = dir.join(CONFIG);
    let config: AutoencoderKlConfig = read_json(&path)?;
    config.validate().map_err(|error| malformed(&path, error))?;
    Ok(config)
}

fn vae_dir(path: &Path) -> Result<PathBuf, Error> {
    [VAE, "vae", "model/vqvae", ""]
        .map(|folder| path.join(folder))
        .into_iter()
        .find(|dir| dir.join(CONFIG).is_file() && dir.join(DIFFUSERS_WEIGHTS).is_file())
        .ok_or_else(|| Error::NoModel {
            path: path.into(),
            problem: format!("there is no {VAE}/{CONFIG} with a {DIFFUSERS_WEIGHTS}"),
        })
}

fn load_text(
    config: LdmBertConfig,
    dir: &Path,
    device: &Device,
) -> Result<(LdmBert, TextEncoder), Error> {
    let path = dir.join(BERT).join(TRANSFORMERS_WEIGHTS);
    let bert = load_weights(config.init(device), &path, &[])?;
    let vocab = dir.join(TOKENIZER).join("vocab.txt");
    let tokenizer = Tokenizer::from_vocab_file(&vocab).map_err(|error| malformed(&vocab, error))?;
    if tokenizer.vocab_size() > config.vocab_size {
        let problem = format!(
            "it has {} tokens, but the text encoder knows {}",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        return Err(malformed(&vocab, problem));
    }
    Ok((bert, TextEncoder { tokenizer, config }))
}

/// The directory with the `model_index.json`: `path` itself or its `model/`.
pub(crate) fn find_model(path: &Path) -> Result<PathBuf, Error> {
    let no_model = |problem: &str| Error::NoModel {
        path: path.into(),
        problem: problem.into(),
    };
    if !path.exists() {
        return Err(no_model("it does not exist"));
    }
    [path.to_path_buf(), path.join("model")]
        .into_iter()
        .find(|dir| dir.join(INDEX).is_file())
        .ok_or_else(|| no_model("there is no model_index.json in it"))
}

fn load_weights<M: Module>(module: M, path: &Path, key_map: KeyMap) -> Result<M, Error> {
    let options = LoadOptions {
        key_map,
        ..LoadOptions::default()
    };
    Ok(weights::load(module, path, &options)?.0)
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

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    serde_json::from_str(&read(path)?).map_err(|error| malformed(path, error))
}

pub(crate) fn malformed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Malformed {
        path: path.into(),
        problem: error.to_string(),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        atomic::create_dir(folder)?;
    }
    Ok(atomic::write_file(path, text.as_bytes())?)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value).expect("configurations are JSON");
    text.push('\n');
    write(path, &text)
}
