//! Semantic masks as PNG files: with a palette or in grey, where the values are labels, or in the colours of a [`Palette`].

use std::{fs::File, io::BufReader, path::Path};

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{LabelMapping, Palette};
use crate::{data::Size, error::Error};

/// Pixels that a mask may have.
const MAX_PIXELS: u64 = 1 << 26;

/// A picture whose pixels are labels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// One label per pixel.
    pub labels: Vec<u32>,
}

impl LabelMap {
    /// Reads a PNG file: palette indices, not their colours, or grey values as they are stored, of either of which `mapping` gives the labels; or
    /// colours, of which `palette` does.
    ///
    /// # Errors
    /// If it can't be read, is no PNG, or is in colour and there is no palette, or one that hasn't all of its colours.
    pub fn load(
        path: &Path,
        palette: Option<&Palette>,
        mapping: &LabelMapping,
    ) -> Result<Self, Error> {
        let mask = Mask::open(path, png::Transformations::IDENTITY)?;
        let (color, depth) = mask.reader.output_color_type();
        match (color, palette) {
            (png::ColorType::Grayscale | png::ColorType::Indexed, _) => {
                mask.labels(|row, width| {
                    let values = unpack(row, depth, width).into_iter();
                    Ok(values.map(|value| mapping.label(value)).collect())
                })
            }
            (png::ColorType::Rgb | png::ColorType::Rgba, Some(palette)) => {
                Self::load_painted(path, palette)
            }
            _ => Err(mask.malformed(
                "a semantic mask has one label per pixel: a PNG with a palette, or in grey, or in colours of which --palette gives the labels, or `stage2.semantic.palette` in training",
            )),
        }
    }

    /// Reads a PNG file whose pixels have the colours of `palette`, also where they are stored as grey values, or as indices of the
    /// file's own palette.
    ///
    /// # Errors
    /// If it can't be read, is no PNG of 8 bits, or has a colour that isn't in the palette.
    pub fn load_painted(path: &Path, palette: &Palette) -> Result<Self, Error> {
        let mask = Mask::open(path, png::Transformations::EXPAND)?;
        let (color, depth) = mask.reader.output_color_type();
        if depth != png::BitDepth::Eight {
            return Err(mask.malformed("a semantic mask in colour has 8 bits, not 16"));
        }
        let mut y = 0;
        mask.labels(|row, _| {
            let pixels = row.chunks_exact(color.samples()).enumerate();
            let labels = (pixels.map(|(x, pixel)| label(pixel, [x, y], palette))).collect();
            y += 1;
            labels
        })
    }

    /// The middle part of the aspect ratio of `size`, resized to that by nearest neighbour: as [`Fit::Crop`](crate::data::Fit::Crop) does to
    /// an image.
    pub(crate) fn cropped(&self, size: Size) -> Self {
        let [to_width, to_height] = [size.width as usize, size.height as usize];
        let width = self.width.min((self.height * to_width / to_height).max(1));
        let height = self.height.min((self.width * to_height / to_width).max(1));
        let [left, top] = [(self.width - width) / 2, (self.height - height) / 2];
        self.resampled(size, [left, top], [width, height])
    }

    /// All of it, resized to `size` by nearest neighbour.
    pub(crate) fn stretched(&self, size: Size) -> Self {
        self.resampled(size, [0, 0], [self.width, self.height])
    }

    fn resampled(&self, to: Size, [left, top]: [usize; 2], [width, height]: [usize; 2]) -> Self {
        let [to_width, to_height] = [to.width as usize, to.height as usize];
        // The pixel under the centre of the new one.
        let source = |x: usize, length: usize, side: usize| (2 * x + 1) * length / (2 * side);
        let labels = (0..to_height)
            .flat_map(|y| (0..to_width).map(move |x| (x, y)))
            .map(|(x, y)| {
                let row = top + source(y, height, to_height);
                self.labels[row * self.width + left + source(x, width, to_width)]
            })
            .collect();
        Self {
            width: to_width,
            height: to_height,
            labels,
        }
    }

    /// A batch of equally large maps as `[N, H, W]`.
    pub(crate) fn batch(maps: &[&Self], device: &Device) -> Tensor<3, Int> {
        let (height, width) = maps.first().map_or((0, 0), |map| (map.height, map.width));
        let labels: Vec<i32> = maps
            .iter()
            .flat_map(|map| map.labels.iter().map(|&label| label as i32))
            .collect();
        Tensor::from_data(TensorData::new(labels, [maps.len(), height, width]), device)
    }
}

