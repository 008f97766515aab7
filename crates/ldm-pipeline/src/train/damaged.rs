//! Naming unusable images, once in the life of a run.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{Event, Observer};
use crate::{
    data::{DataError, Dataset, ImageDataset, SkippedSample},
    run::RunDir,
};

/// Held from looking at what was named to adding to it.
static NAMING: Mutex<()> = Mutex::new(());

/// Remembers which images were named, in `damaged.txt` in the run's directory, across stages and sessions.
pub(super) struct DamageReport {
    file: PathBuf,
    known: HashSet<String>,
}

impl DamageReport {
    /// With what earlier stages and sessions of `run` named, which is told as a number.
    pub(super) fn open(run: &RunDir, observer: &mut Observer) -> Self {
        let mut report = Self {
            file: run.path().join("damaged.txt"),
            known: HashSet::new(),
        };
        report.learn();
        if !report.known.is_empty() {
            let text = format!(
                "images that can't be used, named before: {}, listed in {}",
                report.known.len(),
                report.file.display()
            );
            let _ = observer(Event::Note(&text));
        }
        report
    }

    /// Reads what was named, if anything was.
    fn learn(&mut self) {
        if let Ok(text) = fs::read_to_string(&self.file) {
            self.known.extend(text.lines().map(str::to_owned));
        }
    }

    /// Names those of `skipped`, samples of `set`, that weren't named before.
    pub(super) fn name(
        &mut self,
        set: &ImageDataset,
        skipped: Vec<SkippedSample>,
        observer: &mut Observer,
    ) {
        let location = |index: usize| set.entries()[index].location().display().to_string();
        if (skipped.iter()).all(|sample| self.known.contains(&location(sample.index))) {
            return;
        }
        // Another device, or another process, may have come across one of them in another epoch.
        let alone = NAMING.lock().unwrap_or_else(PoisonError::into_inner);
        self.learn();
        let mut new = String::new();
        let mut warnings = Vec::new();
        for SkippedSample { index, error } in skipped {
            let location = location(index);
            if self.known.insert(location.clone()) {
                warnings.push(format!("{error}; skipped, {} so far", self.known.len()));
                new += &location;
                new.push('\n');
            }
        }
        // If this fails, such as on a full disk, another session names them again.
        let _ = File::options()
            .create(true)
            .append(true)
            .open(&self.file)
            .and_then(|mut file| file.write_all(new.as_bytes()));
        drop(alone);
        for text in warnings {
            let _ = observer(Event::Warning(&text));
        }
    }

    /// Reads the first `count` images of a set that no loader goes through, and names the unusable ones.
    ///
    /// # Errors
    /// If the data are gone, or an image is unusable under `strict`.
    pub(super) fn check(
        &mut self,
        set: &ImageDataset,
        count: usize,
        strict: bool,
        observer: &mut Observer,
    ) -> Result<(), DataError> {
        let skipped: Vec<SkippedSample> = (0..count.min(set.len()))
            .into_par_iter()
            .filter_map(|index| match set.get(index, 0) {
                Ok(_) => None,
                Err(error @ DataError::Vanished { .. }) => Some(Err(error)),
                Err(error) if strict => Some(Err(DataError::Strict {
                    source: Box::new(error),
                })),
                Err(error) => Some(Ok(SkippedSample { index, error })),
            })
            .collect::<Result<_, _>>()?;
        self.name(set, skipped, observer);
        Ok(())
    }
}
