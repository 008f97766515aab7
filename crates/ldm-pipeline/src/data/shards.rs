//! Tar files of samples in the layout of webdataset: members that share their name up to the first dot are one sample.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use serde::Deserialize;

use super::{
    captions::non_empty,
    error::DataError,
    folder::{ImageEntry, is_image_extension},
    source::ImageSource,
};

/// Headers and members begin at multiples of this.
const BLOCK: u64 = 512;

/// Captions and classes beyond this many bytes are damage.
const MAX_TEXT: u64 = 1 << 20;

/// A part of a shard that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard {} is damaged at byte {offset}: {reason}", path.display())]
pub struct ShardDamage {
    /// The tar file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong, and what follows from it.
    pub reason: String,
}

/// What shards hold.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// One per sample, sorted by name: the order that the images would have as files of a folder.
    pub(super) entries: Vec<ImageEntry>,
    /// In the order of the shards and of the offsets.
    pub(super) damage: Vec<ShardDamage>,
}

/// Reads the headers of all members of `shards`, and the texts among the members, but no image.
///
/// # Errors
/// When a shard can't be opened or read. What is damaged within one is no error.
pub(super) fn scan_shards(shards: &[PathBuf]) -> Result<Scanned, DataError> {
    let parts: Vec<Scanned> = (shards.par_iter())
        .map(|shard| {
            scan_shard(shard).map_err(|source| DataError::Read {
                path: shard.clone(),
                source,
            })
        })
        .collect::<Result<_, _>>()?;
    let mut all = Scanned::default();
    for part in parts {
        all.entries.extend(part.entries);
        all.damage.extend(part.damage);
    }
    // Stable: samples of one name stay in the order of their shards.
    all.entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The members of one sample.
#[derive(Default)]
struct Members {
    /// Name, offset and length.
    image: Option<(String, u64, u64)>,
    text: Option<String>,
    json: Option<(u64, String)>,
    class: Option<String>,
    /// An image whose name goes on after the first dot.
    dotted: Option<(String, u64)>,
    /// Where and why the sample can't be used.
    problem: Option<(u64, String)>,
}

/// What is of interest in a sample's `json` member.
#[derive(Deserialize)]
struct JsonMember {
    text: Option<String>,
    caption: Option<String>,
}

fn scan_shard(path: &Path) -> io::Result<Scanned> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut archive = tar::Archive::new(&file);
    let mut samples = BTreeMap::<String, Members>::new();
    let mut damage = Vec::new();
    let mut damaged = |offset, reason| {
        damage.push(ShardDamage {
            path: path.into(),
            offset,
            reason,
        });
    };
    // The end of the last whole member.
    let mut end = 0;
    let mut whole = true;
    for member in archive.entries_with_seek()? {
        let mut member = match member {
            Ok(member) => member,
            Err(error) => {
                damaged(end, format!("{error}; what follows is passed over"));
                whole = false;
                break;
            }
        };
        let (offset, length) = (member.raw_file_position(), member.size());
        let name = String::from_utf8(member.path_bytes().into_owned());
        let Some(after) = offset.checked_add(length).filter(|after| *after <= size) else {
            let name = name.unwrap_or_default();
            damaged(
                offset,
                format!("the file ends at byte {size}, within the member {name}"),
            );
            // Without its last members a sample would look like one without a caption.
            if let Some((key, _)) = key_and_field(&name) {
                samples.remove(key);
            }
            whole = false;
            break;
        };
        end = after.next_multiple_of(BLOCK);
        let kind = member.header().entry_type();
        if kind.is_gnu_sparse() {
            damaged(offset, "sparse members can't be read".into());
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            continue;
        }
        let Ok(name) = name else {
            damaged(offset, "the member's name is not valid Unicode".into());
            continue;
        };
        let name = name.trim_start_matches("./");
        let Some((key, field)) = key_and_field(name) else {
            continue;
        };
        let field = field.to_ascii_lowercase();
        if is_image_extension(&field) {
            let sample = samples.entry(key.to_owned()).or_default();
            match &sample.image {
                None => sample.image = Some((name.to_owned(), offset, length)),
                Some((first, ..)) => {
                    let reason = format!("the sample has two images, {first} and {name}");
                    sample.problem.get_or_insert((offset, reason));
                }
            }
        } else if (field.rsplit_once('.'))
            .is_some_and(|(_, extension)| is_image_extension(extension))
        {
            let sample = samples.entry(key.to_owned()).or_default();
            sample.dotted.get_or_insert((name.to_owned(), offset));
        } else if ["txt", "json", "cls"].contains(&field.as_str()) {
            let mut bytes = Vec::new();
            (&mut member).take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
            let sample = samples.entry(key.to_owned()).or_default();
            let text = if bytes.len() as u64 > MAX_TEXT {
                Err(format!("{name} has more than {MAX_TEXT} bytes"))
            } else {
                String::from_utf8(bytes).map_err(|_| format!("{name} is not valid Unicode"))
            };
            match text {
                Err(reason) => {
                    sample.problem.get_or_insert((offset, reason));
                }
                Ok(text) if field == "txt" => sample.text = Some(text),
                Ok(text) if field == "json" => sample.json = Some((offset, text)),
                Ok(text) => sample.class = non_empty(text),
            }
        }
    }
    if whole && let Some((offset, reason)) = odd_end(&file, end, size)? {
        damaged(offset, reason);
    }

    let shard: Arc<Path> = path.into();
    let mut entries = Vec::with_capacity(samples.len());
    let mut dotted: Option<(String, u64)> = None;
    for mut sample in samples.into_values() {
        let Some((name, offset, length)) = sample.image.take() else {
            dotted = dotted.or(sample.dotted);
            continue;
        };
        match sample.caption() {
            Ok(caption) => entries.push(ImageEntry {
                source: ImageSource::Member {
                    shard: Arc::clone(&shard),
                    offset,
                    length,
                },
                name,
                caption,
                class: sample.class,
            }),
            Err((offset, reason)) => damaged(offset, reason),
        }
    }
    if let Some((name, offset)) = dotted {
        let reason = format!(
            "{name} and perhaps others belong to no sample: a sample's name ends at its first dot, and its image is NAME.jpg or the like"
        );
        damaged(offset, reason);
    }
    damage.sort_by_key(|damage| damage.offset);
    Ok(Scanned { entries, damage })
}

