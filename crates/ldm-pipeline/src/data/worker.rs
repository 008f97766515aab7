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
};
use crate::rng::{Stream, permutation};

/// One thread's part: every n-th batch.
pub(super) struct Worker {
    dataset: Arc<dyn Dataset>,
    shared: Arc<Shared>,
    config: LoaderConfig,
    /// The epoch last drawn and its order.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Worker {
    pub(super) fn new(
        dataset: Arc<dyn Dataset>,
        config: LoaderConfig,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            dataset,
            shared,
            config,
            epoch: None,
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
        let size = self.config.batch as u64;
        let mut samples = Vec::with_capacity(self.config.batch);
        for position in number * size..(number + 1) * size {
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            match self.sample(position) {
                Ok(sample) => samples.push(sample),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(Batch::new(samples, self.dataset.shape())))
    }

    /// The sample at `position` of the run, or the next usable one in its epoch.
    fn sample(&mut self, position: u64) -> Result<Sample, DataError> {
        let count = self.dataset.len();
        let (epoch, offset) = (position / count as u64, (position % count as u64) as usize);
        let mut last_error = None;
        for step in 0..count {
            let index = self.order(epoch)[(offset + step) % count];
            let error = match self.dataset.get(index, epoch) {
                Ok(sample) => return Ok(sample),
                // Else all samples would be named as damaged, one after the other.
                Err(error @ DataError::Vanished { .. }) => return Err(error),
                Err(error) if self.config.strict => {
                    return Err(DataError::Strict {
                        source: Box::new(error),
                    });
                }
                Err(error) => error,
            };
            let mut log = self.shared.skip_log();
            // The very last error is needed for the message; all others go to the log.
            if step + 1 == count {
                log.known.insert(index);
                last_error = Some(error);
            } else if log.known.insert(index) {
                log.unreported.push(SkippedSample { index, error });
            }
        }
        Err(match last_error {
            Some(error) => DataError::AllUnusable {
                count,
                source: Box::new(error),
            },
            None => DataError::NoSamples,
        })
    }

    fn order(&mut self, epoch: u64) -> &[usize] {
        if self.epoch.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            let order = permutation(self.config.seed, Stream::Order, epoch, self.dataset.len());
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(&[], |(_, order)| order)
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
