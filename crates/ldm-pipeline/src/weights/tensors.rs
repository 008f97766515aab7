//! Named tensors of whatever file, read one by one when they are asked for.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use burn_store::{KeyRemapper, bridge, burn_pack::Tensor as PackTensor};
use regex::RegexSet;

use super::{Differences, KeyMap, WeightsError};

/// Named tensors of one or several files. Names and shapes are known, data are read each time they are asked for.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// Stands for the files in errors.
    origin: PathBuf,
    tensors: BTreeMap<String, PackTensor>,
    /// Entries of the file that are no tensors.
    others: Vec<String>,
}

impl Tensors {
    pub(super) fn new(origin: &Path, tensors: Vec<PackTensor>, others: Vec<String>) -> Self {
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor));
        Self {
            origin: origin.to_path_buf(),
            tensors: tensors.collect(),
            others,
        }
    }

    /// Tensors that are in memory.
    pub(crate) fn from_data(data: Vec<(String, TensorData)>) -> Self {
        let tensors = data.into_iter().map(|(name, data)| bridge::from_data(data, name, None));
        Self::new(Path::new(""), tensors.collect(), Vec::new())
    }

    /// The file, or the one that lists the others.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Shape of each tensor by its name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shapes = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.to_vec()));
        shapes.collect()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The data of a tensor.
    ///
    /// # Errors
    /// If there is none of this name, or it can't be read.
    pub fn read(&self, name: &str) -> Result<TensorData, WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| {
            WeightsError::invalid(&self.origin, format!("there is no tensor `{name}` in it"))
        })?;
        bridge::to_data(tensor)
            .map_err(|error| WeightsError::invalid(&self.origin, format!("tensor `{name}`: {error}")))
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    /// If the key map is no list of regular expressions.
    pub fn renamed(&self, key_map: KeyMap) -> Result<Self, WeightsError> {
        let tensors = self.to_vec();
        let (tensors, _) = KeyRemapper::from_pattern_iter(key_map.iter().copied())?.remap(tensors);
        Ok(Self::new(&self.origin, tensors, self.others.clone()))
    }

    /// The same tensors, with those below `prefix` replaced by their exponential moving average where the file has one, as CompVis' code
    /// names it: `model_ema.`, then the name below `model.` without its dots.
    pub(crate) fn with_ema(&self, prefix: &str) -> Self {
        let mut averaged = self.clone();
        for (name, tensor) in &mut averaged.tensors {
            if !name.starts_with(prefix) {
                continue;
            }
            let below = name.strip_prefix("model.").unwrap_or(name);
            let average = format!("model_ema.{}", below.replace('.', ""));
            if let Some(found) = self.tensors.get(&average) {
                *tensor = found.clone();
                tensor.name = name.clone();
            }
        }
        averaged
    }

    /// Adds the tensors of `others`.
    pub(crate) fn extend(&mut self, others: Self) {
        self.tensors.extend(others.tensors);
        self.others.extend(others.others);
    }

    /// The names that are not among `used`, all of which must match one of the regular expressions `skip`.
    ///
    /// # Errors
    /// Names those that don't.
    pub(crate) fn unused(&self, used: &[String], skip: &[&str]) -> Result<Vec<String>, WeightsError> {
        let used: HashSet<&str> = used.iter().map(String::as_str).collect();
        let skip = RegexSet::new(skip)?;
        let left = self.tensors.keys().filter(|name| !used.contains(name.as_str()));
        let (skipped, unknown): (Vec<String>, Vec<String>) =
            left.cloned().partition(|name| skip.is_match(name));
        if unknown.is_empty() {
            return Ok(skipped.into_iter().chain(self.others.iter().cloned()).collect());
        }
        Err(WeightsError::Mismatch {
            path: self.origin.clone(),
            differences: Differences {
                unused: unknown,
                ..Differences::default()
            },
        })
    }

    /// A checksum of names and data.
    ///
    /// # Errors
    /// If the data can't be read.
    pub(crate) fn checksum(&self) -> Result<String, WeightsError> {
        let mut sum = 0;
        for (name, tensor) in &self.tensors {
            let bytes = tensor.to_bytes().map_err(|error| {
                WeightsError::invalid(&self.origin, format!("tensor `{name}`: {error}"))
            })?;
            sum = crc32c::crc32c_append(sum, name.as_bytes());
            sum = crc32c::crc32c_append(sum, &bytes);
        }
        Ok(format!("{sum:08x}"))
    }

    pub(super) fn get(&self, name: &str) -> Option<&PackTensor> {
        self.tensors.get(name)
    }

    pub(super) fn to_vec(&self) -> Vec<PackTensor> {
        self.tensors.values().cloned().collect()
    }

    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }
}
