//! The text encoder in CompVis' latent-diffusion code: its configuration, and the names of its tensors there, which are those
//! of an early x-transformers.

use std::collections::BTreeMap;

use ldm_nn::weights::KeyPair;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use thiserror::Error;

use crate::{Activation, ConfigError, LdmBertConfig};

/// Attention heads, their width, and the feed-forward part's width in multiples of the model's: x-transformers' defaults,
/// which `BERTEmbedder` never changes.
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const FEED_FORWARD_FACTOR: usize = 4;

/// Arguments of `BERTEmbedder`, a yaml's `cond_stage_config.params`. Keys that don't exist there are errors; those of device
/// and dropout are of no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Arguments")]
pub struct BertEmbedderParams {
    /// Width of the model.
    pub n_embed: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Tokens that a text is padded or cut to.
    pub max_seq_len: usize,
    /// Whether it reads texts; else it is fed with token ids.
    #[serde(skip_serializing_if = "Clone::clone")]
    pub use_tokenizer: bool,
}

/// The arguments as a yaml has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some arguments are known but not looked at")]
struct Arguments {
    n_embed: usize,
    n_layer: usize,
    #[serde(default = "vocab_size")]
    vocab_size: usize,
    #[serde(default = "max_seq_len")]
    max_seq_len: usize,
    device: Option<IgnoredAny>,
    #[serde(default = "yes")]
    use_tokenizer: bool,
    embedding_dropout: Option<IgnoredAny>,
}

/// A configuration or checkpoint without a counterpart.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CompVisError {
    /// An encoder that reads ids, whose tokenizer is unknown.
    #[error("`use_tokenizer` is false, but which tokenizer made the token ids is not said")]
    NoTokenizer,
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
    /// A tensor that every such text encoder has.
    #[error("there is no tensor `{key}`: this is no text encoder of the original code")]
    MissingTensor {
        /// The tensor's name.
        key: &'static str,
    },
    /// A tensor of a shape that can't be.
    #[error("`{key}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor's name.
        key: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// The counterpart is no valid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl From<Arguments> for BertEmbedderParams {
    fn from(arguments: Arguments) -> Self {
        Self {
            n_embed: arguments.n_embed,
            n_layer: arguments.n_layer,
            vocab_size: arguments.vocab_size,
            max_seq_len: arguments.max_seq_len,
            use_tokenizer: arguments.use_tokenizer,
        }
    }
}

