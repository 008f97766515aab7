use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{
    Activation, ConfigError, DownBlockType, UpBlockType, VqModel,
    architecture::{self, Architecture},
};

/// The value of `_class_name` in the `config.json` of a [`VqModel`]; another one belongs to another model and is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VqClassName {
    /// diffusers' name of this model.
    #[default]
    #[serde(rename = "VQModel")]
    VqModel,
}

/// Norm of the decoder; other models also have one that depends on the latent's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormType {
    /// Group norm.
    #[default]
    Group,
}

/// Architecture of a [`VqModel`], and the `config.json` beside its weights.
///
/// Field names and defaults are diffusers', so its files load here and ours load there; keys that it adds and we don't
/// know are ignored. The down-sampling factor is `2^(levels - 1)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VqModelConfig {
    /// Always `VQModel`.
    #[serde(rename = "_class_name")]
    pub class_name: VqClassName,
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
    /// Channels between encoder or decoder and their 1x1 convolution.
    pub latent_channels: usize,
    /// Side of the images that the model was trained on, in pixels; informative.
    pub sample_size: usize,
    /// Number of codes.
    pub num_vq_embeddings: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Length of a code and channels of a latent; `latent_channels` if absent.
    pub vq_embed_dim: Option<usize>,
    /// What latents are multiplied with before diffusion. diffusers assumes 0.18215 where a file lacks it.
    pub scaling_factor: f64,
    /// Norm of the decoder.
    pub norm_type: NormType,
    /// Whether the middle blocks hold self-attention.
    pub mid_block_add_attention: bool,
    /// Whether diffusers' decoder takes code numbers; must be false.
    pub lookup_from_codebook: bool,
    /// Whether diffusers should run this model in f32 in a half-precision pipeline.
    pub force_upcast: bool,
}

impl Default for VqModelConfig {
    fn default() -> Self {
        Self {
            class_name: VqClassName::VqModel,
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DownBlockType::Down],
            up_block_types: vec![UpBlockType::Up],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 3,
            sample_size: 32,
            num_vq_embeddings: 256,
            norm_num_groups: 32,
            vq_embed_dim: None,
            scaling_factor: 0.18215,
            norm_type: NormType::Group,
            mid_block_add_attention: true,
            lookup_from_codebook: false,
            force_upcast: false,
        }
    }
}

impl VqModelConfig {
    /// VQ-f4 of the paper's table 8: 256x256 to 64x64x3, 8,192 codes, 55,322,782 parameters. The first stage of the
    /// published CelebA-HQ, FFHQ, LSUN-Bedrooms, ImageNet (cin256-v2) and landscapes models.
    pub fn vq_f4() -> Self {
        Self::preset(&[1, 2, 4], 3, 8192, 0)
    }

    /// VQ-f8: 256x256 to 32x32x4, 16,384 codes, attention at 32, 67,717,295 parameters.
    pub fn vq_f8() -> Self {
        Self::preset(&[1, 2, 2, 4], 4, 16_384, 1)
    }

    /// A configuration with one level per entry of `block_out_channels`, attending at the `attention_levels` lowest
    /// resolutions besides the middle. The scaling factor is 1.
    pub fn new(
        block_out_channels: Vec<usize>,
        latent_channels: usize,
        num_vq_embeddings: usize,
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
            num_vq_embeddings,
            scaling_factor: 1.0,
            ..Self::default()
        }
    }

    fn preset(
        multipliers: &[usize],
        latent_channels: usize,
        num_vq_embeddings: usize,
        attention_levels: usize,
    ) -> Self {
        let channels = architecture::channels(multipliers);
        Self {
            layers_per_block: 2,
            sample_size: 256,
            ..Self::new(
                channels,
                latent_channels,
                num_vq_embeddings,
                attention_levels,
            )
        }
    }

    /// Channels of a latent, which are the length of a code.
    pub fn embed_dim(&self) -> usize {
        self.vq_embed_dim.unwrap_or(self.latent_channels)
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
            encoder_out_channels: self.latent_channels,
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
        architecture::check_counts(&[
            ("num_vq_embeddings", self.num_vq_embeddings),
            ("vq_embed_dim", self.embed_dim()),
        ])?;
        match self.lookup_from_codebook {
            true => Err(ConfigError::LookupFromCodebook),
            false => Ok(()),
        }
    }

    /// Initialises the model on `device`; weights are drawn when they are first used.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) finds an error.
    pub fn init(&self, device: &Device) -> VqModel {
        if let Err(error) = self.validate() {
            panic!("invalid autoencoder configuration: {error}");
        }
        VqModel::new(self, device)
    }
}
