//! Where an image's bytes are.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Take},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::header::Region;

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A file of its own.
    File(PathBuf),
    /// A member of a tar file.
    Member {
        /// The tar file.
        shard: Arc<Path>,
        /// The member's first byte in it.
        offset: u64,
        /// The member's length in bytes.
        length: u64,
    },
}

impl ImageSource {
    /// The file to open: the image's own, or the shard.
    pub fn file(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Member { shard, .. } => shard,
        }
    }

    /// The image's bytes.
    pub(super) fn open(&self) -> io::Result<Take<File>> {
        let mut file = File::open(self.file())?;
        let length = match *self {
            Self::File(_) => u64::MAX,
            Self::Member { offset, length, .. } => {
                file.seek(SeekFrom::Start(offset))?;
                length
            }
        };
        Ok(file.take(length))
    }

    /// The image's bytes, to be read at any place.
    pub(super) fn open_seekable(&self) -> io::Result<Region<File>> {
        let file = File::open(self.file())?;
        let (start, length) = match *self {
            Self::File(_) => (0, file.metadata()?.len()),
            Self::Member { offset, length, .. } => (offset, length),
        };
        Region::new(file, start, length)
    }

    /// What changes when the bytes do: place, length, and time of the last change. `None` if the file isn't there.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        let metadata = fs::metadata(self.file()).ok()?;
        let facts = (metadata.len(), metadata.modified().ok());
        Some(match self {
            Self::File(_) => format!("{facts:?}"),
            Self::Member { offset, length, .. } => format!("{facts:?}{offset}+{length}"),
        })
    }
}
