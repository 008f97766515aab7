//! First stages of the original code: its configuration, and the names of its checkpoint's tensors.
//!
//! A yaml's `first_stage_config.params`, or an autoencoder's own `model.params`, is a [`FirstStageParams`]; where there is only a
//! checkpoint, [`FirstStageParams::guess`] reads it off the tensors' shapes. Either becomes a [`FirstStageConfig`], whose
//! [`compvis_keys`](FirstStageConfig::compvis_keys) name every tensor, without the prefix `first_stage_model.` of a whole model.

mod guess;
mod keys;

use std::collections::BTreeMap;

use ldm_nn::weights::KeyPair;
use serde::{Deserialize, Serialize, Serializer, de::IgnoredAny, ser::SerializeMap};
use thiserror::Error;

use crate::{
    AutoencoderKlConfig, ConfigError, DownBlockType, VqModelConfig,
    architecture::{self, Architecture, MAX_LEVELS, block_types},
};

/// Groups of every group norm of the original code.
const GROUPS: usize = 32;

/// Architecture of a first stage under diffusers' names.
#[derive(Clone, Debug, PartialEq)]
pub enum FirstStageConfig {
    /// `AutoencoderKL`.
    Kl(AutoencoderKlConfig),
    /// `VQModel` and `VQModelInterface`.
    Vq(VqModelConfig),
}

/// A configuration or checkpoint without a counterpart.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CompVisError {
    /// A setting of the original code that diffusers' architecture, which is ours, doesn't have.
    #[error("`{key}` is {value}; {supported}")]
    Unsupported {
        /// The key in the yaml.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is supported instead, in words.
        supported: &'static str,
    },
    /// A setting of ours that the original code doesn't have.
    #[error("the original code has no counterpart for `{field}` = {value}; {expressible}")]
    Inexpressible {
        /// The field of our configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it has a counterpart for, in words.
        expressible: &'static str,
    },
    /// A tensor that every first stage has.
    #[error("there is no tensor `{key}`: this is no first stage of the original code")]
    MissingTensor {
        /// The tensor's name.
        key: String,
    },
    /// A tensor of a shape that says nothing.
    #[error("`{key}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor's name.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// The counterpart is no valid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Arguments of the original code's `AutoencoderKL`, or with [`n_embed`](Self::n_embed) of its `VQModel`.
///
/// What only training looks at is accepted and dropped; other unknown keys are errors that name them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Arguments")]
pub struct FirstStageParams {
    /// Channels of a latent; of a VQ model the length of a code.
    pub embed_dim: usize,
    /// Number of codes; absent in a KL autoencoder.
    pub n_embed: Option<usize>,
    /// Arguments of encoder and decoder.
    pub ddconfig: DdConfig,
}

/// The arguments as a yaml has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "arguments of training are known but not looked at"
)]
struct Arguments {
    embed_dim: usize,
    n_embed: Option<usize>,
    ddconfig: DdConfig,
    lossconfig: Option<IgnoredAny>,
    ckpt_path: Option<IgnoredAny>,
    ignore_keys: Option<IgnoredAny>,
    image_key: Option<IgnoredAny>,
    colorize_nlabels: Option<IgnoredAny>,
    monitor: Option<IgnoredAny>,
    batch_resize_range: Option<IgnoredAny>,
    scheduler_config: Option<IgnoredAny>,
    lr_g_factor: Option<IgnoredAny>,
    /// Renumbers codes, which are not stored here.
    remap: Option<IgnoredAny>,
    sane_index_shape: Option<IgnoredAny>,
    use_ema: Option<IgnoredAny>,
}

impl From<Arguments> for FirstStageParams {
    fn from(arguments: Arguments) -> Self {
        Self {
            embed_dim: arguments.embed_dim,
            n_embed: arguments.n_embed,
            ddconfig: arguments.ddconfig,
        }
    }
}

/// With a `lossconfig` that does nothing, which the original code insists on.
impl Serialize for FirstStageParams {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("embed_dim", &self.embed_dim)?;
        if let Some(n_embed) = self.n_embed {
            map.serialize_entry("n_embed", &n_embed)?;
        }
        map.serialize_entry("ddconfig", &self.ddconfig)?;
        let identity = BTreeMap::from([("target", "torch.nn.Identity")]);
        map.serialize_entry("lossconfig", &identity)?;
        map.end()
    }
}

