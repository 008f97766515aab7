use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{
    Activation, AutoencoderKl, ConfigError, DownBlockType, UpBlockType,
    architecture::{self, Architecture},
};

/// The value of `_class_name` in a `config.json`; another one belongs to another model and is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassName {
    /// diffusers' name of this model.
    #[default]
    #[serde(rename = "AutoencoderKL")]
    AutoencoderKl,
}

/// Architecture of an [`AutoencoderKl`], and the `config.json` beside its weights.
///
/// Field names and defaults are diffusers', so its files load here and ours load there; keys that it adds and we don't
/// know are ignored. The down-sampling factor is `2^(levels - 1)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Always `AutoencoderKL`.
    #[serde(rename = "_class_name")]
    pub class_name: ClassName,
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a reconstruction.
    pub out_channels: usize,
    /// Kind of each encoder level, from full resolution downwards.
    pub down_block_types: Vec<DownBlockType>,
    /// Kind of each decoder level, from the latent's resolution upwards.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each level, from full resolution downwards.
    pub block_out_channels: Vec<usize>,
    /// ResNet blocks per encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Activation function.
    pub act_fn: Activation,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Side of the images that the model was trained on, in pixels; informative.
    pub sample_size: usize,
    /// What latents are multiplied with before diffusion, one over their standard deviation on the training set.
    pub scaling_factor: f64,
    /// What is subtracted from latents before diffusion in other model families; must be absent or 0.
    pub shift_factor: Option<f64>,
    /// Whether diffusers should run this model in f32 in a half-precision pipeline.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks hold self-attention.
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            class_name: ClassName::AutoencoderKl,
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlockType::Down],
            up_block_types: vec![UpBlockType::Up],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// KL-f4 of the paper's table 8: 256x256 to 64x64x3, 55,312,063 parameters.
    pub fn kl_f4() -> Self {
        Self::preset(&[1, 2, 4], 3, 0)
    }

    /// KL-f8: 256x256 to 32x32x4, 83,653,863 parameters.
    pub fn kl_f8() -> Self {
        Self::preset(&[1, 2, 4, 4], 4, 0)
    }

    /// KL-f16: 256x256 to 16x16x16, attention at 16, 69,610,963 parameters.
    pub fn kl_f16() -> Self {
        Self::preset(&[1, 1, 2, 2, 4], 16, 1)
    }

    /// KL-f32: 256x256 to 8x8x64, attention at 16 and 8, 103,880,131 parameters.
    pub fn kl_f32() -> Self {
        Self::preset(&[1, 1, 2, 2, 4, 4], 64, 2)
    }

    /// A configuration with one level per entry of `block_out_channels`, attending at the `attention_levels` lowest
    /// resolutions besides the middle. The scaling factor is 1 until it is measured.
    pub fn new(
        block_out_channels: Vec<usize>,
        latent_channels: usize,
        attention_levels: usize,
    ) -> Self {
        let levels = block_out_channels.len();
        let (down_block_types, up_block_types) =
            architecture::block_types(levels, |level| level + attention_levels >= levels);
        Self {
            down_block_types,
            up_block_types,
            block_out_channels,
            latent_channels,
            scaling_factor: 1.0,
            ..Self::default()
        }
    }

    fn preset(multipliers: &[usize], latent_channels: usize, attention_levels: usize) -> Self {
        let channels = architecture::channels(multipliers);
        Self {
            layers_per_block: 2,
            sample_size: 256,
            ..Self::new(channels, latent_channels, attention_levels)
        }
    }

    /// Pixels of an image per pixel of its latent, along one side: the `f` of the paper.
    pub fn factor(&self) -> usize {
        architecture::factor(self.block_out_channels.len())
    }

    pub(crate) fn architecture(&self) -> Architecture<'_> {
        Architecture {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            down_block_types: &self.down_block_types,
            up_block_types: &self.up_block_types,
            block_out_channels: &self.block_out_channels,
            layers_per_block: self.layers_per_block,
            latent_channels: self.latent_channels,
            encoder_out_channels: 2 * self.latent_channels,
            norm_num_groups: self.norm_num_groups,
            mid_block_add_attention: self.mid_block_add_attention,
            scaling_factor: self.scaling_factor,
        }
    }

    /// Checks that the configuration describes a model.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.architecture().validate()?;
        match self.shift_factor {
            Some(shift) if shift != 0.0 => Err(ConfigError::ShiftFactor(shift)),
            _ => Ok(()),
        }
    }

    /// Initialises the model on `device`; weights are drawn when they are first used.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) finds an error.
    pub fn init(&self, device: &Device) -> AutoencoderKl {
        if let Err(error) = self.validate() {
            panic!("invalid autoencoder configuration: {error}");
        }
        AutoencoderKl::new(self, device)
    }
}
