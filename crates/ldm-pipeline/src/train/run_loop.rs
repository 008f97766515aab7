//! What both stages do round their steps: figures, sheets, checkpoints, and what happens when something fails.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use image::RgbImage;

use super::{
    Culprit, Event, Observer, Outcome, Stage, StepReport,
    persist::persist,
    recorder::Recorder,
    together::{check_start, images_per_step},
    waiting::WaitWatch,
};
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter, Checkpoints, TrainState},
    config::{NonFiniteAction, RunConfig, TrainingConfig},
    error::Error,
    memory::resident_memory,
    parallel::Workers,
    run::RunDir,
};

/// Named figures of a step.
pub(super) type Values = Vec<(&'static str, f64)>;

/// Steps over which the time that is left is estimated.
const RECENT_STEPS: usize = 50;
/// Time after which a checkpoint that couldn't be written is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

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

/// What a validation found.
#[derive(Default)]
pub(super) struct Validation {
    /// To be logged.
    pub(super) values: Values,
    /// By which checkpoints are compared, higher for better.
    pub(super) score: Option<f64>,
}

/// A stage between two of its steps.
pub(super) trait Trainee {
    /// Makes optimiser step number `step`, counted from 0, at the learning rate `rate`. If it fails, weights and averages are as they were
    /// before, or [`damage`](Self::damage) says otherwise.
    fn step(&mut self, step: u64, rate: f64, observer: &mut Observer) -> Result<Values, Error>;

    /// Puts everything into a checkpoint.
    fn save(&self, writer: &mut CheckpointWriter) -> Result<(), Error>;

    /// Adds what isn't a tensor to the state of a checkpoint.
    fn note(&self, _state: &mut TrainState) {}

    /// Takes everything from a checkpoint, or starts anew.
    fn restore(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), Error>;

    /// The first weight, average or moment that is not finite.
    fn damage(&self) -> Option<String>;

    /// Goes on in the data with those of `step`.
    fn seek(&mut self, step: u64) -> Result<(), Error>;

    /// Measures the model on held-out data.
    fn validate(&self) -> Result<Validation, Error>;

    /// A picture of what the model can do after `step` steps.
    fn preview(&self, step: u64) -> Result<RgbImage, Error>;
}

/// The course of a stage from one step to the next.
pub(super) struct RunLoop<'a> {
    stage: Stage,
    config: &'a RunConfig,
    training: &'a TrainingConfig,
    run: &'a RunDir,
    checkpoints: &'a Checkpoints,
    workers: &'a Workers,
    /// Of the first process.
    recorder: Option<Recorder<'a>>,
    /// Steps whose batches are passed over.
    passed_over: BTreeSet<u64>,
    /// Steps that were not finite since the last checkpoint.
    failures: u32,
    rate_scale: f64,
    /// The step of the newest checkpoint.
    saved: u64,
    /// When a checkpoint failed to be written that is still to be.
    overdue: Option<Instant>,
    /// Seconds of the last steps.
    recent: Vec<f64>,
    waiting: WaitWatch,
}

impl<'a> RunLoop<'a> {
    /// Goes on after what `trainee` was restored from, or begins.
    pub(super) fn open(
        stage: Stage,
        config: &'a RunConfig,
        training: &'a TrainingConfig,
        run: &'a RunDir,
        checkpoints: &'a Checkpoints,
        start: &Start,
    ) -> Result<Self, Error> {
        Ok(Self {
            stage,
            config,
            training,
            run,
            checkpoints,
            workers: run.workers(),
            recorder: recorder(run, stage, start.step)?,
            passed_over: BTreeSet::new(),
            failures: 0,
            rate_scale: start.rate_scale,
            saved: start.step,
            overdue: None,
            recent: Vec::new(),
            waiting: WaitWatch::default(),
        })
    }

    /// Steps to the end of the training, or until the observer breaks.
    pub(super) fn run(
        mut self,
        trainee: &mut dyn Trainee,
        observer: &mut Observer,
    ) -> Result<Outcome, Error> {
        let total = self.training.steps;
        let mut step = self.saved;
        while step < total {
            let began = Instant::now();
            let mut values = match self.step(step, trainee, observer) {
                Ok(values) => values,
                Err(error @ Error::NotFinite { .. }) => {
                    match self.recover(step, error, trainee, observer)? {
                        Recovery::PassedOver(values) => values,
                        Recovery::BackTo(earlier) => {
                            step = earlier;
                            continue;
                        }
                    }
                }
                Err(error) => {
                    self.save_before_failing(step, trainee, observer);
                    return Err(error);
                }
            };
            let done = step + 1;
            let last = done == total;
            self.add_pace(&mut values, began.elapsed().as_secs_f64(), total - done);
            self.waiting.step(&values, observer);
            self.workers.mean(&mut values);

            let showing = last || done.is_multiple_of(self.training.sample_every);
            let saving = last || done.is_multiple_of(self.training.checkpoint_every);
            let mut score = None;
            let first = self.workers.is_first();
            if first && (showing || (saving && self.training.keep_best)) {
                let validation = trainee.validate()?;
                values.extend(validation.values);
                score = validation.score;
            }
            if let Some(recorder) = &mut self.recorder {
                let sheet = showing.then(|| trainee.preview(done)).transpose()?;
                recorder.record(done, &values, sheet, observer);
            }

            let flow = observer(Event::Step(StepReport {
                stage: self.stage,
                step: done,
                total,
                images: self.images_per_step(),
                values: &values,
            }));
            let stopped = self.workers.any(flow.is_break()) && !last;
            if first && (last || stopped) {
                let path = persist("checkpoint", self.training, last, observer, || {
                    self.checkpoint(done, score, trainee)
                })?;
                if stopped {
                    let _ = observer(Event::Saved(&path));
                }
            } else if first && (saving || self.is_overdue()) {
                self.try_checkpoint(done, score, trainee, observer);
            }
            if showing || saving || stopped {
                self.workers.wait();
            }
            if stopped {
                return Ok(Outcome::Stopped(done));
            }
            if saving && self.workers.any(self.saved == done) {
                self.failures = 0;
            }
            step = done;
        }
        Ok(Outcome::Finished)
    }

