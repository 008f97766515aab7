//! Named tensors of files, whose data is read when it is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use burn_store::{
    FloatCastAdapter, KeyRemapper, ModuleAdapter, ModuleContext, bridge,
    burn_pack::Tensor as PackTensor,
};

use super::{HeaderText, KeyMap, WeightsError};

/// A set of named tensors: of a file, of several, of a module, or made of such. Cloning copies names, not data.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    pub(super) path: PathBuf,
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) metadata: HeaderText,
    /// What has the name of a tensor but isn't read, and what it is.
    pub(super) refused: BTreeMap<String, String>,
}

/// A tensor and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name in the file.
    pub(super) key: String,
    pub(super) tensor: PackTensor,
}

impl Tensors {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            ..Self::default()
        }
    }

    /// Tensors under the names that they have.
    pub(super) fn from_tensors(path: &Path, tensors: Vec<PackTensor>) -> Self {
        let mut set = Self::new(path);
        for tensor in tensors {
            set.add(tensor.name.clone(), tensor);
        }
        set
    }

    /// Adds `tensor` under its own name, known as `key` in the file.
    pub(super) fn add(&mut self, key: String, tensor: PackTensor) {
        self.entries
            .insert(tensor.name.clone(), Entry { key, tensor });
    }

    /// The file that errors name: the first one, or the index of several.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor called `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of `name`.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.entries.get(name)?.tensor.shape.to_vec())
    }

    /// The type of `name`'s elements in the file.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<DType> {
        Some(self.entries.get(name)?.tensor.dtype)
    }

    /// The shape of each tensor.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.clone(), entry.tensor.shape.to_vec()))
            .collect()
    }

    /// Plain values beside the tensors: the text in a safetensors header, or the numbers and strings at the top of a
    /// PyTorch checkpoint, such as `global_step`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads the data of `name`, in the file's type.
    ///
    /// # Errors
    /// [`WeightsError`] if there is no such tensor, or the file can't be read.
    pub fn data(&self, name: &str) -> Result<TensorData, WeightsError> {
        let entry = self.entries.get(name).ok_or_else(|| {
            WeightsError::invalid(&self.path, format!("there is no tensor `{name}`"))
        })?;
        bridge::to_data(&entry.tensor)
            .map_err(|error| WeightsError::invalid(&self.path, format!("tensor `{name}`: {error}")))
    }

    /// Adds or replaces a tensor that is already in memory.
    pub fn insert(&mut self, name: impl Into<String>, data: TensorData) {
        let name = name.into();
        self.add(name.clone(), bridge::from_data(data, name, None));
    }

    /// Adds the tensors of `other`, which replace those of the same name.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.refused.extend(other.refused);
    }

    /// The same tensors under the names that `key_map` makes.
    ///
    /// # Errors
    /// If the key map holds no regular expressions.
    pub fn renamed(&self, key_map: KeyMap) -> Result<Self, WeightsError> {
        let remapper = KeyRemapper::from_pattern_iter(key_map.iter().copied())?;
        let (tensors, _) = remapper.remap(self.to_tensors());
        let mut set = Self::new(&self.path);
        set.metadata = self.metadata.clone();
        set.refused = self.refused.clone();
        for (entry, tensor) in self.entries.values().zip(tensors) {
            set.add(entry.key.clone(), tensor);
        }
        Ok(set)
    }

    /// The same tensors with floats in 16 bits.
    #[must_use]
    pub fn half(mut self) -> Self {
        let cast = FloatCastAdapter::to(DType::F16);
        for entry in self.entries.values_mut() {
            let tensor = entry.tensor.clone();
            entry.tensor = cast.adapt(tensor, ModuleContext::new(&[]));
        }
        self
    }

    /// A checksum of names and data.
    ///
    /// # Errors
    /// [`WeightsError`] if the file can't be read.
    pub fn checksum(&self) -> Result<String, WeightsError> {
        let mut sum = 0;
        for (name, entry) in &self.entries {
            let bytes = entry.tensor.to_bytes().map_err(|error| {
                WeightsError::invalid(&self.path, format!("tensor `{name}`: {error}"))
            })?;
            sum = crc32c::crc32c_append(sum, name.as_bytes());
            sum = crc32c::crc32c_append(sum, &bytes);
        }
        Ok(format!("{sum:08x}"))
    }

    /// The tensors whose names begin with `prefix`, without it.
    #[must_use]
    pub fn below(&self, prefix: &str) -> Self {
        let mut set = Self::new(&self.path);
        set.metadata = self.metadata.clone();
        for (name, entry) in &self.entries {
            if let Some(rest) = name.strip_prefix(prefix) {
                let mut tensor = entry.tensor.clone();
                tensor.name = rest.to_owned();
                set.add(entry.key.clone(), tensor);
            }
        }
        set.refused = self
            .refused
            .iter()
            .filter_map(|(name, what)| Some((name.strip_prefix(prefix)?.to_owned(), what.clone())))
            .collect();
        set
    }

    /// The tensors, for burn's functions.
    pub(super) fn to_tensors(&self) -> Vec<PackTensor> {
        let tensors = self.entries.values().map(|entry| entry.tensor.clone());
        tensors.collect()
    }
}
