use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::UNet;
use crate::Error;

/// Configuration of a [`UNet`]: diffusers' `unet/config.json`, for both of its classes.
///
/// The class names the defaults' origin and how diffusers reads the file; the blocks say what is built. One key has two
/// meanings in diffusers, kept here: see [`attention_head_dim`](Self::attention_head_dim).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UNetConfig {
    /// diffusers' class.
    #[serde(rename = "_class_name")]
    pub class_name: UNetClass,
    /// Height and width of the latents in training; the network itself takes any size.
    #[serde(default)]
    pub sample_size: Option<SampleSize>,
    /// Channels of the input: the latent's, and those of a condition that is concatenated to it.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels of each level, from the finest down. Between two levels lies a factor of 2.
    pub block_out_channels: Vec<usize>,
    /// ResNet blocks per level on the way down; on the way up there is one more.
    #[serde(default = "two")]
    pub layers_per_block: usize,
    /// Kind of each level on the way down, from the finest.
    pub down_block_types: Vec<DownBlockType>,
    /// Kind of each level on the way up, from the coarsest.
    pub up_block_types: Vec<UpBlockType>,
    /// Kind of the middle; by default the one that diffusers' class has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mid_block_type: Option<MidBlockType>,
    /// Width of the context that the transformers attend to; required by them, `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_attention_dim: Option<usize>,
    /// In transformers the **number** of heads, in the attention of an `Attn*Block2D` or a `UNetMidBlock2D` the **width** of a
    /// head (`None`: one head of full width). For all levels, or one per level from the finest.
    ///
    /// A list in a `UNet2DModel` is an extension that diffusers can't read: CompVis' models with the same number of heads at
    /// every level need it.
    #[serde(default = "eight")]
    pub attention_head_dim: Option<PerLevel>,
    /// Transformer layers at each place where there is a transformer.
    #[serde(default, skip_serializing_if = "PerLevel::is_one")]
    pub transformer_layers_per_block: PerLevel,
    /// Linear layers in place of 1x1 convolutions round the transformers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_linear_projection: bool,
    /// Whether the `UNetMidBlock2D` of a `UNet2DModel` attends; that of a `UNet2DConditionModel` never does.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub add_attention: bool,
    /// Groups of all group norms.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Groups of the norm of the attention in a `UNetMidBlock2D`. By default [`norm_num_groups`](Self::norm_num_groups), but
    /// no norm at all under [`TimeScaleShift::ScaleShift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attn_norm_num_groups: Option<usize>,
    /// Epsilon of the group norms, except those before a transformer (1e-6).
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Padding of the stride-2 convolutions: 1 on every side, or 0, which pads right and bottom.
    #[serde(default = "one")]
    pub downsample_padding: usize,
    /// How the blocks with attention get to the next coarser level; the others say it by their kind.
    ///
    /// diffusers reads it for an `AttnDownBlock2D` of a `UNet2DModel` alone.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "ResampleType::is_conv"
    )]
    pub downsample_type: ResampleType,
    /// As [`downsample_type`](Self::downsample_type), to the next finer level.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "ResampleType::is_conv"
    )]
    pub upsample_type: ResampleType,
    /// How the timestep enters the ResNet blocks.
    #[serde(default)]
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Timestep embedding `[cos | sin]` instead of `[sin | cos]`.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shifts the exponents of the timestep embedding.
    #[serde(default)]
    pub freq_shift: f64,
    /// Number of classes whose learned embedding is added to that of the timestep.
    #[serde(default)]
    pub num_class_embeds: Option<usize>,
    /// What is added to the timestep's embedding in place of a learned embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_embed_type: Option<ClassEmbedType>,
    /// The input is in `[0, 1]`, and brought to `[-1, 1]` first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub center_input_sample: bool,
}

/// diffusers' class for a [`UNetConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UNetClass {
    /// With transformers that attend to a context.
    UNet2DConditionModel,
    /// Without.
    UNet2DModel,
}

/// A level on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// ResNet blocks.
    #[serde(alias = "UNetResDownBlock2D")]
    DownBlock2D,
    /// ResNet blocks, the last of which halves the size.
    ResnetDownsampleBlock2D,
    /// Each ResNet block followed by self-attention.
    #[serde(alias = "UNetResAttnDownBlock2D")]
    AttnDownBlock2D,
    /// Each ResNet block followed by a transformer.
    CrossAttnDownBlock2D,
}

/// A level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// ResNet blocks.
    #[serde(alias = "UNetResUpBlock2D")]
    UpBlock2D,
    /// ResNet blocks, the last of which doubles the size.
    ResnetUpsampleBlock2D,
    /// Each ResNet block followed by self-attention.
    #[serde(alias = "UNetResAttnUpBlock2D")]
    AttnUpBlock2D,
    /// Each ResNet block followed by a transformer.
    CrossAttnUpBlock2D,
}

