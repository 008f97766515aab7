//! The sheets of a stage, small enough for a page.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{
    DynamicImage, ImageFormat, ImageReader, codecs::jpeg::JpegEncoder, imageops::FilterType,
};
use rayon::prelude::*;

use super::html::base64;

/// Sheets that are looked at for a page that can't hold all as they are.
const MAX_REDUCED: usize = 60;
/// Longest side of a reduced picture, in pixels.
const REDUCED_SIDE: u32 = 1400;
const JPEG_QUALITY: u8 = 85;

/// A picture as a file in memory.
pub(super) struct Picture {
    pub(super) bytes: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
    mime: &'static str,
}

/// What a stage drew on its way.
#[derive(Default)]
pub(super) struct History {
    /// Steps done, and the sheet drawn then, by rising step.
    pub(super) shown: Vec<(u64, Picture)>,
    /// Sheets in the folder.
    pub(super) total: usize,
    /// Sheets that are no whole pictures.
    pub(super) damaged: usize,
    /// Whether they were made smaller.
    pub(super) reduced: bool,
}

impl Picture {
    /// Reads a PNG, and makes a JPEG of it if it has more than `limit` bytes or `reduced` asks for it and that is smaller; `None` if it isn't
    /// there or not whole.
    pub(super) fn read(path: &Path, limit: usize, reduced: bool) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        // The last chunk is complete: nothing was cut off.
        let whole = bytes.len() > 12 && bytes[bytes.len() - 8..].starts_with(b"IEND");
        let reader = ImageReader::with_format(Cursor::new(&bytes), ImageFormat::Png);
        let (width, height) = reader.into_dimensions().ok().filter(|_| whole)?;
        if bytes.len() > limit || reduced {
            let small = Self::reduce(&bytes, limit)?;
            if small.bytes.len() < bytes.len() || bytes.len() > limit {
                return Some(small);
            }
        }
        Some(Self {
            bytes,
            width,
            height,
            mime: "image/png",
        })
    }

    /// A JPEG of no more than `limit` bytes, halved until it fits.
    fn reduce(png: &[u8], limit: usize) -> Option<Self> {
        let picture = image::load_from_memory_with_format(png, ImageFormat::Png).ok()?;
        let mut picture = DynamicImage::ImageRgb8(picture.into_rgb8());
        let mut side = REDUCED_SIDE;
        loop {
            if picture.width().max(picture.height()) > side {
                picture = picture.resize(side, side, FilterType::Triangle);
            }
            let mut bytes = Vec::new();
            picture
                .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))
                .ok()?;
            if bytes.len() <= limit {
                return Some(Self {
                    bytes,
                    width: picture.width(),
                    height: picture.height(),
                    mime: "image/jpeg",
                });
            }
            side /= 2;
            if side < 16 {
                return None;
            }
        }
    }

    pub(super) fn data_uri(&self) -> String {
        format!("data:{};base64,{}", self.mime, base64(&self.bytes))
    }
}

impl History {
    /// Reads the sheets `step-NNNNNNNN.png` in `folder`. If they have more than `budget` bytes together, they are made smaller, and of
    /// too many an even selection is shown, the first and the last among them.
    pub(super) fn read(folder: &Path, budget: usize) -> Self {
        let found = list(folder);
        let bytes = size(folder);
        let reduced = bytes > budget;
        let selected = if reduced {
            evenly(found.len(), MAX_REDUCED.min(found.len()))
        } else {
            (0..found.len()).collect()
        };
        // So small that ten fit at least, and the first and the last always.
        let limit = if reduced { budget / 10 } else { usize::MAX };
        let read: Vec<Option<(u64, Picture)>> = selected
            .par_iter()
            .map(|&index| {
                let (step, path) = &found[index];
                Some((*step, Picture::read(path, limit, reduced)?))
            })
            .collect();
        let mut history = Self {
            damaged: read.iter().filter(|picture| picture.is_none()).count(),
            shown: read.into_iter().flatten().collect(),
            total: found.len(),
            reduced,
        };
        history.thin(budget);
        history
    }

    /// Leaves out sheets, evenly, until the rest has no more than `budget` bytes.
    fn thin(&mut self, budget: usize) {
        let sizes: Vec<usize> = (self.shown.iter())
            .map(|(_, picture)| picture.bytes.len())
            .collect();
        let fits =
            |kept: &Vec<usize>| kept.iter().map(|&index| sizes[index]).sum::<usize>() <= budget;
        let kept = (1..=sizes.len())
            .rev()
            .map(|count| evenly(sizes.len(), count))
            .find(fits)
            .unwrap_or_default();
        let mut index = 0;
        self.shown.retain(|_| {
            index += 1;
            kept.binary_search(&(index - 1)).is_ok()
        });
    }

    /// Bytes of the pictures shown.
    pub(super) fn bytes(&self) -> usize {
        self.shown
            .iter()
            .map(|(_, picture)| picture.bytes.len())
            .sum()
    }
}

/// Bytes of all sheets in `folder`.
pub(super) fn size(folder: &Path) -> usize {
    (list(folder).iter())
        .filter_map(|(_, path)| fs::metadata(path).ok())
        .map(|meta| usize::try_from(meta.len()).unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add)
}

/// Sheets and their steps, by rising step. What is being written has a hidden name.
fn list(folder: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = (fs::read_dir(folder).into_iter().flatten().flatten())
        .filter_map(|entry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix("step-")?.strip_suffix(".png")?;
            Some((step.parse().ok()?, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// `count` of the indices below `len`, evenly, with the first and the last; the last alone if it is one.
fn evenly(len: usize, count: usize) -> Vec<usize> {
    match count {
        0 => Vec::new(),
        1 => vec![len - 1],
        _ => (0..count)
            .map(|index| (index * (len - 1) + (count - 1) / 2) / (count - 1))
            .collect(),
    }
}
