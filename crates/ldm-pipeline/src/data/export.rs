//! Data sets written as folders of images: a folder appears complete or not at all.

use std::{fs, path::Path};

use super::error::DataError;
use crate::atomic::{PartialDir, WriteError};

/// Builds `out` beside its name, has `fill` write what is in it, and gives it its name.
///
/// # Errors
/// When `out` exists and isn't empty, can't be written, or `fill` fails.
pub(super) fn export_folder(
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let taken =
        out.is_file() || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        return Err(DataError::DestinationExists {
            path: out.to_owned(),
        });
    }
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).map_err(write_error(out))?;
    }
    let folder = PartialDir::create(out)?;
    fill(folder.path())?;
    Ok(folder.commit()?)
}

/// What went wrong while `out` was being written.
pub(super) fn write_error(out: &Path) -> impl Fn(std::io::Error) -> DataError + '_ {
    move |source| {
        DataError::Write(WriteError {
            action: "write",
            path: out.to_owned(),
            source,
        })
    }
}
