//! Finding files of weights and telling what they are.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::source::Source;
use super::tensors::Tensors;
use super::{WeightsError, safetensors, torch};

/// What the names of indices of sharded weights end in.
const INDEX_SUFFIX: &str = ".index.json";
/// An index is text; this is ten times that of the largest language models.
const MAX_INDEX: u64 = 64 << 20;
/// More files than any model is split into.
const MAX_SHARDS: usize = 1024;
/// How much of a file decides what it is.
const BEGINNING: usize = 512;

/// Opens weights: a safetensors file, a PyTorch checkpoint (`.ckpt`, `.bin`, `.pt`) or the index of several of either
/// (`.index.json`). The content decides, not the name. Only names, shapes and types are read; of a checkpoint it is the
/// `state_dict` if it has one. Its pickle runs no code.
///
/// # Errors
/// [`WeightsError`] naming the file, if it can't be read, is damaged or of another format.
pub fn open(path: &Path) -> Result<Tensors, WeightsError> {
    if path.to_string_lossy().ends_with(INDEX_SUFFIX) {
        return open_index(path);
    }
    let source = Source::open(path)?;
    let mut beginning = [0; BEGINNING];
    let known = source.len().min(BEGINNING as u64) as usize;
    source.read_at(0, &mut beginning[..known])?;
    let beginning = &beginning[..known];
    if beginning.starts_with(b"PK\x03\x04") {
        return torch::open_zip(&source);
    }
    if beginning.starts_with(torch::LEGACY_MAGIC) {
        return torch::open_legacy(&source);
    }
    let unsupported = |format, help| {
        Err(WeightsError::Unsupported {
            path: path.to_path_buf(),
            format,
            help,
        })
    };
    if beginning.get(257..262) == Some(b"ustar".as_slice()) {
        return unsupported(
            "a tar archive; PyTorch's checkpoints from before version 0.2 are not read",
            "load it in PyTorch and save it again with torch 1.6 or newer",
        );
    }
    if beginning.starts_with(b"version https://git-lfs") {
        return unsupported(
            "only a pointer to a file of Git LFS",
            "fetch the content with `git lfs pull`, or download the file itself",
        );
    }
    if matches!(beginning, [0x80, 2..=5, ..]) {
        return unsupported(
            "a pickle, but no PyTorch checkpoint",
            "load it in Python and save its tensors with torch.save or safetensors",
        );
    }
    safetensors::open(&source)
}

/// The weights in a component's folder of a diffusers or transformers model, called `stem`:
/// `diffusion_pytorch_model`, or `model`, whose PyTorch files transformers calls `pytorch_model`. Safetensors come before
/// PyTorch's, full precision before `fp16`, one file before several.
///
/// # Errors
/// [`WeightsError::NotFound`] with all the names.
pub fn find(dir: &Path, stem: &str) -> Result<PathBuf, WeightsError> {
    let pickled = match stem {
        "model" => "pytorch_model",
        other => other,
    };
    let mut looked_for = Vec::new();
    for (stem, end) in [(stem, "safetensors"), (pickled, "bin")] {
        for name in [
            format!("{stem}.{end}"),
            format!("{stem}.fp16.{end}"),
            format!("{stem}.{end}{INDEX_SUFFIX}"),
            format!("{stem}.{end}.index.fp16.json"),
            format!("{stem}.fp16.{end}{INDEX_SUFFIX}"),
        ] {
            let path = dir.join(&name);
            if path.is_file() {
                return Ok(path);
            }
            looked_for.push(name);
        }
    }
    Err(WeightsError::NotFound {
        dir: dir.to_path_buf(),
        looked_for,
    })
}

/// The tensors of all files that an index names.
fn open_index(path: &Path) -> Result<Tensors, WeightsError> {
    let source = Source::open(path)?;
    if source.len() > MAX_INDEX {
        return Err(source.invalid("too large for an index of weights"));
    }
    let mut text = vec![0; source.len() as usize];
    source.read_at(0, &mut text)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| source.invalid(format!("no index of weights: {error}")))?;
    let mut set = Tensors::new(path);
    for file in &index.weight_map.files {
        if Path::new(file)
            .file_name()
            .is_none_or(|name| name != file.as_str())
            || file.ends_with(INDEX_SUFFIX)
        {
            return Err(source.invalid(format!("it names `{file}`, which is no file beside it")));
        }
        let shard = open(&path.with_file_name(file))?;
        if let Some(name) = shard.names().find(|name| set.contains(name)) {
            return Err(source.invalid(format!("`{name}` is in several of its files")));
        }
        set.extend(shard);
    }
    Ok(set)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The files of an index. Which tensor is in which is said again in the files.
struct WeightMap {
    files: BTreeSet<String>,
}

impl<'de> serde::Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;
        impl<'de> Visitor<'de> for Files {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from names of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files = BTreeSet::new();
                while let Some((_, file)) = map.next_entry::<IgnoredAny, String>()? {
                    files.insert(file);
                    if files.len() > MAX_SHARDS {
                        return Err(de::Error::custom("more files than a model is split into"));
                    }
                }
                Ok(WeightMap { files })
            }
        }
        deserializer.deserialize_map(Files)
    }
}