impl Members {
    /// The caption, or where and why the sample can't be used.
    fn caption(&mut self) -> Result<Option<String>, (u64, String)> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        if let Some(text) = self.text.take() {
            return Ok(non_empty(text.trim_start_matches('\u{feff}').to_owned()));
        }
        let Some((offset, json)) = self.json.take() else {
            return Ok(None);
        };
        let JsonMember { text, caption } = serde_json::from_str(&json)
            .map_err(|error| (offset, format!("a sample's json can't be used: {error}")))?;
        Ok(text.or(caption).and_then(non_empty))
    }
}

/// The name up to the first dot of its last part, and what follows that dot; `None` for hidden files and those without a
/// dot.
fn key_and_field(name: &str) -> Option<(&str, &str)> {
    let name = name.trim_start_matches("./");
    if name.split('/').any(|part| part.starts_with('.')) {
        return None;
    }
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    Some((&name[..dot], &name[dot + 1..]))
}

/// What is wrong with the part of a shard after its last member, at `end`. It should be zeros, 1024 or more.
fn odd_end(mut file: &File, end: u64, size: u64) -> io::Result<Option<(u64, String)>> {
    if end >= size {
        let reason = "it ends without an end-of-archive mark: it may have been cut off";
        return Ok(Some((size, reason.into())));
    }
    file.seek(SeekFrom::Start(end))?;
    let mut position = end;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if let Some(offset) = buffer[..read].iter().position(|&byte| byte != 0) {
            let reason = format!(
                "data follow the end-of-archive mark at byte {end} and are passed over: the shard has a hole, or is several archives in one"
            );
            return Ok(Some((position + offset as u64, reason)));
        }
        if read == 0 {
            return Ok(None);
        }
        position += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_images::write_tar;

    fn scan(path: &Path) -> Scanned {
        scan_shards(&[path.to_owned()]).unwrap()
    }

    #[test]
    fn members_become_samples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let long = format!("{}/9.jpg", "deep/".repeat(40));
        write_tar(
            &path,
            &[
                ("./2.jpg", b"two"),
                ("2.txt", b"\xef\xbb\xbf a pair \n"),
                ("2.json", b"{\"text\": \"not this\"}"),
                ("cats/1.PNG", b"one"),
                ("cats/1.json", b"{\"caption\": \"a cat\", \"width\": 7}"),
                ("cats/1.cls", b"3\n"),
                ("cats/1.seg.png", b"mask"),
                (&long, b"nine"),
                ("._2.jpg", b"hidden"),
                ("README", b"no field"),
                ("3.txt", b"no image"),
            ],
        );
        let Scanned { entries, damage } = scan(&path);
        assert_eq!(damage, []);
        let found: Vec<_> = entries
            .iter()
            .map(|entry| {
                let mut bytes = String::new();
                let mut source = entry.source.open().unwrap();
                source.read_to_string(&mut bytes).unwrap();
                (
                    entry.name.as_str(),
                    entry.caption.as_deref(),
                    entry.class.as_deref(),
                    bytes,
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("2.jpg", Some("a pair"), None, "two".into()),
                ("cats/1.PNG", Some("a cat"), Some("3"), "one".into()),
                (long.as_str(), None, None, "nine".into()),
            ]
        );
    }

    /// A shard of three samples: the names of what is left of it after `harm`, and the damage.
    fn harmed(harm: impl FnOnce(&mut Vec<u8>)) -> (Vec<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard.tar");
        let body = [7; 700];
        write_tar(
            &path,
            &[
                ("1.jpg", &body),
                ("1.txt", b"one"),
                ("2.jpg", &body),
                ("2.txt", b"two"),
                ("3.jpg", &body),
                ("3.txt", b"three"),
            ],
        );
        let mut bytes = std::fs::read(&path).unwrap();
        harm(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let Scanned { entries, damage } = scan(&path);
        (
            entries.into_iter().map(|entry| entry.name).collect(),
            damage.iter().map(ToString::to_string).collect(),
        )
    }

    /// Bytes of a sample of `harmed`: two headers, an image of two blocks, a text of one.
    const SAMPLE: usize = 5 * 512;

    #[test]
    fn damage_is_told_with_its_place_and_the_rest_is_used() {
        assert_eq!(harmed(|_| {}).0, ["1.jpg", "2.jpg", "3.jpg"]);
        assert_eq!(harmed(|_| {}).1, Vec::<String>::new());

        // Within an image, within its caption, within a header.
        for (length, place, reason) in [
            (SAMPLE + 1000, SAMPLE + 512, "within the member 2.jpg"),
            (
                2 * SAMPLE - 512 + 1,
                2 * SAMPLE - 512,
                "within the member 2.txt",
            ),
            (SAMPLE + 100, SAMPLE, "what follows is passed over"),
        ] {
            let (names, damage) = harmed(|bytes| bytes.truncate(length));
            assert_eq!(names, ["1.jpg"], "{length}");
            assert_eq!(damage.len(), 1, "{damage:?}");
            let place = format!("shard.tar is damaged at byte {place}: ");
            assert!(
                damage[0].contains(&place) && damage[0].contains(reason),
                "{length}: {damage:?}"
            );
        }

        let (names, damage) = harmed(|bytes| bytes[2 * SAMPLE + 3] ^= 0xFF);
        assert_eq!(names, ["1.jpg", "2.jpg"]);
        assert!(
            damage[0].contains(&format!("byte {}: ", 2 * SAMPLE)),
            "{damage:?}"
        );

        let (names, damage) = harmed(|bytes| bytes.truncate(3 * SAMPLE));
        assert_eq!(names.len(), 3);
        assert!(
            damage[0].contains("without an end-of-archive mark"),
            "{damage:?}"
        );

        let (names, damage) = harmed(|bytes| bytes[SAMPLE..SAMPLE + 1024].fill(0));
        assert_eq!(names, ["1.jpg"]);
        assert!(
            damage[0].contains("data follow the end-of-archive mark"),
            "{damage:?}"
        );
    }

    #[test]
    fn samples_that_cannot_be_understood_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        write_tar(
            &path,
            &[
                ("1.jpg", b""),
                ("1.json", b"{\"text\": 3}"),
                ("2.jpg", b""),
                ("2.png", b""),
                ("3.jpg", b""),
                ("3.txt", b"\xff\xfe"),
                ("4.jpg", b""),
                ("photo.1.jpg", b""),
                ("photo.2.jpg", b""),
            ],
        );
        let Scanned { entries, damage } = scan(&path);
        assert_eq!(entries.len(), 1);
        let reasons: Vec<&str> = damage.iter().map(|part| part.reason.as_str()).collect();
        assert!(reasons[0].contains("expected a string"), "{reasons:?}");
        assert!(
            reasons[1].contains("two images, 2.jpg and 2.png"),
            "{reasons:?}"
        );
        assert_eq!(reasons.len(), 4, "{reasons:?}");
        assert!(reasons[3].contains("photo.1.jpg"), "{reasons:?}");
        assert!(
            reasons[2].contains("3.txt is not valid Unicode"),
            "{reasons:?}"
        );
    }
}