/// A PNG file of which the head has been read.
struct Mask<'a> {
    path: &'a Path,
    reader: png::Reader<BufReader<File>>,
}

impl<'a> Mask<'a> {
    fn open(path: &'a Path, transformations: png::Transformations) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(transformations);
        let reader = decoder.read_info().map_err(|error| Error::Malformed {
            path: path.into(),
            problem: format!("a semantic mask is a PNG file: {error}"),
        })?;
        Ok(Self { path, reader })
    }

    fn malformed(&self, problem: impl Into<String>) -> Error {
        Error::Malformed {
            path: self.path.into(),
            problem: problem.into(),
        }
    }

    /// The map, where `labels` gives those of a row of so many pixels.
    fn labels(
        mut self,
        mut labels: impl FnMut(&[u8], usize) -> Result<Vec<u32>, String>,
    ) -> Result<LabelMap, Error> {
        let (width, height) = self.reader.info().size();
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(self.malformed(format!("{width} x {height} pixels are too many")));
        }
        let size =
            (self.reader.output_buffer_size()).ok_or_else(|| self.malformed("it is too large"))?;
        let mut bytes = vec![0; size];
        let frame = (self.reader.next_frame(&mut bytes))
            .map_err(|error| self.malformed(format!("it is damaged: {error}")))?;
        let (width, height) = (width as usize, height as usize);
        let mut map = LabelMap {
            width,
            height,
            labels: Vec::with_capacity(width * height),
        };
        for row in bytes[..frame.buffer_size()].chunks_exact(frame.line_size) {
            let row = labels(row, width).map_err(|problem| self.malformed(problem))?;
            map.labels.extend(row);
        }
        Ok(map)
    }
}

/// The label of a pixel: one sample of grey or three of colour, and perhaps its opacity.
fn label(pixel: &[u8], at: [usize; 2], palette: &Palette) -> Result<u32, String> {
    let [x, y] = at;
    let (color, opacity) = match *pixel {
        [grey] => ([grey; 3], 255),
        [grey, opacity] => ([grey; 3], opacity),
        [r, g, b] => ([r, g, b], 255),
        [r, g, b, opacity] => ([r, g, b], opacity),
        _ => unreachable!("a pixel of a PNG file has one to four samples"),
    };
    if opacity < 255 {
        return Err(format!("the pixel at ({x}, {y}) is transparent"));
    }
    (palette.label(color)).ok_or_else(|| palette.unknown(color, at))
}