/// The middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockType {
    /// Self-attention between two ResNet blocks.
    UNetMidBlock2D,
    /// A transformer between two ResNet blocks.
    UNetMidBlock2DCrossAttn,
}

/// How one level passes to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResampleType {
    /// By a convolution of stride 2, or by nearest neighbour and a convolution.
    #[default]
    Conv,
    /// By a ResNet block that resamples both of its branches (Dhariwal & Nichol 2021).
    Resnet,
}

/// What is added to the timestep's embedding for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbedType {
    /// The label, embedded like a timestep.
    Timestep,
    /// A vector that the caller gives: [`UNet::forward_with_class_embedding`].
    Identity,
}

/// How the timestep's embedding enters a ResNet block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added before the second norm.
    #[default]
    Default,
    /// Scales and shifts the second norm (Nichol & Dhariwal 2021).
    ScaleShift,
}

/// One number for all levels, or one per level from the finest down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    All(usize),
    /// One per level.
    Each(Vec<usize>),
}

/// Side of a square, or height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Both sides.
    Square(usize),
    /// Height, then width.
    HeightWidth([usize; 2]),
}

impl ResampleType {
    fn is_conv(&self) -> bool {
        *self == Self::Conv
    }
}

impl PerLevel {
    /// The number of level `level`, counted from the finest.
    pub fn at(&self, level: usize) -> usize {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values[level],
        }
    }

    /// The largest number of any level.
    pub(crate) fn largest(&self) -> usize {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values.iter().copied().max().unwrap_or(0),
        }
    }

    fn is_one(&self) -> bool {
        *self == Self::All(1)
    }
}

impl Default for PerLevel {
    fn default() -> Self {
        Self::All(1)
    }
}

impl UNetConfig {
    /// Reads diffusers' `unet/config.json`. Keys that don't change what is computed are ignored.
    ///
    /// # Errors
    /// If it isn't JSON, a required key is missing, or it asks for something that this crate doesn't build.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let json_error = |source| Error::Json {
            file: "unet/config.json",
            source,
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(json_error)?;
        super::validate::reject_foreign_options(&value)?;
        let config: Self = serde_json::from_value(value).map_err(json_error)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// Names the first field that doesn't.
    pub fn validate(&self) -> Result<(), Error> {
        super::validate::validate(self)
    }

    /// Initialises the network on `device`: its output is 0 until it is trained.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) fails.
    pub fn init(&self, device: &Device) -> UNet {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        UNet::new(self, device)
    }

    /// Width of the timestep's embedding inside the network.
    pub fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// The smallest height and width that the network can halve at every level.
    pub fn smallest_side(&self) -> usize {
        let halvings = &self.down_block_types[..self.down_block_types.len().saturating_sub(1)];
        halvings.iter().rev().fold(1, |side, kind| {
            let resampling = match kind {
                DownBlockType::DownBlock2D => ResampleType::Conv,
                DownBlockType::ResnetDownsampleBlock2D => ResampleType::Resnet,
                DownBlockType::AttnDownBlock2D | DownBlockType::CrossAttnDownBlock2D => {
                    self.downsample_type
                }
            };
            match resampling {
                // A convolution padded on all sides rounds up, everything else down.
                ResampleType::Conv if self.downsample_padding == 1 => 2 * side - 1,
                ResampleType::Conv | ResampleType::Resnet => 2 * side,
            }
        })
    }

    /// Whether the network needs a class label.
    pub fn has_classes(&self) -> bool {
        self.num_class_embeds.is_some() || self.class_embed_type.is_some()
    }

    /// Groups of the norm of the middle's plain attention; `None` where there is no norm.
    pub(crate) fn mid_attention_groups(&self) -> Option<usize> {
        // diffusers drops this norm together with the additive embedding.
        self.attn_norm_num_groups
            .or((self.resnet_time_scale_shift == TimeScaleShift::Default)
                .then_some(self.norm_num_groups))
    }

    /// Which entry of `attention_head_dim` has the head's width of an `AttnUpBlock2D` at `level`.
    ///
    /// diffusers' `UNet2DConditionModel` doesn't reverse the list there, though it does for the transformers.
    pub(super) fn up_width_entry(&self, level: usize) -> usize {
        match self.class_name {
            UNetClass::UNet2DConditionModel => self.block_out_channels.len() - 1 - level,
            UNetClass::UNet2DModel => level,
        }
    }

    /// Kind of the middle block.
    pub fn mid_block(&self) -> MidBlockType {
        self.mid_block_type.unwrap_or(match self.class_name {
            UNetClass::UNet2DConditionModel => MidBlockType::UNetMidBlock2DCrossAttn,
            UNetClass::UNet2DModel => MidBlockType::UNetMidBlock2D,
        })
    }
}

/// Reads null, which old files of diffusers have, as the default.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn thirty_two() -> usize {
    32
}

fn eight() -> Option<PerLevel> {
    Some(PerLevel::All(8))
}

fn norm_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}
