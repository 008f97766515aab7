//! CompVis' checkpoints: one file for all parts, with a yaml that says what they are.
//!
//! They are mapped to diffusers' names and layouts here and nowhere else. Which tensor is which comes from tables in the model crates;
//! this module knows the prefixes of the parts and the settings of the diffusion process.

mod guess;
mod write;
mod yaml;

use std::path::{Path, PathBuf};

use ldm_autoencoder::compvis::{FirstStageConfig as Autoencoder, FirstStageParams};
use ldm_diffusion::{BetaSchedule, PredictionType, SchedulerConfig};
use ldm_nn::weights::KeyPair;
use ldm_text::Tokenizer;
use regex::RegexSet;

pub(super) use write::{write, write_first_stage};

use self::yaml::{Condition, Description, Diffusion, Process};
use super::{
    ConditionerConfig, FirstStageConfig, FirstStageFiles, InpaintInput, ModelConfigs, ModelFacts,
    ModelFiles, files::malformed,
};
use crate::{
    error::Error,
    weights::{self, Differences, Tensors, WeightsError},
};

const UNET: &str = "model.diffusion_model.";
const FIRST_STAGE: &str = "first_stage_model.";
const CONDITION: &str = "cond_stage_model.";
/// Tensors that a block of any part has at least.
const TENSORS_PER_BLOCK: usize = 8;
/// The text encoder's head back to the vocabulary.
const TO_LOGITS: &str = "cond_stage_model.transformer.to_logits.weight";

/// Tensors of a checkpoint that sampling has no use for: losses and discriminators, buffers that follow from the schedule, counters, and raw
/// weights beside their average.
const SKIPPED: &[&str] = &[
    r"^(first_stage_model\.)?loss\.",
    r"^(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod)$",
    r"^(log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod)$",
    r"^(posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2)$",
    r"^(lvlb_weights|logvar|scale_factor|ddim_sigmas|ddim_alphas|ddim_alphas_prev)$",
    r"^model_ema\.",
    r"^cond_stage_model\.(device|tknz_fn)",
    r"colorize$",
];

/// Opens a checkpoint as a model; `yaml` describes it, else the one beside it, else the shapes of its tensors.
pub(super) fn open(file: &Path, yaml: Option<&Path>) -> Result<ModelFiles, Error> {
    let tensors = weights::open(file)?;
    let (description, origin) = describe(file, yaml, &tensors)?;
    match description {
        Description::Diffusion(diffusion) => open_diffusion(&tensors, &diffusion, &origin),
        Description::Autoencoder(_) => Err(Error::NoModel {
            path: file.into(),
            problem: format!("{} describes an autoencoder alone", origin.display()),
        }),
    }
}

/// Takes the tensors of a checkpoint apart into the parts that `origin` describes.
fn open_diffusion(
    tensors: &Tensors,
    diffusion: &Diffusion,
    origin: &Path,
) -> Result<ModelFiles, Error> {
    check_size(diffusion, tensors, origin)?;
    let unet = (diffusion.unet.to_config()).map_err(|error| malformed(origin, error))?;
    let unet_keys =
        ldm_diffusion::compvis::compvis_keys(&unet, diffusion.unet.use_new_attention_order);
    let autoencoder = autoencoder(diffusion, origin)?;
    let scaling_factor = scaling_factor(&diffusion.process, tensors)?;
    let (conditioner, condition_keys) = conditioner(&diffusion.condition, tensors, origin)?;

    let weights = weights::with_ema(tensors)?.unwrap_or_else(|| tensors.clone());
    let mut parts = Parts::new(&weights);
    let configs = ModelConfigs {
        first_stage: match &autoencoder {
            Some(autoencoder) => {
                FirstStageConfig::from(autoencoder.clone()).with_scaling_factor(scaling_factor)
            }
            None => FirstStageConfig::Identity {
                channels: unet.out_channels,
            },
        },
        scheduler: scheduler(&diffusion.process, origin)?,
        conditioner,
        facts: ModelFacts {
            inpaint_input: InpaintInput::ImageThenMask,
            ..ModelFacts::default()
        },
        unet,
    };
    configs
        .check_fit()
        .map_err(|problem| malformed(origin, format!("about the U-Net: {problem}")))?;
    let first_stage = autoencoder
        .map(|autoencoder| parts.take(FIRST_STAGE, autoencoder.compvis_keys()))
        .transpose()?;
    let unet = parts.take(UNET, unet_keys)?;
    let conditioner = condition_keys
        .map(|keys| parts.take(CONDITION, keys))
        .transpose()?;
    let takes_text = matches!(diffusion.condition, Condition::Text(_));
    Ok(ModelFiles {
        path: tensors.path().into(),
        skipped: parts.rest()?,
        configs,
        tokenizer: takes_text.then(Tokenizer::bert),
        first_stage,
        unet,
        conditioner,
    })
}

