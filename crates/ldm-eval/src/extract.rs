//! From pictures to features.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use ldm_autoencoder::Lpips;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    error::Error,
    features::Features,
    gaussian::{Gaussian, GaussianAccumulator},
    inception::{INPUT_SIZE, InceptionV3},
    resize::{Convention, network_input},
};

/// Side in pixels that pictures are brought to for VGG16, that of its training.
pub const VGG_SIZE: usize = 224;
/// Channels of VGG16's last stage.
const VGG_CHANNELS: usize = 512;

/// What features are.
#[derive(Debug)]
pub enum Extractor {
    /// The last pool of Inception v3, and with it logits and the intermediate features of sFID.
    Inception {
        /// The network.
        network: Box<InceptionV3>,
        /// How pictures become its input.
        convention: Convention,
        /// What tells its weights from others.
        weights: String,
    },
    /// The activations of VGG16's last stage after their ReLU, averaged over the picture: 512 features.
    Vgg {
        /// The network; heads are of no effect.
        network: Lpips,
        /// Side in pixels that pictures are brought to, as under [`Convention::TorchFidelity`].
        side: usize,
        /// What tells its weights from others.
        weights: String,
    },
    /// The picture itself: distances are root mean squares over all pixels and channels, in units of the range from black to white.
    Pixels,
}

impl Extractor {
    /// What the features are, down to the weights: statistics of equal names can be compared.
    pub fn name(&self) -> String {
        match self {
            Self::Inception {
                convention,
                weights,
                ..
            } => {
                let resize = match convention {
                    Convention::TorchFidelity => "torch-fidelity",
                    Convention::PytorchFid => "pytorch-fid",
                };
                format!("Inception v3 pool3, resized as {resize}, weights {weights}")
            }
            Self::Vgg { side, weights, .. } => {
                format!("VGG16 relu5_3 mean at {side} pixels, weights {weights}")
            }
            Self::Pixels => "pixels".into(),
        }
    }

    /// The network in a word.
    fn network(&self) -> &'static str {
        match self {
            Self::Inception { .. } => "Inception",
            Self::Vgg { .. } => "VGG16",
            Self::Pixels => "identity",
        }
    }
}

/// Pictures by number, to be read from several threads at once.
pub trait Pictures: Sync {
    /// What reading fails with.
    type Error: From<Error> + Send;

    /// The number of pictures.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to call a picture in messages.
    fn name(&self, index: usize) -> String;

    /// The picture `index`, less than [`len`](Self::len).
    ///
    /// # Errors
    /// When it can't be read.
    fn get(&self, index: usize) -> Result<RgbImage, Self::Error>;
}

/// The features of some pictures.
#[derive(Clone, Debug)]
pub struct Collected {
    /// `[N, D]`.
    pub features: Features,
    /// `[N, 1008]` of Inception.
    pub logits: Option<Features>,
    /// The Gaussian of the intermediate features of Inception; `None` of one picture or with another network.
    pub spatial: Option<Gaussian>,
}

/// Takes pictures in, batch by batch, and keeps their features.
#[derive(Debug)]
pub struct Collector<'a> {
    extractor: &'a Extractor,
    device: &'a Device,
    features: Option<Features>,
    logits: Option<Features>,
    spatial: Option<GaussianAccumulator>,
    first: Option<(String, [u32; 2])>,
}

impl<'a> Collector<'a> {
    /// Nothing yet.
    pub fn new(extractor: &'a Extractor, device: &'a Device) -> Self {
        Self {
            extractor,
            device,
            features: None,
            logits: None,
            spatial: None,
            first: None,
        }
    }

    /// Number of pictures so far.
    pub fn count(&self) -> usize {
        self.features.as_ref().map_or(0, Features::len)
    }

