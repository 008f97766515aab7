//! What can be wrong with a file of weights.

use std::io;
use std::path::{Path, PathBuf};

use crate::atomic::WriteError;

/// How many names of a list an error shows.
const NAMES_SHOWN: usize = 5;

/// Weights that can't be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file can't be opened or read.
    #[error("cannot read weights from {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A directory without weights.
    #[error("there are no weights in {}: looked for {}", dir.display(), looked_for.join(", "))]
    NotFound {
        /// The directory.
        dir: PathBuf,
        /// The names of files that would have been taken, the preferred first.
        looked_for: Vec<String>,
    },
    /// The file is damaged or of another format.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is of a known format that isn't read.
    #[error("{} is {format}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The format, with its article.
        format: &'static str,
        /// How to get one that is read.
        help: &'static str,
    },
    /// The file holds the weights of another architecture.
    #[error("{} does not fit this model: {differences}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// A key map or a list of tensors to skip is no regular expression.
    #[error("invalid pattern for tensor names")]
    Pattern(#[from] regex::Error),
}

impl WeightsError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Write(error) => error.help(),
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path".into())
            }
            Self::Unreadable { .. } | Self::Pattern(_) => None,
            Self::NotFound { .. } => Some("download or export the model again".into()),
            Self::Invalid { .. } => Some(
                "download or export the file again; safetensors and PyTorch's .ckpt, .bin and .pt are read"
                    .into(),
            ),
            Self::Unsupported { help, .. } => Some((*help).into()),
            Self::Mismatch { .. } => {
                Some("use the configuration that belongs to these weights".into())
            }
        }
    }

    pub(super) fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    pub(super) fn mismatch(path: &Path, differences: Differences) -> Self {
        Self::Mismatch {
            path: path.to_path_buf(),
            differences,
        }
    }
}

/// How the tensors of a file differ from those of a model.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Differences {
    /// In the model but not in the file.
    pub missing: Vec<String>,
    /// In the file, by its names there, but not in the model.
    pub unused: Vec<String>,
    /// In both, with different shapes or types; each entry says what was found and what expected.
    pub unfit: Vec<String>,
}

impl Differences {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.unfit.is_empty()
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [
            ("", &self.unfit),
            ("missing in the file: ", &self.missing),
            ("unknown to the model: ", &self.unused),
        ];
        let mut separator = "";
        for (heading, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(
                f,
                "{separator}{heading}{}",
                names[..names.len().min(NAMES_SHOWN)].join(", ")
            )?;
            if names.len() > NAMES_SHOWN {
                write!(f, " and {} more", names.len() - NAMES_SHOWN)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}