    fn step(
        &mut self,
        step: u64,
        trainee: &mut dyn Trainee,
        observer: &mut Observer,
    ) -> Result<Values, Error> {
        if self.passed_over.contains(&step) {
            trainee.seek(step + 1)?;
            return Ok(passed_over());
        }
        let rate = self.training.lr.at(step, self.training.steps) * self.rate_scale;
        trainee.step(step, rate, observer)
    }

    /// Throughput, memory and the time that is left.
    fn add_pace(&mut self, values: &mut Values, seconds: f64, left: u64) {
        if self.recent.len() == RECENT_STEPS {
            self.recent.remove(0);
        }
        self.recent.push(seconds);
        let typical = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        values.extend([
            ("seconds_per_step", seconds),
            ("images_per_second", self.images_per_step() as f64 / seconds),
            ("eta_seconds", typical * left as f64),
        ]);
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        values.extend(resident_memory().map(|bytes| ("memory_mib", mib(bytes))));
    }

    /// Finds a way to go on after a step that was not finite.
    fn recover(
        &mut self,
        step: u64,
        error: Error,
        trainee: &mut dyn Trainee,
        observer: &mut Observer,
    ) -> Result<Recovery, Error> {
        self.failures += 1;
        let policy = &self.training.non_finite;
        let problem = with_causes(&error);
        if policy.action == NonFiniteAction::Stop || self.failures > policy.limit {
            return Err(error);
        }
        let damage = trainee.damage();
        if policy.action == NonFiniteAction::Skip {
            self.passed_over.insert(step);
            if damage.is_none() {
                warn(
                    observer,
                    &format!("{problem}; its batch is passed over, and nothing else changed"),
                );
                trainee.seek(step + 1)?;
                return Ok(Recovery::PassedOver(passed_over()));
            }
        } else {
            self.rate_scale *= policy.rate_factor;
        }

        let start = restore_newest(self.checkpoints, trainee, false, self.workers, observer)?;
        trainee.seek(start.step)?;
        self.recorder = recorder(self.run, self.stage, start.step)?;
        let how = match policy.action {
            NonFiniteAction::LowerRate => {
                format!("at {} times the learning rate", self.rate_scale)
            }
            _ => format!("without the batch of step {}", step + 1),
        };
        let because = damage.map_or(String::new(), |path| format!(", as {path} is not finite"));
        warn(
            observer,
            &format!("{problem}; back to step {}{because}, {how}", start.step),
        );
        Ok(Recovery::BackTo(start.step))
    }

    /// Keeps what was reached when the run ends by an error, such as data that are gone.
    fn save_before_failing(&self, step: u64, trainee: &dyn Trainee, observer: &mut Observer) {
        if self.workers.is_first() && step > self.saved && trainee.damage().is_none() {
            match self.checkpoint(step, None, trainee) {
                Ok(path) => drop(observer(Event::Saved(&path))),
                Err(error) => warn(
                    observer,
                    &format!("no checkpoint at step {step}: {}", with_causes(&error)),
                ),
            }
        }
    }

    fn checkpoint(
        &self,
        step: u64,
        score: Option<f64>,
        trainee: &dyn Trainee,
    ) -> Result<PathBuf, Error> {
        let mut state = TrainState {
            step,
            seed: self.config.seed,
            samples_seen: step * self.images_per_step() as u64,
            config_hash: format!("{:08x}", crc32c::crc32c(self.config.to_toml().as_bytes())),
            score: score.filter(|score| score.is_finite()),
            rate_scale: self.rate_scale,
            extra: Default::default(),
        };
        trainee.note(&mut state);
        let mut writer = self.checkpoints.writer(state)?;
        trainee.save(&mut writer)?;
        Ok(writer.finish()?)
    }