/// Opens the autoencoder of a checkpoint, which may be one of an autoencoder alone.
pub(super) fn open_first_stage(file: &Path, yaml: Option<&Path>) -> Result<FirstStageFiles, Error> {
    let tensors = weights::open(file)?;
    let (description, origin) = describe(file, yaml, &tensors)?;
    let params = match description {
        Description::Diffusion(diffusion) => {
            let files = open_diffusion(&tensors, &diffusion, &origin)?;
            let Some(tensors) = files.first_stage else {
                return Err(Error::NoModel {
                    path: file.into(),
                    problem: "its diffusion works on pixels: it has no autoencoder".into(),
                });
            };
            return Ok(FirstStageFiles {
                config: files.configs.first_stage,
                skipped: files.skipped,
                tensors,
            });
        }
        Description::Autoencoder(params) => params,
    };
    check_blocks("ddconfig", first_stage_blocks(&params), &tensors, &origin)?;
    let autoencoder = params
        .to_config()
        .map_err(|error| malformed(&origin, error))?;
    let mut parts = Parts::new(&tensors);
    let found = parts.take("", autoencoder.compvis_keys())?;
    Ok(FirstStageFiles {
        config: autoencoder.into(),
        skipped: parts.rest()?,
        tensors: found,
    })
}

/// What a checkpoint is, and the file that says so.
fn describe(
    file: &Path,
    yaml: Option<&Path>,
    tensors: &Tensors,
) -> Result<(Description, PathBuf), Error> {
    let yaml = yaml.map(Path::to_path_buf).or_else(|| yaml::beside(file));
    Ok(match yaml {
        Some(path) => (yaml::load(&path)?, path),
        None => (guess::guess(file, tensors)?, file.into()),
    })
}

/// Whether no part has more blocks than the checkpoint has tensors: lists of names for them would only exhaust the memory.
fn check_size(diffusion: &Diffusion, tensors: &Tensors, origin: &Path) -> Result<(), Error> {
    let unet = &diffusion.unet;
    let blocks = [
        unet.channel_mult.len(),
        unet.num_res_blocks,
        unet.transformer_depth,
    ];
    check_blocks("unet_config", blocks, tensors, origin)?;
    if let Some(params) = &diffusion.first_stage {
        check_blocks(
            "first_stage_config",
            first_stage_blocks(params),
            tensors,
            origin,
        )?;
    }
    match &diffusion.condition {
        Condition::Text(params) => {
            check_blocks("cond_stage_config", [1, params.n_layer, 1], tensors, origin)
        }
        _ => Ok(()),
    }
}

fn first_stage_blocks(params: &FirstStageParams) -> [usize; 3] {
    let config = &params.ddconfig;
    [config.ch_mult.len(), config.num_res_blocks, 1]
}

fn check_blocks(
    part: &str,
    factors: [usize; 3],
    tensors: &Tensors,
    origin: &Path,
) -> Result<(), Error> {
    let blocks = factors.into_iter().fold(1, |product: usize, factor| {
        product.saturating_mul(factor.max(1))
    });
    match blocks.saturating_mul(TENSORS_PER_BLOCK) > tensors.len() {
        true => Err(malformed(
            origin,
            format!(
                "`{part}` describes {blocks} blocks, but the checkpoint has {} tensors",
                tensors.len()
            ),
        )),
        false => Ok(()),
    }
}

/// The tensors of a checkpoint, handed out part by part.
struct Parts<'a> {
    file: &'a Tensors,
    taken: Vec<(&'static str, Vec<KeyPair>)>,
}

impl<'a> Parts<'a> {
    fn new(file: &'a Tensors) -> Self {
        Self {
            file,
            taken: Vec::new(),
        }
    }

