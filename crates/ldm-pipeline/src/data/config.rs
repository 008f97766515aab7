//! The data section of a run's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    buckets::Size,
    dataset::ImageDataset,
    decode::DEFAULT_MAX_PIXELS,
    error::DataError,
    folder::ImageFolder,
    preprocess::{Crop, Fit, Preprocess},
};

/// The key of the sizes to choose from.
const BUCKETS: &str = "data.buckets";

/// Where the images are and how they reach the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// The folder of images or tar files, or one tar file; the command line's `--data` replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Width and height of the samples, in pixels; with `buckets` of held-out images and sample sheets only.
    pub resolution: usize,
    /// Sizes, as `[width, height]`, each training image being brought to the one of the nearest aspect ratio; without any, to a square.
    pub buckets: Vec<Size>,
    /// How an image of another aspect ratio than its sample's gets there: `crop`, `pad` or `stretch`.
    pub fit: Fit,
    /// Which part a crop keeps: `center` or `random`.
    pub crop: Crop,
    /// Probability of mirroring a sample left to right.
    pub flip: f64,
    /// The colour behind transparent pixels and around padded images, in sRGB.
    pub background: [u8; 3],
    /// Images that declare more pixels than this count as damaged.
    pub max_pixels: u64,
    /// Share of the images held out for validation, chosen by a hash of their names.
    pub validation: f64,
    /// Threads that decode images ahead of the training.
    pub workers: usize,
    /// Memory for decoded and resized images, in MiB; what doesn't fit is decoded again at each visit.
    pub cache_mib: usize,
    /// Whether a damaged image ends the run instead of being named and skipped.
    pub strict: bool,
    /// Whether stage 2 keeps latents in a file: `use`, `rebuild` or `off`.
    pub latent_cache: LatentCaching,
}

/// Whether the latents that stage 2 trains on are encoded once and kept in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentCaching {
    /// They are; a file that was made from something else is an error.
    #[default]
    Use,
    /// They are; a file that was made from something else is replaced.
    Rebuild,
    /// They are encoded at each visit.
    Off,
}

impl Default for DataConfig {
    fn default() -> Self {
        let preprocess = Preprocess::default();
        Self {
            path: None,
            resolution: preprocess.resolution,
            buckets: Vec::new(),
            fit: preprocess.fit,
            crop: preprocess.crop,
            flip: preprocess.flip,
            background: preprocess.background,
            max_pixels: DEFAULT_MAX_PIXELS,
            validation: 0.05,
            workers: 2,
            cache_mib: 1024,
            strict: false,
            latent_cache: LatentCaching::Use,
        }
    }
}

