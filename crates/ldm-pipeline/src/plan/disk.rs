//! What a stage leaves on the disk.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{config::TrainingConfig, error::Error, run::RunDir, train::Stage};

/// Sizes of a short run's files, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// One checkpoint.
    pub checkpoint: u64,
    /// One sheet.
    pub sheet: u64,
    /// Metrics and events, for each step; without the sheets among the events.
    pub log_per_step: u64,
    /// The exported model.
    pub model: u64,
}

/// Files of a stage, in bytes, at the moment when they are most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Disk {
    /// One checkpoint.
    pub checkpoint: u64,
    /// Those that are kept, and one that is being written.
    pub checkpoints: u64,
    /// Sheets, as files and as events.
    pub sheets: u64,
    /// Metrics and events.
    pub logs: u64,
    /// The cache of latents.
    pub latents: u64,
    /// The model, and the one that it replaces.
    pub model: u64,
    /// All of it.
    pub total: u64,
}

impl Sizes {
    /// Measures the files of a stage that made `steps` steps.
    ///
    /// # Errors
    /// If they can't be read.
    pub(super) fn of(run: &RunDir, stage: Stage, steps: u64) -> Result<Self, Error> {
        let each = |folder: &Path| -> Result<(u64, u64), Error> {
            let mut found = (0, 0);
            for size in sizes(folder)? {
                found = (found.0 + 1, found.1 + size);
            }
            Ok(found)
        };
        let (checkpoints, of_checkpoints) = each(&run.checkpoints(stage))?;
        let (sheets, of_sheets) = each(&run.samples(stage))?;
        // Beside the folders and the cache lie logs alone.
        let logs = files(&run.stage(stage))?;
        Ok(Self {
            checkpoint: of_checkpoints.checked_div(checkpoints).unwrap_or(0),
            sheet: of_sheets.checked_div(sheets).unwrap_or(0),
            log_per_step: logs.saturating_sub(of_sheets).div_ceil(steps.max(1)),
            model: tree(&run.model())?,
        })
    }
}

impl Disk {
    /// Of a whole training with files of these sizes and a cache of latents of `latents` bytes.
    pub fn new(sizes: Sizes, training: &TrainingConfig, latents: u64) -> Self {
        let kept = training.keep_checkpoints as u64;
        let written = times(training.steps, training.checkpoint_every);
        let checkpoints = sizes.checkpoint * written.min(kept.saturating_add(1));
        let sheets = 2 * sizes.sheet * times(training.steps, training.sample_every);
        let logs = sizes.log_per_step * training.steps;
        let model = 2 * sizes.model;
        Self {
            checkpoint: sizes.checkpoint,
            checkpoints,
            sheets,
            logs,
            latents,
            model,
            total: checkpoints + sheets + logs + latents + model,
        }
    }
}

/// How often something happens that happens every so many steps and after the last.
pub(super) fn times(steps: u64, every: u64) -> u64 {
    steps.div_ceil(every)
}

fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

/// Of each file or folder in a folder; none where it isn't there.
fn sizes(folder: &Path) -> Result<Vec<u64>, Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    (fs::read_dir(folder).map_err(read_error(folder))?)
        .map(|entry| tree(&entry.map_err(read_error(folder))?.path()))
        .collect()
}

/// All below a path.
fn tree(path: &Path) -> Result<u64, Error> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => Ok(sizes(path)?.iter().sum()),
        Ok(facts) => Ok(facts.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(read_error(path)(error)),
    }
}

/// Files directly in a folder that aren't tensors.
fn files(folder: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).map_err(read_error(folder))? {
        let path = entry.map_err(read_error(folder))?.path();
        if path.is_file() && path.extension().is_none_or(|end| end != "safetensors") {
            sum += tree(&path)?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(text: &str) -> TrainingConfig {
        let text = format!("batch_size = 1\nlr = {{ rate = 1e-3 }}\n{text}");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn files_add_up() {
        let sizes = Sizes {
            checkpoint: 1000,
            sheet: 10,
            log_per_step: 1,
            model: 300,
        };
        let training =
            training("steps = 100\nkeep_checkpoints = 3\ncheckpoint_every = 10\nsample_every = 30");
        let disk = Disk::new(sizes, &training, 50_000);
        assert_eq!(disk.checkpoints, 4 * 1000);
        assert_eq!(disk.sheets, 2 * 10 * 4, "after 30, 60, 90 and 100 steps");
        assert_eq!(disk.logs, 100);
        assert_eq!(disk.total, 4000 + 80 + 100 + 50_000 + 600);
    }

    #[test]
    fn no_more_checkpoints_than_are_written() {
        let sizes = Sizes {
            checkpoint: 1000,
            ..Sizes::default()
        };
        let training = training("steps = 100\nkeep_checkpoints = 5\ncheckpoint_every = 60");
        assert_eq!(Disk::new(sizes, &training, 0).checkpoints, 2000);
        assert_eq!(
            [times(1, 1000), times(1000, 1000), times(1001, 1000)],
            [1, 1, 2]
        );
    }

    #[test]
    fn a_run_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, length: usize| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; length]).unwrap();
        };
        file("stage2/checkpoints/step-1/a", 600);
        file("stage2/checkpoints/step-1/b", 400);
        file("stage2/checkpoints/step-2/a", 1000);
        file("stage2/samples/1.png", 70);
        file("stage2/metrics.jsonl", 50);
        file("stage2/events", 90);
        file("stage2/latents.safetensors", 12345);
        file("model/unet/weights", 250);
        let text = include_str!("../../../../configs/quickstart.toml");
        let config = crate::config::RunConfig::parse(text, "preset", &[]).unwrap();
        let run = RunDir::open(dir.path(), &config, &[], false).unwrap();
        let expected = Sizes {
            checkpoint: 1000,
            sheet: 70,
            log_per_step: 7,
            model: 250,
        };
        assert_eq!(Sizes::of(&run, Stage::Diffusion, 10).unwrap(), expected);
    }
}
