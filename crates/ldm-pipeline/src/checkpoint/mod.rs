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

use self::state::{Manifest, STATE_FILE};
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
    /// The checkpoint that is damaged, if that is the error.
    #[must_use]
    pub fn damaged_checkpoint(&self) -> Option<&Path> {
        match self {
            Self::Damaged { path, .. } => Some(path),
            _ => None,
        }
    }

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
    retention: Retention,
}

/// Which checkpoints stay when a new one appears: those that any of the fields asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones; at least 1.
    pub last: usize,
    /// Whether the one with the highest [`TrainState::score`] stays; of equal ones the oldest.
    pub best: bool,
    /// Those whose step this divides.
    pub every: Option<u64>,
}

impl Retention {
    /// Only the newest `count`.
    #[must_use]
    pub fn last(count: usize) -> Self {
        Self {
            last: count,
            best: false,
            every: None,
        }
    }
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
    /// Opens the folder `dir` and removes what a killed process left half done. A missing folder is created by the first
    /// checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be cleaned.
    pub fn open(dir: &Path, retention: Retention) -> Result<Self, CheckpointError> {
        atomic::clean_up(dir)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            retention,
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

    /// The step of the newest checkpoint, whole or not; 0 if there is none.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be listed.
    pub fn latest_step(&self) -> Result<u64, CheckpointError> {
        Ok(self.by_step()?.last().map_or(0, |(step, _)| *step))
    }

    /// Renames a checkpoint that is of no use to `step-NNNNNNNN.damaged`, where nothing looks for checkpoints any more.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder can't be written to.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, CheckpointError> {
        let aside = path.with_extension("damaged");
        if aside.exists() {
            atomic::remove_dir(&aside)?;
        }
        fs::rename(path, &aside).map_err(|source| WriteError {
            action: "rename",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(aside)
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
        let last = found.len().saturating_sub(self.retention.last.max(1));
        let best = self.retention.best.then(|| best(&found)).flatten();
        for (step, path) in &found[..last] {
            let milestone = (self.retention.every).is_some_and(|every| step.is_multiple_of(every));
            if !milestone && Some(*step) != best {
                atomic::remove_dir(path)?;
            }
        }
        Ok(())
    }
}

/// The step of the checkpoint with the highest score, if any has one.
fn best(found: &[(u64, PathBuf)]) -> Option<u64> {
    let mut best: Option<(u64, f64)> = None;
    for (step, path) in found {
        // One that can't be read has no score; whoever resumes from it says why.
        let state = fs::read(path.join(STATE_FILE)).ok();
        let manifest = state.and_then(|json| Manifest::from_json(&json).ok());
        let score = manifest.and_then(|manifest| manifest.state.score);
        if let Some(score) = score
            && best.is_none_or(|(_, highest)| score > highest)
        {
            best = Some((*step, score));
        }
    }
    best.map(|(step, _)| step)
}

#[cfg(test)]
mod tests;
