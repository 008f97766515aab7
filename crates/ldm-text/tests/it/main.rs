//! Tokenizers and text encoders against reference implementations.

mod bert;
mod common;
mod compvis;
mod ldm_bert;
mod tokenizer;