/// Arguments of the original code's `Encoder` and `Decoder`. Defaults are its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdConfig {
    /// Whether the encoder gives mean and log-variance: true in KL autoencoders, false in VQ models.
    #[serde(default = "yes")]
    pub double_z: bool,
    /// Channels between encoder or decoder and their 1x1 convolution.
    pub z_channels: usize,
    /// Nominal side of an image; decides which levels attend.
    pub resolution: usize,
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a reconstruction.
    pub out_ch: usize,
    /// Channels that `ch_mult` multiplies.
    pub ch: usize,
    /// Channels of each level, from full resolution downwards, in units of `ch`.
    #[serde(default = "default_ch_mult")]
    pub ch_mult: Vec<usize>,
    /// ResNet blocks per encoder level; a decoder level has one more.
    pub num_res_blocks: usize,
    /// Levels with attention, by the side that an image of `resolution` has there.
    pub attn_resolutions: Vec<usize>,
    /// Dropout in training.
    #[serde(default)]
    pub dropout: f64,
    /// Kind of all attention, the middle's included.
    #[serde(default, skip_serializing_if = "AttnType::is_vanilla")]
    pub attn_type: AttnType,
    /// Linear attention instead; must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_linear_attn: bool,
    /// Whether resampling is followed by a convolution; must be true.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub resamp_with_conv: bool,
    /// Whether the decoder leaves out its last norm and convolution; must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub give_pre_end: bool,
    /// Whether the decoder ends with a hyperbolic tangent; must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tanh_out: bool,
}

/// Kind of attention in the original code; its linear one has no counterpart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttnType {
    /// One head over all pixels.
    #[default]
    #[serde(alias = "vanilla-xformers")]
    Vanilla,
    /// No attention anywhere.
    None,
}

impl AttnType {
    fn is_vanilla(&self) -> bool {
        *self == Self::Vanilla
    }
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn default_ch_mult() -> Vec<usize> {
    vec![1, 2, 4, 8]
}

impl FirstStageParams {
    /// The same architecture under diffusers' names. Its scaling factor is 1: a diffusion model's configuration has that.
    ///
    /// # Errors
    /// If diffusers' architecture doesn't cover it, or it is none.
    pub fn to_config(&self) -> Result<FirstStageConfig, CompVisError> {
        let dd = &self.ddconfig;
        dd.check()?;
        let levels = dd.ch_mult.len();
        // Sides as the original code counts them: halved, rounding down, then doubled from the lowest.
        let lowest = dd.side(levels - 1);
        let (down_block_types, _) = block_types(levels, |level| dd.attends_at(dd.side(level)));
        let (_, up_block_types) = block_types(levels, |level| {
            dd.attends_at(lowest << (levels - 1 - level))
        });
        let block_out_channels = dd.ch_mult.iter().map(|m| dd.ch.saturating_mul(*m));
        let block_out_channels = block_out_channels.collect();
        let mid_block_add_attention = dd.attn_type == AttnType::Vanilla;
        let config = match self.n_embed {
            Some(num_vq_embeddings) => FirstStageConfig::Vq(VqModelConfig {
                in_channels: dd.in_channels,
                out_channels: dd.out_ch,
                down_block_types,
                up_block_types,
                block_out_channels,
                layers_per_block: dd.num_res_blocks,
                latent_channels: dd.z_channels,
                sample_size: dd.resolution,
                num_vq_embeddings,
                norm_num_groups: GROUPS,
                vq_embed_dim: (self.embed_dim != dd.z_channels).then_some(self.embed_dim),
                scaling_factor: 1.0,
                mid_block_add_attention,
                ..VqModelConfig::default()
            }),
            None if self.embed_dim != dd.z_channels => {
                return Err(CompVisError::Unsupported {
                    key: "embed_dim",
                    value: self.embed_dim.to_string(),
                    supported: "a KL autoencoder's must equal its `z_channels`",
                });
            }
            None => FirstStageConfig::Kl(AutoencoderKlConfig {
                in_channels: dd.in_channels,
                out_channels: dd.out_ch,
                down_block_types,
                up_block_types,
                block_out_channels,
                layers_per_block: dd.num_res_blocks,
                latent_channels: dd.z_channels,
                sample_size: dd.resolution,
                norm_num_groups: GROUPS,
                scaling_factor: 1.0,
                mid_block_add_attention,
                ..AutoencoderKlConfig::default()
            }),
        };
        config.validate()?;
        match dd.double_z == self.n_embed.is_none() {
            true => Ok(config),
            false => Err(CompVisError::Unsupported {
                key: "double_z",
                value: dd.double_z.to_string(),
                supported: "it must be true without `n_embed` (KL) and false with it (VQ)",
            }),
        }
    }

    /// The arguments that make a KL autoencoder of this configuration.
    ///
    /// # Errors
    /// If the original code has no such architecture.
    pub fn from_kl(config: &AutoencoderKlConfig) -> Result<Self, CompVisError> {
        config.validate()?;
        let convolutions = [
            ("use_quant_conv", config.use_quant_conv),
            ("use_post_quant_conv", config.use_post_quant_conv),
        ];
        if let Some((field, _)) = convolutions.into_iter().find(|(_, used)| !used) {
            return Err(inexpressible(
                field,
                false,
                "it always has this convolution",
            ));
        }
        Ok(Self {
            embed_dim: config.latent_channels,
            n_embed: None,
            ddconfig: DdConfig::new(&config.architecture(), true, config.sample_size)?,
        })
    }