/// The samples of a row: the first is in the highest bits.
fn unpack(row: &[u8], depth: png::BitDepth, width: usize) -> Vec<u32> {
    if depth == png::BitDepth::Sixteen {
        let pairs = row.chunks_exact(2);
        return pairs
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .collect();
    }
    let bits = depth as usize;
    (0..width)
        .map(|x| {
            let bit = x * bits;
            let shift = 8 - bits - bit % 8;
            u32::from(row[bit / 8] >> shift) & ((1 << bits) - 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, color: png::ColorType, depth: png::BitDepth, rows: &[u8]) {
        let mut encoder = png::Encoder::new(File::create(path).unwrap(), 3, 2);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![9; 3 * 16]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(rows).unwrap();
    }

    #[test]
    fn labels_are_indices_or_grey_values_of_any_depth() {
        use png::{BitDepth::*, ColorType::*};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let labels = |color, depth, rows: &[u8]| {
            write(&path, color, depth, rows);
            let map = LabelMap::load(&path, None, &LabelMapping::default()).unwrap();
            assert_eq!([map.width, map.height], [3, 2]);
            map.labels
        };
        assert_eq!(
            labels(Indexed, Four, &[0x12, 0x30, 0xf0, 0xa0]),
            [1, 2, 3, 15, 0, 10]
        );
        assert_eq!(
            labels(Indexed, Eight, &[0, 1, 2, 3, 4, 15]),
            [0, 1, 2, 3, 4, 15]
        );
        assert_eq!(
            labels(Grayscale, Eight, &[181, 1, 2, 3, 4, 255]),
            [181, 1, 2, 3, 4, 255]
        );
        assert_eq!(
            labels(Grayscale, Sixteen, &[1, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5]),
            [256, 1, 2, 3, 4, 5]
        );
        assert_eq!(
            labels(Grayscale, One, &[0b1010_0000, 0b0100_0000]),
            [1, 0, 1, 0, 1, 0]
        );
    }

    #[test]
    fn a_mask_is_cut_and_resized_by_nearest_neighbour() {
        let map = LabelMap {
            width: 4,
            height: 2,
            labels: vec![0, 1, 2, 3, 4, 5, 6, 7],
        };
        let cropped = |size: [u32; 2]| map.cropped(size.into()).labels;
        assert_eq!(cropped([2, 2]), [1, 2, 5, 6]);
        assert_eq!(cropped([1, 1]), [6]);
        assert_eq!(map.stretched(Size::square(2)).labels, [1, 3, 5, 7]);
        assert_eq!(
            cropped([4, 4]),
            [1, 1, 2, 2, 1, 1, 2, 2, 5, 5, 6, 6, 5, 5, 6, 6]
        );
        assert_eq!(cropped([4, 2]), map.labels);
        assert_eq!(cropped([1, 2]), [1, 5]);
        assert_eq!(cropped([4, 1]), [0, 1, 2, 3]);
        assert_eq!(cropped([40, 1]).len(), 40);
    }

    #[test]
    fn a_painted_mask_may_have_its_colours_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 3, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Four);
        encoder.set_palette(vec![9, 0, 0, 7, 7, 7, 1, 2, 3]);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0x01, 0x20]).unwrap();
        drop(writer);
        let palette = Palette::new(vec![[7; 3], [1, 2, 3], [9, 0, 0]]);
        let map = LabelMap::load_painted(&path, &palette).unwrap();
        assert_eq!(map.labels, [2, 0, 1]);
        let map = LabelMap::load(&path, Some(&palette), &LabelMapping::default()).unwrap();
        assert_eq!(map.labels, [0, 1, 2]);
    }

    #[test]
    fn colours_are_labels_by_a_palette_alone() {
        use png::{BitDepth::*, ColorType::*};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let palette = Palette::new(vec![[7; 3], [1, 2, 3], [9, 0, 0]]);
        let mapping: LabelMapping = toml::from_str("2 = 0").unwrap();
        let refused = |palette: Option<&Palette>, culprit: &str| {
            let error = LabelMap::load(&path, palette, &LabelMapping::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(culprit) && error.contains("mask.png"),
                "{error}"
            );
        };
        let colors = [
            [7, 7, 7],
            [1, 2, 3],
            [9, 0, 0],
            [9, 0, 0],
            [7, 7, 7],
            [1, 2, 3],
        ];
        write(&path, Rgb, Eight, colors.as_flattened());
        let map = LabelMap::load(&path, Some(&palette), &mapping).unwrap();
        assert_eq!(map.labels, [0, 1, 2, 2, 0, 1]);
        refused(None, "palette");
        refused(Some(&Palette::new(vec![[7; 3], [1, 2, 3]])), "(2, 0)");

        let with_opacity = |opacity: u8| colors.map(|[r, g, b]| [r, g, b, opacity]);
        write(&path, Rgba, Eight, with_opacity(255).as_flattened());
        assert_eq!(
            LabelMap::load(&path, Some(&palette), &mapping).unwrap(),
            map
        );
        write(&path, Rgba, Eight, with_opacity(254).as_flattened());
        refused(Some(&palette), "transparent");
        write(&path, Rgb, Sixteen, &[0; 36]);
        refused(Some(&palette), "8 bits");
        write(&path, GrayscaleAlpha, Eight, &[255; 12]);
        refused(Some(&palette), "palette");

        // A palette changes nothing about values that are numbers, and a mapping nothing about colours; as colours they are looked up all the same.
        write(&path, Grayscale, Eight, &[2, 1, 0, 0, 1, 2]);
        let map = LabelMap::load(&path, Some(&palette), &mapping).unwrap();
        assert_eq!(map.labels, [0, 1, 0, 0, 1, 0]);
        let error = LabelMap::load_painted(&path, &palette).unwrap_err();
        assert!(error.to_string().contains("(2, 2, 2)"), "{error}");
        write(&path, Grayscale, Eight, &[7; 6]);
        let map = LabelMap::load_painted(&path, &palette).unwrap();
        assert_eq!(map.labels, [0; 6]);

        std::fs::write(&path, b"no picture").unwrap();
        refused(None, "PNG");
    }
}
