//! NumPy's .npz files: ZIP archives of arrays.

use std::{collections::BTreeMap, io::Read};

use flate2::read::DeflateDecoder;

/// Most bytes of an array: a covariance of 8192 features.
const MAX_BYTES: u64 = 8 * 8192 * 8192 + 4096;

const END_OF_DIRECTORY: [u8; 4] = *b"PK\x05\x06";
const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";

/// An array of floats.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    /// In row order.
    pub(crate) values: Vec<f64>,
}

/// The arrays of 32 or 64 bit floats, by their names; others are passed over.
pub(crate) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Array>, String> {
    let truncated = || "the archive is damaged or cut off".to_owned();
    let end = (bytes.windows(4))
        .rposition(|window| window == END_OF_DIRECTORY)
        .ok_or_else(truncated)?;
    let count = le(bytes, end + 10, 2).ok_or_else(truncated)?;
    let mut at = le(bytes, end + 16, 4).ok_or_else(truncated)? as usize;
    let mut arrays = BTreeMap::new();
    for _ in 0..count {
        let entry = Entry::parse(bytes, at).ok_or_else(truncated)?;
        at = entry.next;
        let Some(name) = entry.name.strip_suffix(".npy") else {
            continue;
        };
        let content = entry.content(bytes).ok_or_else(truncated)?;
        if let Some(array) = parse_array(&content).map_err(|what| format!("`{name}` {what}"))? {
            arrays.insert(name.to_owned(), array);
        }
    }
    Ok(arrays)
}

/// A little-endian number.
fn le(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some((bytes.iter().rev()).fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// A file in the archive.
struct Entry {
    name: String,
    method: u64,
    checksum: u64,
    compressed: usize,
    size: u64,
    header: usize,
    /// Where the next entry begins.
    next: usize,
}

impl Entry {
    fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        if bytes.get(at..at.checked_add(4)?)? != DIRECTORY_ENTRY {
            return None;
        }
        let field = |offset, length| le(bytes, at + offset, length);
        let [name, extra, comment] =
            [field(28, 2)?, field(30, 2)?, field(32, 2)?].map(|length| length as usize);
        Some(Self {
            name: String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned(),
            method: field(10, 2)?,
            checksum: field(16, 4)?,
            compressed: field(20, 4)? as usize,
            size: field(24, 4)?,
            header: field(42, 4)? as usize,
            next: at + 46 + name + extra + comment,
        })
    }

    fn content(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let at = self.header;
        if bytes.get(at..at.checked_add(4)?)? != LOCAL_HEADER || self.size > MAX_BYTES {
            return None;
        }
        let skipped = le(bytes, at + 26, 2)? + le(bytes, at + 28, 2)?;
        let start = at + 30 + skipped as usize;
        let stored = bytes.get(start..start.checked_add(self.compressed)?)?;
        let content = match self.method {
            0 => stored.to_vec(),
            8 => {
                let mut content = Vec::new();
                let mut decoder = DeflateDecoder::new(stored).take(self.size + 1);
                decoder.read_to_end(&mut content).ok()?;
                content
            }
            _ => return None,
        };
        let mut checksum = flate2::Crc::new();
        checksum.update(&content);
        let whole = content.len() as u64 == self.size;
        (whole && u64::from(checksum.sum()) == self.checksum).then_some(content)
    }
}

/// An array of floats in NumPy's format, version 1 to 3; `None` of other numbers.
fn parse_array(bytes: &[u8]) -> Result<Option<Array>, String> {
    let malformed = || "is no array".to_owned();
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(malformed());
    }
    let (length, start) = match bytes.get(6) {
        Some(1) => (le(bytes, 8, 2), 10),
        Some(2 | 3) => (le(bytes, 8, 4), 12),
        _ => return Err(malformed()),
    };
    let end = start + length.ok_or_else(malformed)? as usize;
    let header = String::from_utf8_lossy(bytes.get(start..end).ok_or_else(malformed)?);
    let value = |key: &str| {
        let (_, rest) = header.split_once(key)?;
        let (_, rest) = rest.split_once(':')?;
        Some(rest.trim_start().to_owned())
    };
    let width = match value("'descr'").ok_or_else(malformed)? {
        text if text.starts_with("'<f8'") => 8,
        text if text.starts_with("'<f4'") => 4,
        _ => return Ok(None),
    };
    let shape = value("'shape'").ok_or_else(malformed)?;
    let shape = (shape.strip_prefix('('))
        .and_then(|rest| rest.split_once(')'))
        .ok_or_else(malformed)?;
    let shape = (shape.0.split(','))
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse::<usize>().map_err(|_| malformed()))
        .collect::<Result<Vec<_>, _>>()?;
    let count = (shape.iter()).try_fold(1usize, |product, &size| product.checked_mul(size));
    let data = &bytes[end..];
    if count.and_then(|count| count.checked_mul(width)) != Some(data.len()) {
        return Err("has another length than its shape says".into());
    }
    let mut values: Vec<f64> = if width == 8 {
        let (values, _) = data.as_chunks::<8>();
        values
            .iter()
            .map(|&bytes| f64::from_le_bytes(bytes))
            .collect()
    } else {
        let (values, _) = data.as_chunks::<4>();
        let values = values.iter().map(|&bytes| f32::from_le_bytes(bytes));
        values.map(f64::from).collect()
    };
    let fortran = value("'fortran_order'").is_some_and(|text| text.starts_with("True"));
    if let (true, &[rows, columns]) = (fortran, shape.as_slice()) {
        values = (0..rows * columns)
            .map(|index| values[index % columns * rows + index / columns])
            .collect();
    }
    Ok(Some(Array { shape, values }))
}