    /// The arguments that make a VQ model of this configuration.
    ///
    /// # Errors
    /// If the original code has no such architecture.
    pub fn from_vq(config: &VqModelConfig) -> Result<Self, CompVisError> {
        config.validate()?;
        Ok(Self {
            embed_dim: config.embed_dim(),
            n_embed: Some(config.num_vq_embeddings),
            ddconfig: DdConfig::new(&config.architecture(), false, config.sample_size)?,
        })
    }
}

impl FirstStageConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Kl(config) => config.validate(),
            Self::Vq(config) => config.validate(),
        }
    }

    /// Every tensor of the model, and what it is called in a checkpoint of the original code.
    pub fn compvis_keys(&self) -> Vec<KeyPair> {
        match self {
            Self::Kl(config) => config.compvis_keys(),
            Self::Vq(config) => config.compvis_keys(),
        }
    }
}

impl DdConfig {
    fn new(
        config: &Architecture,
        double_z: bool,
        sample_size: usize,
    ) -> Result<Self, CompVisError> {
        let channels = config.block_out_channels;
        let (levels, ch) = (channels.len(), channels[0]);
        if config.norm_num_groups != GROUPS {
            return Err(inexpressible(
                "norm_num_groups",
                config.norm_num_groups,
                "its norms have 32 groups",
            ));
        }
        if let Some(width) = channels.iter().find(|width| *width % ch != 0) {
            return Err(inexpressible(
                "block_out_channels",
                width,
                "it counts channels in multiples of the first level's",
            ));
        }
        let attends = |level: usize| config.down_block_types[level] == DownBlockType::AttnDown;
        let (_, mirrored) = block_types(levels, attends);
        if config.up_block_types != mirrored {
            return Err(inexpressible(
                "up_block_types",
                format!("{:?}", config.up_block_types),
                "its decoder attends where its encoder does",
            ));
        }
        let attending: Vec<usize> = (0..levels).filter(|level| attends(*level)).collect();
        if !config.mid_block_add_attention && !attending.is_empty() {
            return Err(inexpressible(
                "mid_block_add_attention",
                false,
                "without attention in the middle there is none in the levels",
            ));
        }
        // Nominal: it decides which levels attend, and so must tell them apart.
        let resolution = sample_size
            .max(1)
            .next_multiple_of(architecture::factor(levels));
        Ok(Self {
            double_z,
            z_channels: config.latent_channels,
            resolution,
            in_channels: config.in_channels,
            out_ch: config.out_channels,
            ch,
            ch_mult: channels.iter().map(|width| width / ch).collect(),
            num_res_blocks: config.layers_per_block,
            attn_resolutions: attending.iter().map(|level| resolution >> level).collect(),
            dropout: 0.0,
            attn_type: match config.mid_block_add_attention {
                true => AttnType::Vanilla,
                false => AttnType::None,
            },
            use_linear_attn: false,
            resamp_with_conv: true,
            give_pre_end: false,
            tanh_out: false,
        })
    }

    /// Side of a nominal image at a level, counted from full resolution downwards.
    fn side(&self, level: usize) -> usize {
        self.resolution >> level
    }

    fn attends_at(&self, side: usize) -> bool {
        self.attn_type == AttnType::Vanilla && self.attn_resolutions.contains(&side)
    }

    fn check(&self) -> Result<(), CompVisError> {
        let unsupported = |key, value: bool| CompVisError::Unsupported {
            key,
            value: value.to_string(),
            supported: if value {
                "it must be false"
            } else {
                "it must be true"
            },
        };
        let switches = [
            ("use_linear_attn", self.use_linear_attn, false),
            ("resamp_with_conv", self.resamp_with_conv, true),
            ("give_pre_end", self.give_pre_end, false),
            ("tanh_out", self.tanh_out, false),
        ];
        if let Some((key, value, _)) = switches.into_iter().find(|(_, value, must)| value != must) {
            return Err(unsupported(key, value));
        }
        if self.ch_mult.len() > MAX_LEVELS {
            return Err(ConfigError::TooManyLevels(self.ch_mult.len()).into());
        }
        match self.ch_mult.first() {
            Some(1) => Ok(()),
            _ => Err(CompVisError::Unsupported {
                key: "ch_mult",
                value: format!("{:?}", self.ch_mult),
                supported: "its first entry must be 1",
            }),
        }
    }
}

fn inexpressible(
    field: &'static str,
    value: impl ToString,
    expressible: &'static str,
) -> CompVisError {
    CompVisError::Inexpressible {
        field,
        value: value.to_string(),
        expressible,
    }
}
