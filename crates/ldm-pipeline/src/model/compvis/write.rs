//! CompVis checkpoints, written.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::TensorData;
use ldm_autoencoder::compvis::{FirstStageConfig as Autoencoder, FirstStageParams};
use ldm_diffusion::{BetaSchedule, NoiseSchedule, PredictionType, compvis::CompVisUNet};
use ldm_nn::weights::KeyPair;
use ldm_text::compvis::BertEmbedderParams;
use serde_json::{Value, json};

use super::{
    super::{
        ConditionerConfig, FirstStageConfig, FirstStageFiles, InpaintInput, ModelFiles,
        files::{first_stage_names, unet_names, write as write_text},
    },
    CONDITION, FIRST_STAGE, UNET,
};
use crate::{
    error::Error,
    weights::{self, Tensors},
};

/// Smallest variance whose logarithm is taken.
const LEAST_VARIANCE: f64 = 1e-20;

/// Writes a model as a checkpoint, with its yaml beside it.
pub(in crate::model) fn write(files: &ModelFiles, path: &Path, half: bool) -> Result<(), Error> {
    let configs = &files.configs;
    let inexpressible = |error: &dyn std::fmt::Display| Error::Inexpressible(error.to_string());
    let unet = CompVisUNet::from_config(&configs.unet).map_err(|e| inexpressible(&e))?;
    let unet_keys =
        ldm_diffusion::compvis::compvis_keys(&configs.unet, unet.use_new_attention_order);
    let mut tensors = weights::to_compvis(&unet_names(&files.unet)?, UNET, &unet_keys)?;
    let first_stage_node = match (autoencoder(&configs.first_stage), &files.first_stage) {
        (Some(autoencoder), Some(weights)) => {
            tensors.extend(first_stage_tensors(&autoencoder, weights, FIRST_STAGE)?);
            first_stage_node(&autoencoder)?
        }
        _ => json!({ "target": "ldm.models.autoencoder.IdentityFirstStage" }),
    };
    let condition_node = match files.conditioner() {
        Some((config, weights)) => {
            let (node, keys) = condition_node(config)?;
            tensors.extend(weights::to_compvis(weights, CONDITION, &keys)?);
            node
        }
        None if configs.takes_masked_image() => json!("__is_first_stage__"),
        None => json!("__is_unconditional__"),
    };
    if configs.takes_masked_image() && configs.facts.inpaint_input != InpaintInput::ImageThenMask {
        return Err(Error::Inexpressible(
            "CompVis' code gives a network for filling regions the picture before the mask, this model the mask first".into(),
        ));
    }
    let scheduler = &configs.scheduler;
    if scheduler.rescale_betas_zero_snr {
        return Err(Error::Inexpressible(
            "CompVis' code has no schedule without signal at its end (`rescale_betas_zero_snr`)"
                .into(),
        ));
    }
    let schedule = scheduler.noise_schedule()?;
    for (name, data) in schedule_buffers(&schedule) {
        tensors.insert(name, data);
    }
    let document = json!({ "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": scheduler.beta_start,
            "linear_end": scheduler.beta_end,
            "beta_schedule": match scheduler.beta_schedule {
                BetaSchedule::Linear => "linear",
                BetaSchedule::PlainLinear => "sqrt_linear",
                BetaSchedule::Cosine => "cosine",
                other @ (BetaSchedule::Sigmoid | BetaSchedule::Exponential) => {
                    return Err(Error::Inexpressible(format!("it has no schedule like {other:?}")));
                }
            },
            "timesteps": scheduler.num_train_timesteps,
            "parameterization": match scheduler.prediction_type {
                PredictionType::Epsilon => "eps",
                PredictionType::Sample => "x0",
                PredictionType::Velocity => "v",
            },
            "first_stage_key": "image",
            "cond_stage_key": match &configs.conditioner {
                Some(ConditionerConfig::Class(_)) => "class_label",
                Some(ConditionerConfig::Semantic(_)) => "segmentation",
                Some(_) => "caption",
                None => "image",
            },
            "conditioning_key": match &configs.conditioner {
                Some(ConditionerConfig::Semantic(_)) => json!("concat"),
                Some(_) => json!("crossattn"),
                None if configs.takes_masked_image() => json!("concat"),
                None => Value::Null,
            },
            "image_size": configs.unet.sample_size,
            "channels": configs.first_stage.latent_channels(),
            "scale_factor": configs.first_stage.scaling_factor(),
            "use_ema": false,
            "unet_config": { "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet },
            "first_stage_config": first_stage_node,
            "cond_stage_config": condition_node,
        },
    }});
    save(path, &tensors, &document, half)
}

/// Writes an autoencoder as a checkpoint, with its yaml beside it.
pub(in crate::model) fn write_first_stage(
    files: &FirstStageFiles,
    path: &Path,
    half: bool,
) -> Result<(), Error> {
    let Some(autoencoder) = autoencoder(&files.config) else {
        return Err(Error::Inexpressible("there is no autoencoder".into()));
    };
    let tensors = first_stage_tensors(&autoencoder, &files.tensors, "")?;
    let document = json!({ "model": first_stage_node(&autoencoder)? });
    save(path, &tensors, &document, half)
}

