//! BERT (Devlin et al. 2018) in Hugging Face's layout.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig},
    tensor::{Bool, Device, FloatDType, Int, Tensor, activation},
};
use ldm_nn::{
    LayerNorm, ops,
    watch::{self, Site},
};
use serde::{Deserialize, Serialize};

use crate::{Activation, ConfigError};

/// The shape of a [`BertModel`], under the names of transformers' `config.json`. Names of that file which don't shape the
/// computation are ignored when read; so is dropout, as the encoder is used frozen.
///
/// The default is `bert-base-uncased`: 108,891,648 parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, tag = "model_type", rename = "bert")]
pub struct BertConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the model and of the context it gives to the U-Net.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads, which share `hidden_size` evenly.
    pub num_attention_heads: usize,
    /// Inner width of the feed-forward part.
    pub intermediate_size: usize,
    /// The feed-forward part's activation.
    pub hidden_act: Activation,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Rows of the segment embedding, of which the first is added to every token.
    pub type_vocab_size: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The id that pads a text.
    pub pad_token_id: u32,
    /// How positions are told apart.
    pub position_embedding_type: PositionEmbedding,
}

/// The ways to tell positions apart that [`BertConfig`] may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionEmbedding {
    /// A learned vector for each position.
    #[default]
    Absolute,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            position_embedding_type: PositionEmbedding::Absolute,
        }
    }
}

impl BertConfig {
    /// Checks that there is such a model.
    ///
    /// # Errors
    /// Names the first field that is 0, too many layers, or `num_attention_heads` where the heads can't share `hidden_size` evenly.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::refuse_too_many("num_hidden_layers", self.num_hidden_layers)?;
        ConfigError::refuse_zeros(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        match self.hidden_size % self.num_attention_heads {
            0 => Ok(()),
            _ => Err(ConfigError {
                field: "num_attention_heads",
                value: self.num_attention_heads,
                expected: "it must divide `hidden_size`",
            }),
        }
    }

    /// A model with random weights from N(0, `initializer_range`^2), and biases of 0.
    pub fn init(&self, device: &Device) -> BertModel {
        let embedding = |rows| {
            EmbeddingConfig::new(rows, self.hidden_size)
                .with_initializer(self.initializer())
                .init(device)
        };
        BertModel {
            embeddings: Embeddings {
                word_embeddings: embedding(self.vocab_size),
                position_embeddings: embedding(self.max_position_embeddings),
                token_type_embeddings: embedding(self.type_vocab_size),
                layer_norm: self.norm(device),
            },
            encoder: Encoder {
                layer: (0..self.num_hidden_layers)
                    .map(|_| self.init_layer(device))
                    .collect(),
            },
        }
    }

    fn init_layer(&self, device: &Device) -> Layer {
        let linear = |inputs, outputs| Linear {
            // Biases start at 0, which the initialiser of a whole layer can't say.
            bias: Some(Initializer::Zeros.init([outputs], device)),
            ..LinearConfig::new(inputs, outputs)
                .with_initializer(self.initializer())
                .init(device)
        };
        let output = |inputs| Output {
            dense: linear(inputs, self.hidden_size),
            layer_norm: self.norm(device),
        };
        let project = || linear(self.hidden_size, self.hidden_size);
        Layer {
            attention: Attention {
                self_attention: SelfAttention {
                    query: project(),
                    key: project(),
                    value: project(),
                    heads: self.num_attention_heads,
                },
                output: output(self.hidden_size),
            },
            intermediate: Intermediate {
                dense: linear(self.hidden_size, self.intermediate_size),
                activation: self.hidden_act,
            },
            output: output(self.intermediate_size),
        }
    }

    fn norm(&self, device: &Device) -> LayerNorm {
        LayerNorm::new(self.hidden_size, self.layer_norm_eps, device)
    }

    fn initializer(&self) -> Initializer {
        Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        }
    }
}

/// A post-norm transformer encoder over word pieces, to be used with the weights that it was pre-trained to.
///
/// Its parameters carry transformers' names but for those in [`weights::BERT_KEY_MAP`](crate::weights::BERT_KEY_MAP).
#[derive(Module, Debug)]
pub struct BertModel {
    embeddings: Embeddings,
    encoder: Encoder,
}

