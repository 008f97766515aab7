//! Where a model's configurations and weights come from.

use std::path::{Path, PathBuf};

use burn::{module::Module, tensor::Device};
use ldm_diffusion::{SchedulerConfig, UNetConfig};
use ldm_text::Tokenizer;
use serde::Serialize;

use super::{
    ConditionerConfig, Denoiser, FirstStage, FirstStageConfig, LatentDiffusion, ModelConfigs,
    ModelFacts, compvis, conditioner, save::conditioner_stem,
};
use crate::{
    atomic,
    error::Error,
    hub,
    weights::{self, KeyMap, LoadOptions, Tensors},
};

/// Folder of the autoencoder, the name of diffusers' latent diffusion pipelines.
pub(super) const VAE: &str = "vqvae";
pub(super) const UNET: &str = "unet";
pub(super) const TOKENIZER: &str = "tokenizer";
pub(super) const SCHEDULER: &str = "scheduler/scheduler_config.json";
pub(super) const INDEX: &str = "model_index.json";
pub(super) const FACTS: &str = "ldm.json";
pub(super) const CONFIG: &str = "config.json";
/// Names of weights without their extension.
pub(super) const DIFFUSION_STEM: &str = "diffusion_pytorch_model";
pub(super) const TRANSFORMERS_STEM: &str = "model";

/// A model whose configurations have been read and whose weights are ready to be.
#[derive(Debug)]
pub struct ModelFiles {
    /// The directory or the checkpoint.
    pub path: PathBuf,
    /// What the model is.
    pub configs: ModelConfigs,
    /// Makes ids of prompts; `None` in a model without a text encoder.
    pub tokenizer: Option<Tokenizer>,
    /// Tensors of a checkpoint that no part of the model needs, by their names there.
    pub skipped: Vec<String>,
    /// The first stage's weights under diffusers' names; `None` for the identity.
    pub(super) first_stage: Option<Tensors>,
    /// The U-Net's.
    pub(super) unet: Tensors,
    /// The conditioner's.
    pub(super) conditioner: Option<Tensors>,
}

/// An autoencoder whose configuration has been read and whose weights are ready to be.
#[derive(Debug)]
pub struct FirstStageFiles {
    /// What it is.
    pub config: FirstStageConfig,
    /// Tensors of a checkpoint that it doesn't need, by their names there.
    pub skipped: Vec<String>,
    /// Its weights under diffusers' names.
    pub(super) tensors: Tensors,
}

/// What a path given as a model turns out to be.
pub(super) enum Location {
    /// A directory with a `model_index.json`.
    Directory(PathBuf),
    /// A CompVis checkpoint.
    Checkpoint(PathBuf),
}

impl ModelFiles {
    /// Opens a model directory, a run directory, a CompVis checkpoint or a hub id. `yaml` is the configuration of a checkpoint, which else is
    /// looked for beside it, or guessed from the shapes of its tensors.
    ///
    /// # Errors
    /// If it is none of them, a file is missing or malformed, or the parts don't fit together.
    pub fn open(path: &Path, yaml: Option<&Path>) -> Result<Self, Error> {
        match locate(path)? {
            Location::Directory(dir) => Self::open_directory(&dir),
            Location::Checkpoint(file) => compvis::open(&file, yaml),
        }
    }

    fn open_directory(dir: &Path) -> Result<Self, Error> {
        let configs = ModelConfigs::read(dir)?;
        let first_stage = match &configs.first_stage {
            FirstStageConfig::Identity { .. } => None,
            _ => Some(component(&vae_dir(dir)?, DIFFUSION_STEM)?),
        };
        let (conditioner, tokenizer) = match &configs.conditioner {
            Some(config) => {
                let folder = conditioner_folder(dir).unwrap_or_else(|| config.folder());
                let tensors = component(&dir.join(folder), conditioner_stem(config))?;
                (Some(tensors), read_tokenizer(dir, config)?)
            }
            None => (None, None),
        };
        Ok(Self {
            path: dir.into(),
            unet: component(&unet_dir(dir), DIFFUSION_STEM)?,
            configs,
            tokenizer,
            skipped: Vec::new(),
            first_stage,
            conditioner,
        })
    }

