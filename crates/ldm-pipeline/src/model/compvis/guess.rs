//! A checkpoint without its yaml: what it is follows from the names and shapes of its tensors, with the help of what was published.

use std::path::Path;

use ldm_autoencoder::compvis::FirstStageParams;
use ldm_diffusion::{
    compvis::CompVisUNet,
    conditioning::{ClassEmbedderConfig, SpatialRescalerConfig},
};
use ldm_text::compvis::BertEmbedderParams;

use super::{
    CONDITION, FIRST_STAGE, UNET,
    yaml::{Condition, Description, Diffusion, Process},
};
use crate::{error::Error, weights::Tensors};

/// Scaling factor of the published text-to-image model, whose checkpoint doesn't hold it.
const TEXT_TO_IMAGE_SCALE: f64 = 0.18215;

/// What the checkpoint `file` holds, if that can be told.
pub(super) fn guess(file: &Path, tensors: &Tensors) -> Result<Description, Error> {
    let unknown = |problem: &dyn std::fmt::Display| Error::UnknownCheckpoint {
        path: file.into(),
        problem: problem.to_string(),
    };
    let unet = tensors.below(UNET).shapes();
    if unet.is_empty() {
        let shapes = tensors.shapes();
        let params = FirstStageParams::guess(&shapes).map_err(|error| unknown(&error))?;
        return Ok(Description::Autoencoder(params));
    }
    let first_stage = tensors.below(FIRST_STAGE).shapes();
    let condition = tensors.below(CONDITION).shapes();
    let condition = if let Some(shape) = condition.get("embedding.weight") {
        let &[n_classes, embed_dim] = shape.as_slice() else {
            return Err(unknown(&"`cond_stage_model.embedding.weight` is no matrix"));
        };
        Condition::Class(ClassEmbedderConfig {
            embed_dim,
            n_classes,
            key: "class".into(),
        })
    } else if let Some(shape) = condition.get("channel_mapper.weight") {
        let &[out_channels, in_channels, 1, 1] = shape.as_slice() else {
            return Err(unknown(
                &"`cond_stage_model.channel_mapper.weight` is no 1x1 convolution",
            ));
        };
        Condition::Semantic(SpatialRescalerConfig {
            // As many halvings as the first stage has, for a mask of the picture's size.
            n_stages: first_stage
                .keys()
                .filter(|key| {
                    key.starts_with("encoder.down.") && key.ends_with(".downsample.conv.weight")
                })
                .count(),
            in_channels,
            out_channels: Some(out_channels),
            bias: false,
        })
    } else if condition.is_empty() {
        Condition::None
    } else {
        Condition::Text(BertEmbedderParams::guess(&condition).map_err(|error| unknown(&error))?)
    };
    let is_text = matches!(condition, Condition::Text(_));
    let first_stage = match first_stage.is_empty() {
        true => None,
        false => Some(FirstStageParams::guess(&first_stage).map_err(|error| unknown(&error))?),
    };
    let masked = matches!(condition, Condition::None)
        && first_stage.as_ref().is_some_and(|stage| {
            unet.get("input_blocks.0.0.weight")
                .is_some_and(|shape| shape.get(1) == Some(&(2 * stage.embed_dim + 1)))
        });
    let unet = CompVisUNet::guess(&unet).map_err(|error| unknown(&error))?;
    Ok(Description::Diffusion(Box::new(Diffusion {
        unet,
        first_stage,
        condition: if masked {
            Condition::MaskedImage
        } else {
            condition
        },
        process: process(tensors, is_text).map_err(|problem| unknown(&problem))?,
    })))
}

/// The noise schedule from its betas, which every such checkpoint holds.
fn process(tensors: &Tensors, is_text: bool) -> Result<Process, String> {
    let data = tensors
        .data("betas")
        .map_err(|error| format!("its noise schedule can't be read: {error}"))?;
    let betas: Vec<f64> = data.iter::<f64>().collect();
    let (Some(first), Some(last)) = (betas.first(), betas.last()) else {
        return Err("its noise schedule is empty".into());
    };
    // Halfway, the linear course in sqrt(beta) is far below the one in beta.
    let middle = betas[betas.len() / 2].sqrt();
    let by_root = (first.sqrt() + last.sqrt()) / 2.0;
    if (middle / by_root - 1.0).abs() > 0.01 {
        return Err("its noise schedule isn't linear in sqrt(beta)".into());
    }
    Ok(Process {
        timesteps: betas.len(),
        linear_start: rounded(*first),
        linear_end: rounded(*last),
        scale_factor: if is_text { TEXT_TO_IMAGE_SCALE } else { 1.0 },
        ..Process::default()
    })
}

/// A number that was stored in f32, in as many digits as that holds.
fn rounded(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beta_comes_back_from_single_precision() {
        for beta in [0.0015, 0.0195, 0.00085, 0.012] {
            assert_eq!(rounded(f64::from(beta as f32)), beta);
        }
    }
}
