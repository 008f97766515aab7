//! Files of a model hub: by an id `owner/name`, optionally with `@revision`, into a cache that other programs share.
//!
//! The cache has the layout of Hugging Face's own (`models--owner--name/{blobs,refs,snapshots}`), so that what Python has
//! downloaded is found here, and the other way round. What a revision has in the cache is used as it is; nothing asks the hub
//! for news of it.

mod client;
mod download;
mod error;
mod model;
mod vgg;

use std::{
    env,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};

pub use error::HubError;

use crate::error::Error;

const OFFICIAL: &str = "https://huggingface.co";

/// A hub, and where its files are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Address, without a slash at its end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Folder for parts of files, which have no place in the shared cache.
    pub parts: PathBuf,
    /// Sent to the hub, for repositories that aren't public.
    pub token: Option<String>,
    /// Whether only the cache may be asked.
    pub offline: bool,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, by its path in the repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub received: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// Hears of the progress of downloads.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) + 'a;

impl Hub {
    /// The hub of the environment: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN` (or the token that `hf auth login` left),
    /// `HF_HUB_OFFLINE`, and `LDM_CACHE` for what is `ldm`'s own.
    pub fn from_env() -> Self {
        let path = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let user_cache = path("XDG_CACHE_HOME").unwrap_or_else(|| {
            env::home_dir()
                .unwrap_or_else(|| PathBuf::from("."))
                .join(".cache")
        });
        let home = path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let token = env::var("HF_TOKEN")
            .ok()
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let offline = env::var("HF_HUB_OFFLINE").is_ok_and(|value| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
        });
        let endpoint = env::var("HF_ENDPOINT").unwrap_or_default();
        Self {
            endpoint: match endpoint.trim_end_matches('/') {
                "" => OFFICIAL.to_owned(),
                endpoint => endpoint.to_owned(),
            },
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            parts: path("LDM_CACHE").unwrap_or_else(|| user_cache.join("ldm")),
            // The token lies beside the cache's usual place.
            token: token.or_else(|| Cache::new(home.join("hub")).token()),
            offline,
        }
    }
}

/// The directory of the model that `spec` names, with every file that it needs, downloaded where they aren't in the cache; `None` if
/// `spec` is no hub id.
///
/// # Errors
/// If there is no such repository, revision or file in it, or the hub can't be reached.
pub fn model_dir(spec: &str) -> Result<Option<PathBuf>, Error> {
    Ok(Hub::from_env().model_dir(spec, &mut |_| {})?)
}

/// The local path of a file named by `spec`: a path, or a hub id, of which it is `default_file`.
///
/// # Errors
/// If there is no such path and it is no hub id, or the hub doesn't give the file.
pub fn weights_file(spec: &str, default_file: &str) -> Result<PathBuf, Error> {
    local_or(spec, |repo| {
        Hub::from_env().file(repo, default_file, &mut |_| {})
    })
}

/// The local path of VGG16's convolutions: `spec` is a path, or a hub id, of whose `model.safetensors` the tensors `features.*` are
/// downloaded, a tenth of the file.
///
/// # Errors
/// If there is no such path and it is no hub id, or the hub doesn't give the file.
pub fn vgg16(spec: &str) -> Result<PathBuf, Error> {
    local_or(spec, |repo| Hub::from_env().vgg16(repo, &mut |_| {}))
}

fn local_or(
    spec: &str,
    download: impl FnOnce(Repo) -> Result<PathBuf, HubError>,
) -> Result<PathBuf, Error> {
    let path = Path::new(spec);
    if path.is_file() {
        return Ok(path.into());
    }
    match parse_id(spec) {
        Some(repo) => Ok(download(repo)?),
        None => Err(Error::Read {
            path: path.into(),
            source: std::io::ErrorKind::NotFound.into(),
        }),
    }
}

/// `owner/name` or `owner/name@revision`.
fn parse_id(spec: &str) -> Option<Repo> {
    let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
    let parts: Vec<&str> = id.split('/').collect();
    let is_id = parts.len() == 2
        && parts.iter().all(|part| is_name(part))
        && revision.split('/').all(is_name)
        && !spec.ends_with(".safetensors")
        && !spec.ends_with(".ckpt");
    is_id.then(|| Repo::with_revision(id.into(), RepoType::Model, revision.into()))
}

/// Whether it can be a part of a path, and stays where it is put.
fn is_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests;
