//! What can be wrong with a data set.

use std::{io, path::PathBuf};

use super::shards::ShardDamage;
use crate::atomic::WriteError;

/// A problem with a data set. The message says what and where; [`DataError::help`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No data folder was given.
    #[error("no data folder is given")]
    NoFolder,
    /// The data folder isn't there.
    #[error("the data folder {} doesn't exist", path.display())]
    MissingFolder {
        /// The folder asked for.
        path: PathBuf,
    },
    /// The data folder is a file.
    #[error("{} is a file, not a folder of images", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// The data folder has no image in it.
    #[error("no images in {} or its subfolders", path.display())]
    EmptyFolder {
        /// The folder asked for.
        path: PathBuf,
    },
    /// The data folder has images in files of their own and in tar files.
    #[error("{} has both images ({image}) and tar files ({shard})", path.display())]
    ImagesAndShards {
        /// The folder asked for.
        path: PathBuf,
        /// One of the images.
        image: String,
        /// One of the tar files.
        shard: String,
    },
    /// A tar file that can't be read at any place.
    #[error("the shard {} is compressed", path.display())]
    CompressedShard {
        /// The file.
        path: PathBuf,
    },
    /// A part of a tar file can't be used.
    #[error(transparent)]
    Shard(#[from] ShardDamage),
    /// The data were there, and aren't any more.
    #[error("the data in {} are gone", path.display())]
    Vanished {
        /// The data folder.
        path: PathBuf,
    },
    /// A file or folder can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A line of `metadata.jsonl` can't be understood.
    #[error("{}, line {line}: {reason}", path.display())]
    Metadata {
        /// The `metadata.jsonl`.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of `metadata.jsonl` names a file that isn't among the folder's images.
    #[error("{}, line {line}: {reason}: \"{file_name}\"", path.display())]
    MetadataFile {
        /// The `metadata.jsonl`.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The name as the line gives it.
        file_name: String,
        /// Whether the file is missing or of another kind.
        reason: &'static str,
    },
    /// A line of `classes.txt` can't be understood.
    #[error("{}, line {line}: {reason}", path.display())]
    Classes {
        /// The `classes.txt`.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The file's content is no image, whatever its name.
    #[error("{} isn't an image: its content is none of PNG, JPEG, WebP, GIF, BMP and TIFF", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// The image is damaged, truncated, or of a variety that can't be decoded.
    #[error("the image {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// The image declares more pixels than allowed.
    #[error("the image {} has {width} x {height} pixels, more than the {limit} allowed", path.display())]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// Its declared width.
        width: u32,
        /// Its declared height.
        height: u32,
        /// The limit in force.
        limit: u64,
    },
    /// A sample can't be had, and the loader is strict.
    #[error("a sample can't be used, and damaged files are not allowed")]
    Strict {
        /// What is wrong with the sample.
        source: Box<DataError>,
    },
    /// No sample of the data set can be had.
    #[error("none of the {count} samples can be used; this is the last one tried")]
    AllUnusable {
        /// The number of samples.
        count: usize,
        /// What is wrong with the last one tried.
        source: Box<DataError>,
    },
    /// A loader over nothing.
    #[error("the data set has no samples")]
    NoSamples,
    /// A worker thread has ended before its work.
    #[error("a data loading thread ended unexpectedly before batch {batch}")]
    WorkerLost {
        /// The batch that it should have delivered.
        batch: u64,
    },
    /// A file of MNIST's format has another content.
    #[error("{} is no file of Fashion-MNIST: {reason}", path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The destination of an export is taken.
    #[error("{} already exists", path.display())]
    DestinationExists {
        /// The destination.
        path: PathBuf,
    },
    /// An export can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl DataError {
    /// The way out, in one sentence.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoFolder | Self::MissingFolder { .. } => {
                "give a folder of images or tar files with --data, or make one to try with `ldm data twemoji --out DIR`"
            }
            Self::NotAFolder { .. } => "give the folder that holds the file",
            Self::EmptyFolder { .. } => {
                "put PNG, JPEG, WebP, GIF, BMP or TIFF files there, or give another folder with --data"
            }
            Self::ImagesAndShards { .. } => {
                "move the ones or the others elsewhere, and give the folder to train on with --data"
            }
            Self::CompressedShard { .. } => {
                "samples are read at any place of a shard, so unpack it to a plain .tar first; the images in it are compressed anyway"
            }
            Self::Shard(_) => {
                "copy or make the shard anew; without `strict` the rest of it is used"
            }
            Self::Vanished { .. } => {
                "bring the folder back, such as by mounting its disk, and go on with --resume"
            }
            Self::Read { .. } => "check the path and its permissions",
            Self::Metadata { .. } => {
                r#"a line is like {"file_name": "apple.png", "text": "a red apple"}; null for "text" means no caption"#
            }
            Self::MetadataFile { .. } => {
                "`file_name` is relative to metadata.jsonl's folder; correct the line or remove it"
            }
            Self::Classes { .. } => {
                "a line is like `n01440764 tench, Tinca tinca`: a folder, and what its class is called"
            }
            Self::NotAnImage { .. } | Self::Damaged { .. } => {
                "replace or remove the file; without `strict` it is skipped"
            }
            Self::TooManyPixels { .. } => {
                "make the image smaller, or raise `max_pixels` if the file is to be trusted"
            }
            Self::Strict { source } | Self::AllUnusable { source, .. } => source.help(),
            Self::NoSamples => "add images, or lower the share held out for validation",
            Self::WorkerLost { .. } => {
                "resume from the last checkpoint; the panic above says what happened"
            }
            Self::Idx { .. } => {
                "get the data set anew, such as from Debian's package dataset-fashion-mnist: see scripts/data/fashion-mnist.sh"
            }
            Self::DestinationExists { .. } => "choose another folder, or remove this one first",
            Self::Write(_) => "check the disk's free space and the folder's permissions",
        }
    }
}
