//! Files by path or by hub id.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType, api::sync::ApiBuilder};

use crate::error::Error;

/// The local path of a file named by `spec`: a path, or a hub id `owner/name` with an optional `@revision`, of which it is `default_file`.
///
/// Files of a hub are kept in the hub's usual cache. `HF_ENDPOINT` names another hub, `HF_HUB_OFFLINE=1` forbids the network.
///
/// # Errors
/// If there is no such path and it is no hub id, or the hub doesn't give the file.
pub fn weights_file(spec: &str, default_file: &str) -> Result<PathBuf, Error> {
    let path = Path::new(spec);
    if path.is_file() {
        return Ok(path.into());
    }
    let Some(repo) = parse_id(spec) else {
        return Err(Error::Read {
            path: path.into(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    };
    if let Some(cached) = Cache::from_env().repo(repo.clone()).get(default_file) {
        return Ok(cached);
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Hub {
        repository: spec.into(),
        file: default_file.into(),
        source,
    };
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| value == "1") {
        return Err(failed(
            "HF_HUB_OFFLINE is set and the file is not in the cache".into(),
        ));
    }
    let api = ApiBuilder::from_env().with_progress(false).build();
    api.and_then(|api| api.repo(repo).get(default_file))
        .map_err(|error| failed(Box::new(error)))
}

/// `owner/name` or `owner/name@revision`.
fn parse_id(spec: &str) -> Option<Repo> {
    let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
    let parts: Vec<&str> = id.split('/').collect();
    let valid = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let is_id = parts.len() == 2 && parts.iter().all(valid) && !spec.ends_with(".safetensors");
    is_id.then(|| Repo::with_revision(id.into(), RepoType::Model, revision.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_are_told_apart() {
        let repo = parse_id("timm/vgg16.tv_in1k@refs").unwrap();
        assert_eq!(
            (repo.url(), repo.revision()),
            ("timm/vgg16.tv_in1k".into(), "refs")
        );
        for path in [
            "vgg.safetensors",
            "weights/vgg.safetensors",
            "./a",
            "../a/b",
            "a//b",
            "/a/b",
        ] {
            assert!(parse_id(path).is_none(), "{path}");
        }
        let error = weights_file("no/such/file.safetensors", "model.safetensors").unwrap_err();
        assert!(
            error.to_string().contains("no/such/file.safetensors"),
            "{error}"
        );
    }
}
