//! Which images a folder holds, and their captions.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    captions::{non_empty, read_metadata},
    decode::{Picture, decode_from},
    error::DataError,
    shards::{Scanned, ShardDamage, scan_shards},
    source::ImageSource,
};

/// File name extensions that count as images, in lower case.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// Ends of the names of compressed tar files.
const COMPRESSED: [&str; 5] = [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"];

/// Files that are looked for before a data set counts as gone.
const PROBES: usize = 32;

/// Whether files with this extension, in lower case, count as images.
pub(super) fn is_image_extension(extension: &str) -> bool {
    EXTENSIONS.contains(&extension)
}

/// The images of a folder and its subfolders, or those in tar files there, in the order of their names.
///
/// Captions come from `metadata.jsonl` in the folder itself (`{"file_name": "a/b.png", "text": "..."}`, one object
/// a line; an image that several lines name is several samples), for images that it doesn't name from `b.txt`
/// beside `b.png`, else there is none. Hidden files and folders are passed over.
///
/// In tar files, members that share their name up to the first dot are one sample (the layout of webdataset): `key.jpg`
/// or another image, its caption in `key.txt` or as `text` or `caption` of `key.json`, its class in `key.cls`.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    entries: Vec<ImageEntry>,
    damage: Vec<ShardDamage>,
}

/// One image of an [`ImageFolder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Where its bytes are.
    pub source: ImageSource,
    /// Its path relative to the data folder, or its name in the tar file, with `/` between the parts on every platform.
    pub name: String,
    /// Its caption, never empty.
    pub caption: Option<String>,
    /// Its class by number or name, where the sample itself says it.
    pub class: Option<String>,
}

impl ImageEntry {
    /// What to call it in messages: its path, or that of the tar file with its name in there.
    pub fn location(&self) -> PathBuf {
        match &self.source {
            ImageSource::File(path) => path.clone(),
            ImageSource::Member { shard, .. } => shard.join(&self.name),
        }
    }

    /// Decodes the image, see [`decode`](super::decode()).
    ///
    /// # Errors
    /// When it can't be read, isn't an image, is damaged or too large.
    pub fn decode(&self, background: [u8; 3], max_pixels: u64) -> Result<Picture, DataError> {
        let location = self.location();
        let bytes = self.source.open().map_err(|source| DataError::Read {
            path: location.clone(),
            source,
        })?;
        decode_from(bytes, &location, background, max_pixels)
    }
}

impl ImageFolder {
    /// Lists the images in `root`, a folder or a tar file, and reads their captions; no image is opened.
    ///
    /// # Errors
    /// When the folder is missing, can't be read, holds no image or images beside tar files, and when `metadata.jsonl`
    /// has a line that can't be understood or names a file that isn't there.
    pub fn scan(root: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = root.as_ref();
        if !root.exists() {
            return Err(DataError::MissingFolder {
                path: root.to_owned(),
            });
        }
        if root.is_file() && is_shard(root) {
            return Self::of_shards(root, &[root.to_owned()]);
        }
        if !root.is_dir() {
            return Err(match is_compressed(&root.to_string_lossy()) {
                true => DataError::CompressedShard { path: root.into() },
                false => DataError::NotAFolder { path: root.into() },
            });
        }
        let mut found = Found::default();
        found.walk(root, "")?;
        match (found.images.first(), found.shards.first()) {
            (Some(image), Some(shard)) => {
                return Err(DataError::ImagesAndShards {
                    path: root.to_owned(),
                    image: image.clone(),
                    shard: shard.clone(),
                });
            }
            (None, Some(_)) => {
                let shards: Vec<PathBuf> =
                    found.shards.iter().map(|name| root.join(name)).collect();
                return Self::of_shards(root, &shards);
            }
            (None, None) => {
                return Err(match found.compressed {
                    Some(path) => DataError::CompressedShard { path },
                    None => DataError::EmptyFolder { path: root.into() },
                });
            }
            (Some(_), None) => {}
        }
        let metadata = root.join("metadata.jsonl");
        let mut captions = if metadata.exists() {
            read_metadata(&metadata, &found.images)?
        } else {
            BTreeMap::new()
        };

        let mut entries = Vec::with_capacity(found.images.len());
        for name in &found.images {
            let path = root.join(name);
            let captions = match captions.remove(name) {
                Some(captions) => captions,
                None => vec![found.text_beside(root, name)?],
            };
            entries.extend(captions.into_iter().map(|caption| ImageEntry {
                source: ImageSource::File(path.clone()),
                name: name.clone(),
                caption,
                class: None,
            }));
        }
        Ok(Self {
            root: root.to_owned(),
            entries,
            damage: Vec::new(),
        })
    }