    /// A checkpoint in the middle of a run: if it can't be written, a later one may succeed, such as after the disk was cleared.
    fn try_checkpoint(
        &mut self,
        step: u64,
        score: Option<f64>,
        trainee: &dyn Trainee,
        observer: &mut Observer,
    ) {
        match self.checkpoint(step, score, trainee) {
            Ok(path) => {
                self.saved = step;
                if self.overdue.take().is_some() {
                    let _ = observer(Event::Saved(&path));
                }
            }
            Err(error) => {
                if self.overdue.replace(Instant::now()).is_none() {
                    let text = format!(
                        "no checkpoint at step {step}: {}; the run goes on and tries again",
                        with_causes(&error)
                    );
                    warn(observer, &text);
                }
            }
        }
    }

    fn images_per_step(&self) -> usize {
        images_per_step(self.training, self.workers)
    }

    fn is_overdue(&self) -> bool {
        self.overdue
            .is_some_and(|since| since.elapsed() >= RETRY_AFTER)
    }
}

/// What the first process writes records with.
fn recorder(run: &RunDir, stage: Stage, start: u64) -> Result<Option<Recorder<'_>>, Error> {
    match run.workers().is_first() {
        true => Recorder::open(run, stage, start).map(Some),
        false => Ok(None),
    }
}

/// How a run goes on after a step that was not finite.
enum Recovery {
    /// With the next step; these figures stand for this one.
    PassedOver(Values),
    /// From an earlier step.
    BackTo(u64),
}

/// The figures of a step whose batch was passed over.
fn passed_over() -> Values {
    vec![("passed_over", 1.0)]
}

/// Where a stage begins in this session.
pub(super) struct Start {
    /// Steps done before.
    pub(super) step: u64,
    pub(super) rate_scale: f64,
    pub(super) samples_seen: u64,
}

impl Start {
    /// Tells where the session begins, and what was changed since the one before.
    pub(super) fn announce(
        &self,
        stage: Stage,
        training: &TrainingConfig,
        run: &RunDir,
        observer: &mut Observer,
    ) {
        if self.step == 0 {
            return;
        }
        let _ = observer(Event::Note(&format!(
            "{stage}: going on from step {}",
            self.step
        )));
        for change in run.changes(stage) {
            let _ = observer(Event::Note(&format!("changed: {change}")));
        }
        let now = images_per_step(training, run.workers()) as u64;
        if self.samples_seen != self.step * now {
            let before = self.samples_seen as f64 / self.step as f64;
            let _ = observer(Event::Note(&format!(
                "a step has {now} images now, and had {before} before (batch size x accumulation x processes or devices)"
            )));
        }
    }
}

/// Restores `trainee` from the newest checkpoint that is whole and finite, or to its beginning if there is none at all, where it still is
/// if it is `new`. Others are named and set aside.
pub(super) fn restore_newest(
    checkpoints: &Checkpoints,
    trainee: &mut dyn Trainee,
    new: bool,
    workers: &Workers,
    observer: &mut Observer,
) -> Result<Start, Error> {
    // The first process sets aside what can't be used; then all find the same.
    let mut start = None;
    workers.first_does(|| {
        start = Some(restore_usable(checkpoints, trainee, new, observer)?);
        Ok(true)
    })?;
    let start = match start {
        Some(start) => start,
        None => restore_usable(checkpoints, trainee, new, observer)?,
    };
    check_start(workers, start.step)?;
    Ok(start)
}

fn restore_usable(
    checkpoints: &Checkpoints,
    trainee: &mut dyn Trainee,
    mut new: bool,
    observer: &mut Observer,
) -> Result<Start, Error> {
    loop {
        let Some(checkpoint) = newest_checkpoint(checkpoints, observer)? else {
            if !new {
                trainee.restore(None)?;
            }
            return Ok(Start {
                step: 0,
                rate_scale: 1.0,
                samples_seen: 0,
            });
        };
        trainee.restore(Some(&checkpoint))?;
        new = false;
        let Some(damage) = trainee.damage() else {
            let state = checkpoint.state();
            return Ok(Start {
                step: state.step,
                rate_scale: state.rate_scale,
                samples_seen: state.samples_seen,
            });
        };
        let aside = checkpoints.set_aside(checkpoint.path())?;
        let text = format!(
            "in checkpoint {} {damage} is not finite; it is now {}, and an older one is used",
            checkpoint.path().display(),
            aside.display()
        );
        warn(observer, &text);
    }
}

/// The newest checkpoint that is whole, if there is one; newer damaged ones are named and set aside. That all are damaged is an error:
/// starting anew would overwrite them.
pub(super) fn newest_checkpoint(
    checkpoints: &Checkpoints,
    observer: &mut Observer,
) -> Result<Option<Checkpoint>, Error> {
    let mut latest = checkpoints.latest()?;
    if latest.checkpoint.is_none() && !latest.damaged.is_empty() {
        return Err(latest.damaged.remove(0).into());
    }
    for damage in &latest.damaged {
        warn(
            observer,
            &format!("{}; using an older one", with_causes(damage)),
        );
        if let Some(path) = damage.damaged_checkpoint() {
            checkpoints.set_aside(path)?;
        }
    }
    Ok(latest.checkpoint)
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

pub(super) fn warn(observer: &mut Observer, text: &str) {
    let _ = observer(Event::Warning(text));
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

#[cfg(test)]
mod tests;
