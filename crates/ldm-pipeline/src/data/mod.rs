//! From a folder of images to batches.
//!
//! ```text
//! ImageFolder -- names, captions --> ImageDataset -- samples [C, H, W] --> Loader -- batches [N, C, H, W] --> training
//! ```
//!
//! [`ImageFolder`] knows which images there are, as files or in tar files, [`Preprocess`] what is done to each, [`ImageDataset`] puts both
//! together behind the [`Dataset`] trait, [`Buckets`] which shape each image gets, and [`Loader`] prepares batches ahead in worker threads. Batch k of a run
//! is a pure function of the seed and k, whatever the number of threads. [`twemoji`] is a captioned data set that
//! is part of the program, [`fashion_mnist`] makes such a folder of another one's files.

mod buckets;
mod captions;
mod class_names;
mod config;
#[cfg(test)]
mod damage_tests;
mod dataset;
mod decode;
mod error;
mod export;
pub mod fashion_mnist;
mod folder;
#[cfg(test)]
mod format_tests;
mod header;
mod loader;
mod order;
mod plain;
mod preprocess;
mod shards;
mod source;
#[cfg(test)]
mod test_images;
pub mod twemoji;
mod worker;

pub use buckets::{BucketPlace, Buckets, Size};
pub use class_names::{CLASS_FILE, ClassNames};
pub use config::{DataConfig, LatentCaching};
pub use dataset::{Dataset, ImageDataset, Sample};
pub use decode::{DEFAULT_MAX_PIXELS, Picture, Rgb16Image, decode};
pub use error::DataError;
pub use folder::{ImageEntry, ImageFolder, is_shard};
pub use loader::{Batch, Loader, LoaderConfig, Share};
pub use plain::PlainImages;
pub use preprocess::{Crop, Fit, Preprocess};
pub use shards::ShardDamage;
pub use source::ImageSource;
pub use worker::SkippedSample;
