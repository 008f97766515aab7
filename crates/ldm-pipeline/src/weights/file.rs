//! Safetensors files: streamed out in a fixed order, read in one tensor at a time.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{BoolStore, DType, TensorData};
use burn_store::bridge;
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::WeightsError;
use crate::atomic::write_file_with;

const LENGTH_BYTES: u64 = 8;
/// The limit of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";

/// Free text in the header of a file, by key.
pub(crate) type HeaderText = BTreeMap<String, String>;

/// Writes `tensors` with `metadata`. Data is drawn and written one tensor at a time, and equal content gives equal bytes.
pub(crate) fn write_tensors(
    path: &Path,
    mut tensors: Vec<PackTensor>,
    metadata: &HeaderText,
) -> Result<(), WeightsError> {
    // Wide types first keeps every tensor aligned; the rest of the order only has to be the same each time.
    tensors.sort_by(|a, b| {
        (Reverse(a.dtype.size()), &a.name).cmp(&(Reverse(b.dtype.size()), &b.name))
    });
    let header =
        header(&tensors, metadata).map_err(|reason| WeightsError::invalid(path, reason))?;
    write_file_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in tensors {
            out.write_all(&tensor.into_bytes().map_err(io::Error::other)?)?;
        }
        Ok(())
    })
    .map_err(WeightsError::from)
}

fn header(tensors: &[PackTensor], metadata: &HeaderText) -> Result<Vec<u8>, String> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.byte_len();
        let dtype = file_dtype(tensor.dtype).ok_or_else(|| {
            format!(
                "safetensors have no type for `{}`: {:?}",
                tensor.name, tensor.dtype
            )
        })?;
        let info = TensorInfo {
            dtype,
            shape: tensor.shape.to_vec(),
            data_offsets: (offset, end),
        };
        header.insert(tensor.name.clone(), serde_json::json!(info));
        offset = end;
    }
    let mut bytes = serde_json::Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok(bytes)
}

/// Opens a file and checks its header; each tensor's data is read when it is asked for.
pub(crate) fn read_tensors(path: &Path) -> Result<(Vec<PackTensor>, HeaderText), WeightsError> {
    let mut file = File::open(path).map_err(|source| WeightsError::unreadable(path, source))?;
    let (data_start, header) = read_header(&mut file, path)?;
    let file = Arc::new(file);
    let mut tensors = Vec::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else {
            continue;
        };
        let dtype = memory_dtype(info.dtype).ok_or_else(|| {
            WeightsError::invalid(
                path,
                format!("tensor `{name}` has the unsupported type {}", info.dtype),
            )
        })?;
        let (begin, end) = info.data_offsets;
        let (file, shape) = (Arc::clone(&file), info.shape.clone());
        tensors.push(bridge::deferred(
            name,
            dtype,
            info.shape.clone().into(),
            None,
            move || {
                let bytes = read_at(&file, data_start + begin as u64, end - begin)
                    .map_err(|error| PackError::IoError(error.to_string()))?;
                Ok(TensorData::from_bytes_vec(bytes, shape.clone(), dtype))
            },
        ));
    }
    let metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    Ok((tensors, metadata))
}

/// `len` bytes from `start` on. Several threads may read one file at once.
pub(super) fn read_at(file: &File, start: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    #[cfg(unix)]
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, start)?;
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt;
        let mut read = 0;
        while read < len {
            match file.seek_read(&mut bytes[read..], start + read as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
    }
    Ok(bytes)
}

fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata), WeightsError> {
    let unreadable = |source| WeightsError::unreadable(path, source);
    let not_safetensors = || {
        WeightsError::invalid(
            path,
            "not a safetensors file, or damaged at its beginning".to_owned(),
        )
    };

    let file_len = file.metadata().map_err(unreadable)?.len();
    let mut length = [0; LENGTH_BYTES as usize];
    if file_len < LENGTH_BYTES {
        return Err(not_safetensors());
    }
    file.read_exact(&mut length).map_err(unreadable)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER.min(file_len - LENGTH_BYTES) {
        return Err(not_safetensors());
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| {
        WeightsError::invalid(path, format!("no valid safetensors header: {error}"))
    })?;

    let data_start = LENGTH_BYTES + header_len;
    let expected = data_start + header.data_len() as u64;
    if file_len != expected {
        let state = if file_len < expected {
            "truncated"
        } else {
            "too long"
        };
        return Err(WeightsError::invalid(
            path,
            format!("{state}: {file_len} bytes instead of {expected}"),
        ));
    }
    Ok((data_start, header))
}

fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native) => Dtype::BOOL,
        _ => return None,
    })
}

fn memory_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}