#[derive(Module, Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Encoder {
    layer: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Intermediate,
    output: Output,
}

#[derive(Module, Debug)]
struct Attention {
    self_attention: SelfAttention,
    output: Output,
}

#[derive(Module, Debug)]
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct Intermediate {
    dense: Linear,
    #[module(skip)]
    activation: Activation,
}

/// What ends both halves of a layer: a projection, the residual and a norm.
#[derive(Module, Debug)]
struct Output {
    dense: Linear,
    layer_norm: LayerNorm,
}

impl BertModel {
    /// The hidden states after the last layer, which are the context for the U-Net's cross-attention.
    ///
    /// Every token attends to those whose `mask` is true, or to all without a mask. Tokens outside of the mask have a
    /// state as well. In a row without any token in the mask, all attend to all equally.
    ///
    /// # Shapes
    /// - `ids`: `[N, L]`, each below `vocab_size`, with L at most `max_position_embeddings`
    /// - `mask`: `[N, L]`
    /// - output: `[N, L, hidden_size]`
    ///
    /// # Panics
    /// When L is greater than `max_position_embeddings`.
    pub fn forward(&self, ids: Tensor<2, Int>, mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let embedded = self.embeddings.forward(ids);
        let hidden_keys = mask.map(|mask| mask.bool_not().unsqueeze_dims(&[1, 2]));
        (self.encoder.layer.iter()).fold(embedded, |x, layer| layer.forward(x, &hidden_keys))
    }
}

impl Embeddings {
    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, length] = ids.dims();
        let positions = self.position_embeddings.weight.val();
        let [longest, _] = positions.dims();
        assert!(
            length <= longest,
            "{length} tokens, but the model has positions for {longest}"
        );
        let segment = self.token_type_embeddings.weight.val().narrow(0, 0, 1);
        let embedded = watch::embedding(&self.word_embeddings, ids)
            + segment.unsqueeze()
            + positions.narrow(0, 0, length).unsqueeze();
        self.layer_norm.forward(embedded)
    }
}

impl Layer {
    /// `hidden_keys`: `[N, 1, 1, L]`, true where no token may attend.
    fn forward(&self, x: Tensor<3>, hidden_keys: &Option<Tensor<4, Bool>>) -> Tensor<3> {
        let attended = self
            .attention
            .self_attention
            .forward(x.clone(), hidden_keys);
        let x = self.attention.output.forward(attended, x);
        let inner = self.intermediate.forward(x.clone());
        self.output.forward(inner, x)
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, hidden_keys: &Option<Tensor<4, Bool>>) -> Tensor<3> {
        let [batch, length, width] = x.dims();
        let split = |projected: Tensor<3>| {
            projected
                .reshape([batch, length, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        let q = split(ops::linear(&self.query, x.clone()));
        let k = split(ops::linear(&self.key, x.clone()));
        let v = split(ops::linear(&self.value, x));
        let attended = watch::joint(
            Site::parent(self.query.weight.id),
            [q, k, v],
            |[q, k, v]| match hidden_keys {
                None => ops::attention(q, k, v),
                Some(hidden) => masked_attention(q, k, v, hidden.clone()),
            },
        );
        attended.swap_dims(1, 2).flatten(2, 3)
    }
}

/// Scaled dot-product attention to the keys that aren't hidden (Vaswani et al. 2017, section 3.2.3).
///
/// A hidden key's score is the least finite number, not minus infinity: where all are hidden, the weights stay numbers.
fn masked_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    hidden_keys: Tensor<4, Bool>,
) -> Tensor<4> {
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let scores = q.mul_scalar(scale).matmul(k.swap_dims(2, 3));
    let least = FloatDType::from(scores.dtype()).finfo().min;
    let hidden = hidden_keys.expand(scores.dims());
    activation::softmax(scores.mask_fill(hidden, least), 3).matmul(v)
}

impl Intermediate {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.activation.forward(ops::linear(&self.dense, x))
    }
}

impl Output {
    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.layer_norm
            .forward(ops::linear(&self.dense, x) + residual)
    }
}
