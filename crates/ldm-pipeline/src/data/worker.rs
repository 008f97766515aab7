//! What a thread of the loader does.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
};

use super::{
    dataset::{Dataset, Sample},
    error::DataError,
    loader::{Batch, LoaderConfig},
    order::{Order, Place, Visits},
};

/// One thread's part: every n-th batch.
pub(super) struct Worker {
    dataset: Arc<dyn Dataset>,
    shared: Arc<Shared>,
    visits: Visits,
    /// Samples of a batch.
    batch: usize,
    /// Whether a sample that can't be had is an error rather than skipped.
    strict: bool,
}

/// Why there is no sample.
enum Missing {
    /// The loader is gone.
    Stopped,
    /// To be told.
    Failed(DataError),
    /// None of the group can be had; this is the last one tried.
    AllOfGroup(SkippedSample),
}

impl Worker {
    pub(super) fn new(
        dataset: Arc<dyn Dataset>,
        order: Arc<Order>,
        config: &LoaderConfig,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            dataset,
            shared,
            visits: Visits::new(order),
            batch: config.batch,
            strict: config.strict,
        }
    }

    /// Delivers batch `first` and every `stride`-th after it, until an error or the loader's end.
    pub(super) fn run(
        mut self,
        first: u64,
        stride: usize,
        results: &SyncSender<Result<Batch, DataError>>,
    ) {
        for number in (first..).step_by(stride) {
            let Some(result) = self.batch(number) else {
                return;
            };
            let failed = result.is_err();
            if results.send(result).is_err() || failed {
                return;
            }
        }
    }

    /// Batch `number` of the run, or `None` when the loader is gone.
    fn batch(&mut self, number: u64) -> Option<Result<Batch, DataError>> {
        let place = self.visits.place(number);
        let groups = self.visits.order().groups();
        let (count, samples) = (groups.len(), groups.iter().map(Vec::len).sum());
        // Where nothing of a group can be had, the next one takes its turn.
        for turn in 1..=count {
            let group = (place.group + turn - 1) % count;
            match self.samples(Place { group, ..place }) {
                Ok(samples) => {
                    let shape = self.dataset.shape(samples[0].index);
                    return Some(Ok(Batch::new(samples, shape)));
                }
                Err(Missing::Stopped) => return None,
                Err(Missing::Failed(error)) => return Some(Err(error)),
                Err(Missing::AllOfGroup(last)) if turn == count => {
                    // It is told now, so that it is not to be told again.
                    self.shared.skip_log().known.insert(last.index);
                    return Some(Err(DataError::AllUnusable {
                        count: samples,
                        source: Box::new(last.error),
                    }));
                }
                Err(Missing::AllOfGroup(last)) => self.shared.skip_log().add(last),
            }
        }
        Some(Err(DataError::NoSamples))
    }

    /// A batch's samples from `place` on.
    fn samples(&mut self, place: Place) -> Result<Vec<Sample>, Missing> {
        (place.first..place.first + self.batch as u64)
            .map(|position| self.sample(place.group, position))
            .collect()
    }

    /// The sample at `position` of a group's endless sequence, or the next usable one in its epoch.
    fn sample(&mut self, group: usize, position: u64) -> Result<Sample, Missing> {
        let count = self.visits.order().groups()[group].len();
        let (epoch, offset) = (position / count as u64, (position % count as u64) as usize);
        let mut step = 0;
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err(Missing::Stopped);
            }
            let index = self.visits.sample(group, epoch, (offset + step) % count);
            let error = match self.dataset.get(index, epoch) {
                Ok(sample) => return Ok(sample),
                // Else all samples would be named as damaged, one after the other.
                Err(error @ DataError::Vanished { .. }) => return Err(Missing::Failed(error)),
                Err(error) if self.strict => {
                    return Err(Missing::Failed(DataError::Strict {
                        source: Box::new(error),
                    }));
                }
                Err(error) => error,
            };
            let skipped = SkippedSample { index, error };
            step += 1;
            if step == count {
                return Err(Missing::AllOfGroup(skipped));
            }
            self.shared.skip_log().add(skipped);
        }
    }
}

/// What the threads and the loader have in common.
#[derive(Default)]
pub(super) struct Shared {
    /// Set when the loader is gone.
    pub(super) stop: AtomicBool,
    skipped: Mutex<SkipLog>,
}

#[derive(Default)]
pub(super) struct SkipLog {
    pub(super) known: HashSet<usize>,
    pub(super) unreported: Vec<SkippedSample>,
}

impl SkipLog {
    /// Notes a sample that wasn't known.
    fn add(&mut self, skipped: SkippedSample) {
        if self.known.insert(skipped.index) {
            self.unreported.push(skipped);
        }
    }
}

impl Shared {
    pub(super) fn skip_log(&self) -> MutexGuard<'_, SkipLog> {
        // A thread that panicked while it held the lock left the log usable.
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sample that was passed over.
#[derive(Debug)]
pub struct SkippedSample {
    /// Its number in the data set.
    pub index: usize,
    /// Why; the message names the file.
    pub error: DataError,
}