    /// The part under `prefix`, in diffusers' names and layouts.
    fn take(&mut self, prefix: &'static str, keys: Vec<KeyPair>) -> Result<Tensors, Error> {
        let part = weights::from_compvis(self.file, prefix, &keys)?;
        self.taken.push((prefix, keys));
        Ok(part)
    }

    /// What is left of the checkpoint, all of which must be known to be of no use.
    fn rest(&self) -> Result<Vec<String>, Error> {
        let taken: Vec<(&str, &[KeyPair])> = (self.taken.iter())
            .map(|(prefix, keys)| (*prefix, keys.as_slice()))
            .collect();
        let known = RegexSet::new(SKIPPED).expect("the patterns are tested");
        let (skipped, unused): (Vec<String>, Vec<String>) = weights::unclaimed(self.file, &taken)
            .into_iter()
            .partition(|name| known.is_match(name));
        if unused.is_empty() {
            return Ok(skipped);
        }
        Err(WeightsError::Mismatch {
            path: self.file.path().into(),
            differences: Differences {
                unused,
                ..Differences::default()
            },
        }
        .into())
    }
}

fn autoencoder(diffusion: &Diffusion, origin: &Path) -> Result<Option<Autoencoder>, Error> {
    (diffusion.first_stage.as_ref())
        .map(|params| params.to_config().map_err(|error| malformed(origin, error)))
        .transpose()
}

/// The factor that the checkpoint holds where it was measured, else the yaml's.
fn scaling_factor(process: &Process, tensors: &Tensors) -> Result<f64, Error> {
    const NAME: &str = "scale_factor";
    let file = tensors.path();
    if !tensors.contains(NAME) {
        return match process.scale_by_std {
            true => Err(malformed(
                file,
                "it has no tensor `scale_factor`, which `scale_by_std` of its configuration promises",
            )),
            false => Ok(process.scale_factor),
        };
    }
    let value = tensors.data(NAME)?.iter::<f64>().next();
    match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(malformed(
            file,
            "its tensor `scale_factor` is no positive number",
        )),
    }
}

/// The conditioner and the names of its tensors.
fn conditioner(
    condition: &Condition,
    tensors: &Tensors,
    origin: &Path,
) -> Result<(Option<ConditionerConfig>, Option<Vec<KeyPair>>), Error> {
    Ok(match condition {
        Condition::None | Condition::MaskedImage => (None, None),
        Condition::Text(params) => {
            let mut config = params
                .to_config()
                .map_err(|error| malformed(origin, error))?;
            // Nothing computes it, so not every checkpoint has kept it.
            config.to_logits = tensors.contains(TO_LOGITS);
            let keys = ldm_text::compvis::compvis_keys(&config);
            (Some(ConditionerConfig::LdmBert(config)), Some(keys))
        }
        Condition::Class(config) => {
            config
                .validate()
                .map_err(|error| malformed(origin, error))?;
            let keys = config.compvis_keys();
            (Some(ConditionerConfig::Class(config.clone())), Some(keys))
        }
        Condition::Semantic(config) => {
            config
                .validate()
                .map_err(|error| malformed(origin, error))?;
            let keys = config.compvis_keys();
            (Some(ConditionerConfig::Semantic(*config)), Some(keys))
        }
    })
}

/// diffusers' settings under which its DDIM and PNDM make CompVis' steps.
fn scheduler(process: &Process, origin: &Path) -> Result<SchedulerConfig, Error> {
    let beta_schedule = match process.beta_schedule.as_str() {
        "linear" => BetaSchedule::Linear,
        "sqrt_linear" => BetaSchedule::PlainLinear,
        "cosine" => BetaSchedule::Cosine,
        other => {
            return Err(malformed(
                origin,
                format!(
                    "`beta_schedule` is {other}, but only linear, sqrt_linear and cosine are known"
                ),
            ));
        }
    };
    let prediction_type = match process.parameterization.as_str() {
        "eps" => PredictionType::Epsilon,
        "x0" => PredictionType::Sample,
        "v" => PredictionType::Velocity,
        other => {
            return Err(malformed(
                origin,
                format!("`parameterization` is {other}, but only eps, x0 and v are known"),
            ));
        }
    };
    Ok(SchedulerConfig {
        beta_schedule,
        prediction_type,
        num_train_timesteps: process.timesteps,
        compvis_steps: true,
        ..SchedulerConfig::compvis(process.linear_start, process.linear_end)
    })
}