impl BertEmbedderParams {
    /// The same architecture under diffusers' names, with the head that the original code never leaves out.
    ///
    /// # Errors
    /// If it reads something else than texts, or is no architecture.
    pub fn to_config(&self) -> Result<LdmBertConfig, CompVisError> {
        if !self.use_tokenizer {
            return Err(CompVisError::NoTokenizer);
        }
        let config = LdmBertConfig {
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_seq_len,
            encoder_layers: self.n_layer,
            encoder_ffn_dim: self.n_embed.saturating_mul(FEED_FORWARD_FACTOR),
            encoder_attention_heads: HEADS,
            head_dim: HEAD_DIM,
            d_model: self.n_embed,
            to_logits: true,
            ..LdmBertConfig::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// The arguments that make a text encoder of this configuration.
    ///
    /// # Errors
    /// If the original code has no such architecture.
    pub fn from_config(config: &LdmBertConfig) -> Result<Self, CompVisError> {
        config.validate()?;
        let fixed = [
            (
                "encoder_attention_heads",
                config.encoder_attention_heads == HEADS,
                config.encoder_attention_heads.to_string(),
                "it always has 8 heads",
            ),
            (
                "head_dim",
                config.head_dim == HEAD_DIM,
                config.head_dim.to_string(),
                "its heads are 64 wide",
            ),
            (
                "encoder_ffn_dim",
                config.encoder_ffn_dim == config.d_model.saturating_mul(FEED_FORWARD_FACTOR),
                config.encoder_ffn_dim.to_string(),
                "it is always 4 times `d_model`",
            ),
            (
                "activation_function",
                config.activation_function == Activation::Gelu,
                format!("{:?}", config.activation_function),
                "it has the exact GELU",
            ),
        ];
        if let Some((field, _, value, expressible)) =
            fixed.into_iter().find(|(_, expressible, ..)| !expressible)
        {
            return Err(CompVisError::Inexpressible {
                field,
                value,
                expressible,
            });
        }
        Ok(Self {
            n_embed: config.d_model,
            n_layer: config.encoder_layers,
            vocab_size: config.vocab_size,
            max_seq_len: config.max_position_embeddings,
            use_tokenizer: true,
        })
    }

    /// Reads the arguments off a checkpoint's tensors, named without the prefix `cond_stage_model.`; others may be among them.
    ///
    /// # Errors
    /// If a tensor that every such text encoder has is missing or of a strange shape.
    pub fn guess(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, CompVisError> {
        let matrix = |key: &'static str| match shapes.get(key).map(Vec::as_slice) {
            None => Err(CompVisError::MissingTensor { key }),
            Some(&[rows, width]) => Ok((rows, width)),
            Some(shape) => Err(CompVisError::Shape {
                key,
                found: shape.to_vec(),
                expected: "that of an embedding, [rows, width]",
            }),
        };
        let (vocab_size, n_embed) = matrix("transformer.token_emb.weight")?;
        let (max_seq_len, _) = matrix("transformer.pos_emb.emb.weight")?;
        // Attention and feed-forward parts count as layers of their own.
        let n_layer = (0..)
            .take_while(|layer| shapes.contains_key(&format!("{}.0.weight", part(2 * layer))))
            .count();
        Ok(Self {
            n_embed,
            n_layer,
            vocab_size,
            max_seq_len,
            use_tokenizer: true,
        })
    }
}

/// Every tensor of an [`LdmBert`](crate::LdmBert), under diffusers' key and that of a checkpoint of the original code, without
/// the prefix `cond_stage_model.`. Those of the head are among them where the configuration has it.
pub fn compvis_keys(config: &LdmBertConfig) -> Vec<KeyPair> {
    let mut pairs = vec![
        KeyPair::same("model.embed_tokens.weight", "transformer.token_emb.weight"),
        KeyPair::same(
            "model.embed_positions.weight",
            "transformer.pos_emb.emb.weight",
        ),
    ];
    let mut layer = |diffusers: &str, compvis: &str, tensors: &[&str]| {
        pairs.extend(tensors.iter().map(|tensor| {
            KeyPair::same(
                format!("{diffusers}.{tensor}"),
                format!("{compvis}.{tensor}"),
            )
        }));
    };
    let (weight, both) = (&["weight"][..], &["weight", "bias"][..]);
    for index in 0..config.encoder_layers {
        let ours = format!("model.layers.{index}");
        let (attention, feed_forward) = (part(2 * index), part(2 * index + 1));
        layer(
            &format!("{ours}.self_attn_layer_norm"),
            &format!("{attention}.0"),
            both,
        );
        for (projection, theirs, tensors) in [
            ("q_proj", "to_q", weight),
            ("k_proj", "to_k", weight),
            ("v_proj", "to_v", weight),
            ("out_proj", "to_out", both),
        ] {
            layer(
                &format!("{ours}.self_attn.{projection}"),
                &format!("{attention}.1.{theirs}"),
                tensors,
            );
        }
        layer(
            &format!("{ours}.final_layer_norm"),
            &format!("{feed_forward}.0"),
            both,
        );
        layer(
            &format!("{ours}.fc1"),
            &format!("{feed_forward}.1.net.0.0"),
            both,
        );
        layer(
            &format!("{ours}.fc2"),
            &format!("{feed_forward}.1.net.2"),
            both,
        );
    }
    layer("model.layer_norm", "transformer.norm", both);
    if config.to_logits {
        layer("to_logits", "transformer.to_logits", both);
    }
    pairs
}

/// Prefix of a norm (`.0`) and what comes after it (`.1`): attention at even indices, the feed-forward part at odd ones.
fn part(index: usize) -> String {
    format!("transformer.attn_layers.layers.{index}")
}

fn vocab_size() -> usize {
    30_522
}

fn max_seq_len() -> usize {
    77
}

fn yes() -> bool {
    true
}