    /// Finds out whether the weights are what the configurations say, without reading them.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn check(&self) -> Result<(), Error> {
        let device = Device::default();
        if let Some(tensors) = &self.first_stage {
            check_first_stage(&self.configs.first_stage, tensors)?;
        }
        if let Some((config, tensors)) = self.conditioner() {
            check_module(
                &config.init(&device),
                tensors,
                config.key_map(),
                config.skipped(),
            )?;
        }
        let keys = ldm_diffusion::weights::KEY_MAP;
        check_module(&self.configs.unet.init(&device), &self.unet, keys, &[])
    }

    /// The conditioner's configuration and weights, in a model that has one.
    pub(super) fn conditioner(&self) -> Option<(&ConditionerConfig, &Tensors)> {
        self.configs
            .conditioner
            .as_ref()
            .zip(self.conditioner.as_ref())
    }

    /// Reads the weights, each straight to its place.
    ///
    /// # Errors
    /// If a tensor is missing, unknown or of another shape than the configuration says.
    pub fn load(self, device: &Device) -> Result<LatentDiffusion, Error> {
        let first_stage = match &self.first_stage {
            Some(tensors) => load_first_stage(&self.configs.first_stage, tensors, device)?,
            None => FirstStage::Identity,
        };
        let conditioner = (self.conditioner())
            .map(|(config, tensors)| {
                let conditioner = config.init(device);
                load_module(conditioner, tensors, config.key_map(), config.skipped())
            })
            .transpose()?;
        let unet = load_module(
            self.configs.unet.init(device),
            &self.unet,
            ldm_diffusion::weights::KEY_MAP,
            &[],
        )?;
        Ok(LatentDiffusion {
            first_stage,
            denoiser: Denoiser { unet, conditioner },
            tokenizer: self.tokenizer,
            configs: self.configs,
        })
    }
}

impl FirstStageFiles {
    /// Opens the autoencoder of whatever [`ModelFiles::open`] opens, or one that stands alone: a folder with its `config.json`, or a CompVis
    /// checkpoint.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(path: &Path, yaml: Option<&Path>) -> Result<Self, Error> {
        if path.join(CONFIG).is_file() && !path.join(INDEX).is_file() {
            return Self::open_folder(path);
        }
        // A run whose second stage hasn't ended has an autoencoder, but no complete model.
        let unfinished = path.join("model").join(VAE);
        if unfinished.is_dir() {
            return Self::open_folder(&unfinished);
        }
        match locate(path) {
            Ok(Location::Directory(dir)) => Self::open_folder(&vae_dir(&dir)?),
            Ok(Location::Checkpoint(file)) => compvis::open_first_stage(&file, yaml),
            Err(error) => vae_dir(path).map_or(Err(error), |dir| Self::open_folder(&dir)),
        }
    }

    fn open_folder(dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            config: FirstStageConfig::read(&dir.join(CONFIG))?,
            skipped: Vec::new(),
            tensors: component(dir, DIFFUSION_STEM)?,
        })
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// If a tensor is missing, unknown or of another shape than the configuration says.
    pub fn load(&self, device: &Device) -> Result<FirstStage, Error> {
        load_first_stage(&self.config, &self.tensors, device)
    }

    /// Finds out whether the weights are what the configuration says, without reading them.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn check(&self) -> Result<(), Error> {
        check_first_stage(&self.config, &self.tensors)
    }

    /// A checksum of the weights.
    ///
    /// # Errors
    /// If they can't be read.
    pub(crate) fn key(&self) -> Result<String, Error> {
        Ok(self.tensors.checksum()?)
    }
}

