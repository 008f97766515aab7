//! `log.jsonl`: what a run noted of itself, where it keeps such a log.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

/// Entries on the page, at most.
const MAX_ENTRIES: usize = 1000;
/// Kinds of entries that are no reason for concern.
const HARMLESS: [&str; 3] = ["note", "saved", "work"];

/// The log, newest first.
#[derive(Default)]
pub(super) struct Journal {
    /// The newest entries.
    pub(super) entries: Vec<Entry>,
    /// Entries in all.
    pub(super) total: usize,
    /// Warnings among all, and what is worse.
    pub(super) warnings: usize,
    /// Why the log can't be read, if so.
    pub(super) problem: Option<String>,
}

pub(super) struct Entry {
    pub(super) time: Option<SystemTime>,
    /// Folder of the stage, or empty.
    pub(super) stage: String,
    pub(super) step: Option<u64>,
    pub(super) kind: String,
    pub(super) text: String,
}

impl Journal {
    /// Reads `{"time": 1795535665, "stage": "stage1", "step": 7, "kind": "warning", "text": "..."}` a line. What is missing in a line is left
    /// out; a line that is no object, such as a torn last one, is passed over. A missing file is an empty log.
    pub(super) fn read(path: &Path) -> Self {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                return Self {
                    problem: Some(error.to_string()),
                    ..Self::default()
                };
            }
        };
        let lines = text.split_inclusive(|&byte| byte == b'\n');
        let mut entries: Vec<Entry> = lines.filter_map(Entry::parse).collect();
        entries.reverse();
        let total = entries.len();
        let warnings = entries.iter().filter(|entry| entry.is_warning()).count();
        entries.truncate(MAX_ENTRIES);
        Self {
            entries,
            total,
            warnings,
            problem: None,
        }
    }
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let entry: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        let seconds = entry.get("time").and_then(Value::as_f64);
        entry.as_object()?;
        Some(Self {
            time: seconds
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .and_then(|since| UNIX_EPOCH.checked_add(since)),
            stage: text("stage").into(),
            step: entry.get("step").and_then(Value::as_u64),
            kind: text("kind").into(),
            text: text("text").into(),
        })
    }

    pub(super) fn is_warning(&self) -> bool {
        !HARMLESS.contains(&self.kind.as_str())
    }
}
