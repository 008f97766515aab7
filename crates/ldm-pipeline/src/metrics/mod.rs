//! What a training run records of itself: `metrics.jsonl`, one JSON object a step, and TensorBoard event files.

mod events;
mod log;

pub use events::EventWriter;
pub(crate) use log::parse_line;
pub use log::{MetricsLog, StepMetrics, read_metrics};

use std::io;
use std::path::{Path, PathBuf};

use crate::atomic::write_help;

/// A metrics file that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A line in the middle of a metrics file is not a JSON object with a `step`.
    #[error("{}, line {line}: not a metrics record; delete the line or the file", path.display())]
    Malformed {
        /// The file in question.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
}

impl MetricsError {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => write_help(source),
            Self::Malformed { .. } => None,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}
