//! Which files of a repository a model needs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Hub, HubError, OnProgress, download::Snapshot, is_name, parse_id};

const INDEX: &str = "model_index.json";
const CONFIG: &str = "config.json";
/// Folders with a config.json and weights, and the name of the weights.
const NETWORKS: [(&str, &str); 5] = [
    ("unet", "diffusion_pytorch_model"),
    ("vqvae", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
    ("bert", "model"),
    ("text_encoder", "model"),
];
/// Those that no pipeline of diffusers has, and so no index lists.
const OWN_NETWORKS: [(&str, &str); 2] = [
    ("class_embedder", "diffusion_pytorch_model"),
    ("spatial_rescaler", "diffusion_pytorch_model"),
];
const TOKENIZER: [&str; 4] = [
    "tokenizer_config.json",
    "vocab.txt",
    "tokenizer.json",
    "special_tokens_map.json",
];
/// Ends of weights' names, in the order of preference.
const FORMATS: [(&str, &[&str]); 2] = [
    (
        "safetensors",
        &[
            ".safetensors",
            ".fp16.safetensors",
            ".safetensors.index.json",
            ".safetensors.index.fp16.json",
            ".fp16.safetensors.index.json",
        ],
    ),
    (
        "bin",
        &[
            ".bin",
            ".fp16.bin",
            ".bin.index.json",
            ".bin.index.fp16.json",
            ".fp16.bin.index.json",
        ],
    ),
];

impl Hub {
    /// The directory of the model that `spec` names, with every file that it needs, downloaded where they aren't in the cache;
    /// `None` if `spec` is no hub id.
    ///
    /// # Errors
    /// If there is no such repository or revision, a file is missing there, or the hub can't be reached.
    pub fn model_dir(
        &self,
        spec: &str,
        on_progress: &mut OnProgress,
    ) -> Result<Option<PathBuf>, HubError> {
        let Some(repo) = parse_id(spec) else {
            return Ok(None);
        };
        let mut download = Download {
            snapshot: Snapshot::new(self, repo),
            on_progress,
        };
        download.model()?;
        Ok(download.snapshot.dir())
    }
}

struct Download<'a, 'b> {
    snapshot: Snapshot<'a>,
    on_progress: &'b mut OnProgress<'b>,
}

impl Download<'_, '_> {
    fn model(&mut self) -> Result<(), HubError> {
        let path = self.file(INDEX)?;
        let index: Value = self.read_json(&path, INDEX)?;
        let listed = |component: &str| index[component][1].is_string();
        for (folder, stem) in NETWORKS {
            if !listed(folder) {
                continue;
            }
            // Early repositories of pixel models have everything at the top.
            let at_top = folder == "unet" && self.optional("unet/config.json")?.is_none();
            let prefix = if at_top {
                String::new()
            } else {
                format!("{folder}/")
            };
            self.file(&format!("{prefix}{CONFIG}"))?;
            self.weights(&prefix, stem)?;
        }
        if !listed("bert") && !listed("text_encoder") {
            for (folder, stem) in OWN_NETWORKS {
                if self.optional(&format!("{folder}/{CONFIG}"))?.is_some() {
                    self.weights(&format!("{folder}/"), stem)?;
                }
            }
        }
        if listed("tokenizer") {
            for name in TOKENIZER {
                self.optional(&format!("tokenizer/{name}"))?;
            }
        }
        if listed("scheduler") && self.optional("scheduler/scheduler_config.json")?.is_none() {
            self.file("scheduler_config.json")?;
        }
        self.optional("ldm.json")?;
        Ok(())
    }

    /// Gets the weights called `stem` in the best of the formats that they are there in.
    fn weights(&mut self, prefix: &str, stem: &str) -> Result<(), HubError> {
        for (format, ends) in FORMATS {
            let stem = match (stem, format) {
                ("model", "bin") => "pytorch_model",
                (stem, _) => stem,
            };
            for end in ends {
                let name = format!("{prefix}{stem}{end}");
                let Some(path) = self.optional(&name)? else {
                    continue;
                };
                if name.ends_with(".json") {
                    for shard in self.shards(&path, &name)? {
                        self.file(&format!("{prefix}{shard}"))?;
                    }
                }
                return Ok(());
            }
        }
        let repo = self.snapshot.repo();
        Err(HubError::NoFile {
            repository: repo.url(),
            revision: repo.revision().to_owned(),
            file: format!("{prefix}{stem}.safetensors or .bin"),
        })
    }

    /// The files that an index of weights names.
    fn shards(&self, path: &Path, name: &str) -> Result<BTreeSet<String>, HubError> {
        let index: Value = self.read_json(path, name)?;
        let malformed = |problem: &str| self.malformed(name, problem);
        let map = index["weight_map"]
            .as_object()
            .ok_or_else(|| malformed("it has no `weight_map`"))?;
        (map.values())
            .map(|shard| match shard.as_str() {
                Some(shard) if is_name(shard) => Ok(shard.to_owned()),
                _ => Err(malformed(&format!("{shard} is no file beside it"))),
            })
            .collect()
    }

    fn file(&mut self, name: &str) -> Result<PathBuf, HubError> {
        self.snapshot.file(name, self.on_progress)
    }

    fn optional(&mut self, name: &str) -> Result<Option<PathBuf>, HubError> {
        self.snapshot.optional(name, self.on_progress)
    }

    fn read_json(&self, path: &Path, name: &str) -> Result<Value, HubError> {
        let bytes = fs::read(path).map_err(HubError::cache(path))?;
        serde_json::from_slice(&bytes).map_err(|error| self.malformed(name, &error.to_string()))
    }

    fn malformed(&self, name: &str, problem: &str) -> HubError {
        HubError::Malformed {
            repository: self.snapshot.repository(),
            file: name.to_owned(),
            problem: problem.to_owned(),
        }
    }
}
