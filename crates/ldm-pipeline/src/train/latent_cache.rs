//! The file in which the latents of a data set are kept: moments of every image, and of its mirror image if the run mirrors.

use std::{fs::File, io, path::Path};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::json;

use crate::{
    config::RunConfig,
    data::{ImageDataset, Preprocess},
    error::Error,
};

/// The tensor in the file, f32, `[rows, 2c, h, w]`.
const MOMENTS: &str = "moments";

/// What moments depend on, as checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey {
    first_stage: String,
    preprocessing: String,
    images: String,
}

/// The rows of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheShape {
    /// Images, times variants of each.
    pub(super) rows: usize,
    /// `[2c, h, w]`
    pub(super) row: [usize; 3],
}

/// Moments in a file that the system pages in as they are read, and out when memory is short.
pub(super) struct LatentCache {
    map: Mmap,
    /// Where the first row begins.
    start: usize,
    shape: CacheShape,
}

impl CacheKey {
    /// The key of the images of `set` encoded by the first stage of the checksum `first_stage`.
    pub(super) fn new(config: &RunConfig, set: &ImageDataset, first_stage: &str) -> Self {
        let preprocess = Preprocess {
            // It matters only whether there are mirror images.
            flip: if config.data.flip > 0.0 { 1.0 } else { 0.0 },
            ..config.data.preprocess()
        };
        let images = set.entries().iter().fold(0, |key, entry| {
            let text = format!("{}{:?}", entry.name, entry.source.fingerprint());
            crc32c::crc32c_append(key, text.as_bytes())
        });
        let preprocessing = crc32c::crc32c(format!("{preprocess:?}").as_bytes());
        Self {
            first_stage: first_stage.into(),
            preprocessing: format!("{preprocessing:08x}"),
            images: format!("{images:08x}"),
        }
    }

    /// Names in the file's header, what differs if the values do, and the values.
    fn parts(&self) -> [(&'static str, &'static str, &str); 3] {
        [
            ("first_stage", "the first stage", &self.first_stage),
            (
                "preprocessing",
                "the preparation of images (data.resolution, fit, flip, background)",
                &self.preprocessing,
            ),
            (
                "images",
                "the training images (their names, sizes or times)",
                &self.images,
            ),
        ]
    }
}

impl CacheShape {
    /// Values of a row.
    pub(super) fn row_len(&self) -> usize {
        self.row.iter().product()
    }

    fn full(&self) -> [usize; 4] {
        let [c, h, w] = self.row;
        [self.rows, c, h, w]
    }
}

impl LatentCache {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If it can't be read, is damaged, or was made from something else than `key` says.
    pub(super) fn open(path: &Path, key: &CacheKey, shape: CacheShape) -> Result<Self, Error> {
        let stale = |problem: String| Error::LatentCache {
            path: path.into(),
            problem,
        };
        let read_error = |source| Error::Read {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(read_error)?;
        // SAFETY: the file is only ever replaced by a rename and never written to or cut, so the mapped bytes don't
        // change. They are read as bytes, for which every pattern is valid.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        let damaged = |error: &dyn std::fmt::Display| stale(format!("it is damaged: {error}"));
        let (header_len, header) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(&error))?;
        let nothing = Default::default();
        let found = header.metadata().as_ref().unwrap_or(&nothing);
        let differing: Vec<&str> = (key.parts().iter())
            .filter(|(name, _, value)| found.get(*name).map(String::as_str) != Some(value))
            .map(|(_, what, _)| *what)
            .collect();
        if !differing.is_empty() {
            let what = differing.join(", and by ");
            return Err(stale(format!("this run differs by {what}")));
        }
        let info = (header.info(MOMENTS)).ok_or_else(|| damaged(&"it holds no moments"))?;
        let (begin, end) = info.data_offsets;
        if info.dtype != safetensors::Dtype::F32
            || info.shape != shape.full()
            || end - begin != 4 * shape.rows * shape.row_len()
        {
            return Err(damaged(&format!(
                "it holds moments {:?} where {:?} are needed",
                info.shape,
                shape.full()
            )));
        }
        Ok(Self {
            map,
            start: 8 + header_len + begin,
            shape,
        })
    }

    /// `[2c, h, w]`
    pub(super) fn row_shape(&self) -> [usize; 3] {
        self.shape.row
    }

    /// The moments in `row`, NaN where the image couldn't be read.
    pub(super) fn row(&self, row: usize) -> Vec<f32> {
        let bytes = 4 * self.shape.row_len();
        let start = self.start + row * bytes;
        self.map[start..start + bytes]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }
}

/// Writes what comes before the first row: the header of a safetensors file.
pub(super) fn write_header(
    out: &mut dyn io::Write,
    key: &CacheKey,
    shape: CacheShape,
) -> io::Result<()> {
    let metadata: serde_json::Map<_, _> = (key.parts().iter())
        .map(|(name, _, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let mut header = json!({
        "__metadata__": metadata,
        MOMENTS: {
            "dtype": "F32",
            "shape": shape.full(),
            "data_offsets": [0, 4 * shape.rows * shape.row_len()],
        },
    })
    .to_string();
    // The values shall be aligned.
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// Writes rows.
pub(super) fn write_rows(out: &mut dyn io::Write, values: &[f32]) -> io::Result<()> {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape {
        rows: 3,
        row: [2, 1, 2],
    };

    fn key(first_stage: &str, preprocessing: &str, images: &str) -> CacheKey {
        CacheKey {
            first_stage: first_stage.into(),
            preprocessing: preprocessing.into(),
            images: images.into(),
        }
    }

    #[test]
    fn read_as_written_and_refused_when_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latents.safetensors");
        let values: Vec<f32> = (0..12).map(|value| value as f32 / 8.0).collect();
        let mut bytes = Vec::new();
        write_header(&mut bytes, &key("a", "b", "c"), SHAPE).unwrap();
        write_rows(&mut bytes, &values[..4]).unwrap();
        write_rows(&mut bytes, &values[4..]).unwrap();
        std::fs::write(&path, &bytes).unwrap();

        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor(MOMENTS).unwrap().shape(), [3, 2, 1, 2]);
        let cache = LatentCache::open(&path, &key("a", "b", "c"), SHAPE).unwrap();
        for row in 0..3 {
            assert_eq!(cache.row(row), values[4 * row..4 * row + 4]);
        }

        let refused = |key: &CacheKey, shape| {
            let error = LatentCache::open(&path, key, shape).err().unwrap();
            assert!(error.help().unwrap().contains("data.latent_cache=rebuild"));
            error.to_string()
        };
        let error = refused(&key("x", "b", "c"), SHAPE);
        assert!(
            error.contains("by the first stage") && !error.contains(", and by"),
            "{error}"
        );
        let error = refused(&key("a", "x", "c"), SHAPE);
        assert!(error.contains("by the preparation of images"), "{error}");
        let error = refused(&key("x", "b", "x"), SHAPE);
        assert!(
            error.contains("by the first stage, and by the training images"),
            "{error}"
        );
        let error = refused(&key("a", "b", "c"), CacheShape { rows: 4, ..SHAPE });
        assert!(error.contains("damaged"), "{error}");

        for length in [0, 7, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = refused(&key("a", "b", "c"), SHAPE);
            assert!(error.contains("damaged"), "{length}: {error}");
        }
    }
}
