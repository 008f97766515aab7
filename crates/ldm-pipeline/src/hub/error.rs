use std::{io, path::PathBuf};

use thiserror::Error;

use crate::atomic::WriteError;

/// Why a hub's file can't be had.
#[derive(Debug, Error)]
pub enum HubError {
    /// The hub doesn't answer, or not in HTTP.
    #[error("can't reach {url}")]
    Connection {
        /// What was asked for.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// There is no such repository, or none that may be seen.
    #[error("the hub has no repository {repository}")]
    NoRepository {
        /// The repository, `owner/name`.
        repository: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision `{revision}`")]
    NoRevision {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no {file} at revision `{revision}`")]
    NoFile {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// The file, or what it might have been called.
        file: String,
    },
    /// The hub wants to know who asks, or doesn't let them.
    #[error("the hub refuses {file} of {repository} (status {status})")]
    Refused {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// Any other answer than the file.
    #[error("{url} answers with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
    },
    /// An answer without a header that a hub sends, or with a strange one.
    #[error("{url} answers without a valid `{header}`: this is no model hub")]
    Header {
        /// What was asked for.
        url: String,
        /// The header.
        header: &'static str,
    },
    /// A connection that broke again and again.
    #[error("{file} of {repository} broke off after {received} of {expected} bytes")]
    Truncated {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes of the file.
        expected: u64,
    },
    /// A file that arrived complete, but with other contents than the hub announced.
    #[error("{file} of {repository} arrived damaged: its SHA-256 is {found}, not {expected}")]
    Damaged {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// Of what arrived.
        found: String,
        /// As announced.
        expected: String,
    },
    /// A file of the hub that isn't what it should be.
    #[error("{file} of {repository} is not what it should be: {problem}")]
    Malformed {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that isn't in the cache.
    #[error("{file} of {repository} is not in the cache, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// The cache can't be read or written.
    #[error("can't use {} in the cache", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache of parts can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl HubError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        const DOWNLOAD: &str = "or download the files yourself and give their path";
        Some(match self {
            Self::Connection { .. } => {
                format!("check the connection and HF_ENDPOINT, {DOWNLOAD}")
            }
            Self::NoRepository { .. } => {
                "check the name: there is no local path of that name either; if the repository is private, set HF_TOKEN".into()
            }
            Self::NoRevision { .. } => {
                "a revision is a branch, a tag or a commit: owner/name@revision".into()
            }
            Self::NoFile { .. } => {
                format!("a model has diffusers' layout, with a model_index.json; name another revision, {DOWNLOAD}")
            }
            Self::Refused { with_token, .. } => {
                let token = match with_token {
                    true => "its token is in HF_TOKEN, and",
                    false => "set HF_TOKEN to a token of your account, and see that",
                };
                format!("the repository is private or its licence wants to be accepted: {token} the account has access")
            }
            Self::Status { .. } => format!("try again later, {DOWNLOAD}"),
            Self::Header { .. } => "check HF_ENDPOINT".into(),
            Self::Truncated { .. } => {
                "start again: the download goes on where it broke off".into()
            }
            Self::Damaged { .. } => "start again: the damaged file has been removed".into(),
            Self::Offline { .. } => {
                format!("unset HF_HUB_OFFLINE to download it, {DOWNLOAD}")
            }
            Self::Cache { .. } => "HF_HUB_CACHE names another folder for the cache".into(),
            Self::Write(error) => return error.help(),
            Self::Malformed { .. } => return None,
        })
    }

    pub(super) fn cache(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Cache { path, source }
    }
}
