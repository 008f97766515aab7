//! What can go wrong, and what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{
    atomic::WriteError, checkpoint::CheckpointError, data::DataError, hub::HubError,
    metrics::MetricsError, train::Culprit, weights::WeightsError,
};

/// A configuration that describes no run.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't TOML.
    #[error("{file} is not valid TOML")]
    Syntax {
        /// The file.
        file: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key that nothing reads, misspelt most likely.
    #[error("{file} has the unknown key `{key}`")]
    UnknownKey {
        /// The file.
        file: String,
        /// The key with its sections.
        key: String,
        /// The nearest known key.
        suggestion: Option<String>,
    },
    /// A missing key, or one whose value is of the wrong type or out of range.
    #[error("{file}: `{key}` {problem}")]
    Value {
        /// The file.
        file: String,
        /// The key with its sections.
        key: String,
        /// What is wrong, to be read after the key.
        problem: String,
    },
    /// A `--set` that isn't `key=value`.
    #[error("`{text}` is not a setting of the form section.key=value")]
    Override {
        /// The setting.
        text: String,
    },
}

/// Any failure of the pipeline.
#[derive(Debug, Error)]
pub enum Error {
    /// A wrong configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Images that can't be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A failed write; nothing is half-written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Weights that can't be loaded or saved.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A checkpoint that can't be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A log that can't be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A model that doesn't fit together.
    #[error(transparent)]
    Diffusion(#[from] ldm_diffusion::Error),
    /// An autoencoder that doesn't fit together.
    #[error(transparent)]
    Autoencoder(#[from] ldm_autoencoder::ConfigError),
    /// A file that can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A JSON file that doesn't hold what it should.
    #[error("{} is not what it should be: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A path that holds no model.
    #[error("{} is no model: {problem}", path.display())]
    NoModel {
        /// The path.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// No model was named, and the one that comes with the program isn't there.
    #[error(
        "no model was given, and the one that comes with ldm is in none of {}",
        listed(places)
    )]
    NoShippedModel {
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// A checkpoint that doesn't say what it is.
    #[error("can't tell from its tensors what {} holds: {problem}", path.display())]
    UnknownCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is missing or ambiguous.
        problem: String,
    },
    /// A model that the other format has no place for.
    #[error("this model can't be written as a CompVis checkpoint: {0}")]
    Inexpressible(String),
    /// A path that holds no run.
    #[error("{} is no run: it has no config.toml", .0.display())]
    NoRun(PathBuf),
    /// A run directory that is already in use by an earlier run.
    #[error("{} already holds a run", .0.display())]
    RunExists(PathBuf),
    /// A resumed run whose architecture differs from its checkpoint's.
    #[error("the run in {} was started with another {section}", path.display())]
    ConfigChanged {
        /// The run directory.
        path: PathBuf,
        /// The section that differs.
        section: &'static str,
    },
    /// A second stage without a first.
    #[error("{} has no trained autoencoder", .0.display())]
    FirstStageMissing(PathBuf),
    /// A text-conditional model without texts.
    #[error("no image in {} has a caption", .0.display())]
    NoCaptions(PathBuf),
    /// Cached latents that were made from something else.
    #[error("the cached latents in {} can't be used: {problem}", path.display())]
    LatentCache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or what differs.
        problem: String,
    },
    /// A perceptual term without its network.
    #[error("the perceptual loss is on, but `stage1.vgg` names no VGG16 weights")]
    PerceptualNetworkMissing,
    /// A file of a hub that can't be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A loss or a gradient that is no longer a number.
    #[error("the {name} is {value} at step {step}: {culprit}")]
    NotFinite {
        /// What diverged.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// Where it came from.
        culprit: Culprit,
    },
    /// Processes that can't train together.
    #[error("{problem}")]
    Processes {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        help: &'static str,
    },
    /// Another device of the process has ended, which says why; this one can't go on without it.
    #[error("another device's training has ended")]
    OtherDevice,
    /// A request that the model can't serve.
    #[error("{0}")]
    Request(String),
    /// A measurement that can't be made, by a part that this crate doesn't know.
    #[error("{source}")]
    Evaluation {
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        help: Option<String>,
    },
}

impl Error {
    /// What to do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.help(),
            Self::Data(error) => Some(error.help().into()),
            Self::Weights(error) => error.help(),
            Self::Checkpoint(error) => error.help(),
            Self::Write(error) => error.help(),
            Self::Metrics(error) => error.help(),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path".into())
            }
            Self::NoModel { .. } => Some(
                "a model is a directory with a model_index.json, as `ldm train` leaves it in RUN/model, a CompVis checkpoint, or a hub id (owner/name)".into(),
            ),
            Self::NoShippedModel { .. } => Some(
                "name a model with --model, or run ldm in a clone of its repository, or set LDM_MODELS to the folder that twemoji-64 is in".into(),
            ),
            Self::UnknownCheckpoint { .. } => Some(
                "give the yaml that it was trained with by --yaml, or put it beside the checkpoint".into(),
            ),
            Self::Inexpressible(_) => Some(
                "give a destination without the extension .ckpt or .safetensors: a model directory".into(),
            ),
            Self::NoRun(_) => Some("a run is the folder that `ldm train` writes to, its --out".into()),
            Self::RunExists(path) => Some(format!(
                "go on with it by --resume, or choose another --out, or remove {}",
                path.display()
            )),
            Self::ConfigChanged { .. } => {
                Some("resume with the configuration it was started with, or start a new run with another --out".into())
            }
            Self::FirstStageMissing(path) => Some(format!(
                "train it first: ldm train vae CONFIG --out {}; or name a model in `stage2.first_stage`",
                path.display()
            )),
            Self::NoCaptions(_) => Some(
                "add a metadata.jsonl or a name.txt beside each name.png, or train without `stage2.text`".into(),
            ),
            Self::LatentCache { .. } => Some(
                "undo what differs, or have them made anew: delete the file, or --set data.latent_cache=rebuild".into(),
            ),
            Self::PerceptualNetworkMissing => Some(
                "set stage1.vgg to a .safetensors file or to a hub id such as timm/vgg16.tv_in1k, or switch the term off with --set stage1.loss.perceptual_weight=0".into(),
            ),
            Self::Hub(error) => error.help(),
            Self::NotFinite { culprit, .. } if culprit.is_in_data() => Some(
                "look at the files named, and take damaged ones out of the data set; then go on from the last checkpoint with --resume".into(),
            ),
            Self::NotFinite { .. } => Some(
                "lower the learning rate (…training.lr.rate) or set …training.max_grad_norm, and go on from the last checkpoint with --resume".into(),
            ),
            Self::Processes { help, .. } => Some((*help).into()),
            Self::Evaluation { help, .. } => help.clone(),
            _ => None,
        }
    }
}

impl ConfigError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path; the presets are in configs/".into())
            }
            Self::UnknownKey {
                suggestion: Some(key),
                ..
            } => Some(format!("did you mean `{key}`?")),
            Self::UnknownKey { .. } => {
                Some("remove it; docs/configuration.md lists all keys".into())
            }
            Self::Override { .. } => Some("for example: --set stage1.training.steps=1000".into()),
            Self::Value { .. } => {
                Some("docs/configuration.md lists all keys and their ranges".into())
            }
            Self::Read { .. } | Self::Syntax { .. } => None,
        }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = (paths.iter())
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}
