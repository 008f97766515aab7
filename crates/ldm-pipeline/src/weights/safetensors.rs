//! Safetensors files: streamed out in a fixed order, read in one tensor at a time.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{BoolStore, DType};
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::WeightsError;
use super::source::{Budget, Source};
use super::tensors::Tensors;
use crate::atomic::write_file_with;

pub(super) const LENGTH_BYTES: u64 = 8;
/// The limit of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";
/// More axes than any tensor of a model has.
const MAX_RANK: usize = 16;
/// Memory that a tensor takes beside its name, generously.
const TENSOR_COST: usize = 768;

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
    let tensors = open(&Source::open(path)?)?;
    Ok((tensors.to_tensors(), tensors.metadata))
}

/// The tensors of a safetensors file.
pub(super) fn open(source: &Arc<Source>) -> Result<Tensors, WeightsError> {
    let (data_start, mut header) = read_header(source)?;
    let mut set = Tensors::new(source.path());
    set.metadata = std::mem::take(&mut header.metadata);
    for (name, info) in header.tensors {
        let Some(dtype) = memory_dtype(info.dtype) else {
            set.refused
                .insert(name, format!("of the unsupported type {}", info.dtype));
            continue;
        };
        let [begin, end] = info.data_offsets;
        let (file, len) = (Arc::clone(source), end - begin);
        let provider = move || {
            file.bytes(data_start + begin as u64, len, dtype.size())
                .map_err(|error| PackError::IoError(error.to_string()))
        };
        set.add(
            name.clone(),
            PackTensor::deferred(name, dtype, info.shape, None, len, provider),
        );
    }
    Ok(set)
}

/// Where the data begins, and the checked header.
fn read_header(source: &Source) -> Result<(u64, Header), WeightsError> {
    let not_safetensors = || source.invalid("not a safetensors file, or damaged at its beginning");
    let mut length = [0; LENGTH_BYTES as usize];
    if source.len() < LENGTH_BYTES {
        return Err(not_safetensors());
    }
    source.read_at(0, &mut length)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER.min(source.len() - LENGTH_BYTES) {
        return Err(not_safetensors());
    }
    let mut text = vec![0; header_len as usize];
    source.read_at(LENGTH_BYTES, &mut text)?;
    let mut budget = Budget::of(source);
    budget.charge(source, text.len())?;
    let seed = HeaderSeed {
        source,
        budget: &mut budget,
    };
    let no_header =
        |error: &dyn fmt::Display| source.invalid(format!("no valid safetensors header: {error}"));
    let mut json = serde_json::Deserializer::from_slice(&text);
    let mut header = seed
        .deserialize(&mut json)
        .and_then(|header| json.end().map(|()| header))
        .map_err(|error| no_header(&error))?;

    let data_len = header.check().map_err(|problem| no_header(&problem))?;
    let data_start = LENGTH_BYTES + header_len;
    let expected = data_start.saturating_add(data_len as u64);
    if source.len() != expected {
        let state = if source.len() < expected {
            "truncated"
        } else {
            "too long"
        };
        return Err(source.invalid(format!(
            "{state}: {} bytes instead of {expected}",
            source.len()
        )));
    }
    Ok((data_start, header))
}

#[derive(Default)]
struct Header {
    tensors: Vec<(String, Info)>,
    metadata: HeaderText,
}

#[derive(serde::Deserialize)]
struct Info {
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Header {
    /// Puts the tensors in the order of their data, which must follow each other without gaps and fit their shapes.
    /// Returns the length of it all.
    fn check(&mut self) -> Result<usize, String> {
        self.tensors
            .sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
        let mut position = 0;
        for (name, info) in &self.tensors {
            let [begin, end] = info.data_offsets;
            let bits = info
                .shape
                .iter()
                .try_fold(info.dtype.bitsize(), |bits, side| bits.checked_mul(*side));
            if begin != position || bits.is_none_or(|bits| end.checked_sub(begin) != Some(bits / 8))
            {
                return Err(format!(
                    "the place of `{name}`, {begin} to {end}, does not fit its shape or what is before it"
                ));
            }
            position = end;
        }
        let mut names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{}` is there twice", pair[0])),
            None => Ok(position),
        }
    }
}

/// Reads a header within a budget.
struct HeaderSeed<'a> {
    source: &'a Source,
    budget: &'a mut Budget,
}

impl HeaderSeed<'_> {
    fn charge<E: de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.budget
            .charge(self.source, bytes)
            .map_err(|_| E::custom("more tensors than a file of this size can hold"))
    }
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                header.metadata = map.next_value_seed(TextSeed(&mut self))?;
                continue;
            }
            self.charge(2 * name.len() + TENSOR_COST)?;
            header.tensors.push((name, map.next_value()?));
        }
        Ok(header)
    }
}

/// Reads the free text of a header within the header's budget.
struct TextSeed<'a, 'b>(&'a mut HeaderSeed<'b>);

impl<'de> DeserializeSeed<'de> for TextSeed<'_, '_> {
    type Value = HeaderText;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderText, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextSeed<'_, '_> {
    type Value = HeaderText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderText, A::Error> {
        let mut text = HeaderText::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            self.0.charge(key.len() + value.len() + 128)?;
            text.insert(key, value);
        }
        Ok(text)
    }
}

/// A shape of at most [`MAX_RANK`] axes.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Sides;
    impl<'de> Visitor<'de> for Sides {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} axes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(side) = sides.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(de::Error::invalid_length(MAX_RANK + 1, &self));
                }
                shape.push(side);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Sides)
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
        DType::U16 => Dtype::U16,
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
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}
