//! Captions from `metadata.jsonl`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde::Deserialize;

use super::error::DataError;

/// One line of `metadata.jsonl`. Other keys are allowed and ignored, as in Hugging Face's image folders.
#[derive(Deserialize)]
struct Line {
    file_name: String,
    // Not optional by itself: a misspelt `text` must not silently train without captions.
    #[serde(deserialize_with = "Option::deserialize")]
    text: Option<String>,
}

/// Reads `metadata.jsonl` at `path`: file name to its captions, one for each line that names the file.
///
/// `known` holds the names that may occur, relative to the file's folder with `/` between their parts. Empty lines
/// are allowed.
pub(super) fn read_metadata(
    path: &Path,
    known: &BTreeSet<String>,
) -> Result<BTreeMap<String, Vec<Option<String>>>, DataError> {
    let read_error = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    let mut captions = BTreeMap::<_, Vec<_>>::new();
    for (number, line) in BufReader::new(File::open(path).map_err(read_error)?)
        .lines()
        .enumerate()
    {
        let line = line.map_err(read_error)?;
        // Editors on Windows like to begin a file with a byte order mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let Line { file_name, text } =
            serde_json::from_str(line).map_err(|error| DataError::Metadata {
                path: path.to_owned(),
                line: number + 1,
                reason: without_position(&error),
            })?;
        let name = file_name.replace('\\', "/");
        let name = name.trim_start_matches("./");
        if !known.contains(name) {
            let exists = path.with_file_name(name).exists();
            return Err(DataError::MetadataFile {
                path: path.to_owned(),
                line: number + 1,
                reason: if exists {
                    "this is no image of a known kind"
                } else {
                    "this file doesn't exist"
                },
                file_name,
            });
        }
        captions
            .entry(name.to_owned())
            .or_default()
            .push(text.and_then(non_empty));
    }
    Ok(captions)
}

/// The trimmed text, or `None` when nothing is left.
pub(super) fn non_empty(text: String) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// serde_json counts lines within the line that it was given; ours is the number that helps.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    format!(
        "{} (column {})",
        message.trim_end_matches(&position),
        error.column()
    )
}
