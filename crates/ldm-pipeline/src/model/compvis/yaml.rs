//! The yaml files of CompVis' code, as far as they describe a model.

use std::path::{Path, PathBuf};

use ldm_autoencoder::compvis::FirstStageParams;
use ldm_diffusion::{
    compvis::CompVisUNet,
    conditioning::{ClassEmbedderConfig, SpatialRescalerConfig},
};
use ldm_text::compvis::BertEmbedderParams;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::super::files::{malformed, read};
use crate::error::Error;

/// A model as the yaml tells it.
#[derive(Clone, Debug)]
pub(super) enum Description {
    /// An autoencoder alone.
    Autoencoder(FirstStageParams),
    /// A diffusion model with its first stage.
    Diffusion(Box<Diffusion>),
}

/// `LatentDiffusion` and its parts.
#[derive(Clone, Debug)]
pub(super) struct Diffusion {
    pub(super) unet: CompVisUNet,
    /// `None` for the identity.
    pub(super) first_stage: Option<FirstStageParams>,
    pub(super) condition: Condition,
    pub(super) process: Process,
}

/// `cond_stage_config`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    /// `__is_unconditional__`
    None,
    /// `BERTEmbedder`
    Text(BertEmbedderParams),
    /// `ClassEmbedder`
    Class(ClassEmbedderConfig),
    /// `SpatialRescaler`
    Semantic(SpatialRescalerConfig),
    /// `__is_first_stage__`: the first stage's latents of a picture with a hole, and the hole's mask.
    MaskedImage,
}

/// The diffusion process, and how latents are scaled for it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Process {
    pub(super) timesteps: usize,
    pub(super) beta_schedule: String,
    pub(super) linear_start: f64,
    pub(super) linear_end: f64,
    pub(super) parameterization: String,
    pub(super) scale_factor: f64,
    /// The factor was measured, and is a tensor of the checkpoint.
    pub(super) scale_by_std: bool,
    pub(super) image_size: Option<Value>,
    pub(super) channels: Option<usize>,
    pub(super) conditioning_key: Option<String>,
    pub(super) concat_mode: bool,
}

impl Default for Process {
    /// Those of `DDPM` and `LatentDiffusion`.
    fn default() -> Self {
        Self {
            timesteps: 1000,
            beta_schedule: "linear".into(),
            linear_start: 1e-4,
            linear_end: 2e-2,
            parameterization: "eps".into(),
            scale_factor: 1.0,
            scale_by_std: false,
            image_size: None,
            channels: None,
            conditioning_key: None,
            concat_mode: true,
        }
    }
}

/// A class of the original code and its arguments.
#[derive(Deserialize)]
struct Node {
    target: String,
    #[serde(default)]
    params: Map<String, Value>,
}

impl Node {
    /// The class without its module.
    fn class(&self) -> &str {
        self.target.rsplit('.').next().unwrap_or_default()
    }

    fn params<T: DeserializeOwned>(&self, path: &Path) -> Result<T, Error> {
        let params = Value::Object(self.params.clone());
        serde_path_to_error::deserialize(params)
            .map_err(|error| malformed(path, format!("`{}`: {error}", self.class())))
    }

    fn child(&self, key: &str, path: &Path) -> Result<Node, Error> {
        let value = self.params.get(key).cloned().unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|error| malformed(path, format!("`{key}` of `{}`: {error}", self.class())))
    }
}

/// The yaml that belongs to a checkpoint: of the same name, or the only one beside it.
pub(super) fn beside(checkpoint: &Path) -> Option<PathBuf> {
    let same_name = ["yaml", "yml"].map(|extension| checkpoint.with_extension(extension));
    if let Some(path) = same_name.into_iter().find(|path| path.is_file()) {
        return Some(path);
    }
    let folder = match checkpoint.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Where the original code leaves a run: checkpoints/last.ckpt and configs/DATE-project.yaml.
    let configs = folder.parent().map(|run| run.join("configs"));
    for folder in [Some(folder.to_path_buf()), configs].into_iter().flatten() {
        let mut yamls: Vec<PathBuf> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let extension = path.extension().and_then(|extension| extension.to_str());
                matches!(extension, Some("yaml" | "yml"))
            })
            .filter(|path| {
                // The other file of a run is about its trainer.
                !path
                    .file_stem()
                    .is_some_and(|stem| stem.to_string_lossy().ends_with("-lightning"))
            })
            .collect();
        if yamls.len() == 1 {
            return yamls.pop();
        }
    }
    None
}

