//! What a sample is to show, and how that reaches the U-Net.

use std::path::Path;

use burn::{
    module::Module,
    tensor::{Bool, Device, Int, Tensor},
};
use ldm_diffusion::conditioning::{
    ClassEmbedder, ClassEmbedderConfig, SpatialRescaler, SpatialRescalerConfig,
};
use ldm_nn::Activations;
use ldm_text::{BertConfig, BertModel, LdmBert, LdmBertConfig, Tokenizer};
use serde::{Deserialize, Serialize};

use super::files::{malformed, read_json};
use crate::{error::Error, weights::KeyMap};

/// Architecture of a [`Conditioner`], the `config.json` beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ConditionerConfig {
    /// The paper's text transformer, trained with the U-Net.
    LdmBert(LdmBertConfig),
    /// A BERT in Hugging Face's layout, frozen.
    Bert(BertConfig),
    /// A learned embedding per class.
    Class(ClassEmbedderConfig),
    /// A semantic mask brought to the latent's size.
    Semantic(SpatialRescalerConfig),
}

/// What turns a prompt, a class or a semantic mask into the U-Net's second input.
#[derive(Module, Debug)]
pub enum Conditioner {
    /// Text to a context of one token per piece.
    LdmBert(LdmBert),
    /// Text to a context of one token per piece.
    Bert(BertModel),
    /// A class to a context of one token.
    Class(ClassEmbedder),
    /// A mask to channels beside the latent's.
    Semantic(SpatialRescaler),
}

/// Folders of conditioners in a model directory; the first two are names of diffusers' pipelines.
pub(super) const FOLDERS: [&str; 4] =
    ["bert", "text_encoder", "class_embedder", "spatial_rescaler"];

impl ConditionerConfig {
    /// Reads the `config.json` of a conditioner in `folder`.
    ///
    /// # Errors
    /// If it is missing, malformed or of a model that isn't built here.
    pub(super) fn read(path: &Path, folder: &str) -> Result<Self, Error> {
        let value: serde_json::Value = read_json(path)?;
        let wrong = |error: serde_json::Error| malformed(path, error);
        Ok(match folder {
            "class_embedder" => {
                let config: ClassEmbedderConfig = serde_json::from_value(value).map_err(wrong)?;
                config.validate().map_err(|error| malformed(path, error))?;
                Self::Class(config)
            }
            "spatial_rescaler" => {
                let config: SpatialRescalerConfig = serde_json::from_value(value).map_err(wrong)?;
                config.validate().map_err(|error| malformed(path, error))?;
                Self::Semantic(config)
            }
            _ if value["model_type"] == "bert" => {
                let config: BertConfig = serde_json::from_value(value).map_err(wrong)?;
                config.validate().map_err(|error| malformed(path, error))?;
                Self::Bert(config)
            }
            _ => {
                let config: LdmBertConfig = serde_json::from_value(value).map_err(wrong)?;
                config.validate().map_err(|error| malformed(path, error))?;
                Self::LdmBert(config)
            }
        })
    }

    /// The folder that a model directory keeps it in.
    pub(super) fn folder(&self) -> &'static str {
        match self {
            Self::LdmBert(_) | Self::Bert(_) => "bert",
            Self::Class(_) => "class_embedder",
            Self::Semantic(_) => "spatial_rescaler",
        }
    }

    /// Width of the context it makes; `None` for one that isn't attended to.
    pub fn context_dim(&self) -> Option<usize> {
        match self {
            Self::LdmBert(config) => Some(config.d_model),
            Self::Bert(config) => Some(config.hidden_size),
            Self::Class(config) => Some(config.embed_dim),
            Self::Semantic(_) => None,
        }
    }

    /// Channels that it adds to the U-Net's input.
    pub fn concatenated_channels(&self) -> usize {
        match self {
            Self::Semantic(config) => config.output_channels(),
            _ => 0,
        }
    }

    /// Rows of the token embedding, for a text encoder.
    pub(crate) fn vocab_size(&self) -> Option<usize> {
        match self {
            Self::LdmBert(config) => Some(config.vocab_size),
            Self::Bert(config) => Some(config.vocab_size),
            _ => None,
        }
    }

    /// Whether it reads text.
    pub fn is_text(&self) -> bool {
        self.vocab_size().is_some()
    }

    /// Tokens that a text is padded or cut to.
    pub fn text_length(&self) -> Option<usize> {
        match self {
            Self::LdmBert(config) => Some(config.max_position_embeddings),
            // diffusers' pipeline pads for any text encoder to the length of the paper's.
            Self::Bert(config) => Some(config.max_position_embeddings.min(77)),
            _ => None,
        }
    }

    /// From names in a file of its weights to paths of fields.
    pub(super) fn key_map(&self) -> KeyMap<'static> {
        match self {
            Self::Bert(_) => ldm_text::weights::BERT_KEY_MAP,
            _ => &[],
        }
    }

    /// The inverse of [`key_map`](Self::key_map), for writing.
    pub(super) fn key_map_out(&self) -> KeyMap<'static> {
        match self {
            Self::Bert(_) => ldm_text::weights::BERT_KEY_MAP_OUT,
            _ => &[],
        }
    }

    /// Tensors in a file of its weights that it has no use for, as regular expressions.
    pub(super) fn skipped(&self) -> &'static [&'static str] {
        match self {
            Self::Bert(_) => ldm_text::weights::BERT_SKIP,
            _ => &[],
        }
    }

    /// The conditioner with its weights still undrawn.
    pub fn init(&self, device: &Device) -> Conditioner {
        match self {
            Self::LdmBert(config) => Conditioner::LdmBert(config.init(device)),
            Self::Bert(config) => Conditioner::Bert(config.init(device)),
            Self::Class(config) => Conditioner::Class(config.init(device)),
            Self::Semantic(config) => Conditioner::Semantic(config.init(device)),
        }
    }
}

impl Conditioner {
    /// The same conditioner, which keeps the activations of its layers for the backward pass or computes them again. Only the
    /// text transformer that is trained here has enough of them to matter.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        match self {
            Self::LdmBert(bert) => Self::LdmBert(bert.with_activations(activations)),
            other => other,
        }
    }

    /// The context of texts, `[N, length, D]`; `masked` hides the padding from a BERT, as it was trained, where the paper's text
    /// transformer and diffusers' pipeline attend to it.
    ///
    /// # Panics
    /// If this is no text encoder.
    pub fn encode_text(
        &self,
        tokenizer: &Tokenizer,
        texts: &[impl AsRef<str>],
        length: usize,
        masked: bool,
        device: &Device,
    ) -> Tensor<3> {
        let (ids, mask) = tokenizer.encode_batch_masked(texts, length, device);
        self.encode_ids(ids, masked.then_some(mask))
    }

    /// The context of tokens `[N, S]`, `[N, S, D]`, with the padding hidden from a BERT by `mask`.
    ///
    /// # Panics
    /// If this is no text encoder.
    pub fn encode_ids(&self, ids: Tensor<2, Int>, mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        match self {
            Self::LdmBert(bert) => bert.forward(ids),
            Self::Bert(bert) => bert.forward(ids, mask),
            _ => panic!("no text encoder"),
        }
    }
}
