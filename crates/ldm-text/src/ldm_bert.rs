//! The text transformer of the paper's text-to-image model.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig},
    tensor::{Device, Int, Tensor},
};
use ldm_nn::{
    Activations, LayerNorm, ops,
    watch::{self, Site},
};
use serde::{Deserialize, Serialize};

use crate::{Activation, ConfigError};

/// The shape of an [`LdmBert`], under the names of diffusers' `bert/config.json`. Names of that file which don't
/// shape the computation are ignored when read; dropout is one of them, as the paper trains without.
///
/// The default is the paper's text encoder: 581,994,042 parameters, 542,895,360 of them in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, tag = "model_type", rename = "ldmbert")]
pub struct LdmBertConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Number of transformer layers.
    pub encoder_layers: usize,
    /// Inner width of the feed-forward part.
    pub encoder_ffn_dim: usize,
    /// Attention heads.
    pub encoder_attention_heads: usize,
    /// Width of one attention head; all heads together need not be `d_model` wide.
    pub head_dim: usize,
    /// Width of the model and of the context it gives to the U-Net.
    pub d_model: usize,
    /// The id that pads a text. Padding is attended like any other token.
    pub pad_token_id: u32,
    /// Standard deviation of the initial embeddings of tokens and positions.
    pub init_std: f64,
    /// The feed-forward part's activation.
    pub activation_function: Activation,
    /// Whether the weights hold a head that maps back to the vocabulary. Conditioning never computes it, but
    /// published checkpoints have it, and without it diffusers initialises its own at random and warns.
    pub to_logits: bool,
}

impl Default for LdmBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            max_position_embeddings: 77,
            encoder_layers: 32,
            encoder_ffn_dim: 5120,
            encoder_attention_heads: 8,
            head_dim: 64,
            d_model: 1280,
            pad_token_id: 0,
            init_std: 0.02,
            activation_function: Activation::Gelu,
            to_logits: true,
        }
    }
}

impl LdmBertConfig {
    /// Checks that there is such a model.
    ///
    /// # Errors
    /// Names the first field that is 0, or too many layers.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::refuse_too_many("encoder_layers", self.encoder_layers)?;
        ConfigError::refuse_zeros(&[
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("encoder_ffn_dim", self.encoder_ffn_dim),
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("head_dim", self.head_dim),
            ("d_model", self.d_model),
        ])
    }

    /// A model with random weights: embeddings from N(0, `init_std`^2), linear layers from burn's
    /// default, which is PyTorch's.
    pub fn init(&self, device: &Device) -> LdmBert {
        LdmBert {
            model: self.init_encoder(device),
            to_logits: self
                .to_logits
                .then(|| LinearConfig::new(self.d_model, self.vocab_size).init(device)),
        }
    }

    fn init_encoder(&self, device: &Device) -> Encoder {
        let embedding = |rows| {
            EmbeddingConfig::new(rows, self.d_model)
                .with_initializer(Initializer::Normal {
                    mean: 0.0,
                    std: self.init_std,
                })
                .init(device)
        };
        Encoder {
            embed_tokens: embedding(self.vocab_size),
            embed_positions: embedding(self.max_position_embeddings),
            layers: (0..self.encoder_layers)
                .map(|_| self.init_layer(device))
                .collect(),
            layer_norm: LayerNorm::new(self.d_model, 1e-5, device),
            activations: Activations::default(),
        }
    }

    fn init_layer(&self, device: &Device) -> EncoderLayer {
        let inner = self.encoder_attention_heads * self.head_dim;
        let project = || {
            LinearConfig::new(self.d_model, inner)
                .with_bias(false)
                .init(device)
        };
        let norm = || LayerNorm::new(self.d_model, 1e-5, device);
        EncoderLayer {
            self_attn: SelfAttention {
                q_proj: project(),
                k_proj: project(),
                v_proj: project(),
                out_proj: LinearConfig::new(inner, self.d_model).init(device),
                heads: self.encoder_attention_heads,
            },
            self_attn_layer_norm: norm(),
            fc1: LinearConfig::new(self.d_model, self.encoder_ffn_dim).init(device),
            activation: self.activation_function,
            fc2: LinearConfig::new(self.encoder_ffn_dim, self.d_model).init(device),
            final_layer_norm: norm(),
        }
    }
}

/// A pre-norm transformer encoder without any mask: every token, padding included, attends to all.
///
/// Its parameters carry the names of diffusers' `LDMBertModel`, so that `bert/model.safetensors` needs no key map.
#[derive(Module, Debug)]
pub struct LdmBert {
    model: Encoder,
    to_logits: Option<Linear>,
}

#[derive(Module, Debug)]
struct Encoder {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layers: Vec<EncoderLayer>,
    layer_norm: LayerNorm,
    #[module(skip)]
    activations: Activations,
}

#[derive(Module, Debug)]
struct EncoderLayer {
    self_attn: SelfAttention,
    self_attn_layer_norm: LayerNorm,
    fc1: Linear,
    #[module(skip)]
    activation: Activation,
    fc2: Linear,
    final_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl LdmBert {
    /// The same model, whose layers keep their activations for the backward pass or compute them again. Neither the record
    /// nor the configuration knows of it.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.model.activations = activations;
        self
    }

