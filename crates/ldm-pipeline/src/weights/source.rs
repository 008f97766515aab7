//! A file that is read at positions, and how much memory may be spent on what it says.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_store::burn_pack::Bytes;
use rayon::prelude::*;

use super::WeightsError;

/// What several threads read at once of a large tensor: the first touch of new memory costs as much as the reading.
const PIECE: usize = 4 << 20;

/// A file of weights. Nothing moves its position, so threads may share it.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let unreadable = |source| WeightsError::unreadable(path, source);
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Arc::new(Self {
            file,
            path: path.to_path_buf(),
            len: metadata.len(),
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn invalid(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::invalid(&self.path, reason)
    }

    /// Fills `buffer` with what stands at `offset`.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        read_exact_at(&self.file, offset, buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.invalid("it ends early"),
            _ => WeightsError::unreadable(&self.path, error),
        })
    }

    /// The `len` bytes at `offset`, in memory aligned for elements of `element` bytes. The file is known to have them.
    pub(super) fn bytes(
        &self,
        offset: u64,
        len: usize,
        element: usize,
    ) -> Result<Bytes, WeightsError> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(self.invalid("it ends early"));
        }
        let mut bytes = aligned(len, element);
        bytes
            .par_chunks_mut(PIECE)
            .enumerate()
            .try_for_each(|(index, piece)| self.read_at(offset + (index * PIECE) as u64, piece))?;
        Ok(bytes)
    }
}

/// `len` zeros, a multiple of `element`, aligned for elements of that size.
pub(super) fn aligned(len: usize, element: usize) -> Bytes {
    match element {
        8 => Bytes::from_elems(vec![0u64; len / 8]),
        4 => Bytes::from_elems(vec![0u32; len / 4]),
        2 => Bytes::from_elems(vec![0u16; len / 2]),
        _ => Bytes::from_elems(vec![0u8; len]),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                buffer = &mut buffer[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    use std::io::{Read, Seek};
    use std::sync::{Mutex, PoisonError};
    static POSITION: Mutex<()> = Mutex::new(());
    let _one_reader = POSITION.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = file;
    file.seek(io::SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}

/// Memory that the description of a file's tensors may take: twice the file's size, and a little for small files.
///
/// Formats describe much in few bytes: a pickle makes an object of one. Real files are nowhere near the limit, because
/// tensors have data.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    /// What is allowed beside twice the size.
    pub(super) const SLACK: u64 = 4 << 20;

    pub(super) fn of(source: &Source) -> Self {
        Self {
            left: source.len().saturating_mul(2).saturating_add(Self::SLACK),
        }
    }

    /// Takes `bytes` before they are allocated.
    pub(super) fn charge(&mut self, source: &Source, bytes: usize) -> Result<(), WeightsError> {
        self.left = self
            .left
            .checked_sub(bytes as u64)
            .ok_or_else(|| source.invalid("it describes more than a file of its size can hold"))?;
        Ok(())
    }
}
