//! The latents that stage 2 trains on: encoded once and kept, or encoded batch by batch.

use std::{io, path::Path, sync::Arc, time::Duration};

use burn::tensor::Device;
use ldm_autoencoder::DiagonalGaussian;

use super::{
    Event, Observer, Stage,
    damaged::DamageReport,
    images::{load_present, to_tensor},
    latent_cache::{CacheKey, CacheShape, LatentCache, write_header, write_rows},
    run_loop::{at_work, with_causes},
};
use crate::{
    atomic,
    config::{RunConfig, Stage2Config},
    data::{
        Crop, DataError, Dataset, ImageDataset, LatentCaching, Loader, LoaderConfig, Sample, Share,
    },
    error::Error,
    model::FirstStage,
    parallel::Workers,
    rng::{Stream, rng, uniform},
    run::RunDir,
};

/// Posteriors of a micro-batch.
pub(super) struct LatentBatch {
    /// Over `[N, c, h, w]`.
    pub(super) posterior: DiagonalGaussian,
    /// The items' numbers in the data set.
    pub(super) indices: Vec<usize>,
}

/// Micro-batches of latents in the run's order.
pub(super) struct LatentSource {
    /// `None` before the first [`seek`](Self::seek).
    loader: Option<Loader>,
    dataset: Arc<dyn Dataset>,
    config: LoaderConfig,
    share: Share,
    /// `None` if the loader already gives moments.
    first_stage: Option<FirstStage>,
    images: Arc<ImageDataset>,
    damaged: DamageReport,
}

/// The frozen first stage and what identifies it.
pub(super) struct Frozen<'a> {
    pub(super) first_stage: &'a FirstStage,
    /// Changes with the weights.
    pub(super) key: String,
    pub(super) device: &'a Device,
}

impl LatentSource {
    /// Latents of a training set; `None` if the observer stopped the encoding.
    ///
    /// All are encoded once and kept in a file of `run`, unless the configuration says otherwise or crops are random. A file that doesn't
    /// fit is an error or replaced, as configured. Without room for it, images are encoded at each visit.
    pub(super) fn open(
        config: &RunConfig,
        stage2: &Stage2Config,
        set: Arc<ImageDataset>,
        frozen: &Frozen,
        run: &RunDir,
        observer: &mut Observer,
    ) -> Result<Option<Self>, Error> {
        let loader_config = LoaderConfig {
            batch: stage2.training.batch_size,
            batches_per_step: stage2.training.accumulation * run.workers().size(),
            seed: config.seed,
            workers: config.data.workers,
            start_batch: 0,
            strict: config.data.strict,
        };
        let damaged = DamageReport::open(run, observer);
        let cached =
            config.data.latent_cache != LatentCaching::Off && config.data.crop != Crop::Random;
        let cache = if cached {
            let file = run.stage(Stage::Diffusion).join("latents.safetensors");
            let cache = FirstStageCache {
                config,
                set: &set,
                frozen,
                batch: loader_config.batch,
                file: &file,
            };
            match cache.open_together(run.workers(), observer)? {
                Filled::Stopped => return Ok(None),
                Filled::Cached(cache) => Some(cache),
                Filled::NotWritten => None,
            }
        } else {
            None
        };
        let images = Arc::clone(&set);
        let (dataset, first_stage): (Arc<dyn Dataset>, _) = match cache {
            Some(cache) => {
                let latents = CachedLatents {
                    cache,
                    images: set,
                    flip: config.data.flip,
                    seed: config.seed,
                };
                (Arc::new(latents), None)
            }
            None => (set, Some(frozen.first_stage.clone())),
        };
        Ok(Some(Self {
            loader: None,
            dataset,
            config: loader_config,
            share: run.workers().share(),
            first_stage,
            images,
            damaged,
        }))
    }

    /// Goes on with micro-batch `number`.
    pub(super) fn seek(&mut self, number: u64) -> Result<(), DataError> {
        // The threads of the former end first.
        self.loader = None;
        self.config.start_batch = number;
        self.loader = Some(Loader::start_share(
            self.dataset.clone(),
            self.config.clone(),
            self.share,
        )?);
        Ok(())
    }

