use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// More would shrink an image of 65,536 pixels a side to less than one.
pub(crate) const MAX_LEVELS: usize = 17;
/// Far beyond any model; keeps products of a few counts in range.
const MAX_COUNT: usize = 1 << 20;

/// Activation function of the network; published autoencoders have one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

/// Kind of one level of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// ResNet blocks.
    #[serde(rename = "DownEncoderBlock2D")]
    Down,
    /// ResNet blocks, each followed by self-attention.
    #[serde(rename = "AttnDownEncoderBlock2D")]
    AttnDown,
}

/// Kind of one level of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// ResNet blocks.
    #[serde(rename = "UpDecoderBlock2D")]
    Up,
    /// ResNet blocks, each followed by self-attention.
    #[serde(rename = "AttnUpDecoderBlock2D")]
    AttnUp,
}

/// What encoder and decoder are built from, whatever the latent space between them: the part that the configurations of
/// [`AutoencoderKl`](crate::AutoencoderKl) and [`VqModel`](crate::VqModel) have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Architecture<'a> {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) down_block_types: &'a [DownBlockType],
    pub(crate) up_block_types: &'a [UpBlockType],
    pub(crate) block_out_channels: &'a [usize],
    pub(crate) layers_per_block: usize,
    /// Channels of the decoder's input.
    pub(crate) latent_channels: usize,
    /// Channels of the encoder's output: the latent's, or twice as many where it gives mean and log-variance.
    pub(crate) encoder_out_channels: usize,
    pub(crate) norm_num_groups: usize,
    pub(crate) mid_block_add_attention: bool,
    pub(crate) scaling_factor: f64,
}

impl Architecture<'_> {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        check_counts(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("block_out_channels", self.block_out_channels.len()),
        ])?;
        let expected = self.block_out_channels.len();
        if expected > MAX_LEVELS {
            return Err(ConfigError::TooManyLevels(expected));
        }
        let levels = [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ];
        if let Some((field, found)) = levels.into_iter().find(|(_, found)| *found != expected) {
            return Err(ConfigError::LevelCount {
                field,
                found,
                expected,
            });
        }
        for &channels in self.block_out_channels {
            check_counts(&[("block_out_channels", channels)])?;
        }
        let groups = self.norm_num_groups;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if channels % groups != 0 {
                return Err(ConfigError::Groups {
                    level,
                    channels,
                    groups,
                });
            }
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(ConfigError::Range {
                field: "scaling_factor",
                value: self.scaling_factor,
                range: "finite and above 0",
            });
        }
        Ok(())
    }
}

/// Checks that each of the fields is at least 1, and so small that shapes and their products are numbers.
pub(crate) fn check_counts(counts: &[(&'static str, usize)]) -> Result<(), ConfigError> {
    for &(field, found) in counts {
        match found {
            0 => return Err(ConfigError::Zero { field }),
            1..=MAX_COUNT => {}
            _ => return Err(ConfigError::TooLarge { field, found }),
        }
    }
    Ok(())
}

/// Pixels of an image per pixel of its latent, along one side: every level but the last halves it.
pub(crate) fn factor(levels: usize) -> usize {
    1 << levels.saturating_sub(1)
}

/// Block types of encoder and decoder with self-attention where `attends` says so of a level, counted from full resolution
/// downwards.
pub(crate) fn block_types(
    levels: usize,
    attends: impl Fn(usize) -> bool,
) -> (Vec<DownBlockType>, Vec<UpBlockType>) {
    let down = |level| match attends(level) {
        true => DownBlockType::AttnDown,
        false => DownBlockType::Down,
    };
    let up = |level| match attends(level) {
        true => UpBlockType::AttnUp,
        false => UpBlockType::Up,
    };
    (
        (0..levels).map(down).collect(),
        (0..levels).rev().map(up).collect(),
    )
}

/// Channels of the published models' levels.
pub(crate) fn channels(multipliers: &[usize]) -> Vec<usize> {
    multipliers
        .iter()
        .map(|multiplier| 128 * multiplier)
        .collect()
}
