//! Checkpoints of a training run: directories `step-NNNNNNNN` that are complete or not there, checked when read.
//!
//! A checkpoint holds one safetensors file for each module, average and optimiser, and `state.json` with where the
//! run stands and the size and checksum of every file. Tensors are named by their path in the module, never by
//! parameter id, so equal states give equal bytes.

mod optimizer;
mod reader;
mod state;
mod writer;

pub use reader::Checkpoint;
pub use state::TrainState;
pub use writer::CheckpointWriter;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic::{self, WriteError};
use crate::weights::WeightsError;

/// A checkpoint that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file of weights can't be written or read, or belongs to another architecture.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The folder of checkpoints can't be listed.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A checkpoint is not what was written.
    #[error("checkpoint {} is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl CheckpointError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Write(error) => error.help(),
            Self::Weights(error @ WeightsError::Write(_)) => error.help(),
            Self::Weights(_) => {
                Some("a run can only be resumed with the architecture it was started with".into())
            }
            Self::Unreadable { .. } => None,
            Self::Damaged { path, .. } => Some(format!(
                "remove {} to go on from the checkpoint before it",
                path.display()
            )),
        }
    }
}

/// The folder of checkpoints of one run or stage.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

/// What [`Checkpoints::latest`] found.
#[derive(Debug)]
pub struct Latest {
    /// The newest checkpoint that is whole; `None` if there is none.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are damaged, to be reported.
    pub damaged: Vec<CheckpointError>,
}

impl Checkpoints {
    /// Opens the folder `dir` and removes what a killed process left half done. The newest `keep` checkpoints (at
    /// least 1) will be kept. A missing folder is created by the first checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be cleaned.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, CheckpointError> {
        atomic::clean_up(dir)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            keep: keep.max(1),
        })
    }

    /// Starts the checkpoint of `state.step`. It exists once [`CheckpointWriter::finish`] returns.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be written to.
    pub fn writer(&self, state: TrainState) -> Result<CheckpointWriter<'_>, CheckpointError> {
        atomic::create_dir(&self.dir)?;
        CheckpointWriter::new(self, state)
    }

    /// Finds the newest checkpoint whose files are all there with the right checksums.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be listed. Damage is no error but part of the result.
    pub fn latest(&self) -> Result<Latest, CheckpointError> {
        let mut damaged = Vec::new();
        for (_, path) in self.by_step()?.into_iter().rev() {
            match Checkpoint::open(&path) {
                Ok(checkpoint) => {
                    return Ok(Latest {
                        checkpoint: Some(checkpoint),
                        damaged,
                    });
                }
                Err(error) => damaged.push(error),
            }
        }
        Ok(Latest {
            checkpoint: None,
            damaged,
        })
    }

    fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// All checkpoints, oldest first.
    fn by_step(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let unreadable = |source| CheckpointError::Unreadable {
            path: self.dir.clone(),
            source,
        };
        let mut found = Vec::new();
        if !self.dir.exists() {
            return Ok(found);
        }
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some(step) = name
                .strip_prefix("step-")
                .and_then(|step| step.parse().ok())
            {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn prune(&self) -> Result<(), CheckpointError> {
        let found = self.by_step()?;
        for (_, path) in &found[..found.len().saturating_sub(self.keep)] {
            atomic::remove_dir(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
