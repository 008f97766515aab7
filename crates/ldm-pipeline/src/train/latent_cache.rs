//! The file in which the latents of a data set are kept: moments of every image, and of its mirror image if the run mirrors.

use std::{fs::File, io, path::Path};

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::json;

use crate::{
    config::RunConfig,
    data::{BucketPlace, ImageDataset, Preprocess, Size},
    error::Error,
};

/// The tensor in the file, f32, `[rows, 2c, h, w]`; with buckets there is one for each, whose name goes on with its size.
const MOMENTS: &str = "moments";

/// What moments depend on, as checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey {
    first_stage: String,
    preprocessing: String,
    images: String,
}

/// The rows of a cache that have one shape: a tensor of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheShape {
    /// That of the images, where not all have the same.
    pub(super) bucket: Option<Size>,
    /// Images, times variants of each.
    pub(super) rows: usize,
    /// `[2c, h, w]`
    pub(super) row: [usize; 3],
}

/// Moments in a file that the system pages in as they are read, and out when memory is short.
pub(super) struct LatentCache {
    map: Mmap,
    /// Each tensor, and where its first row begins.
    tensors: Vec<(CacheShape, usize)>,
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
        let mut preprocessing = crc32c::crc32c(format!("{preprocess:?}").as_bytes());
        if set.has_buckets() {
            let buckets = set.buckets();
            for (size, members) in buckets.sizes().iter().zip(buckets.members()) {
                let text = format!("{size}{members:?}");
                preprocessing = crc32c::crc32c_append(preprocessing, text.as_bytes());
            }
        }
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
                "the preparation of images (data.resolution, buckets, fit, flip, background)",
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
    /// The tensor's name.
    fn name(&self) -> String {
        match self.bucket {
            None => MOMENTS.to_owned(),
            Some(size) => format!("{MOMENTS}.{size}"),
        }
    }

    /// Bytes of the tensor.
    fn bytes(&self) -> usize {
        4 * self.rows * self.row_len()
    }

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
    pub(super) fn open(path: &Path, key: &CacheKey, shapes: &[CacheShape]) -> Result<Self, Error> {
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
        let mut tensors = Vec::with_capacity(shapes.len());
        for &shape in shapes {
            let name = shape.name();
            let info =
                (header.info(&name)).ok_or_else(|| damaged(&format_args!("it holds no {name}")))?;
            let (begin, end) = info.data_offsets;
            if info.dtype != safetensors::Dtype::F32
                || info.shape != shape.full()
                || end - begin != shape.bytes()
            {
                return Err(damaged(&format_args!(
                    "it holds {name} {:?} where {:?} are needed",
                    info.shape,
                    shape.full()
                )));
            }
            tensors.push((shape, 8 + header_len + begin));
        }
        Ok(Self { map, tensors })
    }

    /// `[2c, h, w]` of the rows of a bucket.
    pub(super) fn row_shape(&self, bucket: usize) -> [usize; 3] {
        self.tensors[bucket].0.row
    }

    /// The moments of an image, or of its mirror image; NaN where it couldn't be read.
    pub(super) fn row(&self, place: BucketPlace, variants: usize, variant: usize) -> Vec<f32> {
        let (shape, start) = self.tensors[place.bucket];
        let bytes = 4 * shape.row_len();
        let start = start + (variants * place.position + variant) * bytes;
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
    shapes: &[CacheShape],
) -> io::Result<()> {
    let metadata: serde_json::Map<_, _> = (key.parts().iter())
        .map(|(name, _, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata.into());
    let mut begin = 0;
    for shape in shapes {
        let end = begin + shape.bytes();
        let info = json!({"dtype": "F32", "shape": shape.full(), "data_offsets": [begin, end]});
        header.insert(shape.name(), info);
        begin = end;
    }
    let mut header = serde_json::Value::from(header).to_string();
    // The values shall be aligned.
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// Writes rows, tensor by tensor.
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
        bucket: None,
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
        write_header(&mut bytes, &key("a", "b", "c"), &[SHAPE]).unwrap();
        write_rows(&mut bytes, &values[..4]).unwrap();
        write_rows(&mut bytes, &values[4..]).unwrap();
        std::fs::write(&path, &bytes).unwrap();

        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor(MOMENTS).unwrap().shape(), [3, 2, 1, 2]);
        let cache = LatentCache::open(&path, &key("a", "b", "c"), &[SHAPE]).unwrap();
        for position in 0..3 {
            let place = BucketPlace {
                bucket: 0,
                position,
            };
            assert_eq!(
                cache.row(place, 1, 0),
                values[4 * position..4 * position + 4]
            );
        }

        let refused = |key: &CacheKey, shape| {
            let error = LatentCache::open(&path, key, &[shape]).err().unwrap();
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

    #[test]
    fn every_bucket_has_rows_of_its_own_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latents.safetensors");
        let shape = |size: [u32; 2], rows, row| CacheShape {
            bucket: Some(size.into()),
            rows,
            row,
        };
        let shapes = [
            shape([16, 8], 4, [2, 1, 2]),
            shape([8, 8], 0, [2, 1, 1]),
            shape([8, 16], 2, [2, 2, 1]),
        ];
        let key = key("a", "b", "c");
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let mut bytes = Vec::new();
        write_header(&mut bytes, &key, &shapes).unwrap();
        write_rows(&mut bytes, &values).unwrap();
        std::fs::write(&path, &bytes).unwrap();

        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            tensors.tensor("moments.16x8").unwrap().shape(),
            [4, 2, 1, 2]
        );
        let cache = LatentCache::open(&path, &key, &shapes).unwrap();
        let row = |bucket, position, variant| {
            let place = BucketPlace { bucket, position };
            cache.row(place, 2, variant)
        };
        assert_eq!(row(0, 1, 0), values[8..12]);
        assert_eq!(row(2, 0, 1), values[20..24]);
        assert_eq!(cache.row_shape(2), [2, 2, 1]);

        let mut fewer = shapes;
        fewer[2].rows = 1;
        let error = LatentCache::open(&path, &key, &fewer).err().unwrap();
        assert!(
            error.to_string().contains("moments.8x16 [2, 2, 2, 1]"),
            "{error}"
        );
    }
}
