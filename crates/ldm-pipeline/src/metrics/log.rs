//! `metrics.jsonl`: append-only, one JSON object a step, cut back to the resumed step when a run goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::MetricsError;

const STEP: &str = "step";
const SECONDS: &str = "seconds";

/// The figures of one training step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepMetrics {
    /// The step they belong to.
    pub step: u64,
    /// Training time until then, in seconds, over all sessions of the run.
    pub seconds: f64,
    /// Named figures; one that was not finite reads as NaN.
    pub values: BTreeMap<String, f64>,
}

/// The open `metrics.jsonl` of a run.
///
/// Each step becomes one line, `{"step":7,"seconds":3.2,"loss":0.51}`, handed to the operating system in a single
/// write: a killed process loses at most the line that it was writing. JSON has no NaN or infinity, so a figure that
/// is not finite is written as `null`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    started: Instant,
    elapsed_before: Duration,
}

impl MetricsLog {
    /// Opens the log at `path`, creating it if missing, for a run whose next step is `next_step`.
    ///
    /// Lines of `next_step` and later ones, which the run is about to write again, are cut off, and with them a last
    /// line torn by a crash. The clock goes on from the last line kept.
    ///
    /// # Errors
    /// [`MetricsError`] naming the file when it can't be read or written.
    pub fn open(path: &Path, next_step: u64) -> Result<Self, MetricsError> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(MetricsError::io("open", path))?;
        let elapsed_before =
            cut_back(&mut file, next_step).map_err(MetricsError::io("continue", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            started: Instant::now(),
            elapsed_before,
        })
    }

    /// Training time so far, over all sessions of the run.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed_before + self.started.elapsed()
    }

    /// Appends the figures of `step`. The names `step` and `seconds` are taken.
    ///
    /// # Errors
    /// [`MetricsError`] naming the file, when the disk is full for instance. A later call may succeed: what a failed
    /// one had already written is taken back.
    pub fn log<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), MetricsError> {
        let mut record = Map::new();
        record.insert(STEP.into(), step.into());
        record.insert(SECONDS.into(), rounded(self.elapsed().as_secs_f64()));
        for (name, value) in values {
            debug_assert!(
                name != STEP && name != SECONDS,
                "`{name}` is a field of every record"
            );
            record.insert(name.into(), Value::from(value));
        }
        let mut line = Value::Object(record).to_string();
        line.push('\n');

        let path = &self.path;
        let end = self
            .file
            .stream_position()
            .map_err(MetricsError::io("write", path))?;
        self.file.write_all(line.as_bytes()).map_err(|source| {
            // If taking it back fails too, the reader's tolerance of a torn last line covers it.
            let _ = self
                .file
                .set_len(end)
                .and_then(|()| self.file.seek(SeekFrom::Start(end)));
            MetricsError::io("write", path)(source)
        })
    }
}

/// A clock of milliseconds: more digits would only make the file longer.
fn rounded(seconds: f64) -> Value {
    Value::from((seconds * 1e3).round() / 1e3)
}

/// Truncates before the first line that is of `next_step` or later, or unreadable; returns the time in the last kept.
fn cut_back(file: &mut File, next_step: u64) -> io::Result<Duration> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut kept = 0;
    let mut seconds = 0.0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        match parse_line(line) {
            Some(record) if record.step < next_step => {
                kept += line.len();
                seconds = record.seconds;
            }
            _ => break,
        }
    }
    file.set_len(kept as u64)?;
    file.seek(SeekFrom::Start(kept as u64))?;
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// Reads a `metrics.jsonl`, also of a run that is still going on: a torn last line is ignored.
///
/// # Errors
/// [`MetricsError`] naming the file, and the line if one in the middle is damaged.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>, MetricsError> {
    let text = std::fs::read(path).map_err(MetricsError::io("read", path))?;
    let mut records = Vec::new();
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match parse_line(line) {
            Some(record) => records.push(record),
            None if !line.ends_with(b"\n") => break,
            None => {
                return Err(MetricsError::Malformed {
                    path: path.to_path_buf(),
                    line: index + 1,
                });
            }
        }
    }
    Ok(records)
}

/// `None` for anything but a complete record with its line end.
pub(crate) fn parse_line(line: &[u8]) -> Option<StepMetrics> {
    let line = line.strip_suffix(b"\n")?;
    let Value::Object(mut record) = serde_json::from_slice(line).ok()? else {
        return None;
    };
    let step = record.remove(STEP)?.as_u64()?;
    let seconds = record.remove(SECONDS)?.as_f64()?;
    let values = record
        .into_iter()
        .map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN)))
        .collect();
    Some(StepMetrics {
        step,
        seconds,
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn steps(path: &Path) -> Vec<u64> {
        read_metrics(path)
            .unwrap()
            .iter()
            .map(|record| record.step)
            .collect()
    }

    #[test]
    fn what_is_logged_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.log(
            0,
            [
                ("loss", 0.5),
                ("grad_norm", f64::NAN),
                ("d_weight", f64::INFINITY),
            ],
        )
        .unwrap();
        log.log(1, [("loss", 1e-300)]).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.lines().next().unwrap().contains(r#""grad_norm":null"#),
            "{text}"
        );
        let records = read_metrics(&path).unwrap();
        assert_eq!(records[0].values["loss"], 0.5);
        assert!(records[0].values["grad_norm"].is_nan() && records[0].values["d_weight"].is_nan());
        assert_eq!(records[1].values["loss"], 1e-300);
        assert!(records[1].seconds >= records[0].seconds);
    }

    #[test]
    fn resuming_cuts_the_steps_to_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 0..6 {
            log.log(step, [("loss", step as f64)]).unwrap();
        }
        let mut log = MetricsLog::open(&path, 3).unwrap();
        log.log(3, [("loss", 30.0)]).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3]);
        assert_eq!(read_metrics(&path).unwrap()[3].values["loss"], 30.0);
    }

    #[test]
    fn the_clock_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(
            &path,
            "{\"step\":0,\"seconds\":100.5}\n{\"step\":1,\"seconds\":200}\n",
        )
        .unwrap();
        let log = MetricsLog::open(&path, 1).unwrap();
        assert!(
            log.elapsed() >= Duration::from_secs_f64(100.5)
                && log.elapsed() < Duration::from_secs(150)
        );
    }

    #[test]
    fn a_torn_last_line_is_ignored_and_then_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for torn in ["{\"step\":1,\"sec", "{\"step\":1,\"seconds\":2}", "\0\0\0"] {
            fs::write(&path, format!("{{\"step\":0,\"seconds\":1}}\n{torn}")).unwrap();
            assert_eq!(steps(&path), [0], "{torn}");
            MetricsLog::open(&path, 9)
                .unwrap()
                .log(1, [("loss", 1.0)])
                .unwrap();
            assert_eq!(steps(&path), [0, 1], "{torn}");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(
            &path,
            "{\"step\":0,\"seconds\":1}\nnonsense\n{\"step\":2,\"seconds\":1}\n",
        )
        .unwrap();
        assert!(matches!(
            read_metrics(&path),
            Err(MetricsError::Malformed { line: 2, .. })
        ));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(&dir.path().join("metrics.jsonl"), 0).unwrap();
        log.file = File::options().write(true).open("/dev/full").unwrap();
        assert!(matches!(
            log.log(0, [("loss", 1.0)]),
            Err(MetricsError::Io { .. })
        ));
    }
}
