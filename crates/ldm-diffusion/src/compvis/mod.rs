//! The U-Net in CompVis' latent-diffusion code: its configuration, the names of its tensors, and a guess of the one from the
//! others.
//!
//! Attention there goes by factors of down-sampling, and the middle always attends; its modules are numbered through all
//! levels. A configuration that has a counterpart in [`UNetConfig`](crate::UNetConfig) is translated exactly, any other is refused.

mod convert;
mod guess;
mod keys;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{Error, unet::SampleSize};

pub use keys::compvis_keys;

/// `unet_config.params` of a CompVis configuration. Keys that don't exist there are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompVisUNet {
    /// Side of the latents in training; of no effect.
    #[serde(default)]
    pub image_size: Option<SampleSize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels of the finest level.
    pub model_channels: usize,
    /// Factors of down-sampling (1, 2, 4 ..) at which the levels attend; the middle attends whatever they are.
    pub attention_resolutions: Vec<usize>,
    /// ResNet blocks per level on the way down.
    pub num_res_blocks: usize,
    /// Channels of each level, in multiples of `model_channels`, from the finest.
    #[serde(default = "channel_mult")]
    pub channel_mult: Vec<usize>,
    /// Number of attention heads at every level, unless `num_head_channels` is given.
    #[serde(
        default,
        deserialize_with = "minus_one_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub num_heads: Option<usize>,
    /// Width of an attention head.
    #[serde(
        default,
        deserialize_with = "minus_one_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub num_head_channels: Option<usize>,
    /// Number of heads on the way up where it differs.
    #[serde(
        default,
        deserialize_with = "minus_one_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub num_heads_upsample: Option<usize>,
    /// Transformers that attend to a context, in place of plain self-attention.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_spatial_transformer: bool,
    /// Layers of each transformer.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub transformer_depth: usize,
    /// Width of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_dim: Option<usize>,
    /// The timestep scales and shifts the norm instead of being added.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_scale_shift_norm: bool,
    /// ResNet blocks between the levels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resblock_updown: bool,
    /// How the fused projection of queries, keys and values is laid out: the three parts one after the other, or (by default)
    /// head by head.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_new_attention_order: bool,
    /// Whether plain attention takes its number of heads from `num_heads` and `num_heads_upsample` as they are.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub legacy: bool,
    /// Convolutions between the levels; only true is supported.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub conv_resample: bool,
    /// Number of classes whose embedding is added to the timestep's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Dropout in training; of no effect.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Half precision; of no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_fp16: bool,
    /// Recomputation in the backward pass; of no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_checkpoint: bool,
    /// Dimensions of the images; only 2 is supported.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    pub dims: usize,
    /// Size of a codebook whose indices are predicted; not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_embed: Option<usize>,
}

impl CompVisUNet {
    /// A configuration with CompVis' defaults, without heads.
    fn new(
        in_channels: usize,
        out_channels: usize,
        model_channels: usize,
        num_res_blocks: usize,
        channel_mult: Vec<usize>,
        attention_resolutions: Vec<usize>,
    ) -> Self {
        Self {
            image_size: None,
            in_channels,
            out_channels,
            model_channels,
            attention_resolutions,
            num_res_blocks,
            channel_mult,
            num_heads: None,
            num_head_channels: None,
            num_heads_upsample: None,
            use_spatial_transformer: false,
            transformer_depth: 1,
            context_dim: None,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
            legacy: true,
            conv_resample: true,
            num_classes: None,
            dropout: 0.0,
            use_fp16: false,
            use_checkpoint: false,
            dims: 2,
            n_embed: None,
        }
    }
}

/// By how much `level` is smaller than the finest; `None` for a level that no picture reaches.
fn factor(level: usize) -> Option<usize> {
    1usize.checked_shl(level as u32)
}

fn invalid(field: &str, problem: impl Into<String>) -> Error {
    Error::invalid("CompVis U-Net", field, problem)
}

/// CompVis says "not given" by -1.
fn minus_one_is_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<usize>, D::Error> {
    match Option::<i64>::deserialize(deserializer)? {
        None | Some(-1) => Ok(None),
        Some(number) => match usize::try_from(number) {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(D::Error::custom(format!(
                "{number} heads, or channels of a head: it must be positive, or -1"
            ))),
        },
    }
}

fn channel_mult() -> Vec<usize> {
    vec![1, 2, 4, 8]
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_two(value: &usize) -> bool {
    *value == 2
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}
