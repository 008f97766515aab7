//! Batches prepared ahead by worker threads.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    dataset::{Dataset, Sample},
    error::DataError,
    order::Order,
    worker::{Shared, SkippedSample, Worker},
};

/// Finished batches that wait for the training, for each worker.
const AHEAD: usize = 1;

/// How a [`Loader`] works.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Samples per batch, at least 1.
    pub batch: usize,
    /// Batches in a row that have one shape, counted from the run's first: those of a step, at least 1.
    pub batches_per_step: usize,
    /// Key of the samples' order.
    pub seed: u64,
    /// Threads; at least one is started.
    pub workers: usize,
    /// The number of the first batch to deliver: that of the step to resume at.
    pub start_batch: u64,
    /// Whether a sample that can't be had is an error rather than skipped.
    pub strict: bool,
}

/// Which of a run's batches a [`Loader`] delivers: `first` and every `of`-th after it, as its batches 0, 1, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Number of the first, below `of`.
    pub first: u64,
    /// Among how many loaders the batches are dealt out, at least 1.
    pub of: u64,
}

impl Share {
    /// All batches.
    pub const ALL: Self = Self { first: 0, of: 1 };

    /// The run's number of this share's batch `number`.
    fn batch(self, number: u64) -> u64 {
        number * self.of + self.first
    }
}

/// Some samples, side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[N, C, H, W]` in [-1, 1], of the given shape.
    pub images: Vec<f32>,
    /// `[N, C, H, W]`.
    pub shape: [usize; 4],
    /// One for each image, empty where there is none.
    pub captions: Vec<String>,
    /// The samples' numbers in the data set.
    pub indices: Vec<usize>,
}

impl Batch {
    /// Puts samples of the shape `[C, H, W]` side by side.
    ///
    /// # Panics
    /// When a sample has another number of values.
    pub fn new(
        samples: impl IntoIterator<Item = Sample>,
        [channels, height, width]: [usize; 3],
    ) -> Self {
        let mut batch = Self {
            images: Vec::new(),
            shape: [0, channels, height, width],
            captions: Vec::new(),
            indices: Vec::new(),
        };
        for sample in samples {
            assert_eq!(
                sample.image.len(),
                channels * height * width,
                "sample {} has another shape",
                sample.index
            );
            batch.images.extend(sample.image);
            batch.captions.push(sample.caption.unwrap_or_default());
            batch.indices.push(sample.index);
            batch.shape[0] += 1;
        }
        batch
    }
}

/// An endless iterator over the batches of a run, prepared by worker threads.
///
/// Each epoch has its own random order, and the epochs follow each other without a gap, so that a batch may have
/// samples of two. Samples of several shapes have an order for each shape, and the steps take turns among them: what of an
/// epoch doesn't fill a step is carried over to the next. A sample that can't be had is replaced by the next one of its shape in
/// its epoch's order. So batch k depends on the seed, k, the sizes of batch and step, and the data set alone: neither the number of threads nor
/// the batch that the loader started from changes it.
///
/// After an error there are no more batches. Dropping the loader ends its threads.
pub struct Loader {
    queues: Vec<Receiver<Result<Batch, DataError>>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    next: u64,
    share: Share,
    delivered: usize,
    waited: Duration,
}

impl Loader {
    /// Starts the threads; delivers every batch from `config.start_batch` on.
    ///
    /// # Errors
    /// As for [`start_share`](Self::start_share).
    ///
    /// # Panics
    /// As [`start_share`](Self::start_share).
    pub fn start(dataset: Arc<dyn Dataset>, config: LoaderConfig) -> Result<Self, DataError> {
        Self::start_share(dataset, config, Share::ALL)
    }

    /// Starts the threads; delivers the batches of `share` alone, of which `config.start_batch` counts those that are skipped.
    ///
    /// # Errors
    /// When the data set has no samples. The iterator yields an error when all samples are unusable, or one is
    /// under `strict`.
    ///
    /// # Panics
    /// When `config.batch` or `config.batches_per_step` is 0, or the system can't start a thread.
    pub fn start_share(
        dataset: Arc<dyn Dataset>,
        config: LoaderConfig,
        share: Share,
    ) -> Result<Self, DataError> {
        assert!(config.batch > 0, "a batch has at least one sample");
        assert!(config.batches_per_step > 0, "a step has at least one batch");
        if dataset.is_empty() {
            return Err(DataError::NoSamples);
        }
        let shared = Arc::new(Shared::default());
        let order = Arc::new(Order::new(
            config.seed,
            config.batch,
            config.batches_per_step,
            dataset.groups(),
        ));
        let workers = config.workers.max(1);
        let (queues, threads) = (0..workers)
            .map(|number| {
                let (results, queue) = sync_channel(AHEAD);
                let worker = Worker::new(
                    Arc::clone(&dataset),
                    Arc::clone(&order),
                    &config,
                    Arc::clone(&shared),
                );
                let first = share.batch(config.start_batch + number as u64);
                let stride = workers * share.of as usize;
                let thread = thread::Builder::new()
                    .name(format!("data-{number}"))
                    .spawn(move || worker.run(first, stride, &results))
                    .expect("the system starts a thread");
                (queue, thread)
            })
            .unzip();
        Ok(Self {
            queues,
            threads,
            shared,
            next: config.start_batch,
            share,
            delivered: 0,
            waited: Duration::ZERO,
        })
    }