    /// Takes in pictures, which go through the network together.
    ///
    /// # Errors
    /// If one has another size than those before, or the network gives no numbers.
    pub fn push(
        &mut self,
        images: &[RgbImage],
        name: impl Fn(usize) -> String,
    ) -> Result<(), Error> {
        for (index, image) in images.iter().enumerate() {
            self.check_size(image, || name(index))?;
        }
        if images.is_empty() {
            return Ok(());
        }
        match self.extractor {
            Extractor::Inception {
                network,
                convention,
                ..
            } => {
                let input = network_input(images, INPUT_SIZE, *convention, self.device);
                let output = network.forward(input);
                let [pool3, classes, places] = network.dims();
                self.keep(pool3, &values(output.pool3))?;
                let logits = values(output.logits_unbiased);
                (self.logits.get_or_insert_with(|| Features::new(classes))).push(&logits);
                let spatial = values(output.spatial);
                (self
                    .spatial
                    .get_or_insert_with(|| GaussianAccumulator::new(places)))
                .push(&spatial);
            }
            Extractor::Vgg { network, side, .. } => {
                let input = network_input(images, *side, Convention::TorchFidelity, self.device);
                let output = network.last_stage(input);
                let [_, channels, ..] = output.dims();
                debug_assert_eq!(channels, VGG_CHANNELS);
                let means = output.flatten::<3>(2, 3).mean_dim(2).flatten::<2>(1, 2);
                self.keep(channels, &values(means))?;
            }
            Extractor::Pixels => {
                for image in images {
                    let length = image.as_raw().len();
                    let scale = 1.0 / (255.0 * (length as f64).sqrt());
                    let row: Vec<f32> = (image.as_raw().iter())
                        .map(|&level| (f64::from(level) * scale) as f32)
                        .collect();
                    self.keep(length, &row)?;
                }
            }
        }
        Ok(())
    }

    /// The features of all pictures.
    ///
    /// # Errors
    /// If there was none; `set` is what the pictures are called.
    pub fn finish(self, set: &str) -> Result<Collected, Error> {
        let features = self.features.ok_or_else(|| Error::TooFew {
            set: set.into(),
            found: "no pictures".into(),
            what: "a measurement",
            needed: 1,
        })?;
        Ok(Collected {
            features,
            logits: self.logits,
            spatial: self.spatial.and_then(GaussianAccumulator::finish),
        })
    }

    fn keep(&mut self, dim: usize, rows: &[f32]) -> Result<(), Error> {
        if rows.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                network: self.extractor.network(),
            });
        }
        (self.features.get_or_insert_with(|| Features::new(dim))).push(rows);
        Ok(())
    }

    fn check_size(&mut self, image: &RgbImage, name: impl Fn() -> String) -> Result<(), Error> {
        let found = [image.width(), image.height()];
        let (first, expected) = self.first.get_or_insert_with(|| (name(), found));
        if *expected == found {
            return Ok(());
        }
        Err(Error::Sizes {
            name: name(),
            found,
            first: first.clone(),
            expected: *expected,
        })
    }
}

/// The features of all pictures, `batch` at a time. `on_progress` hears how many are done, and may stop the work.
///
/// # Errors
/// If a picture can't be read, they differ in size, there is none, or the work was stopped; `set` is what they are called.
pub fn extract<P: Pictures>(
    pictures: &P,
    set: &str,
    extractor: &Extractor,
    batch: usize,
    device: &Device,
    mut on_progress: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Collected, P::Error> {
    let mut collector = Collector::new(extractor, device);
    for first in (0..pictures.len()).step_by(batch.max(1)) {
        let last = pictures.len().min(first + batch.max(1));
        let images = (first..last)
            .into_par_iter()
            .map(|index| pictures.get(index))
            .collect::<Result<Vec<RgbImage>, _>>()?;
        collector.push(&images, |index| pictures.name(first + index))?;
        if on_progress(last).is_break() {
            return Err(Error::Stopped.into());
        }
    }
    Ok(collector.finish(set)?)
}

/// A key of the features that `extractor` gives of `pictures`: of all pixels and of what the features are.
///
/// # Errors
/// If a picture can't be read.
pub fn content_key<P: Pictures>(pictures: &P, extractor: &Extractor) -> Result<String, P::Error> {
    let digests = (0..pictures.len())
        .into_par_iter()
        .map(|index| {
            let image = pictures.get(index)?;
            let mut hash = Sha256::new();
            hash.update(image.width().to_le_bytes());
            hash.update(image.height().to_le_bytes());
            hash.update(image.as_raw());
            Ok(hash.finalize())
        })
        .collect::<Result<Vec<_>, P::Error>>()?;
    let mut hash = Sha256::new();
    hash.update(extractor.name());
    for digest in digests {
        hash.update(digest);
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
