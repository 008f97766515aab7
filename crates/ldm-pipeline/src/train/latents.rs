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
    data::{Crop, DataError, Dataset, ImageDataset, LatentCaching, Loader, LoaderConfig, Sample},
    error::Error,
    model::FirstStage,
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
    loader: Loader,
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
    /// Latents of a training set from micro-batch `start` on; `None` if the observer stopped the encoding.
    ///
    /// All are encoded once and kept in a file of `run`, unless the configuration says otherwise or crops are random. A file that doesn't
    /// fit is an error or replaced, as configured. Without room for it, images are encoded at each visit.
    pub(super) fn open(
        config: &RunConfig,
        stage2: &Stage2Config,
        set: Arc<ImageDataset>,
        frozen: &Frozen,
        start: u64,
        run: &RunDir,
        observer: &mut Observer,
    ) -> Result<Option<Self>, Error> {
        let loader_config = LoaderConfig {
            batch: stage2.training.batch_size,
            seed: config.seed,
            workers: config.data.workers,
            start_batch: start,
            strict: config.data.strict,
        };
        let file = &run.stage(Stage::Diffusion).join("latents.safetensors");
        let damaged = DamageReport::open(run, observer);
        let cached =
            config.data.latent_cache != LatentCaching::Off && config.data.crop != Crop::Random;
        let cache = if cached {
            match open_or_fill(config, &set, frozen, loader_config.batch, file, observer) {
                Ok(cache) => Some(cache),
                Err(Unfilled::Stopped) => return Ok(None),
                Err(Unfilled::Failed(error)) => return Err(error),
                Err(Unfilled::NotWritten(error)) => {
                    let text = format!(
                        "no latents are cached: {}; each image is encoded at each visit",
                        with_causes(&error)
                    );
                    let _ = observer(Event::Warning(&text));
                    None
                }
            }
        } else {
            None
        };
        let images = Arc::clone(&set);
        let (data, first_stage): (Arc<dyn Dataset>, _) = match cache {
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
            loader: Loader::start(data, loader_config)?,
            first_stage,
            images,
            damaged,
        }))
    }

    /// How long [`LatentSource::next`] has waited in all.
    pub(super) fn waited(&self) -> Duration {
        self.loader.waited()
    }

    /// The next micro-batch.
    pub(super) fn next(
        &mut self,
        device: &Device,
        observer: &mut Observer,
    ) -> Result<LatentBatch, Error> {
        let batch = self.loader.next().expect("a loader never ends")?;
        let skipped = self.loader.take_skipped();
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
    /// Row `V * i + v` has variant v of the V of image i: 0 the image, 1 its mirror image.
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

    fn shape(&self) -> [usize; 3] {
        self.cache.row_shape()
    }

    fn get(&self, index: usize, epoch: u64) -> Result<Sample, DataError> {
        let mirrored = self.flip > 0.0
            && uniform(&mut rng(self.seed, Stream::Flip, epoch, index as u64)) < self.flip;
        let moments = (self.cache).row(variants(self.flip) * index + usize::from(mirrored));
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

/// Why there is no cache.
enum Unfilled {
    /// The observer stopped the encoding.
    Stopped,
    Failed(Error),
    /// The disk may be full.
    NotWritten(atomic::WriteError),
}

/// The cache in `file`, made first if there is none.
fn open_or_fill(
    config: &RunConfig,
    set: &ImageDataset,
    frozen: &Frozen,
    batch: usize,
    file: &Path,
    observer: &mut Observer,
) -> Result<LatentCache, Unfilled> {
    let autoencoder = config.stage1.autoencoder();
    let side = config.data.resolution / autoencoder.factor();
    let shape = CacheShape {
        rows: variants(config.data.flip) * set.len(),
        row: [2 * autoencoder.latent_channels(), side, side],
    };
    let key = CacheKey::new(config, set, &frozen.key);
    if file.exists() {
        match LatentCache::open(file, &key, shape) {
            Err(Error::LatentCache { .. })
                if config.data.latent_cache == LatentCaching::Rebuild => {}
            result => return result.map_err(Unfilled::Failed),
        }
    }
    // Whatever else than a failed write ends the encoding; the file is then not put in place.
    let mut ended = None;
    let written = atomic::write_file_with(file, |out| {
        write_header(out, &key, shape)?;
        encode_all(set, frozen, batch, shape, out, observer).map_err(|end| match end {
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
        (Ok(()), None) => LatentCache::open(file, &key, shape).map_err(Unfilled::Failed),
    }
}

/// Why an encoding ended early.
enum Ended {
    Write(io::Error),
    Other(Unfilled),
}

/// Encodes every image, and its mirror image if the shape has room for it, into rows.
fn encode_all(
    set: &ImageDataset,
    frozen: &Frozen,
    batch: usize,
    shape: CacheShape,
    out: &mut dyn io::Write,
    observer: &mut Observer,
) -> Result<(), Ended> {
    let size = shape.row_len();
    let variants = shape.rows / set.len().max(1);
    let set = set.without_augmentation();
    let parts = set.len().div_ceil(batch);
    for part in 0..parts {
        let indices = part * batch..set.len().min((part + 1) * batch);
        let mut rows = vec![f32::NAN; variants * indices.len() * size];
        let loaded = load_present(&set, indices.clone(), frozen.device)
            .map_err(|error| Ended::Other(Unfilled::Failed(error.into())))?;
        if let Some((images, read)) = loaded {
            for variant in 0..variants {
                let images = if variant == 0 {
                    images.clone()
                } else {
                    images.clone().flip([3])
                };
                let moments = frozen
                    .first_stage
                    .encode(images)
                    .moments()
                    .into_data()
                    .convert::<f32>();
                let moments = moments.as_slice::<f32>().expect("converted to f32");
                for (&index, moments) in read.iter().zip(moments.chunks_exact(size)) {
                    let row = variants * (index - indices.start) + variant;
                    rows[row * size..(row + 1) * size].copy_from_slice(moments);
                }
            }
        }
        write_rows(out, &rows).map_err(Ended::Write)?;
        if at_work(observer, "encoding images", part + 1, parts) {
            return Err(Ended::Other(Unfilled::Stopped));
        }
    }
    Ok(())
}
