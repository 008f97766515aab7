//! Writing a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use burn::module::Module;
use burn_store::ModuleSnapshot;

use super::optimizer::optimizer_tensors;
use super::state::{FileCheck, Manifest, STATE_FILE};
use super::{CheckpointError, Checkpoints, TrainState};
use crate::atomic::{PartialDir, WriteError, write_file_with};
use crate::ema::Ema;
use crate::optim::Adam;
use crate::weights::{HeaderText, write_tensors};

/// The header entry of an average that counts its updates.
pub(super) const EMA_UPDATES: &str = "updates";

/// A checkpoint being written. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct CheckpointWriter<'a> {
    checkpoints: &'a Checkpoints,
    partial: PartialDir,
    state: TrainState,
    files: BTreeMap<String, FileCheck>,
}

impl<'a> CheckpointWriter<'a> {
    pub(super) fn new(
        checkpoints: &'a Checkpoints,
        state: TrainState,
    ) -> Result<Self, CheckpointError> {
        let partial = PartialDir::create(&checkpoints.path_of(state.step))?;
        Ok(Self {
            checkpoints,
            partial,
            state,
            files: BTreeMap::new(),
        })
    }

    /// Adds the parameters and running statistics of `module` as `name`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file.
    pub fn module<M: Module>(&mut self, name: &str, module: &M) -> Result<(), CheckpointError> {
        self.add(name, module_tensors(module), &HeaderText::new())
    }

    /// Adds an average as `name`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file.
    pub fn ema<M: Module>(&mut self, name: &str, ema: &Ema<M>) -> Result<(), CheckpointError> {
        let header = HeaderText::from([(EMA_UPDATES.to_owned(), ema.updates().to_string())]);
        self.add(name, module_tensors(ema.module()), &header)
    }

    /// Adds the state of the optimiser of `module` as `name`.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file.
    pub fn optimizer<M: Module>(
        &mut self,
        name: &str,
        adam: &Adam,
        module: &M,
    ) -> Result<(), CheckpointError> {
        let (tensors, header) = optimizer_tensors(adam, module);
        self.add(name, tensors, &header)
    }

    /// Makes the checkpoint appear, synced to the disk, and removes those that are too old to be kept. Returns its path.
    ///
    /// # Errors
    /// [`CheckpointError`] with the path and the cause; earlier checkpoints are untouched.
    pub fn finish(self) -> Result<PathBuf, CheckpointError> {
        let path = self.checkpoints.path_of(self.state.step);
        let json = Manifest::new(self.state, self.files).to_json();
        write_file_with(&self.partial.path().join(STATE_FILE), |out| {
            out.write_all(&json.map_err(io::Error::other)?)
        })?;
        self.partial.commit()?;
        self.checkpoints.prune()?;
        Ok(path)
    }

    fn add(
        &mut self,
        name: &str,
        tensors: Vec<burn_store::burn_pack::Tensor>,
        header: &HeaderText,
    ) -> Result<(), CheckpointError> {
        let file_name = file_name(name);
        let path = self.partial.path().join(&file_name);
        write_tensors(&path, tensors, header)?;
        let check = FileCheck::of(&path).map_err(|source| WriteError {
            action: "read back",
            path,
            source,
        })?;
        let before = self.files.insert(file_name, check);
        assert!(
            before.is_none(),
            "`{name}` was added to the checkpoint twice"
        );
        Ok(())
    }
}

pub(super) fn file_name(name: &str) -> String {
    format!("{name}.safetensors")
}

fn module_tensors<M: Module>(module: &M) -> Vec<burn_store::burn_pack::Tensor> {
    // `valid` brings running statistics up to date, whose last update may be pending.
    module.valid().collect(None, None, true)
}
