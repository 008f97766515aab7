//! The latents that stage 2 trains on: encoded once and kept, or encoded batch by batch.

use std::{io, path::Path, sync::Arc};

use burn::tensor::Device;
use ldm_autoencoder::DiagonalGaussian;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    Observer, Stage,
    images::{load_images, report_skipped, to_tensor},
    run_loop::at_work,
};
use crate::{
    atomic::{self, WriteError},
    config::{RunConfig, Stage2Config},
    data::{Crop, DataError, Dataset, ImageDataset, Loader, LoaderConfig, Sample},
    error::Error,
    model::FirstStage,
    rng::{Stream, rng, uniform},
    run::RunDir,
};

/// Names in the cache file.
const MOMENTS: &str = "moments";
const KEY: &str = "key";

/// Posteriors and captions of a micro-batch.
pub(super) struct LatentBatch {
    /// Over `[N, c, h, w]`.
    pub(super) posterior: DiagonalGaussian,
    /// One caption per item, empty where there is none.
    pub(super) captions: Vec<String>,
    /// The items' numbers in the data set.
    pub(super) indices: Vec<usize>,
}

/// Micro-batches of latents in the run's order.
pub(super) struct LatentSource {
    loader: Loader,
    /// `None` if the loader already gives moments.
    first_stage: Option<FirstStage>,
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
    /// All are encoded once, by the first process, and kept in memory and in a file of `run`, unless crops are random. A file made by another autoencoder, or
    /// from other images, is replaced.
    pub(super) fn open(
        config: &RunConfig,
        stage2: &Stage2Config,
        set: Arc<ImageDataset>,
        frozen: &Frozen,
        start: u64,
        run: &RunDir,
        observer: &mut Observer,
    ) -> Result<Option<Self>, Error> {
        let workers = run.workers();
        let file = &run.stage(Stage::Diffusion).join("latents.safetensors");
        let loader_config = LoaderConfig {
            batch: stage2.training.batch_size,
            seed: config.seed,
            workers: config.data.workers,
            start_batch: start,
            strict: config.data.strict,
        };
        if config.data.crop == Crop::Random {
            return Ok(Some(Self {
                loader: Loader::start_share(set, loader_config, workers.share())?,
                first_stage: Some(frozen.first_stage.clone()),
            }));
        }
        let key = cache_key(config, &set, &frozen.key);
        let mut made = None;
        let complete = workers.first_does(|| {
            made = read_cache(file, &key);
            if made.is_none() {
                let batch = stage2.training.batch_size;
                made = encode_all(config, &set, frozen, batch, observer)?;
                if let Some(moments) = &made {
                    write_cache(file, moments, &key)?;
                }
            }
            Ok(made.is_some())
        })?;
        if !complete {
            return Ok(None);
        }
        let Some(moments) = made.or_else(|| read_cache(file, &key)) else {
            return Err(Error::Processes {
                problem: format!(
                    "{} is not what process 0 wrote there, or was made from other images",
                    file.display()
                ),
                help: "the folders of the run and of the data must be ones that all processes see",
            });
        };
        let latents = CachedLatents {
            moments,
            images: set,
            flip: config.data.flip,
            seed: config.seed,
        };
        Ok(Some(Self {
            loader: Loader::start_share(Arc::new(latents), loader_config, workers.share())?,
            first_stage: None,
        }))
    }

    /// The next micro-batch.
    pub(super) fn next(
        &mut self,
        device: &Device,
        observer: &mut Observer,
    ) -> Result<LatentBatch, Error> {
        let batch = self.loader.next().expect("a loader never ends")?;
        report_skipped(&mut self.loader, observer);
        let values = to_tensor(&batch, device);
        Ok(LatentBatch {
            posterior: match &self.first_stage {
                Some(first_stage) => first_stage.encode(values),
                None => DiagonalGaussian::from_moments(values),
            },
            captions: batch.captions,
            indices: batch.indices,
        })
    }
}

/// Moments of every image, and of its mirror image if the run mirrors.
struct Moments {
    /// `[rows, 2c, h, w]`, row-major; of N images, row `i` is image `i` and row `N + i` its mirror image. NaN where the image
    /// can't be read.
    values: Vec<f32>,
    /// `[2c, h, w]`
    shape: [usize; 3],
}