/// The yaml first: a checkpoint without one would be guessed at.
fn save(path: &Path, tensors: &Tensors, document: &Value, half: bool) -> Result<(), Error> {
    let yaml = path.with_extension("yaml");
    let text = serde_saphyr::to_string(document).expect("JSON is YAML");
    write_text(&yaml, &text)?;
    // What the original code's scripts print.
    let metadata = BTreeMap::from([("global_step".to_owned(), "0".to_owned())]);
    let written = match half {
        true => weights::write(path, &tensors.clone().half(), &metadata),
        false => weights::write(path, tensors, &metadata),
    };
    if written.is_err() {
        // Alone it is of no use; what went wrong is reported in any case.
        let _ = std::fs::remove_file(&yaml);
    }
    Ok(written?)
}

fn autoencoder(config: &FirstStageConfig) -> Option<Autoencoder> {
    match config {
        FirstStageConfig::Kl(config) => Some(Autoencoder::Kl(config.clone())),
        FirstStageConfig::Vq(config) => Some(Autoencoder::Vq(config.clone())),
        FirstStageConfig::Identity { .. } => None,
    }
}

fn first_stage_tensors(
    autoencoder: &Autoencoder,
    weights: &Tensors,
    prefix: &str,
) -> Result<Tensors, Error> {
    Ok(weights::to_compvis(
        &first_stage_names(weights)?,
        prefix,
        &autoencoder.compvis_keys(),
    )?)
}

fn first_stage_node(autoencoder: &Autoencoder) -> Result<Value, Error> {
    let (params, class) = match autoencoder {
        Autoencoder::Kl(config) => (FirstStageParams::from_kl(config), "AutoencoderKL"),
        Autoencoder::Vq(config) => (FirstStageParams::from_vq(config), "VQModelInterface"),
    };
    let params = params.map_err(|error| Error::Inexpressible(error.to_string()))?;
    Ok(json!({ "target": format!("ldm.models.autoencoder.{class}"), "params": params }))
}

fn condition_node(config: &ConditionerConfig) -> Result<(Value, Vec<KeyPair>), Error> {
    const MODULE: &str = "ldm.modules.encoders.modules";
    Ok(match config {
        ConditionerConfig::LdmBert(config) => {
            let params = BertEmbedderParams::from_config(config)
                .map_err(|error| Error::Inexpressible(error.to_string()))?;
            (
                json!({ "target": format!("{MODULE}.BERTEmbedder"), "params": params }),
                ldm_text::compvis::compvis_keys(config),
            )
        }
        ConditionerConfig::Class(config) => (
            json!({ "target": format!("{MODULE}.ClassEmbedder"), "params": config }),
            config.compvis_keys(),
        ),
        ConditionerConfig::Semantic(config) => (
            json!({ "target": format!("{MODULE}.SpatialRescaler"), "params": config }),
            config.compvis_keys(),
        ),
        ConditionerConfig::Bert(_) => {
            return Err(Error::Inexpressible(
                "CompVis' code has no text encoder in Hugging Face's layout".into(),
            ));
        }
    })
}

/// The buffers that CompVis' code registers for its schedule, and keeps in checkpoints.
fn schedule_buffers(schedule: &NoiseSchedule) -> Vec<(String, TensorData)> {
    let betas = schedule.betas();
    let cumprod = schedule.alphas_cumprod();
    let previous: Vec<f64> = std::iter::once(1.0)
        .chain(cumprod[..cumprod.len() - 1].iter().copied())
        .collect();
    let buffer = |name: &str, value: &dyn Fn(usize) -> f64| {
        let values: Vec<f32> = (0..betas.len()).map(|t| value(t) as f32).collect();
        let shape = [values.len()];
        (name.to_owned(), TensorData::new(values, shape))
    };
    let variance = |t: usize| betas[t] * (1.0 - previous[t]) / (1.0 - cumprod[t]);
    vec![
        buffer("betas", &|t| betas[t]),
        buffer("alphas_cumprod", &|t| cumprod[t]),
        buffer("alphas_cumprod_prev", &|t| previous[t]),
        buffer("sqrt_alphas_cumprod", &|t| cumprod[t].sqrt()),
        buffer("sqrt_one_minus_alphas_cumprod", &|t| {
            (1.0 - cumprod[t]).sqrt()
        }),
        buffer("log_one_minus_alphas_cumprod", &|t| (1.0 - cumprod[t]).ln()),
        buffer("sqrt_recip_alphas_cumprod", &|t| (1.0 / cumprod[t]).sqrt()),
        buffer("sqrt_recipm1_alphas_cumprod", &|t| {
            (1.0 / cumprod[t] - 1.0).sqrt()
        }),
        buffer("posterior_variance", &variance),
        buffer("posterior_log_variance_clipped", &|t| {
            variance(t).max(LEAST_VARIANCE).ln()
        }),
        buffer("posterior_mean_coef1", &|t| {
            betas[t] * previous[t].sqrt() / (1.0 - cumprod[t])
        }),
        buffer("posterior_mean_coef2", &|t| {
            (1.0 - previous[t]) * (1.0 - betas[t]).sqrt() / (1.0 - cumprod[t])
        }),
    ]
}
