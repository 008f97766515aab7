//! Text files with one item a line.

use std::path::Path;

use crate::error::Error;

/// The [`lines`] of a UTF-8 file.
///
/// # Errors
/// If it can't be read.
pub(crate) fn read_lines(path: &Path) -> Result<Vec<(usize, String)>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let lines = lines(&text).map(|(number, line)| (number, line.to_owned()));
    Ok(lines.collect())
}

/// The lines that say something, without blanks at their ends, each with its number from 1. Empty lines and those that begin with `#` say
/// nothing.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    // Some editors begin a file with a mark of its encoding.
    let lines = text.trim_start_matches('\u{feff}').lines();
    (1..)
        .zip(lines.map(str::trim))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}