impl DataConfig {
    /// Checks the ranges of the values.
    ///
    /// # Errors
    /// The key at fault, and what is wrong with it, to be read after the key.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(1..=16_384).contains(&self.resolution) {
            return Err((
                "data.resolution",
                format!("is {}, but must be in 1..=16384", self.resolution),
            ));
        }
        self.validate_buckets()?;
        if !(0.0..=1.0).contains(&self.flip) {
            return Err((
                "data.flip",
                format!("is {}, but a probability is between 0 and 1", self.flip),
            ));
        }
        if !(0.0..1.0).contains(&self.validation) {
            let problem = format!(
                "is {}, but must be at least 0 and less than 1",
                self.validation
            );
            return Err(("data.validation", problem));
        }
        if self.workers == 0 {
            return Err((
                "data.workers",
                "is 0, but at least one thread must load the images".into(),
            ));
        }
        Ok(())
    }

    fn validate_buckets(&self) -> Result<(), (&'static str, String)> {
        let sides = 1..=16_384;
        let fits = |size: &Size| sides.contains(&size.width) && sides.contains(&size.height);
        if let Some(size) = self.buckets.iter().find(|size| !fits(size)) {
            let problem = format!("has {size}, but both sides must be in 1..=16384");
            return Err((BUCKETS, problem));
        }
        for (number, second) in self.buckets.iter().enumerate() {
            let mut before = self.buckets[..number].iter();
            if let Some(first) = before.find(|first| first.is_similar(*second)) {
                let problem = format!(
                    "has {first} and {second}, of one aspect ratio: no image would go to the second"
                );
                return Err((BUCKETS, problem));
            }
        }
        Ok(())
    }

    /// All sizes that samples have: the square, which sheets and held-out images have, and those of the buckets.
    pub fn sizes(&self) -> Vec<(&'static str, Size)> {
        let square = ("data.resolution", self.preprocess().square());
        let buckets = self.buckets.iter().map(|size| (BUCKETS, *size));
        std::iter::once(square).chain(buckets).collect()
    }

    /// The size with the most pixels among those of training samples.
    pub fn largest_size(&self) -> Size {
        let largest = self.buckets.iter().copied().max_by_key(|size| size.area());
        largest.unwrap_or_else(|| self.preprocess().square())
    }

    /// What is done to each image.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess {
            resolution: self.resolution,
            fit: self.fit,
            crop: self.crop,
            flip: self.flip,
            background: self.background,
            max_pixels: self.max_pixels,
        }
    }

    /// The training and the validation part of `folder`, the latter never augmented and always square. They share the memory of
    /// `cache_mib` by their numbers of images.
    pub fn datasets(&self, folder: ImageFolder, seed: u64) -> (ImageDataset, ImageDataset) {
        let all = folder.entries().len().max(1) as f64;
        let (training, validation) = folder.split(self.validation);
        let cache_bytes = |part: &ImageFolder| {
            ((self.cache_mib << 20) as f64 * (part.entries().len() as f64 / all)) as usize
        };
        let (for_training, for_validation) = (cache_bytes(&training), cache_bytes(&validation));
        (
            ImageDataset::new(training, self.preprocess(), seed, for_training)
                .with_buckets(self.buckets.clone()),
            ImageDataset::new(
                validation,
                self.preprocess().deterministic(),
                seed,
                for_validation,
            ),
        )
    }

    /// Scans [`DataConfig::path`] and splits it: see [`DataConfig::datasets`].
    ///
    /// # Errors
    /// Those of [`ImageFolder::scan`], when there is no path, and when a tar file is damaged under
    /// [`DataConfig::strict`].
    pub fn open(&self, seed: u64) -> Result<(ImageDataset, ImageDataset), DataError> {
        let path = self.path.as_ref().ok_or(DataError::NoFolder)?;
        let folder = ImageFolder::scan(path)?;
        if let (true, Some(damage)) = (self.strict, folder.damage().first()) {
            return Err(DataError::Strict {
                source: Box::new(damage.clone().into()),
            });
        }
        Ok(self.datasets(folder, seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named() {
        assert_eq!(DataConfig::default().validate(), Ok(()));
        let of = |text: &str| {
            toml::from_str::<DataConfig>(text)
                .unwrap()
                .validate()
                .unwrap_err()
                .0
        };
        assert_eq!(of("resolution = 0"), "data.resolution");
        assert_eq!(of("buckets = [[64, 48], [0, 64]]"), "data.buckets");
        assert_eq!(of("buckets = [[64, 20000]]"), "data.buckets");
        assert_eq!(
            of("buckets = [[64, 48], [32, 32], [32, 24]]"),
            "data.buckets"
        );
        assert_eq!(of("flip = 1.5"), "data.flip");
        assert_eq!(of("flip = nan"), "data.flip");
        assert_eq!(of("validation = 1.0"), "data.validation");
        assert_eq!(of("workers = 0"), "data.workers");
        let error = toml::from_str::<DataConfig>("fit = \"squeeze\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("crop") && error.contains("stretch"),
            "{error}"
        );
    }

    #[test]
    fn written_and_read_again() {
        let config = DataConfig {
            path: Some("pictures".into()),
            crop: Crop::Random,
            buckets: vec![Size::from([80, 48]), Size::square(64)],
            ..Default::default()
        };
        assert_eq!(
            toml::from_str::<DataConfig>(&toml::to_string(&config).unwrap()).unwrap(),
            config
        );
        assert!(matches!(
            DataConfig::default().open(0),
            Err(DataError::NoFolder)
        ));
    }
}
