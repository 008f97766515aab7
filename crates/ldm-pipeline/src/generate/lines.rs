//! Text files with one item a line.

use std::path::Path;

use crate::error::Error;

/// The lines of a UTF-8 file that say something, without blanks at their ends, each with its number from 1. Empty lines and those that
/// begin with `#` say nothing.
///
/// # Errors
/// If it can't be read.
pub(super) fn read_lines(path: &Path) -> Result<Vec<(usize, String)>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    // Some editors begin a file with a mark of its encoding.
    let lines = text.trim_start_matches('\u{feff}').lines();
    Ok((1..)
        .zip(lines.map(str::trim))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| (number, line.to_owned()))
        .collect())
}
