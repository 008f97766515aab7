//! VGG16's convolutions without its classifier: 59 MB of 553.

use std::{io::Read, path::PathBuf};

use hf_hub::Repo;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use super::{Hub, HubError, OnProgress, Progress, download::Snapshot};
use crate::atomic;

const FILE: &str = "model.safetensors";
/// Where the convolutions' names begin.
const PREFIX: &str = "features.";
/// What is asked for in the hope that it holds the whole header.
const FIRST_READ: u64 = 1 << 16;
/// The format's own limit of a header.
const MAX_HEADER: u64 = 100_000_000;
/// Ranges with less between them are asked for as one.
const GAP: u64 = 1 << 14;

/// Bytes of a file, from `start` on.
struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

impl Hub {
    /// The local path of a safetensors file with the tensors `features.*` of the repository's `model.safetensors`, by themselves, or
    /// among all others where the whole file is in the cache or the hub has no ranges.
    pub(super) fn vgg16(
        &self,
        repo: Repo,
        on_progress: &mut OnProgress,
    ) -> Result<PathBuf, HubError> {
        let part = self
            .parts
            .join(repo.folder_name())
            .join(repo.url_revision())
            .join("features.safetensors");
        let mut snapshot = Snapshot::new(self, repo);
        if let Some(whole) = snapshot.cached(FILE) {
            return Ok(whole);
        }
        if part.is_file() {
            return Ok(part);
        }
        if !self.offline
            && let Some(bytes) = features(&snapshot, on_progress)?
        {
            if let Some(folder) = part.parent() {
                atomic::create_dir(folder)?;
            }
            atomic::write_file(&part, &bytes)?;
            return Ok(part);
        }
        snapshot.file(FILE, on_progress)
    }
}

/// A file with the convolutions alone; `None` where the server has no ranges, or the file no such tensors.
fn features(
    snapshot: &Snapshot,
    on_progress: &mut OnProgress,
) -> Result<Option<Vec<u8>>, HubError> {
    let size = snapshot.client().metadata(&snapshot.repo(), FILE)?.size;
    let malformed = |problem: String| HubError::Malformed {
        repository: snapshot.repository(),
        file: FILE.to_owned(),
        problem,
    };
    let no_header = || malformed("it has no header of safetensors".into());
    if size < 8 {
        return Err(no_header());
    }
    let Some(first) = read(snapshot, 0, FIRST_READ.min(size))? else {
        return Ok(None);
    };
    let length = first
        .bytes
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let most = MAX_HEADER.min(size - 8);
    let length = length
        .filter(|length| *length <= most)
        .ok_or_else(no_header)?;
    let data_start = 8 + length;
    let mut header = first.bytes;
    if (header.len() as u64) < data_start {
        let Some(rest) = read(snapshot, header.len() as u64, data_start)? else {
            return Ok(None);
        };
        header.extend(rest.bytes);
    }
    let metadata: Metadata = serde_json::from_slice(&header[8..data_start as usize])
        .map_err(|error| malformed(error.to_string()))?;
    let mut tensors: Vec<(String, TensorInfo)> = (metadata.tensors().into_iter())
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, info)| (name, info.clone()))
        .collect();
    if tensors.is_empty() {
        return Ok(None);
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let ranges: Vec<(u64, u64)> = (tensors.iter())
        .map(|(_, info)| {
            let (start, end) = info.data_offsets;
            (data_start + start as u64, data_start + end as u64)
        })
        .collect();
    if let Some((_, end)) = ranges.iter().find(|(_, end)| *end > size) {
        return Err(malformed(format!("a tensor ends at byte {end} of {size}")));
    }

    let coalesced = coalesce(&ranges);
    let total = coalesced.iter().map(|(start, end)| end - start).sum();
    let mut received = 0;
    let mut pieces = Vec::new();
    for (start, end) in coalesced {
        on_progress(Progress {
            file: FILE,
            received,
            total,
        });
        let Some(piece) = read(snapshot, start, end)? else {
            return Ok(None);
        };
        received += end - start;
        pieces.push(piece);
    }
    on_progress(Progress {
        file: FILE,
        received,
        total,
    });
    let views = (tensors.iter().zip(&ranges))
        .map(|((name, info), range)| {
            let view = TensorView::new(info.dtype, info.shape.clone(), slice(&pieces, *range));
            Ok((name, view.map_err(|error| malformed(error.to_string()))?))
        })
        .collect::<Result<Vec<_>, HubError>>()?;
    let description = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(description))
        .map(Some)
        .map_err(|error| malformed(error.to_string()))
}

/// The bytes from `start` to `end`; `None` where the server has no ranges.
fn read(snapshot: &Snapshot, start: u64, end: u64) -> Result<Option<Piece>, HubError> {
    let content = snapshot
        .client()
        .content(&snapshot.repo(), FILE, start, Some(end))?;
    let mut bytes = Vec::new();
    // Whatever breaks the connection leaves too few bytes.
    let _ = content.body.take(end - start).read_to_end(&mut bytes);
    let received = bytes.len() as u64;
    if content.start != start {
        return Ok(None);
    }
    match received == end - start {
        true => Ok(Some(Piece { start, bytes })),
        false => Err(HubError::Truncated {
            repository: snapshot.repository(),
            file: FILE.to_owned(),
            received,
            expected: end - start,
        }),
    }
}

/// Joins sorted ranges that are close to each other.
fn coalesce(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 + GAP => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// The bytes of a range that lies in one of the pieces.
fn slice(pieces: &[Piece], (start, end): (u64, u64)) -> &[u8] {
    (pieces.iter())
        .find_map(|piece| {
            let from = start.checked_sub(piece.start)? as usize;
            piece.bytes.get(from..from + (end - start) as usize)
        })
        .unwrap_or_default()
}
