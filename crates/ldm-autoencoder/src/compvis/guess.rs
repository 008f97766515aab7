use std::collections::BTreeMap;

use super::{AttnType, CompVisError, DdConfig, FirstStageParams};
use crate::{
    ConfigError,
    architecture::{self, MAX_LEVELS},
};

/// Side of the images of every published first stage; more where so many levels need it.
const RESOLUTION: usize = 256;

impl FirstStageParams {
    /// Reads the arguments off a checkpoint's tensors, named without the prefix `first_stage_model.`; others may be among them.
    ///
    /// The nominal resolution is in no shape: it is 256, and `attn_resolutions` says which levels attend in terms of that.
    ///
    /// # Errors
    /// If a tensor that every first stage has is missing or of a strange shape.
    pub fn guess(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, CompVisError> {
        let axis = |key: &str, axis: usize| -> Result<usize, CompVisError> {
            let shape = shapes.get(key).ok_or_else(|| CompVisError::MissingTensor {
                key: key.to_owned(),
            })?;
            match shape[..] {
                [outputs, inputs, _, _] if outputs > 0 => Ok([outputs, inputs][axis]),
                _ => Err(CompVisError::Shape {
                    key: key.to_owned(),
                    found: shape.clone(),
                    expected: "that of a convolution",
                }),
            }
        };
        let count = |key: &dyn Fn(usize) -> String| {
            (0..)
                .take_while(|index| shapes.contains_key(&key(*index)))
                .count()
        };

        let ch = axis("encoder.conv_in.weight", 0)?;
        let width = |level| format!("encoder.down.{level}.block.0.conv1.weight");
        let levels = count(&width);
        let ch_mult = (0..levels)
            .map(|level| {
                let key = width(level);
                let channels = axis(&key, 0)?;
                match channels % ch {
                    0 => Ok(channels / ch),
                    _ => Err(CompVisError::Shape {
                        found: shapes[&key].clone(),
                        key,
                        expected: "a multiple of the first convolution's channels",
                    }),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        if levels > MAX_LEVELS {
            return Err(ConfigError::TooManyLevels(levels).into());
        }
        let resolution = RESOLUTION.max(architecture::factor(levels));
        let attn_resolutions = (0..levels)
            .filter(|level| shapes.contains_key(&format!("encoder.down.{level}.attn.0.q.weight")))
            .map(|level| resolution >> level)
            .collect();
        let attn_type = match shapes.contains_key("encoder.mid.attn_1.q.weight") {
            true => AttnType::Vanilla,
            false => AttnType::None,
        };
        let codes = "quantize.embedding.weight";
        let n_embed = match shapes.get(codes).map(Vec::as_slice) {
            None => None,
            Some([count, _]) => Some(*count),
            Some(shape) => {
                return Err(CompVisError::Shape {
                    key: codes.to_owned(),
                    found: shape.to_vec(),
                    expected: "[codes, length]",
                });
            }
        };
        Ok(Self {
            embed_dim: axis("post_quant_conv.weight", 1)?,
            n_embed,
            ddconfig: DdConfig {
                double_z: n_embed.is_none(),
                z_channels: axis("decoder.conv_in.weight", 1)?,
                resolution,
                in_channels: axis("encoder.conv_in.weight", 1)?,
                out_ch: axis("decoder.conv_out.weight", 0)?,
                ch,
                ch_mult,
                num_res_blocks: count(&|block| {
                    format!("encoder.down.0.block.{block}.conv1.weight")
                }),
                attn_resolutions,
                dropout: 0.0,
                attn_type,
                use_linear_attn: false,
                resamp_with_conv: true,
                give_pre_end: false,
                tanh_out: false,
            },
        })
    }
}