/// Reads a yaml.
pub(super) fn load(path: &Path) -> Result<Description, Error> {
    parse(&read(path)?, path)
}

/// [`load`] from text; `path` stands for it in errors.
pub(super) fn parse(text: &str, path: &Path) -> Result<Description, Error> {
    let document: Value = serde_saphyr::from_str(text)
        .map_err(|error| malformed(path, format!("it is no valid yaml: {error}")))?;
    let node: Node = serde_json::from_value(document["model"].clone()).map_err(|error| {
        malformed(
            path,
            format!("`model` is no model of CompVis' code: {error}"),
        )
    })?;
    match node.class() {
        "AutoencoderKL" | "VQModel" | "VQModelInterface" => {
            Ok(Description::Autoencoder(first_stage(&node, path)?))
        }
        "LatentDiffusion" | "LatentInpaintDiffusion" => {
            Ok(Description::Diffusion(Box::new(diffusion(&node, path)?)))
        }
        other => Err(malformed(
            path,
            format!(
                "its model is a `{other}`, but only LatentDiffusion, AutoencoderKL and VQModel are known"
            ),
        )),
    }
}

fn diffusion(node: &Node, path: &Path) -> Result<Diffusion, Error> {
    let first_stage_node = node.child("first_stage_config", path)?;
    let first_stage = match first_stage_node.class() {
        "IdentityFirstStage" => None,
        _ => Some(first_stage(&first_stage_node, path)?),
    };
    Ok(Diffusion {
        unet: node.child("unet_config", path)?.params(path)?,
        first_stage,
        condition: condition(node, path)?,
        process: node.params(path)?,
    })
}

/// The arguments of a first stage, of which those about files and training are left out.
fn first_stage(node: &Node, path: &Path) -> Result<FirstStageParams, Error> {
    match node.class() {
        "AutoencoderKL" | "VQModel" | "VQModelInterface" => node.params(path),
        other => Err(malformed(
            path,
            format!("its first stage is a `{other}`, but only AutoencoderKL and VQModel are known"),
        )),
    }
}

fn condition(node: &Node, path: &Path) -> Result<Condition, Error> {
    match node.params.get("cond_stage_config") {
        None | Some(Value::Null) => return Ok(Condition::None),
        Some(Value::String(name)) => match name.as_str() {
            "__is_unconditional__" => return Ok(Condition::None),
            "__is_first_stage__" => return Ok(Condition::MaskedImage),
            _ => {}
        },
        Some(_) => {}
    }
    let node = node.child("cond_stage_config", path)?;
    Ok(match node.class() {
        "BERTEmbedder" => Condition::Text(node.params(path)?),
        "ClassEmbedder" => Condition::Class(node.params(path)?),
        "SpatialRescaler" => {
            let mut node = node;
            // The only settings that the published configurations have.
            for (key, supported) in [("method", json!("bilinear")), ("multiplier", json!(0.5))] {
                match node.params.remove(key) {
                    Some(value) if value != supported => {
                        let problem = format!(
                            "`{key}` of its SpatialRescaler is {value}, but only {supported} is supported"
                        );
                        return Err(malformed(path, problem));
                    }
                    _ => {}
                }
            }
            Condition::Semantic(node.params(path)?)
        }
        other => {
            return Err(malformed(
                path,
                format!(
                    "its condition is a `{other}`, but only BERTEmbedder, ClassEmbedder and SpatialRescaler are known"
                ),
            ));
        }
    })
}
