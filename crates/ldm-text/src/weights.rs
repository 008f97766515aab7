//! Names of the weights on disk, where they differ from the paths of the fields.
//!
//! [`LdmBert`](crate::LdmBert)'s fields are diffusers' names. Those of [`BertModel`](crate::BertModel) follow Hugging Face's
//! as far as they can.

/// transformers' `BertModel`, alone or in a model with a head, to [`BertModel`](crate::BertModel): pairs of a regular
/// expression on the key and its replacement. Checkpoints converted from TensorFlow call a norm's weights gamma and beta.
pub const BERT_KEY_MAP: &[(&str, &str)] = &[
    (r"^bert\.", ""),
    (r"\.attention\.self\.", ".attention.self_attention."),
    (r"\.LayerNorm\.gamma$", ".layer_norm.weight"),
    (r"\.LayerNorm\.beta$", ".layer_norm.bias"),
    (r"\.LayerNorm\.", ".layer_norm."),
];

/// [`BertModel`](crate::BertModel) to transformers' `BertModel`.
pub const BERT_KEY_MAP_OUT: &[(&str, &str)] = &[
    (r"\.attention\.self_attention\.", ".attention.self."),
    (r"\.layer_norm\.", ".LayerNorm."),
];

/// Tensors of such files that a text encoder has no use for: the pooled first token, heads of pre-training, and a table
/// that counts positions.
pub const BERT_SKIP: &[&str] = &[
    r"^(bert\.)?pooler\.",
    r"^(bert\.)?embeddings\.position_ids$",
    r"^cls\.",
];
