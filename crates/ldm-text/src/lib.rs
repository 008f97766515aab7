//! The text conditioning of latent diffusion: a prompt becomes token ids, and these become the context that the
//! U-Net's cross-attention reads (Rombach et al. 2022, section 3.3 and appendix E.2.1).
//!
//! ```text
//! "a red apple" -- Tokenizer --> [101, 1037, 2417, 6207, 102, 0, ...] -- LdmBert --> [N, 77, 1280]
//! ```
//!
//! [`Tokenizer`] is BERT's WordPiece; in the paper "BERT" names this tokenizer only. [`LdmBert`] is the transformer
//! that the paper trains together with the U-Net, under the parameter names of diffusers' `LDMBertModel`.
//!
//! The vocabulary compiled into this crate (`assets/vocab.txt`) is that of `bert-base-uncased`, Copyright Google
//! LLC, Apache License 2.0.

mod ldm_bert;
mod tokenizer;

pub use ldm_bert::{Activation, LdmBert, LdmBertConfig};
pub use tokenizer::{Tokenizer, VocabError};
