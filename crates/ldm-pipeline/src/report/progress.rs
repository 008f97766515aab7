//! How far a stage is, what it left on the disk, and how long it will still take.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use super::curves::Curves;
use crate::{run::RunDir, train::Stage};

/// Steps whose times the time left is estimated from.
const RECENT: usize = 100;
/// A run that wrote nothing for so long, and for so many steps, doesn't run any more.
const SILENCE: Duration = Duration::from_secs(180);
const SILENT_STEPS: f64 = 20.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No step yet.
    Waiting,
    /// It made a step lately.
    Running,
    /// It made no step lately, and has steps to make.
    Stopped,
    /// All steps are done.
    Finished,
}

/// A figure at a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) step: u64,
}

pub(super) struct Progress {
    pub(super) state: State,
    /// Steps done.
    pub(super) done: u64,
    /// Steps in all; `None` where the configuration doesn't tell.
    pub(super) total: Option<u64>,
    /// Training time over all sessions, in seconds.
    pub(super) seconds: f64,
    /// Times that the stage was started.
    pub(super) sessions: usize,
    /// Median of the recent steps, in seconds.
    pub(super) step_seconds: Option<f64>,
    /// Images of a step.
    pub(super) images: Option<u64>,
    /// Time since the last step.
    pub(super) silence: Option<Duration>,
    /// The newest value of each figure.
    pub(super) last: Vec<Value>,
    /// The best value of each figure of the validation.
    pub(super) best: Vec<Value>,
    /// Names and bytes, oldest first.
    pub(super) checkpoints: Vec<(String, u64)>,
    /// Lines of the metrics that could not be understood.
    pub(super) damaged: usize,
}

impl Progress {
    pub(super) fn of(
        run: &RunDir,
        stage: Stage,
        settings: &toml::Table,
        curves: &Curves,
        now: SystemTime,
    ) -> Self {
        let training = settings
            .get(stage.folder())
            .and_then(|stage| stage.get("training"));
        let setting = |key: &str| {
            let value = training?.get(key)?.as_integer()?;
            u64::try_from(value).ok()
        };
        let total = setting("steps");
        let done = curves.last_step;
        let step_seconds = recent_median(curves);
        // A clock that went back says nothing: taken for just now.
        let silence =
            (curves.changed).map(|changed| now.duration_since(changed).unwrap_or_default());
        Self {
            state: state(done, total, silence, step_seconds),
            done,
            total,
            seconds: curves.seconds,
            sessions: sessions(&run.stage(stage)),
            step_seconds,
            images: setting("batch_size")
                .map(|batch| batch.saturating_mul(setting("accumulation").unwrap_or(1))),
            silence,
            last: last(curves),
            best: best(curves),
            checkpoints: checkpoints(&run.checkpoints(stage)),
            damaged: curves.damaged,
        }
    }

    /// Time left in seconds, if it goes on like this.
    pub(super) fn remaining(&self) -> Option<f64> {
        let left = self
            .total?
            .checked_sub(self.done)
            .filter(|&left| left > 0)?;
        Some(left as f64 * self.step_seconds?)
    }
}

fn state(done: u64, total: Option<u64>, silence: Option<Duration>, step: Option<f64>) -> State {
    let patience = SILENCE
        .as_secs_f64()
        .max(SILENT_STEPS * step.unwrap_or(0.0));
    match silence {
        _ if total.is_some_and(|total| done >= total) => State::Finished,
        Some(silence) if done > 0 && silence.as_secs_f64() <= patience => State::Running,
        _ if done == 0 => State::Waiting,
        _ => State::Stopped,
    }
}

fn recent_median(curves: &Curves) -> Option<f64> {
    let column = curves.columns.get("seconds_per_step")?;
    let recent = &column[column.len().saturating_sub(RECENT)..];
    let mut seconds: Vec<f64> = (recent.iter())
        .map(|(_, seconds)| *seconds)
        .filter(|seconds| seconds.is_finite())
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

fn last(curves: &Curves) -> Vec<Value> {
    let newest = |(name, column): (&String, &Vec<(u64, f64)>)| {
        let &(step, value) = column.last()?;
        Some(Value {
            name: name.clone(),
            value,
            step,
        })
    };
    curves.columns.iter().filter_map(newest).collect()
}

/// The highest PSNR, the lowest loss; of a family the whole, not its parts.
fn best(curves: &Curves) -> Vec<Value> {
    let figures =
        (curves.columns.iter()).filter(|(name, _)| name.starts_with("val_") && !name.contains('/'));
    let best = figures.filter_map(|(name, column)| {
        let finite = column.iter().filter(|(_, value)| value.is_finite());
        let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let &(step, value) = if name.contains("psnr") || name.contains("ssim") {
            finite.max_by(by_value)?
        } else {
            finite.min_by(by_value)?
        };
        Some(Value {
            name: name.clone(),
            value,
            step,
        })
    });
    best.collect()
}

/// Each session of a stage has its own file of TensorBoard events.
fn sessions(stage: &Path) -> usize {
    names(stage)
        .iter()
        .filter(|name| name.starts_with("events.out.tfevents."))
        .count()
}

fn checkpoints(folder: &Path) -> Vec<(String, u64)> {
    let is_dir = |name: &String| folder.join(name).is_dir();
    let mut found: Vec<(String, u64)> = (names(folder).into_iter())
        .filter(is_dir)
        .map(|name| {
            let path = folder.join(&name);
            let bytes = names(&path)
                .iter()
                .filter_map(|file| fs::metadata(path.join(file)).ok())
                .map(|meta| meta.len())
                .sum();
            (name, bytes)
        })
        .collect();
    found.sort();
    found
}

/// What a folder shows: neither hidden nor under construction. Nothing if it isn't there.
fn names(folder: &Path) -> Vec<String> {
    (fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect()
}
