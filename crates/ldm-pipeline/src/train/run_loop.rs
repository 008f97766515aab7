//! What both stages do round their steps.

use std::{ops::ControlFlow, path::PathBuf, time::Instant};

use image::RgbImage;

use super::{Culprit, Event, Observer, Outcome, Stage, StepReport, recorder::Recorder};
use crate::{
    checkpoint::{Checkpoint, Checkpoints, TrainState},
    config::{RunConfig, TrainingConfig},
    error::Error,
    run::RunDir,
};

/// Named figures of a step.
pub(super) type Values = Vec<(&'static str, f64)>;

/// Mean of values over the micro-batches of a step.
#[derive(Default)]
pub(super) struct Mean {
    sums: Values,
    count: f64,
}

impl Mean {
    /// Adds the values of a micro-batch, whose names are always the same.
    pub(super) fn add(&mut self, values: Values) {
        if self.sums.is_empty() {
            self.sums = values;
        } else {
            for (sum, (_, value)) in self.sums.iter_mut().zip(values) {
                sum.1 += value;
            }
        }
        self.count += 1.0;
    }

    pub(super) fn values(&self) -> Values {
        (self.sums.iter())
            .map(|(name, sum)| (*name, sum / self.count))
            .collect()
    }
}

/// A stage between two of its steps.
pub(super) trait Trainee {
    /// Makes optimiser step number `step`, counted from 0.
    fn step(&mut self, step: u64, observer: &mut Observer) -> Result<Values, Error>;

    /// Writes a checkpoint after `step` steps and says where.
    fn checkpoint(&self, step: u64) -> Result<PathBuf, Error>;

    /// A picture of what the model can do after `step` steps, and figures that go with it.
    fn preview(&self, step: u64) -> Result<(RgbImage, Values), Error>;
}

/// Steps from `start` to the end of the training, or until the observer breaks.
pub(super) fn run_steps(
    stage: Stage,
    training: &TrainingConfig,
    run: &RunDir,
    start: u64,
    trainee: &mut dyn Trainee,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    if start >= training.steps {
        return Ok(Outcome::Finished);
    }
    let mut recorder = Recorder::open(run, stage, start)?;
    for step in start..training.steps {
        let began = Instant::now();
        let mut values = trainee.step(step, observer)?;
        let done = step + 1;
        let last = done == training.steps;
        values.push(("seconds_per_step", began.elapsed().as_secs_f64()));

        let mut sheet = None;
        if last || done % training.sample_every == 0 {
            let (picture, figures) = trainee.preview(done)?;
            values.extend(figures);
            sheet = Some(picture);
        }
        recorder.record(done, &values, sheet, observer);

        let flow = observer(Event::Step(StepReport {
            stage,
            step: done,
            total: training.steps,
            images: training.batch_size * training.accumulation,
            values: &values,
        }));
        let stopped = flow.is_break() && !last;
        if last || stopped || done % training.checkpoint_every == 0 {
            match trainee.checkpoint(done) {
                Ok(path) if stopped => drop(observer(Event::Saved(&path))),
                Ok(_) => {}
                // A later one may succeed, such as after the disk was cleared; the one that ends the run has to.
                Err(error) if !(last || stopped) => {
                    let text = format!("no checkpoint at step {done}: {}", with_causes(&error));
                    let _ = observer(Event::Warning(&text));
                }
                Err(error) => return Err(error),
            }
        }
        if stopped {
            return Ok(Outcome::Stopped(done));
        }
    }
    Ok(Outcome::Finished)
}

/// An error and its causes in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Tells the observer about a part of the set-up; `true` if it wants to stop.
pub(super) fn at_work(observer: &mut Observer, what: &str, done: usize, total: usize) -> bool {
    observer(Event::Work { what, done, total }) == ControlFlow::Break(())
}

/// `value`, or an error if it is no number any more; whoever can repeat the step looks for the culprit.
pub(super) fn finite(name: &'static str, value: f64, step: u64) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NotFinite {
            name,
            value,
            step,
            culprit: Culprit::Unknown,
        })
    }
}

/// The checkpoint to go on from, if there is one; newer damaged ones are named. That all are damaged is an error: starting anew
/// would overwrite them.
pub(super) fn newest_checkpoint(
    checkpoints: &Checkpoints,
    stage: Stage,
    observer: &mut Observer,
) -> Result<Option<Checkpoint>, Error> {
    let mut latest = checkpoints.latest()?;
    if latest.checkpoint.is_none() && !latest.damaged.is_empty() {
        return Err(latest.damaged.remove(0).into());
    }
    for damage in &latest.damaged {
        let _ = observer(Event::Warning(&format!(
            "{}; using an older one",
            with_causes(damage)
        )));
    }
    if let Some(checkpoint) = &latest.checkpoint {
        let step = checkpoint.state().step;
        let _ = observer(Event::Note(&format!("{stage}: going on from step {step}")));
    }
    Ok(latest.checkpoint)
}

/// What a checkpoint says of the run after `step` steps.
pub(super) fn train_state(config: &RunConfig, training: &TrainingConfig, step: u64) -> TrainState {
    let batch = (training.batch_size * training.accumulation) as u64;
    TrainState {
        step,
        seed: config.seed,
        samples_seen: step * batch,
        config_hash: format!("{:08x}", crc32c::crc32c(config.to_toml().as_bytes())),
        extra: Default::default(),
    }
}
