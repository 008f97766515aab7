//! Reading a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn_store::IdentityAdapter;

use super::optimizer::optimizer_from_tensors;
use super::state::{FileCheck, Manifest, STATE_FILE};
use super::writer::{EMA_UPDATES, file_name};
use super::{CheckpointError, TrainState};
use crate::ema::{Ema, EmaDecay};
use crate::optim::{Adam, AdamConfig};
use crate::weights::{HeaderText, WeightsError, apply, read_tensors};

/// A checkpoint whose files are all there and undamaged.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens the checkpoint directory `path` and verifies every file in it, reading each once.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] naming the file that is missing or differs.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |reason| CheckpointError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let json = fs::read(path.join(STATE_FILE))
            .map_err(|error| damaged(format!("{STATE_FILE}: {error}")))?;
        let manifest = Manifest::from_json(&json)
            .map_err(|error| damaged(format!("{STATE_FILE}: {error}")))?;
        for (name, expected) in &manifest.files {
            let found = FileCheck::of(&path.join(name))
                .map_err(|error| damaged(format!("{name}: {error}")))?;
            if found.bytes != expected.bytes {
                return Err(damaged(format!(
                    "{name} has {} bytes instead of {}",
                    found.bytes, expected.bytes
                )));
            }
            if found.crc32c != expected.crc32c {
                return Err(damaged(format!("{name} has a wrong checksum")));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            manifest,
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    #[must_use]
    pub fn state(&self) -> &TrainState {
        &self.manifest.state
    }

    /// Whether the checkpoint holds something called `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.manifest.files.contains_key(&file_name(name))
    }

    /// Loads what was saved as `name` into a newly initialised `module`, bit for bit. Its parameters keep their ids.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and the tensors if the module is of another architecture.
    pub fn module<M: Module>(&self, name: &str, module: M) -> Result<M, CheckpointError> {
        Ok(self.load(name, module)?.0)
    }

    /// Loads the average saved as `name` of `module`, to go on with `decay`.
    ///
    /// # Errors
    /// As [`module`](Self::module).
    pub fn ema<M: Module>(
        &self,
        name: &str,
        module: &M,
        decay: impl Into<EmaDecay>,
    ) -> Result<Ema<M>, CheckpointError> {
        let (average, header) = self.load(name, module.valid())?;
        let updates = header
            .get(EMA_UPDATES)
            .and_then(|updates| updates.parse().ok());
        let updates =
            updates.ok_or_else(|| self.damaged(format!("{} is no average", file_name(name))))?;
        Ok(Ema::resume(average, decay, updates))
    }

    /// Loads the state saved as `name` of the optimiser of `module`, to go on with `config`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and the parameter if the module is of another architecture.
    pub fn optimizer<M: Module>(
        &self,
        name: &str,
        config: AdamConfig,
        module: &M,
    ) -> Result<Adam, CheckpointError> {
        let (tensors, header) = read_tensors(&self.path.join(file_name(name)))?;
        optimizer_from_tensors(config, module, tensors, &header)
            .map_err(|reason| self.damaged(format!("{}: {reason}", file_name(name))))
    }

    fn load<M: Module>(
        &self,
        name: &str,
        mut module: M,
    ) -> Result<(M, HeaderText), CheckpointError> {
        let path = self.path.join(file_name(name));
        let (tensors, header) = read_tensors(&path)?;
        let differences = apply(&mut module, tensors, &IdentityAdapter);
        if differences.is_empty() {
            Ok((module, header))
        } else {
            Err(WeightsError::Mismatch { path, differences }.into())
        }
    }

    fn damaged(&self, reason: String) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.clone(),
            reason,
        }
    }
}
