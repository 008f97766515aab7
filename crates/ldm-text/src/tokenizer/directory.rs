//! A tokenizer's folder in a model directory.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use super::{Tokenizer, TokenizerError};

/// Longer limits of transformers stand for none.
const LONGEST: f64 = 1e9;

/// How a [`Tokenizer`] treats text, under the names of transformers' `tokenizer_config.json`. Other names of that file are
/// ignored when read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, tag = "tokenizer_class", rename = "BertTokenizer")]
pub struct TokenizerConfig {
    /// Whether text is lower-cased, as an uncased vocabulary needs.
    pub do_lower_case: bool,
    /// Whether accents are stripped; `None` strips them where text is lower-cased.
    pub strip_accents: Option<bool>,
    /// Whether each CJK character is a word.
    pub tokenize_chinese_chars: bool,
    /// Tokens that the model's texts are padded or cut to, where that is fixed.
    #[serde(deserialize_with = "length", skip_serializing_if = "Option::is_none")]
    pub model_max_length: Option<usize>,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            do_lower_case: true,
            strip_accents: None,
            tokenize_chinese_chars: true,
            model_max_length: None,
        }
    }
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct Complete {
    #[serde(default)]
    normalizer: Normalizer,
    model: Model,
}

#[derive(Deserialize)]
#[serde(default)]
struct Normalizer {
    lowercase: bool,
    strip_accents: Option<bool>,
    handle_chinese_chars: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            lowercase: true,
            strip_accents: None,
            handle_chinese_chars: true,
        }
    }
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    vocab: BTreeMap<String, usize>,
}

impl Tokenizer {
    /// The tokenizer in a folder such as a model directory's `tokenizer/`: its vocabulary from `vocab.txt` or else from
    /// `tokenizer.json`, its treatment of text from `tokenizer_config.json` or else from `tokenizer.json`, or else that
    /// of an uncased BERT.
    ///
    /// # Errors
    /// When there is no vocabulary, a file can't be read or is of another kind, and those of [`Tokenizer::from_vocab`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let dir = dir.as_ref();
        let complete_path = dir.join("tokenizer.json");
        let complete: Option<Complete> = read_json(&complete_path)?;
        let config = match read_json(&dir.join("tokenizer_config.json"))? {
            Some(config) => config,
            None => complete.as_ref().map_or_else(
                TokenizerConfig::default,
                |Complete { normalizer, .. }| TokenizerConfig {
                    do_lower_case: normalizer.lowercase,
                    strip_accents: normalizer.strip_accents,
                    tokenize_chinese_chars: normalizer.handle_chinese_chars,
                    model_max_length: None,
                },
            ),
        };
        let vocab_path = dir.join("vocab.txt");
        let (vocab, origin) = match complete {
            Some(complete) if !vocab_path.is_file() => {
                let vocab =
                    lines(complete.model).map_err(|problem| TokenizerError::Unsupported {
                        path: complete_path.clone(),
                        problem,
                    })?;
                (vocab, complete_path)
            }
            _ => (read(&vocab_path)?, vocab_path),
        };
        Self::new(Cow::Owned(vocab), config, &origin.display().to_string())
    }
}

/// The vocabulary as a `vocab.txt`, or what is wrong with it.
fn lines(model: Model) -> Result<String, String> {
    if model.kind != "WordPiece" {
        return Err(format!(
            "its model is a `{}`, but only WordPiece is known",
            model.kind
        ));
    }
    let mut tokens: Vec<(usize, String)> = (model.vocab.into_iter())
        .map(|(token, id)| (id, token))
        .collect();
    tokens.sort_unstable();
    let mut text = String::new();
    for (expected, (id, token)) in tokens.iter().enumerate() {
        if *id != expected {
            return Err(format!(
                "its vocabulary gives \"{token}\" the id {id}, where {expected} is next"
            ));
        }
        if token.contains('\n') {
            return Err(format!("its token {id} contains a line's end"));
        }
        text += token;
        text.push('\n');
    }
    Ok(text)
}

/// The file's content, `None` where there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TokenizerError> {
    if !path.is_file() {
        return Ok(None);
    }
    match serde_json::from_str(&read(path)?) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(TokenizerError::Json {
            path: path.into(),
            source,
        }),
    }
}

pub(super) fn read(path: &Path) -> Result<String, TokenizerError> {
    fs::read_to_string(path).map_err(|source| TokenizerError::Read {
        path: PathBuf::from(path),
        source,
    })
}

/// transformers writes "without a limit" as 1e30, in digits.
fn length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let length = Option::<f64>::deserialize(deserializer)?;
    Ok(length
        .filter(|length| (2.0..LONGEST).contains(length))
        .map(|length| length as usize))
}
