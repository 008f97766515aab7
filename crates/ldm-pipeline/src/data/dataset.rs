//! Samples by number.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    buckets::{Buckets, Size},
    decode::Picture,
    error::DataError,
    folder::{ImageEntry, ImageFolder},
    preprocess::Preprocess,
    shards::ShardDamage,
};

/// One item of a [`Dataset`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `[C, H, W]` in [-1, 1], of [`Dataset::shape`].
    pub image: Vec<f32>,
    /// What the image shows, if that is known.
    pub caption: Option<String>,
    /// The sample's number in its data set.
    pub index: usize,
}

/// Numbered samples, to be read from several threads at once.
pub trait Dataset: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// `[C, H, W]` of the sample `index`.
    fn shape(&self, index: usize) -> [usize; 3];

    /// The numbers of the samples of each shape; of all in one list if they have but one.
    fn groups(&self) -> Vec<Vec<usize>> {
        vec![(0..self.len()).collect()]
    }

    /// The sample `index`, less than [`Dataset::len`], as it is in `epoch`: augmentation may differ between epochs,
    /// but the same arguments give the same sample.
    ///
    /// # Errors
    /// When this sample can't be had; others may.
    fn get(&self, index: usize, epoch: u64) -> Result<Sample, DataError>;

    /// Whether there is no sample at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The images of a folder, decoded and preprocessed.
///
/// Images that are decoded and resized stay in memory up to a budget, since decoding a small set anew in each epoch
/// costs more than training on it waits for.
#[derive(Debug)]
pub struct ImageDataset {
    folder: ImageFolder,
    preprocess: Preprocess,
    seed: u64,
    /// The sizes to choose from; none if all images become squares.
    sizes: Vec<Size>,
    /// Found out when first asked for.
    buckets: OnceLock<Arc<Buckets>>,
    prepared: Vec<OnceLock<Picture>>,
    /// Bytes that the cache may still take.
    budget: AtomicUsize,
}

impl ImageDataset {
    /// The images of `folder`, with their augmentation drawn from `seed` and up to `cache_bytes` of prepared images
    /// kept.
    pub fn new(folder: ImageFolder, preprocess: Preprocess, seed: u64, cache_bytes: usize) -> Self {
        let prepared = folder.entries().iter().map(|_| OnceLock::new()).collect();
        Self {
            folder,
            preprocess,
            seed,
            sizes: Vec::new(),
            buckets: OnceLock::new(),
            prepared,
            budget: AtomicUsize::new(cache_bytes),
        }
    }

    /// The same images, each brought to that of `sizes` whose aspect ratio is nearest to its own; to the square if there are none.
    #[must_use]
    pub fn with_buckets(self, sizes: Vec<Size>) -> Self {
        Self {
            sizes,
            buckets: OnceLock::new(),
            ..self
        }
    }

    /// The same images with nothing random done to them, and without a cache: for one pass over all.
    pub fn without_augmentation(&self) -> Self {
        let (folder, preprocess) = (self.folder.clone(), self.preprocess.deterministic());
        Self {
            sizes: self.sizes.clone(),
            buckets: self.buckets.clone(),
            ..Self::new(folder, preprocess, self.seed, 0)
        }
    }

    /// The same images as squares, without a cache.
    pub fn squares(&self) -> Self {
        Self::new(self.folder.clone(), self.preprocess.clone(), self.seed, 0)
    }

    /// Which size each image is brought to. The first call may have to read the headers of all images.
    pub fn buckets(&self) -> &Buckets {
        self.buckets.get_or_init(|| {
            let sizes = match self.sizes.is_empty() {
                true => vec![self.preprocess.square()],
                false => self.sizes.clone(),
            };
            Arc::new(Buckets::assign(sizes, self.entries()))
        })
    }

    /// Whether there are sizes to choose from.
    pub fn has_buckets(&self) -> bool {
        !self.sizes.is_empty()
    }

    /// The images and captions, in the order of the samples' numbers.
    pub fn entries(&self) -> &[ImageEntry] {
        self.folder.entries()
    }