impl ModelConfigs {
    /// Reads those of a model, see [`ModelFiles::open`].
    ///
    /// # Errors
    /// If one is missing or malformed, or they don't fit together.
    fn read(dir: &Path) -> Result<Self, Error> {
        let unet_path = unet_dir(dir).join(CONFIG);
        let scheduler_path = [SCHEDULER, "scheduler_config.json"]
            .map(|name| dir.join(name))
            .into_iter()
            .find(|path| path.is_file())
            .unwrap_or_else(|| dir.join(SCHEDULER));
        let unet = UNetConfig::from_json(&read(&unet_path)?)
            .map_err(|error| malformed(&unet_path, error))?;
        let conditioner = conditioner_folder(dir)
            .map(|folder| ConditionerConfig::read(&dir.join(folder).join(CONFIG), folder))
            .transpose()?;
        let has_first_stage = [VAE, "vae"].iter().any(|folder| dir.join(folder).is_dir());
        let configs = Self {
            first_stage: if has_first_stage {
                FirstStageConfig::read(&vae_dir(dir)?.join(CONFIG))?
            } else {
                FirstStageConfig::Identity {
                    channels: unet.in_channels,
                }
            },
            unet,
            conditioner,
            scheduler: SchedulerConfig::from_json(&read(&scheduler_path)?)
                .map_err(|error| malformed(&scheduler_path, error))?,
            facts: ModelFacts::read(dir)?,
        };
        configs
            .check_fit()
            .map_err(|problem| malformed(&unet_path, problem))?;
        Ok(configs)
    }
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

/// Finds a model by a path or a hub id.
pub(super) fn locate(path: &Path) -> Result<Location, Error> {
    let no_model = |problem: &str| Error::NoModel {
        path: path.into(),
        problem: problem.into(),
    };
    if path.is_file() {
        return Ok(Location::Checkpoint(path.into()));
    }
    if !path.exists() {
        // A name in a folder that is there is a mistyped path rather than a hub id.
        let in_folder = path
            .parent()
            .is_some_and(|folder| !folder.as_os_str().is_empty() && folder.is_dir());
        let id = path.to_str().filter(|_| !in_folder);
        return match id.map(hub::model_dir).transpose()?.flatten() {
            Some(dir) => Ok(Location::Directory(dir)),
            None => Err(no_model("it does not exist")),
        };
    }
    let directory = [path.to_path_buf(), path.join("model")]
        .into_iter()
        .find(|dir| dir.join(INDEX).is_file());
    if let Some(dir) = directory {
        return Ok(Location::Directory(dir));
    }
    let checkpoint = path.join("model.ckpt");
    if checkpoint.is_file() {
        return Ok(Location::Checkpoint(checkpoint));
    }
    Err(no_model("there is no model_index.json in it"))
}

/// An autoencoder's weights under diffusers' present names, whichever of its names the file has: through our own and back.
pub(super) fn first_stage_names(tensors: &Tensors) -> Result<Tensors, Error> {
    use ldm_autoencoder::weights::{KEY_MAP, KEY_MAP_OUT};
    Ok(tensors.renamed(KEY_MAP)?.renamed(KEY_MAP_OUT)?)
}

/// The same of a U-Net.
pub(super) fn unet_names(tensors: &Tensors) -> Result<Tensors, Error> {
    use ldm_diffusion::weights::{KEY_MAP, KEY_MAP_OUT};
    Ok(tensors.renamed(KEY_MAP)?.renamed(KEY_MAP_OUT)?)
}

/// The weights in a component's folder.
fn component(dir: &Path, stem: &str) -> Result<Tensors, Error> {
    Ok(weights::open(&weights::find(dir, stem)?)?)
}

fn unet_dir(dir: &Path) -> PathBuf {
    // Early repositories of pixel models have everything at the top.
    match dir.join(UNET) {
        folder if folder.is_dir() => folder,
        _ => dir.into(),
    }
}

fn vae_dir(path: &Path) -> Result<PathBuf, Error> {
    [VAE, "vae", ""]
        .map(|folder| path.join(folder))
        .into_iter()
        .find(|dir| dir.join(CONFIG).is_file())
        .ok_or_else(|| Error::NoModel {
            path: path.into(),
            problem: format!("there is no {VAE}/{CONFIG}"),
        })
}

fn conditioner_folder(dir: &Path) -> Option<&'static str> {
    (conditioner::FOLDERS.into_iter()).find(|folder| dir.join(folder).is_dir())
}

fn read_tokenizer(dir: &Path, config: &ConditionerConfig) -> Result<Option<Tokenizer>, Error> {
    if !config.is_text() {
        return Ok(None);
    }
    let folder = dir.join(TOKENIZER);
    let tokenizer = Tokenizer::from_dir(&folder).map_err(|error| malformed(&folder, error))?;
    Ok(Some(tokenizer))
}

fn load_first_stage(
    config: &FirstStageConfig,
    tensors: &Tensors,
    device: &Device,
) -> Result<FirstStage, Error> {
    let keys = ldm_autoencoder::weights::KEY_MAP;
    Ok(match config.init(device) {
        FirstStage::Kl(model) => FirstStage::Kl(load_module(model, tensors, keys, &[])?),
        FirstStage::Vq(model) => FirstStage::Vq(load_module(model, tensors, keys, &[])?),
        FirstStage::Identity => FirstStage::Identity,
    })
}

fn check_first_stage(config: &FirstStageConfig, tensors: &Tensors) -> Result<(), Error> {
    let keys = ldm_autoencoder::weights::KEY_MAP;
    match config.init(&Device::default()) {
        FirstStage::Kl(model) => check_module(&model, tensors, keys, &[]),
        FirstStage::Vq(model) => check_module(&model, tensors, keys, &[]),
        FirstStage::Identity => Ok(()),
    }
}

fn check_module<M: Module>(
    module: &M,
    tensors: &Tensors,
    key_map: KeyMap,
    skip: &[&str],
) -> Result<(), Error> {
    let options = LoadOptions { key_map, skip };
    Ok(weights::check(module, tensors, &options)?)
}

fn load_module<M: Module>(
    module: M,
    tensors: &Tensors,
    key_map: KeyMap,
    skip: &[&str],
) -> Result<M, Error> {
    let options = LoadOptions { key_map, skip };
    Ok(weights::load_from(module, tensors, &options)?.0)
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
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

pub(super) fn write(path: &Path, text: &str) -> Result<(), Error> {
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