/// Moments as a data set, whose "images" have twice the latent's channels.
struct CachedLatents {
    moments: Moments,
    images: Arc<ImageDataset>,
    flip: f64,
    seed: u64,
}

impl Dataset for CachedLatents {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.moments.shape
    }

    fn get(&self, index: usize, epoch: u64) -> Result<Sample, DataError> {
        let mirrored = self.flip > 0.0
            && uniform(&mut rng(self.seed, Stream::Flip, epoch, index as u64)) < self.flip;
        let row = if mirrored { self.len() + index } else { index };
        let size: usize = self.moments.shape.iter().product();
        let moments = &self.moments.values[row * size..(row + 1) * size];
        let entry = &self.images.entries()[index];
        if moments[0].is_nan() {
            // Trying again gives the reason.
            self.images.get(index, epoch)?;
            return Err(DataError::Damaged {
                path: entry.path.clone(),
                reason: "it could not be read when its latent was cached".into(),
            });
        }
        Ok(Sample {
            image: moments.to_vec(),
            caption: entry.caption.clone(),
            index,
        })
    }
}

/// Encodes every image, and its mirror image if the run mirrors; `None` if the observer stopped it.
fn encode_all(
    config: &RunConfig,
    set: &ImageDataset,
    frozen: &Frozen,
    batch: usize,
    observer: &mut Observer,
) -> Result<Option<Moments>, Error> {
    let autoencoder = config.stage1.autoencoder();
    let side = config.data.resolution / autoencoder.factor();
    let shape = [2 * autoencoder.latent_channels(), side, side];
    let size: usize = shape.iter().product();
    let variants = if config.data.flip > 0.0 { 2 } else { 1 };
    let mut values = vec![f32::NAN; variants * set.len() * size];

    let set = set.without_augmentation();
    let parts = set.len().div_ceil(batch);
    for part in 0..parts {
        let indices = part * batch..set.len().min((part + 1) * batch);
        if let Some((images, read)) = load_images(&set, indices, frozen.device) {
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
                    let row = variant * set.len() + index;
                    values[row * size..(row + 1) * size].copy_from_slice(moments);
                }
            }
        }
        if at_work(observer, "encoding images", part + 1, parts) {
            return Ok(None);
        }
    }
    Ok(Some(Moments { values, shape }))
}

/// Identifies everything that the moments depend on.
fn cache_key(config: &RunConfig, set: &ImageDataset, vae_key: &str) -> String {
    let mut key = crc32c::crc32c(format!("{:?}", config.data.preprocess()).as_bytes());
    for entry in set.entries() {
        let metadata = entry.path.metadata().ok();
        let facts = metadata.map(|file| (file.len(), file.modified().ok()));
        key = crc32c::crc32c_append(key, format!("{}{facts:?}", entry.name).as_bytes());
    }
    format!("{vae_key}-{key:08x}")
}

/// The moments in `file`, if they were made under `key`. Whatever else is there will be overwritten.
fn read_cache(file: &Path, expected_key: &str) -> Option<Moments> {
    let bytes = std::fs::read(file).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref()?.get(KEY)? != expected_key {
        return None;
    }
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let tensor = tensors.tensor(MOMENTS).ok()?;
    let &[_, c, h, w] = tensor.shape() else {
        return None;
    };
    let floats = tensor.data().chunks_exact(4);
    let values = floats
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Some(Moments {
        values,
        shape: [c, h, w],
    })
}

fn write_cache(file: &Path, moments: &Moments, key: &str) -> Result<(), Error> {
    let [c, h, w] = moments.shape;
    let bytes: Vec<u8> = moments
        .values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let shape = vec![moments.values.len() / (c * h * w), c, h, w];
    let metadata = [(KEY.to_owned(), key.to_owned())].into();
    let encoded = TensorView::new(Dtype::F32, shape, &bytes)
        .and_then(|view| safetensors::serialize([(MOMENTS, view)], Some(metadata)))
        .map_err(|error| WriteError {
            action: "encode",
            path: file.into(),
            source: io::Error::other(error),
        })?;
    Ok(atomic::write_file(file, &encoded)?)
}