    /// The parts of tar files that can't be used.
    pub fn damage(&self) -> &[ShardDamage] {
        self.folder.damage()
    }

    /// An error if nothing is left of the data, see [`ImageFolder::is_gone`].
    ///
    /// # Errors
    /// [`DataError::Vanished`].
    pub fn check_present(&self) -> Result<(), DataError> {
        match self.folder.is_gone() {
            true => Err(DataError::Vanished {
                path: self.folder.root().to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// What is done to each image.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    fn decode_and_prepare(&self, index: usize) -> Result<Picture, DataError> {
        let Preprocess {
            background,
            max_pixels,
            ..
        } = self.preprocess;
        let picture = self.entries()[index].decode(background, max_pixels);
        match picture {
            Ok(picture) => Ok(self
                .preprocess
                .prepare(&picture, self.buckets().size(index))),
            Err(error @ DataError::Read { .. }) => self.check_present().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn take_budget(&self, bytes: usize) -> bool {
        self.budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }
}

impl Dataset for ImageDataset {
    fn len(&self) -> usize {
        self.entries().len()
    }

    fn shape(&self, index: usize) -> [usize; 3] {
        let size = self.buckets().size(index);
        [3, size.height as usize, size.width as usize]
    }

    fn groups(&self) -> Vec<Vec<usize>> {
        self.buckets().members().to_vec()
    }

    fn get(&self, index: usize, epoch: u64) -> Result<Sample, DataError> {
        let size = self.buckets().size(index);
        let finish = |picture: &Picture| {
            (self.preprocess).finish(picture, size, self.seed, epoch, index as u64)
        };
        let slot = &self.prepared[index];
        let image = match slot.get() {
            Some(picture) => finish(picture),
            None => {
                let picture = self.decode_and_prepare(index)?;
                let image = finish(&picture);
                let bytes = picture.bytes();
                // Another thread may have been first with the same image; then its budget comes back.
                if self.take_budget(bytes) && slot.set(picture).is_err() {
                    self.budget.fetch_add(bytes, Ordering::Relaxed);
                }
                image
            }
        };
        Ok(Sample {
            image,
            caption: self.entries()[index].caption.clone(),
            index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_images::write_greys;

    fn dataset(folder: &std::path::Path, cache_bytes: usize) -> ImageDataset {
        let preprocess = Preprocess {
            resolution: 4,
            ..Default::default()
        };
        ImageDataset::new(
            ImageFolder::scan(folder).unwrap(),
            preprocess,
            0,
            cache_bytes,
        )
    }

    #[test]
    fn a_cached_image_needs_no_file_and_the_budget_holds() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 3);
        // Two prepared images of 4 x 4 x 3 bytes.
        let dataset = dataset(dir.path(), 2 * 48 + 1);
        let before: Vec<Sample> = (0..3).map(|index| dataset.get(index, 0).unwrap()).collect();
        assert_eq!(dataset.budget.load(Ordering::Relaxed), 1);
        for entry in dataset.entries() {
            std::fs::remove_file(entry.source.file()).unwrap();
        }
        assert_eq!(dataset.get(0, 0).unwrap(), before[0]);
        assert_eq!(dataset.get(1, 0).unwrap(), before[1]);
        assert!(matches!(dataset.get(2, 0), Err(DataError::Vanished { .. })));
    }

    #[test]
    fn samples_have_the_shape_promised() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 2);
        std::fs::write(dir.path().join("01.txt"), "almost black").unwrap();
        let dataset = dataset(dir.path(), 0);
        let sample = dataset.get(1, 0).unwrap();
        assert_eq!(
            sample.image.len(),
            dataset.shape(1).iter().product::<usize>()
        );
        assert!(
            sample
                .image
                .iter()
                .all(|value| (value - (2.0 / 255.0 - 1.0)).abs() < 1e-6)
        );
        assert_eq!(sample.caption.as_deref(), Some("almost black"));
        assert_eq!(dataset.get(0, 0).unwrap().caption, None);
    }
}