    /// The context for the U-Net's cross-attention.
    ///
    /// # Shapes
    /// - `ids`: `[N, L]`, each below `vocab_size`, with L at most `max_position_embeddings`
    /// - output: `[N, L, d_model]`
    ///
    /// # Panics
    /// When L is greater than `max_position_embeddings`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.model.forward(ids)
    }
}

impl Encoder {
    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, length] = ids.dims();
        let positions = self.embed_positions.weight.val();
        let [longest, _] = positions.dims();
        assert!(
            length <= longest,
            "{length} tokens, but the model has positions for {longest}"
        );

        let positions = positions.narrow(0, 0, length).unsqueeze();
        let positions = watch::parameter(self.embed_positions.weight.id, positions);
        let embedded = watch::embedding(&self.embed_tokens, ids) + positions;
        let hidden = (self.layers.iter()).fold(embedded, |hidden, layer| {
            (self.activations).run(layer, hidden, |layer, hidden| layer.forward(hidden))
        });
        self.layer_norm.forward(hidden)
    }
}

impl EncoderLayer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let normed = self.self_attn_layer_norm.forward(x.clone());
        let x = x + self.self_attn.forward(normed);
        let normed = self.final_layer_norm.forward(x.clone());
        let hidden = self.activation.forward(ops::linear(&self.fc1, normed));
        x + ops::linear(&self.fc2, hidden)
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let split = |projected: Tensor<3>| {
            let [.., inner] = projected.dims();
            projected
                .reshape([batch, length, self.heads, inner / self.heads])
                .swap_dims(1, 2)
        };
        let projected = [
            split(ops::linear(&self.q_proj, x.clone())),
            split(ops::linear(&self.k_proj, x.clone())),
            split(ops::linear(&self.v_proj, x)),
        ];
        let attended = watch::joint(
            Site::parent(self.q_proj.weight.id),
            projected,
            |[q, k, v]| ops::attention(q, k, v),
        );
        ops::linear(&self.out_proj, attended.swap_dims(1, 2).flatten(2, 3))
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;

    use super::*;

    fn tiny() -> LdmBertConfig {
        LdmBertConfig {
            vocab_size: 11,
            max_position_embeddings: 5,
            encoder_layers: 2,
            encoder_ffn_dim: 12,
            encoder_attention_heads: 3,
            head_dim: 2,
            d_model: 8,
            to_logits: false,
            ..Default::default()
        }
    }

    #[test]
    fn paper_sizes() {
        // Parameters are drawn when first used: nothing is allocated here.
        let device = Device::flex();
        let paper = LdmBertConfig::default();
        assert_eq!(paper.init(&device).num_params(), 581_994_042);
        let headless = LdmBertConfig {
            to_logits: false,
            ..paper
        };
        assert_eq!(headless.init(&device).num_params(), 542_895_360);
    }

    #[test]
    fn shapes_and_order_of_tokens() {
        let device = Device::flex();
        let model = tiny().init(&device);
        let forward = |ids: [[i64; 4]; 2]| model.forward(Tensor::from_data(ids, &device));
        let out = forward([[1, 2, 3, 4], [2, 1, 3, 4]]);
        assert_eq!(out.dims(), [2, 4, 8]);
        // Without positions, the two rows would hold the same vectors in another order.
        let swapped = out.clone().slice([0..1, 1..2]) - out.slice([1..2, 0..1]);
        assert!(swapped.abs().max().into_scalar::<f32>() > 1e-4);
    }

    #[test]
    fn all_parameters_in_use_get_gradients() {
        let device = Device::flex().autodiff();
        let config = LdmBertConfig {
            to_logits: true,
            ..tiny()
        };
        let model = config.init(&device);
        let ids = Tensor::<2, Int>::from_data([[1_i64, 2, 3, 0, 0]], &device);
        // Squared, since the mean of a layer norm's output has no gradient.
        let gradients = model
            .forward(ids)
            .powi_scalar(2)
            .slice([0..1, 0..5, 0..3])
            .sum()
            .backward();

        struct Missing<'a>(&'a burn::tensor::Gradients, usize);
        impl burn::module::ModuleVisitor for Missing<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.1 += usize::from(param.val().grad(self.0).is_none());
            }
        }
        let mut missing = Missing(&gradients, 0);
        model.visit(&mut missing);
        assert_eq!(
            missing.1, 2,
            "only to_logits' weight and bias are outside of the computation"
        );
    }

    #[test]
    #[should_panic(expected = "6 tokens, but the model has positions for 5")]
    fn too_long() {
        let device = Device::flex();
        tiny().init(&device).forward(Tensor::zeros([1, 6], &device));
    }

    #[test]
    fn config_reads_and_writes_diffusers_names() {
        let published = r#"{
            "model_type": "ldmbert", "d_model": 16, "dropout": 0.1, "use_cache": true, "activation_function": "gelu"
        }"#;
        let config: LdmBertConfig = serde_json::from_str(published).unwrap();
        assert_eq!(
            config,
            LdmBertConfig {
                d_model: 16,
                ..Default::default()
            }
        );

        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(written["model_type"], "ldmbert");
        assert_eq!(written["encoder_ffn_dim"], 5120);
        assert_eq!(
            serde_json::from_value::<LdmBertConfig>(written).unwrap(),
            config
        );

        let error = serde_json::from_str::<LdmBertConfig>(r#"{"activation_function": "maxout"}"#)
            .unwrap_err();
        assert!(
            error.to_string().contains("unknown variant `maxout`"),
            "{error}"
        );
    }
}