    /// The samples found unusable since the last call. Each is reported once in the life of the loader.
    pub fn take_skipped(&mut self) -> Vec<SkippedSample> {
        std::mem::take(&mut self.shared.skip_log().unreported)
    }

    /// How many different samples have been found unusable.
    pub fn skipped_count(&self) -> usize {
        self.shared.skip_log().known.len()
    }

    /// How long [`Loader::next`] has waited for the threads in all: time that more workers or a larger cache could
    /// save.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.queues.is_empty() {
            return None;
        }
        let start = Instant::now();
        // The threads take turns, so that each queue is in order and their number bounds what is prepared ahead.
        let received = self.queues[self.delivered % self.queues.len()].recv();
        self.waited += start.elapsed();
        let result = received.unwrap_or(Err(DataError::WorkerLost {
            batch: self.share.batch(self.next),
        }));
        self.next += 1;
        self.delivered += 1;
        if result.is_err() {
            self.queues.clear();
        }
        Some(result)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Without a receiver, a thread that waits to deliver goes on, and ends.
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic in it has been reported as WorkerLost.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{
        ImageDataset, ImageFolder, Preprocess, Size,
        test_images::{photo, write_greys},
    };

    fn config(workers: usize, start_batch: u64) -> LoaderConfig {
        LoaderConfig {
            batch: 3,
            batches_per_step: 1,
            seed: 11,
            workers,
            start_batch,
            strict: false,
        }
    }

    fn dataset(folder: &Path) -> Arc<dyn Dataset> {
        let preprocess = Preprocess {
            resolution: 4,
            flip: 0.5,
            ..Default::default()
        };
        Arc::new(ImageDataset::new(
            ImageFolder::scan(folder).unwrap(),
            preprocess,
            11,
            1 << 20,
        ))
    }

    fn batches(folder: &Path, config: LoaderConfig, count: usize) -> Vec<Batch> {
        Loader::start(dataset(folder), config)
            .unwrap()
            .take(count)
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn batches_depend_on_seed_and_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 7);
        std::fs::write(dir.path().join("03.txt"), "three").unwrap();
        std::fs::write(dir.path().join("05.png"), "no image").unwrap();
        let expected = batches(dir.path(), config(1, 0), 12);
        assert_eq!(batches(dir.path(), config(3, 0), 12), expected);
        assert_eq!(batches(dir.path(), config(2, 5), 7), expected[5..]);
        assert_eq!(batches(dir.path(), config(0, 0), 1), expected[..1]);
        assert_ne!(
            batches(
                dir.path(),
                LoaderConfig {
                    seed: 12,
                    ..config(1, 0)
                },
                12
            ),
            expected
        );

        assert_eq!(expected[0].shape, [3, 3, 4, 4]);
        for batch in &expected {
            for (index, caption) in batch.indices.iter().zip(&batch.captions) {
                assert_eq!(caption, if *index == 3 { "three" } else { "" });
            }
        }
    }

    #[test]
    fn shares_are_dealt_out_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 7);
        let all = batches(dir.path(), config(1, 0), 12);
        for first in 0..3 {
            let share = Share { first, of: 3 };
            let own: Vec<Batch> = Loader::start_share(dataset(dir.path()), config(2, 1), share)
                .unwrap()
                .take(3)
                .map(Result::unwrap)
                .collect();
            let expected = all.iter().skip(3 + first as usize).step_by(3).cloned();
            assert!(own.into_iter().eq(expected), "share {first}");
        }
    }

    #[test]
    fn a_step_has_one_shape_in_all_shares() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..17 {
            let (width, height) = [(8, 8), (12, 8), (8, 13)][number % 3];
            photo(width, height)
                .save(dir.path().join(format!("{number:02}.png")))
                .unwrap();
        }
        let dataset = || -> Arc<dyn Dataset> {
            let folder = ImageFolder::scan(dir.path()).unwrap();
            let sizes = [[4, 4], [6, 4], [4, 6]].map(Size::from).to_vec();
            let all = ImageDataset::new(folder, Preprocess::default(), 11, 0);
            Arc::new(all.with_buckets(sizes))
        };
        // Steps of four batches of three: two micro-batches of two processes.
        let config = |workers, start_batch| LoaderConfig {
            batches_per_step: 4,
            ..config(workers, start_batch)
        };
        let take = |config, share, count| -> Vec<Batch> {
            Loader::start_share(dataset(), config, share)
                .unwrap()
                .take(count)
                .map(Result::unwrap)
                .collect()
        };
        let all = take(config(2, 0), Share::ALL, 40);
        let shapes: Vec<[usize; 4]> = all.iter().map(|batch| batch.shape).collect();
        for step in shapes.chunks(4) {
            assert!(step.iter().all(|shape| *shape == step[0]));
        }
        for shape in [[3, 3, 4, 4], [3, 3, 4, 6], [3, 3, 6, 4]] {
            assert!(shapes.contains(&shape), "{shapes:?}");
        }
        for first in 0..2 {
            let own = take(config(3, 6), Share { first, of: 2 }, 10);
            let expected = all.iter().skip(12 + first as usize).step_by(2).take(10);
            assert!(own.iter().eq(expected), "share {first}");
        }
    }

    #[test]
    fn every_epoch_visits_every_sample_in_its_own_order() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 7);
        let visited: Vec<usize> = batches(dir.path(), config(2, 0), 14)
            .into_iter()
            .flat_map(|batch| batch.indices)
            .collect();
        let epochs: Vec<&[usize]> = visited.chunks(7).collect();
        assert_eq!(epochs.len(), 6);
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert!(epochs.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn damaged_files_are_named_once_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 6);
        std::fs::write(dir.path().join("02.png"), "text").unwrap();
        let whole = std::fs::read(dir.path().join("04.png")).unwrap();
        std::fs::write(dir.path().join("04.png"), &whole[..whole.len() / 2]).unwrap();

        let mut loader = Loader::start(dataset(dir.path()), config(2, 0)).unwrap();
        for _ in 0..10 {
            let batch = loader.next().unwrap().unwrap();
            assert!(!batch.indices.contains(&2) && !batch.indices.contains(&4));
        }
        assert_eq!(loader.skipped_count(), 2);
        let mut messages: Vec<String> = loader
            .take_skipped()
            .iter()
            .map(|skipped| skipped.error.to_string())
            .collect();
        messages.sort();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(
            messages
                .iter()
                .any(|message| message.contains("02.png isn't an image")),
            "{messages:?}"
        );
        assert!(
            messages
                .iter()
                .any(|message| message.contains("04.png is damaged")),
            "{messages:?}"
        );
        loader.by_ref().take(4).for_each(drop);
        assert!(loader.take_skipped().is_empty());
    }

    #[test]
    fn strict_ends_at_the_first_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 3);
        std::fs::write(dir.path().join("01.png"), "text").unwrap();
        let mut loader = Loader::start(
            dataset(dir.path()),
            LoaderConfig {
                strict: true,
                ..config(2, 0)
            },
        )
        .unwrap();
        let error = loader.next().unwrap().unwrap_err();
        assert!(
            matches!(&error, DataError::Strict { source } if source.to_string().contains("01.png")),
            "{error:?}"
        );
        assert!(loader.next().is_none());
    }

    #[test]
    fn nothing_usable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.png"), "text").unwrap();
        std::fs::write(dir.path().join("b.png"), "text").unwrap();
        let error = Loader::start(dataset(dir.path()), config(1, 0))
            .unwrap()
            .next()
            .unwrap()
            .unwrap_err();
        assert!(
            error.to_string().contains("none of the 2 samples"),
            "{error}"
        );

        let empty = ImageFolder::scan(dir.path()).unwrap().filter(|_| false);
        let empty = ImageDataset::new(empty, Preprocess::default(), 0, 0);
        assert!(matches!(
            Loader::start(Arc::new(empty), config(1, 0)),
            Err(DataError::NoSamples)
        ));
    }

    /// Panics, as no data set should.
    struct Broken;

    impl Dataset for Broken {
        fn len(&self) -> usize {
            4
        }

        fn shape(&self, _: usize) -> [usize; 3] {
            [1, 1, 1]
        }

        fn get(&self, _: usize, _: u64) -> Result<Sample, DataError> {
            panic!("this test's data set is broken");
        }
    }

    #[test]
    fn a_lost_thread_is_an_error_not_a_hang() {
        let mut loader = Loader::start(Arc::new(Broken), config(2, 9)).unwrap();
        assert!(matches!(
            loader.next(),
            Some(Err(DataError::WorkerLost { batch: 9 }))
        ));
        assert!(loader.next().is_none());
    }

    #[test]
    fn dropping_ends_the_threads() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 4);
        let dataset = dataset(dir.path());
        let mut loader = Loader::start(Arc::clone(&dataset), config(4, 0)).unwrap();
        assert!(loader.next().unwrap().is_ok());
        drop(loader);
        assert_eq!(Arc::strong_count(&dataset), 1);
    }
}
