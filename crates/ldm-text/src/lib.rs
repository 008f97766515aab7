//! The text conditioning of latent diffusion: a prompt becomes token ids, and these become the context that the
//! U-Net's cross-attention reads (Rombach et al. 2022, section 3.3 and appendix E.2.1).
//!
//! ```text
//! "a red apple" -- Tokenizer --> [101, 1037, 2417, 6207, 102, 0, ...] -- LdmBert --> [N, 77, 1280]
//! ```
//!
//! [`Tokenizer`] is BERT's WordPiece; in the paper "BERT" names this tokenizer only. [`LdmBert`] is the transformer
//! that the paper trains together with the U-Net, under the parameter names of diffusers' `LDMBertModel`. [`BertModel`] is BERT
//! itself in Hugging Face's layout, pre-trained and kept frozen.
//!
//! The vocabulary compiled into this crate (`assets/vocab.txt`) is that of `bert-base-uncased`, Copyright Google
//! LLC, Apache License 2.0.

pub mod compvis;
pub mod weights;

mod activation;
mod bert;
mod error;
mod ldm_bert;
mod tokenizer;

pub use activation::Activation;
pub use bert::{BertConfig, BertModel, PositionEmbedding};
pub use error::ConfigError;
pub use ldm_bert::{LdmBert, LdmBertConfig};
pub use tokenizer::{Tokenizer, TokenizerConfig, TokenizerError};
