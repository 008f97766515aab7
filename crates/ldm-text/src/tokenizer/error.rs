use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a vocabulary or a tokenizer's folder can't be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file can't be read as UTF-8 text.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file isn't the JSON that it should be.
    #[error("{} is not what it should be", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser objects to, with line and column.
        source: serde_json::Error,
    },
    /// The file describes a tokenizer that isn't BERT's.
    #[error("{}: {problem}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is different from a WordPiece tokenizer.
        problem: String,
    },
    /// The text isn't a BERT vocabulary.
    #[error(
        "the vocabulary {origin} has no {token} among its {tokens} lines: expected BERT's vocab.txt, one token a line"
    )]
    MissingToken {
        /// The file, or where else the text came from.
        origin: String,
        /// The special token that is missing.
        token: &'static str,
        /// The number of tokens found.
        tokens: usize,
    },
    /// A token occurs twice, so that its id is ambiguous.
    #[error(
        "the vocabulary {origin} lists \"{token}\" again in line {line}: each token must be there once"
    )]
    Duplicate {
        /// The file, or where else the text came from.
        origin: String,
        /// The repeated token.
        token: String,
        /// The line of the repetition, counted from 1.
        line: usize,
    },
}
