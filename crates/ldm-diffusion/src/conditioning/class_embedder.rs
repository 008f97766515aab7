use burn::{
    nn::{Embedding, EmbeddingConfig},
    prelude::*,
};
use ldm_nn::{watch, weights::KeyPair};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Configuration of a [`ClassEmbedder`], in the names of CompVis' `cond_stage_config.params`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassEmbedderConfig {
    /// Number of classes, among them the unconditional one where the model was trained with dropped labels.
    #[serde(default = "thousand")]
    pub n_classes: usize,
    /// Width of the token: the U-Net's `cross_attention_dim`.
    pub embed_dim: usize,
    /// What CompVis' data sets call the label; of no effect here.
    #[serde(default = "class")]
    pub key: String,
}

/// A learned token per class: the whole context of a class-conditional model.
#[derive(Module, Debug)]
pub struct ClassEmbedder {
    /// `[n_classes, embed_dim]`.
    pub embedding: Embedding,
}

impl ClassEmbedderConfig {
    /// Checks that there is a class, and a width.
    ///
    /// # Errors
    /// Names the first field that is 0.
    pub fn validate(&self) -> Result<(), Error> {
        for (field, value) in [("n_classes", self.n_classes), ("embed_dim", self.embed_dim)] {
            if value == 0 {
                let problem = "is 0: it must be at least 1";
                return Err(Error::invalid("class embedder", field, problem));
            }
        }
        Ok(())
    }

    /// Initialises the embedding on `device`.
    pub fn init(&self, device: &Device) -> ClassEmbedder {
        ClassEmbedder {
            embedding: EmbeddingConfig::new(self.n_classes, self.embed_dim).init(device),
        }
    }

    /// The class that stands for no class: the last, `n_classes - 1`.
    pub fn unconditional_class(&self) -> usize {
        self.n_classes.saturating_sub(1)
    }

    /// Its tensors in a CompVis checkpoint, below `cond_stage_model.`.
    pub fn compvis_keys(&self) -> Vec<KeyPair> {
        vec![KeyPair::same("embedding.weight", "embedding.weight")]
    }
}

impl ClassEmbedder {
    /// Labels `[N]` to a context of one token, `[N, 1, embed_dim]`.
    pub fn forward(&self, labels: Tensor<1, Int>) -> Tensor<3> {
        watch::embedding(&self.embedding, labels.unsqueeze_dim(1))
    }
}

fn thousand() -> usize {
    1000
}

fn class() -> String {
    "class".to_owned()
}