    /// How long [`LatentSource::next`] has waited since the last [`seek`](Self::seek).
    pub(super) fn waited(&self) -> Duration {
        self.loader.as_ref().map_or(Duration::ZERO, Loader::waited)
    }

    /// The next micro-batch.
    pub(super) fn next(
        &mut self,
        device: &Device,
        observer: &mut Observer,
    ) -> Result<LatentBatch, Error> {
        let loader = (self.loader.as_mut()).expect("batches follow a call of `seek`");
        let batch = loader.next().expect("a loader never ends")?;
        let skipped = loader.take_skipped();
        self.damaged.name(&self.images, skipped, observer);
        let values = to_tensor(&batch, device);
        Ok(LatentBatch {
            posterior: match &self.first_stage {
                Some(first_stage) => first_stage.encode(values),
                None => DiagonalGaussian::from_moments(values),
            },
            indices: batch.indices,
        })
    }
}

/// Cached moments as a data set, whose "images" have twice the latent's channels.
struct CachedLatents {
    /// Row `V * i + v` has variant v of the V of a bucket's image i: 0 the image, 1 its mirror image.
    cache: LatentCache,
    images: Arc<ImageDataset>,
    flip: f64,
    seed: u64,
}

/// Rows per image.
fn variants(flip: f64) -> usize {
    if flip > 0.0 { 2 } else { 1 }
}

impl Dataset for CachedLatents {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn shape(&self, index: usize) -> [usize; 3] {
        self.cache
            .row_shape(self.images.buckets().place(index).bucket)
    }

    fn groups(&self) -> Vec<Vec<usize>> {
        self.images.groups()
    }

    fn get(&self, index: usize, epoch: u64) -> Result<Sample, DataError> {
        let mirrored = self.flip > 0.0
            && uniform(&mut rng(self.seed, Stream::Flip, epoch, index as u64)) < self.flip;
        let place = self.images.buckets().place(index);
        let moments = (self.cache).row(place, variants(self.flip), usize::from(mirrored));
        let entry = &self.images.entries()[index];
        if moments[0].is_nan() {
            // Trying again gives the reason. That by now all images are gone is none: the others' latents are here.
            return match self.images.get(index, epoch) {
                Err(error) if !matches!(error, DataError::Vanished { .. }) => Err(error),
                _ => Err(DataError::Damaged {
                    path: entry.location(),
                    reason: "it could not be read when its latent was cached".into(),
                }),
            };
        }
        Ok(Sample {
            image: moments,
            caption: entry.caption.clone(),
            index,
        })
    }
}

/// What the cache of a stage is made of.
struct FirstStageCache<'a> {
    config: &'a RunConfig,
    set: &'a ImageDataset,
    frozen: &'a Frozen<'a>,
    /// Images that are encoded together.
    batch: usize,
    file: &'a Path,
}

/// The outcome of looking for a cache and, if there is none, making one.
enum Filled {
    /// The observer stopped the encoding.
    Stopped,
    Cached(LatentCache),
    /// The disk may be full; the observer knows.
    NotWritten,
}

/// Why there is no cache.
enum Unfilled {
    /// The observer stopped the encoding.
    Stopped,
    Failed(Error),
    /// The disk may be full.
    NotWritten(atomic::WriteError),
}