    fn of_shards(root: &Path, shards: &[PathBuf]) -> Result<Self, DataError> {
        let Scanned {
            entries,
            mut damage,
        } = scan_shards(shards)?;
        if entries.is_empty() {
            return Err(match damage.is_empty() {
                true => DataError::EmptyFolder { path: root.into() },
                false => damage.remove(0).into(),
            });
        }
        Ok(Self {
            root: root.to_owned(),
            entries,
            damage,
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The images, sorted by name.
    pub fn entries(&self) -> &[ImageEntry] {
        &self.entries
    }

    /// The parts of tar files that can't be used.
    pub fn damage(&self) -> &[ShardDamage] {
        &self.damage
    }

    /// Whether nothing is left of the data: the folder isn't there any more, or none of some files all over it, as where
    /// a disk is no longer mounted.
    pub fn is_gone(&self) -> bool {
        let stride = self.entries.len().div_ceil(PROBES).max(1);
        let mut probes = self.entries.iter().step_by(stride);
        !self.root.exists() || !probes.any(|entry| entry.source.file().exists())
    }

    /// How many samples have a caption.
    pub fn captioned(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.caption.is_some())
            .count()
    }

    /// The folder without the images for which `keep` is false.
    pub fn filter(mut self, keep: impl FnMut(&ImageEntry) -> bool) -> Self {
        self.entries.retain(keep);
        self
    }

    /// Splits into (training, validation), with about `fraction` of the images in the second part. What is known of
    /// damage goes with the first.
    ///
    /// A hash of its name decides for each image, so that it stays on its side when others come or go. Where that
    /// would leave one of the parts empty though `fraction` is between 0 and 1, the image nearest to the border
    /// changes sides, if there are two or more.
    ///
    /// # Panics
    /// When `fraction` is not in [0, 1].
    pub fn split(self, fraction: f64) -> (Self, Self) {
        assert!(
            (0.0..=1.0).contains(&fraction),
            "a fraction is between 0 and 1, not {fraction}"
        );
        let positions: BTreeSet<(u64, &str)> = self
            .entries
            .iter()
            .map(|entry| (name_hash(&entry.name), entry.name.as_str()))
            .collect();
        // Comparing in 2^-64 steps: u64::MAX as f64 rounds to 2^64, and the cast back saturates.
        let border = (fraction * u64::MAX as f64) as u64;
        let mut held_out: HashSet<String> = positions
            .iter()
            .filter(|(position, _)| fraction >= 1.0 || *position < border)
            .map(|(_, name)| (*name).to_owned())
            .collect();
        if fraction > 0.0 && fraction < 1.0 && positions.len() >= 2 {
            if held_out.is_empty() {
                held_out.extend(positions.first().map(|(_, name)| (*name).to_owned()));
            } else if held_out.len() == positions.len() {
                positions.last().map(|(_, name)| held_out.remove(*name));
            }
        }
        let root = self.root;
        let (validation, training) = self
            .entries
            .into_iter()
            .partition(|entry| held_out.contains(&entry.name));
        (
            Self {
                root: root.clone(),
                entries: training,
                damage: self.damage,
            },
            Self {
                root,
                entries: validation,
                damage: Vec::new(),
            },
        )
    }
}

/// Whether a file is taken for one of webdataset's shards.
pub fn is_shard(path: &Path) -> bool {
    (path.extension()).is_some_and(|extension| extension.eq_ignore_ascii_case("tar"))
}

fn is_compressed(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    COMPRESSED.iter().any(|end| name.ends_with(end))
}

/// 64-bit FNV-1a, then the finaliser of SplitMix64, without which similar names would share their high bits.
fn name_hash(name: &str) -> u64 {
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Names found below the data folder, relative to it.
#[derive(Default)]
struct Found {
    images: BTreeSet<String>,
    texts: HashSet<String>,
    shards: BTreeSet<String>,
    /// One of the compressed tar files.
    compressed: Option<PathBuf>,
    /// Folders seen, links resolved, so that a link to a parent can't go round for ever.
    visited: HashSet<PathBuf>,
}

impl Found {
    fn walk(&mut self, folder: &Path, prefix: &str) -> Result<(), DataError> {
        let read_error = |source| DataError::Read {
            path: folder.to_owned(),
            source,
        };
        if !self
            .visited
            .insert(folder.canonicalize().map_err(read_error)?)
        {
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
                return Err(DataError::Read {
                    source: std::io::Error::new(
                        std::io::ErrorKind::InvalidData,
                        "its name is not valid Unicode",
                    ),
                    path,
                });
            };
            if file_name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{file_name}");
            if path.is_dir() {
                self.walk(&path, &format!("{name}/"))?;
                continue;
            }
            match path
                .extension()
                .and_then(|extension| extension.to_str())
                .map(str::to_ascii_lowercase)
            {
                Some(extension) if is_image_extension(&extension) => {
                    self.images.insert(name);
                }
                Some(extension) if extension == "tar" => {
                    self.shards.insert(name);
                }
                _ if is_compressed(file_name) => self.compressed = Some(path),
                Some(extension) if extension == "txt" => {
                    self.texts.insert(name);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn text_beside(&self, root: &Path, image: &str) -> Result<Option<String>, DataError> {
        let (stem, _) = image.rsplit_once('.').unwrap_or((image, ""));
        let name = format!("{stem}.txt");
        if !self.texts.contains(&name) {
            return Ok(None);
        }
        let path = root.join(&name);
        let text = fs::read_to_string(&path).map_err(|source| DataError::Read { path, source })?;
        Ok(non_empty(text.trim_start_matches('\u{feff}').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn error_of(dir: &TempDir) -> String {
        ImageFolder::scan(dir).unwrap_err().to_string()
    }

    #[test]
    fn captions_of_every_form() {
        let dir = folder(&[
            ("b.PNG", ""),
            ("sub/a.jpeg", ""),
            ("sub/deep/c.webp", ""),
            ("z.gif", ""),
            ("none.bmp", ""),
            ("empty.tiff", ""),
            ("empty.txt", "  \n"),
            ("z.txt", "\u{feff}a zebra\n"),
            ("b.txt", "metadata.jsonl wins"),
            ("notes.md", ""),
            (".hidden.png", ""),
            (".git/x.png", ""),
            (
                "metadata.jsonl",
                concat!(
                    "{\"file_name\": \"b.PNG\", \"text\": \" a bee \", \"source\": 7}\n\n",
                    "{\"file_name\": \"./sub\\\\a.jpeg\", \"text\": \"an ant\"}\n",
                    "{\"file_name\": \"sub/a.jpeg\", \"text\": null}\n",
                ),
            ),
        ]);
        let folder = ImageFolder::scan(&dir).unwrap();
        let found: Vec<_> = folder
            .entries()
            .iter()
            .map(|entry| (entry.name.as_str(), entry.caption.as_deref()))
            .collect();
        assert_eq!(
            found,
            [
                ("b.PNG", Some("a bee")),
                ("empty.tiff", None),
                ("none.bmp", None),
                ("sub/a.jpeg", Some("an ant")),
                ("sub/a.jpeg", None),
                ("sub/deep/c.webp", None),
                ("z.gif", Some("a zebra")),
            ]
        );
        assert_eq!(folder.captioned(), 3);
        assert!((folder.entries().iter()).all(|entry| entry.source.file().is_file()));
    }

    #[test]
    fn wrong_folders() {
        let missing = ImageFolder::scan("/no/such/folder").unwrap_err();
        assert!(missing.to_string().contains("/no/such/folder"), "{missing}");
        assert!(missing.help().contains("--data"));

        let dir = folder(&[("notes.md", "")]);
        assert!(error_of(&dir).contains("no images in"));
        let file = ImageFolder::scan(dir.path().join("notes.md")).unwrap_err();
        assert!(file.to_string().contains("is a file"), "{file}");
    }

    #[test]
    fn wrong_metadata_is_found_by_line() {
        let with = |line: &str| {
            error_of(&folder(&[
                ("a.png", ""),
                ("b.svg", ""),
                ("metadata.jsonl", &format!("\n{line}\n")),
            ]))
        };
        let cases = [
            ("{\"file_name\": \"a.png\"", "EOF while parsing"),
            (
                "{\"file_name\": \"a.png\", \"caption\": \"x\"}",
                "missing field `text`",
            ),
            ("{\"text\": \"x\"}", "missing field `file_name`"),
            (
                "{\"file_name\": \"a.png\", \"text\": 3}",
                "expected a string",
            ),
            (
                "{\"file_name\": \"missing.png\", \"text\": \"x\"}",
                "this file doesn't exist: \"missing.png\"",
            ),
            (
                "{\"file_name\": \"b.svg\", \"text\": \"x\"}",
                "no image of a known kind: \"b.svg\"",
            ),
        ];
        for (line, expected) in cases {
            let error = with(line);
            assert!(
                error.contains("metadata.jsonl, line 2: ") && error.contains(expected),
                "{line}: {error}"
            );
            assert!(!error.contains("at line 1"), "{error}");
        }
    }

    #[test]
    fn shards_stand_alone_and_uncompressed() {
        let dir = folder(&[("a.png", ""), ("sub/b.tar", "")]);
        let error = error_of(&dir);
        assert!(
            error.contains("a.png") && error.contains("sub/b.tar"),
            "{error}"
        );

        let dir = folder(&[("sub/b.tar.gz", "")]);
        assert!(error_of(&dir).contains("b.tar.gz is compressed"));
        let file = ImageFolder::scan(dir.path().join("sub/b.tar.gz")).unwrap_err();
        assert!(file.to_string().contains("is compressed"), "{file}");

        let dir = folder(&[("b.tar", "")]);
        assert!(
            error_of(&dir).contains("b.tar is damaged at byte 0"),
            "{}",
            error_of(&dir)
        );
    }

    #[cfg(unix)]
    #[test]
    fn linked_folders_are_followed_once() {
        let dir = folder(&[("sub/a.png", "")]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("sub/loop")).unwrap();
        assert_eq!(ImageFolder::scan(&dir).unwrap().entries().len(), 1);
    }

    #[test]
    fn split_is_stable_and_proportional() {
        let names: Vec<String> = (0..1000).map(|number| format!("{number}.png")).collect();
        let of = |names: &[String]| ImageFolder {
            root: PathBuf::new(),
            entries: names
                .iter()
                .map(|name| ImageEntry {
                    source: ImageSource::File(name.into()),
                    name: name.clone(),
                    caption: None,
                    class: None,
                })
                .collect(),
            damage: Vec::new(),
        };
        let (training, validation) = of(&names).split(0.1);
        assert_eq!(training.entries.len() + validation.entries.len(), 1000);
        assert!(
            (70..130).contains(&validation.entries.len()),
            "{}",
            validation.entries.len()
        );

        let (_, of_half) = of(&names[..500]).split(0.1);
        let expected: Vec<_> = validation
            .entries
            .iter()
            .filter(|entry| names[..500].contains(&entry.name))
            .cloned()
            .collect();
        assert_eq!(of_half.entries, expected);

        let (training, validation) = of(&names[..2]).split(0.001);
        assert_eq!((training.entries.len(), validation.entries.len()), (1, 1));
        let (training, validation) = of(&names[..2]).split(0.999);
        assert_eq!((training.entries.len(), validation.entries.len()), (1, 1));
        assert_eq!(of(&names).split(0.0).1.entries.len(), 0);
        assert_eq!(of(&names).split(1.0).0.entries.len(), 0);
    }
}
