//! The pictures of a folder, and their features, of which those of real pictures are kept for the next time.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use ldm_eval::{Collected, Extractor, Pictures, SetStatistics, content_key, extract};
use ldm_pipeline::{
    Error, atomic,
    data::{ImageFolder, PlainImages},
    hub::Hub,
};

use super::failed;
use crate::{
    args::{CacheArgs, EvalOutputArgs},
    progress::Progress,
};

/// The images of a folder, for the crate of measures.
pub(super) struct Folder {
    images: PlainImages,
    /// What it is called in messages.
    pub(super) name: String,
}

/// [`Error`], which is of another crate, as the crate of measures wants it.
pub(super) struct Failure(Error);

impl From<ldm_eval::Error> for Failure {
    fn from(error: ldm_eval::Error) -> Self {
        Self(failed(error))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

impl Pictures for Folder {
    type Error = Failure;

    fn len(&self) -> usize {
        self.images.entries().len()
    }

    fn name(&self, index: usize) -> String {
        let location = self.images.entries()[index].location();
        location.display().to_string()
    }

    fn get(&self, index: usize) -> Result<image::RgbImage, Failure> {
        (self.images.get(index)).map_err(|error| Failure(error.into()))
    }
}

impl Folder {
    /// The pictures of `path`, the middle of each with `resolution` pixels a side, the first `count`.
    pub(super) fn open(
        path: &Path,
        resolution: Option<u64>,
        count: Option<u64>,
    ) -> Result<Self, Error> {
        let folder = ImageFolder::scan(path)?;
        if let Some(damage) = folder.damage().first() {
            return Err(Error::Request(format!(
                "{damage}: what is missing would be missing from the numbers as well"
            )));
        }
        let resolution = resolution.map(|side| side as usize);
        let mut images = PlainImages::new(&folder, resolution);
        if let Some(count) = count {
            images = images.first(count as usize);
        }
        Ok(Self {
            images,
            name: path.display().to_string(),
        })
    }

    /// The captions of those that have one, in order.
    pub(super) fn captions(&self) -> Vec<String> {
        let entries = self.images.entries().iter();
        entries.filter_map(|entry| entry.caption.clone()).collect()
    }

    /// The features of all pictures, with progress under `title`.
    pub(super) fn features(
        &self,
        title: &str,
        work: &mut Work,
        extractor: &Extractor,
    ) -> Result<Collected, Error> {
        let total = self.len() as u64;
        let progress = &mut work.progress;
        let collected = extract(
            self,
            &self.name,
            extractor,
            work.batch,
            &work.device,
            |done| {
                progress.count(title, done as u64, total, "");
                progress.flow()
            },
        );
        work.progress.finish();
        Ok(collected?)
    }

    /// The statistics of the features, from the cache if they are there.
    pub(super) fn statistics(
        &self,
        title: &str,
        work: &mut Work,
        extractor: &Extractor,
        cache: Option<&Path>,
    ) -> Result<SetStatistics, Error> {
        let kept = match cache {
            Some(cache) => {
                let key = content_key(self, extractor)?;
                Some(cache.join(format!("{key}.safetensors")))
            }
            None => None,
        };
        if let Some(path) = kept.as_ref().filter(|path| path.is_file()) {
            match SetStatistics::read(path) {
                Ok(statistics) => {
                    let path = path.display();
                    (work.progress).say(&format!("features of {} are from {path}", self.name));
                    return Ok(statistics);
                }
                Err(error) => work.progress.say(&format!("warning: {error}; made anew")),
            }
        }
        let collected = self.features(title, work, extractor)?;
        let statistics =
            SetStatistics::of(collected, extractor.name(), &self.name).map_err(failed)?;
        if let Some(path) = kept {
            let folder = path.parent().unwrap_or(Path::new("."));
            let written = fs::create_dir_all(folder)
                .map_err(|error| error.to_string())
                .and_then(|()| {
                    atomic::write_file(&path, &statistics.to_bytes())
                        .map_err(|error| error.to_string())
                });
            if let Err(problem) = written {
                let text = format!("warning: features aren't kept: {problem}");
                work.progress.say(&text);
            }
        }
        Ok(statistics)
    }
}

/// What all extraction needs.
pub(super) struct Work {
    pub(super) device: Device,
    pub(super) batch: usize,
    pub(super) progress: Progress,
}

impl Work {
    /// Nothing done yet.
    pub(super) fn new(args: &EvalOutputArgs, device: Device) -> Self {
        Self {
            device,
            batch: args.batch as usize,
            progress: Progress::new(),
        }
    }
}

/// The folder of kept features, if any are to be kept.
pub(super) fn cache(args: &CacheArgs) -> Option<PathBuf> {
    if args.no_cache {
        return None;
    }
    let default = || Hub::from_env().parts.join("eval");
    Some(args.cache.clone().unwrap_or_else(default))
}