impl FirstStageCache<'_> {
    /// The cache, made first by the first process if there is none.
    fn open_together(&self, workers: &Workers, observer: &mut Observer) -> Result<Filled, Error> {
        let mut own = None;
        workers.first_does(|| {
            own = Some(match self.open_or_fill(observer) {
                Ok(cache) => Filled::Cached(cache),
                Err(Unfilled::Stopped) => Filled::Stopped,
                Err(Unfilled::Failed(error)) => return Err(error),
                Err(Unfilled::NotWritten(error)) => {
                    let text = format!(
                        "no latents are cached: {}; each image is encoded at each visit",
                        with_causes(&error)
                    );
                    let _ = observer(Event::Warning(&text));
                    Filled::NotWritten
                }
            });
            Ok(true)
        })?;
        let number = own.as_ref().map_or(0, |own| match own {
            Filled::Stopped => 0,
            Filled::Cached(_) => 1,
            Filled::NotWritten => 2,
        });
        Ok(match (own, workers.numbers(number)[0]) {
            (Some(own), _) => own,
            (None, 1) => Filled::Cached(LatentCache::open(self.file, &self.key(), &self.shapes())?),
            (None, 2) => Filled::NotWritten,
            (None, _) => Filled::Stopped,
        })
    }

    fn key(&self) -> CacheKey {
        CacheKey::new(self.config, self.set, &self.frozen.key)
    }

    /// Of each bucket.
    fn shapes(&self) -> Vec<CacheShape> {
        let autoencoder = self.config.stage1.autoencoder();
        let buckets = self.set.buckets();
        let side = |pixels: u32| pixels as usize / autoencoder.factor();
        (buckets.sizes().iter().zip(buckets.members()))
            .map(|(&size, members)| CacheShape {
                bucket: self.set.has_buckets().then_some(size),
                rows: variants(self.config.data.flip) * members.len(),
                row: [
                    2 * autoencoder.latent_channels(),
                    side(size.height),
                    side(size.width),
                ],
            })
            .collect()
    }

    fn open_or_fill(&self, observer: &mut Observer) -> Result<LatentCache, Unfilled> {
        let (key, shapes, file) = (self.key(), self.shapes(), self.file);
        if file.exists() {
            match LatentCache::open(file, &key, &shapes) {
                Err(Error::LatentCache { .. })
                    if self.config.data.latent_cache == LatentCaching::Rebuild => {}
                result => return result.map_err(Unfilled::Failed),
            }
        }
        // Whatever else than a failed write ends the encoding; the file is then not put in place.
        let mut ended = None;
        let written = atomic::write_file_with(file, |out| {
            write_header(out, &key, &shapes)?;
            self.encode_all(&shapes, out, observer)
                .map_err(|end| match end {
                    Ended::Write(error) => error,
                    Ended::Other(reason) => {
                        ended = Some(reason);
                        io::Error::other("the encoding ended early")
                    }
                })
        });
        match (written, ended) {
            (_, Some(reason)) => Err(reason),
            (Err(error), None) => Err(Unfilled::NotWritten(error)),
            (Ok(()), None) => LatentCache::open(file, &key, &shapes).map_err(Unfilled::Failed),
        }
    }
    /// Encodes every image, and its mirror image if the run mirrors, into rows.
    fn encode_all(
        &self,
        shapes: &[CacheShape],
        out: &mut dyn io::Write,
        observer: &mut Observer,
    ) -> Result<(), Ended> {
        let variants = variants(self.config.data.flip);
        let set = self.set.without_augmentation();
        let buckets = self.set.buckets();
        let parts = buckets.chunks(self.batch);
        for (part, indices) in parts.iter().enumerate() {
            let first = buckets.place(indices[0]);
            let size = shapes[first.bucket].row_len();
            let mut rows = vec![f32::NAN; variants * indices.len() * size];
            let loaded = load_present(&set, indices, self.frozen.device)
                .map_err(|error| Ended::Other(Unfilled::Failed(error.into())))?;
            if let Some((images, read)) = loaded {
                for variant in 0..variants {
                    let images = if variant == 0 {
                        images.clone()
                    } else {
                        images.clone().flip([3])
                    };
                    let moments = (self.frozen.first_stage)
                        .encode(images)
                        .moments()
                        .into_data()
                        .convert::<f32>();
                    let moments = moments.as_slice::<f32>().expect("converted to f32");
                    for (&index, moments) in read.iter().zip(moments.chunks_exact(size)) {
                        let position = buckets.place(index).position - first.position;
                        let row = variants * position + variant;
                        rows[row * size..(row + 1) * size].copy_from_slice(moments);
                    }
                }
            }
            write_rows(out, &rows).map_err(Ended::Write)?;
            if at_work(observer, "encoding images", part + 1, parts.len()) {
                return Err(Ended::Other(Unfilled::Stopped));
            }
        }
        Ok(())
    }
}

/// Why an encoding ended early.
enum Ended {
    Write(io::Error),
    Other(Unfilled),
}
