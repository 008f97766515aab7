//! `ldm report`: a run, finished or still going on, as one HTML page that needs nothing but itself.
//!
//! [`write_report`] gathers what the run directory holds, of which any part may be missing, growing or damaged, and renders it. It changes
//! nothing in the run but the page. [`draw_curves`] makes a picture of the main figures.

mod curves;
mod figures;
mod html;
mod journal;
mod page;
mod picture_of_curves;
mod progress;
mod sheets;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
    time::SystemTime,
};

use crate::{
    atomic::write_file,
    error::Error,
    hardware::{self, Hardware},
    run::RunDir,
    train::Stage,
};

use curves::Chart;
use journal::Journal;
pub use picture_of_curves::draw_curves;
use progress::Progress;
use sheets::{History, Picture};

/// By which a page is known as one of ours.
const MARK: &str = "<meta name=\"generator\" content=\"ldm report\">";
/// Bytes of pictures in a page before they become base64, which is a third longer: with them it stays below 20 MiB.
const PICTURE_BYTES: usize = 14 << 20;

/// What a page shows.
struct Report {
    /// Name of the run's folder.
    name: String,
    /// The folder with all that leads to it.
    path: String,
    written: SystemTime,
    stages: Vec<StageReport>,
    /// Sheets of a quickstart: title and picture.
    results: Vec<(&'static str, Picture)>,
    journal: Journal,
    /// `config.toml` as it is.
    config: String,
    /// Why the configuration can't be understood, if so.
    config_problem: Option<String>,
    hardware: Result<Option<Vec<Hardware>>, Error>,
    /// What the run has exported.
    model: &'static str,
}

struct StageReport {
    stage: Stage,
    progress: Progress,
    charts: Vec<Chart>,
    history: History,
}

/// Writes what the run in the directory `run` holds by now as an HTML page to `out`, which may be an older report but no other file.
///
/// # Errors
/// If `run` is no run directory or can't be read, or `out` can't be written or is something else.
pub fn write_report(run: &Path, out: &Path) -> Result<(), Error> {
    let report = gather(run, SystemTime::now())?;
    refuse_other_files(out)?;
    write_file(out, page::render(&report).as_bytes())?;
    Ok(())
}

fn gather(path: &Path, now: SystemTime) -> Result<Report, Error> {
    let run = RunDir::at(path);
    let config = read_config(path, &run.config())?;
    let (settings, config_problem) = match config.parse::<toml::Table>() {
        Ok(settings) => (settings, None),
        Err(error) => (toml::Table::new(), Some(error.to_string())),
    };
    let journal = Journal::read(&run.log());
    let mut stages = Vec::new();
    for stage in [Stage::Vae, Stage::Diffusion] {
        let configured = settings.contains_key(stage.folder());
        if !configured && !run.stage(stage).is_dir() {
            continue;
        }
        let curves = curves::read(&run.metrics(stage))?;
        stages.push(StageReport {
            stage,
            progress: Progress::of(&run, stage, &settings, &curves, now),
            charts: curves.charts(),
            history: History::default(),
        });
    }

    let mut budget = PICTURE_BYTES;
    let mut results = Vec::new();
    for (title, name) in [
        ("Samples", "samples.png"),
        ("Reconstructions", "reconstructions.png"),
    ] {
        // Present after a quickstart only.
        if let Some(picture) = Picture::read(&path.join(name), budget / 4, false) {
            budget -= picture.bytes.len();
            results.push((title, picture));
        }
    }
    // Half for each of two stages, or what the other leaves.
    let sizes: Vec<usize> = (stages.iter())
        .map(|stage| sheets::size(&run.samples(stage.stage)))
        .collect();
    let half = budget / 2;
    for (index, stage) in stages.iter_mut().enumerate() {
        let others = sizes[index + 1..].iter().sum::<usize>().min(half);
        stage.history = History::read(&run.samples(stage.stage), budget - others);
        budget -= stage.history.bytes();
    }

    let whole = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    Ok(Report {
        name: name.to_string_lossy().into_owned(),
        path: whole.display().to_string(),
        written: now,
        stages,
        results,
        journal,
        config,
        config_problem,
        hardware: hardware::read(&run.hardware()),
        model: exported(&run.model()),
    })
}

/// The text of a run's `config.toml`, by which a directory is known as a run.
fn read_config(run: &Path, config: &Path) -> Result<String, Error> {
    match fs::read(config) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && run.is_dir() => {
            Err(Error::NoRun(run.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::NoRun(run.into())),
        Err(error) => Err(Error::Read {
            path: if run.exists() { config } else { run }.into(),
            source: error,
        }),
    }
}

fn exported(model: &Path) -> &'static str {
    if model.join("model_index.json").is_file() {
        "complete, in model/"
    } else if model.join("vqvae").is_dir() {
        "the autoencoder, in model/vqvae/"
    } else {
        "nothing yet"
    }
}

/// A slip of `--out` must not cost a configuration or a log.
fn refuse_other_files(out: &Path) -> Result<(), Error> {
    let mut head = Vec::new();
    // What can't be read is for the writing to complain of.
    if let Ok(file) = File::open(out)
        && file.take(4096).read_to_end(&mut head).is_ok()
        && !head.is_empty()
        && !String::from_utf8_lossy(&head).contains(MARK)
    {
        return Err(Error::Request(format!(
            "{} exists and is no report: choose another --out, or remove it",
            out.display()
        )));
    }
    Ok(())
}
