//! The archives of `torch.save` since torch 1.6: a pickle, and a file for each storage, neither compressed.

use std::sync::Arc;

use super::super::WeightsError;
use super::super::source::{Budget, Source};
use super::super::tensors::Tensors;
use super::input::Input;
use super::pickle;
use super::state_dict::{Place, tensors};

const LOCAL_HEADER: &[u8] = b"PK\x03\x04";
const LOCAL_HEADER_LEN: u64 = 30;
const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
const DIRECTORY_ENTRY_LEN: usize = 46;
const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const END_64: &[u8] = b"PK\x06\x06";
const END_64_LEN: u64 = 56;
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const LOCATOR_64_LEN: u64 = 20;
/// The end record may be followed by a comment of this length.
const MAX_COMMENT: usize = u16::MAX as usize;
/// Stands for a number that is in the extra field.
const ELSEWHERE: u64 = u32::MAX as u64;
const EXTRA_64: u16 = 1;
/// Memory for an entry beside its name.
const ENTRY_COST: usize = 128;

/// The tensors of an archive.
pub(in super::super) fn open(source: &Arc<Source>) -> Result<Tensors, WeightsError> {
    let mut budget = Budget::of(source);
    let archive = Archive::open(source, &mut budget)?;
    // Everything lies below a folder whose name is that of the file when it was written.
    let folder = archive.entries.iter().find_map(|entry| {
        let folder = entry.name.strip_suffix("data.pkl")?;
        (folder.ends_with('/') && folder.matches('/').count() == 1).then(|| folder.to_owned())
    });
    let Some(folder) = folder else {
        return Err(source.invalid("a zip archive without a data.pkl is no PyTorch checkpoint"));
    };
    if let Some(entry) = archive.find(&format!("{folder}byteorder")) {
        let place = archive.place(entry)?;
        let mut order = vec![0; place.len.min(8) as usize];
        source.read_at(place.begin, &mut order)?;
        if order != b"little" {
            return Err(source.invalid("its numbers are big-endian, which is not read"));
        }
    }
    let program = archive.place(archive.required(&format!("{folder}data.pkl"))?)?;
    let mut input = Input::new(source, program.begin, program.begin + program.len);
    let pickled = pickle::run(&mut input, &mut budget)?;
    tensors(source, &pickled, &mut budget, |storage| {
        archive.place(archive.required(&format!("{folder}data/{}", storage.key))?)
    })
}

/// What the directory of an archive says of a file in it.
struct Entry {
    name: String,
    header: u64,
    len: u64,
    /// Neither compressed nor encrypted.
    plain: bool,
}

struct Archive<'a> {
    source: &'a Source,
    /// By name.
    entries: Vec<Entry>,
}

impl<'a> Archive<'a> {
    fn open(source: &'a Source, budget: &mut Budget) -> Result<Self, WeightsError> {
        let damaged = || source.invalid("a zip archive that is damaged or truncated at its end");
        let (begin, len) = directory(source)?;
        if begin.checked_add(len).is_none_or(|end| end > source.len()) {
            return Err(damaged());
        }
        budget.charge(source, len as usize)?;
        let mut bytes = vec![0; len as usize];
        source.read_at(begin, &mut bytes)?;
        let mut entries = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.starts_with(DIRECTORY_ENTRY) {
            let (entry, length) = entry(rest).ok_or_else(damaged)?;
            budget.charge(source, entry.name.len() + ENTRY_COST)?;
            entries.push(entry);
            rest = &rest[length..];
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { source, entries })
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        let index = self
            .entries
            .binary_search_by(|entry| entry.name.as_str().cmp(name));
        Some(&self.entries[index.ok()?])
    }

    fn required(&self, name: &str) -> Result<&Entry, WeightsError> {
        let entry = self.find(name);
        entry.ok_or_else(|| {
            self.source
                .invalid(format!("`{name}` is missing in the archive"))
        })
    }

    /// Where the content of `entry` is.
    fn place(&self, entry: &Entry) -> Result<Place, WeightsError> {
        let damaged = || {
            self.source
                .invalid(format!("`{}` is damaged or not in the archive", entry.name))
        };
        if !entry.plain {
            let problem = format!(
                "`{}` is compressed, which torch.save never does",
                entry.name
            );
            return Err(self.source.invalid(problem));
        }
        if entry
            .header
            .checked_add(LOCAL_HEADER_LEN)
            .is_none_or(|end| end > self.source.len())
        {
            return Err(damaged());
        }
        let mut header = [0; LOCAL_HEADER_LEN as usize];
        self.source.read_at(entry.header, &mut header)?;
        if !header.starts_with(LOCAL_HEADER) {
            return Err(damaged());
        }
        let names = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let begin = entry.header + LOCAL_HEADER_LEN + names;
        if begin
            .checked_add(entry.len)
            .is_none_or(|end| end > self.source.len())
        {
            return Err(damaged());
        }
        Ok(Place {
            begin,
            len: entry.len,
        })
    }
}

/// Begin and length of the directory.
fn directory(source: &Source) -> Result<(u64, u64), WeightsError> {
    let damaged = || source.invalid("a zip archive that is damaged or truncated at its end");
    let tail_len = source.len().min((END_LEN + MAX_COMMENT) as u64) as usize;
    let tail_begin = source.len() - tail_len as u64;
    let mut tail = vec![0; tail_len];
    source.read_at(tail_begin, &mut tail)?;
    let end = tail
        .windows(END_LEN)
        .rposition(|window| window.starts_with(END))
        .ok_or_else(damaged)?;
    let (len, begin) = (u32_at(&tail, end + 12), u32_at(&tail, end + 16));
    let end = tail_begin + end as u64;

    // Archives of more than 4 GB have a second end record, found by a locator before the first.
    if let Some(locator) = end.checked_sub(LOCATOR_64_LEN) {
        let mut bytes = [0; LOCATOR_64_LEN as usize];
        source.read_at(locator, &mut bytes)?;
        if bytes.starts_with(LOCATOR_64) {
            let position = u64_at(&bytes, 8);
            if position
                .checked_add(END_64_LEN)
                .is_none_or(|end| end > source.len())
            {
                return Err(damaged());
            }
            let mut bytes = [0; END_64_LEN as usize];
            source.read_at(position, &mut bytes)?;
            if !bytes.starts_with(END_64) {
                return Err(damaged());
            }
            return Ok((u64_at(&bytes, 48), u64_at(&bytes, 40)));
        }
    }
    Ok((begin, len))
}

/// The first entry of a directory, and the length of what it says.
fn entry(bytes: &[u8]) -> Option<(Entry, usize)> {
    let fixed = bytes.get(..DIRECTORY_ENTRY_LEN)?;
    let encrypted = u16_at(fixed, 8) & 1 != 0;
    let stored = u16_at(fixed, 10) == 0;
    let mut len = u32_at(fixed, 24);
    let mut header = u32_at(fixed, 42);
    let name_len = usize::from(u16_at(fixed, 28));
    let extra_len = usize::from(u16_at(fixed, 30));
    let comment_len = usize::from(u16_at(fixed, 32));
    let mut extra = bytes
        .get(DIRECTORY_ENTRY_LEN + name_len..)?
        .get(..extra_len)?;
    let name = &bytes[DIRECTORY_ENTRY_LEN..][..name_len];

    while let Some((head, rest)) = extra.split_at_checked(4) {
        let (kind, size) = (u16_at(head, 0), usize::from(u16_at(head, 2)));
        let mut field = rest.get(..size)?;
        if kind == EXTRA_64 {
            // In this order, and only those that the entry says are here. A compressed length is that of the content.
            for number in [&mut len, &mut u32_at(fixed, 20), &mut header] {
                if *number == ELSEWHERE {
                    let (long, rest) = field.split_at_checked(8)?;
                    *number = u64_at(long, 0);
                    field = rest;
                }
            }
        }
        extra = &rest[size..];
    }
    let entry = Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        header,
        len,
        plain: stored && !encrypted,
    };
    let length = DIRECTORY_ENTRY_LEN + name_len + extra_len + comment_len;
    (length <= bytes.len()).then_some((entry, length))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16_at(bytes, at)) | u64::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}
