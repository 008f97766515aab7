//! From decoded pixels to what a model is trained on.

use fast_image_resize::{ResizeOptions, Resizer};
use image::{ImageBuffer, Pixel, Rgb, RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::{
    buckets::Size,
    decode::{DEFAULT_MAX_PIXELS, Picture, Rgb16Image},
};
use crate::rng::{Stream, below, rng, uniform};

/// Sides in a relation beyond this are cut to it before resizing: a picture of 20,000 x 1 pixels must not become
/// one of 5,120,000 x 256.
const MAX_ASPECT: u32 = 16;

/// What is done to each image: resized to fit a square of `resolution`, or another size that is asked for, brought into it, perhaps mirrored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// Width and height of the [square](Self::square), in pixels.
    pub resolution: usize,
    /// How an image of another aspect ratio than the result's gets there.
    pub fit: Fit,
    /// Which part is kept under [`Fit::Crop`].
    pub crop: Crop,
    /// Probability of mirroring left to right.
    pub flip: f64,
    /// The colour behind transparent pixels and around padded images, in sRGB.
    pub background: [u8; 3],
    /// Images that declare more pixels than this are refused.
    pub max_pixels: u64,
}

/// How an image of another aspect ratio than the result's gets there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// It is resized to cover the result, and what one side has beyond that is cut off.
    #[default]
    Crop,
    /// It is resized to lie within the result, and the background fills what one side lacks.
    Pad,
    /// Both sides are resized, each for itself.
    Stretch,
}

/// Which part of an image is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The middle.
    #[default]
    Center,
    /// Another part at each visit; sides in a relation beyond 16 to 1 are cut to that first.
    Random,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            resolution: 256,
            fit: Fit::Crop,
            crop: Crop::Center,
            flip: 0.0,
            background: [255; 3],
            max_pixels: DEFAULT_MAX_PIXELS,
        }
    }
}

impl Preprocess {
    /// The same without anything random: the middle of the image, not mirrored.
    #[must_use]
    pub fn deterministic(&self) -> Self {
        Self {
            crop: Crop::Center,
            flip: 0.0,
            ..self.clone()
        }
    }

    /// The square of `resolution`.
    ///
    /// # Panics
    /// If it is larger than any that a configuration may have.
    pub fn square(&self) -> Size {
        Size::square(
            u32::try_from(self.resolution).expect("a resolution is checked with the configuration"),
        )
    }

    /// The part that is the same at each visit: the picture resized (Lanczos, antialiased) and, unless a random
    /// crop follows, brought to `size`.
    pub fn prepare(&self, picture: &Picture, size: Size) -> Picture {
        let (width, height) = self.resized_dimensions(picture.dimensions(), size);
        let options = match self.fit {
            Fit::Crop => crop_to_aspect(picture.dimensions(), (width, height)),
            Fit::Pad | Fit::Stretch => ResizeOptions::new(),
        };
        let (resized, outcome) = match picture {
            Picture::Rgb8(from) => {
                let mut to = RgbImage::new(width, height);
                let outcome = Resizer::new().resize(from, &mut to, &options);
                (Picture::Rgb8(to), outcome)
            }
            Picture::Rgb16(from) => {
                let mut to = Rgb16Image::new(width, height);
                let outcome = Resizer::new().resize(from, &mut to, &options);
                (Picture::Rgb16(to), outcome)
            }
        };
        outcome.expect("both images have one pixel type, and the crop box lies inside");
        match self.fit {
            Fit::Pad => self.pad(&resized, size),
            Fit::Crop | Fit::Stretch => resized,
        }
    }

    /// The rest: a picture prepared for the same `size` as `[3, height, width]` in [-1, 1], its crop and mirroring drawn for
    /// (seed, epoch, index).
    pub fn finish(
        &self,
        prepared: &Picture,
        size: Size,
        seed: u64,
        epoch: u64,
        index: u64,
    ) -> Vec<f32> {
        let (width, height) = prepared.dimensions();
        let room = [width - size.width, height - size.height];
        let [left, top] = if room == [0, 0] {
            [0, 0]
        } else {
            let mut rng = rng(seed, Stream::Crop, epoch, index);
            room.map(|room| below(&mut rng, room as usize + 1) as u32)
        };
        let mirrored =
            self.flip > 0.0 && uniform(&mut rng(seed, Stream::Flip, epoch, index)) < self.flip;
        let window = Window {
            left,
            top,
            size,
            mirrored,
        };
        match prepared {
            Picture::Rgb8(image) => window.planes(image, 255.0),
            Picture::Rgb16(image) => window.planes(image, 65_535.0),
        }
    }

    /// What [`Preprocess::prepare`] resizes to.
    fn resized_dimensions(&self, (width, height): (u32, u32), to: Size) -> (u32, u32) {
        let wider =
            u64::from(width) * u64::from(to.height) >= u64::from(height) * u64::from(to.width);
        let scaled = |side: u32, by: u32, over: u32| {
            (f64::from(side) * f64::from(by) / f64::from(over)).round() as u32
        };
        let width_beside = |height_now: u32| scaled(height_now, width, height);
        let height_beside = |width_now: u32| scaled(width_now, height, width);
        match (self.fit, self.crop, wider) {
            (Fit::Stretch, ..) | (Fit::Crop, Crop::Center, _) => (to.width, to.height),
            (Fit::Crop, Crop::Random, true) => {
                let width = width_beside(to.height).clamp(to.width, to.width * MAX_ASPECT);
                (width, to.height)
            }
            (Fit::Crop, Crop::Random, false) => {
                let height = height_beside(to.width).clamp(to.height, to.height * MAX_ASPECT);
                (to.width, height)
            }
            (Fit::Pad, _, true) => (to.width, height_beside(to.width).clamp(1, to.height)),
            (Fit::Pad, _, false) => (width_beside(to.height).clamp(1, to.width), to.height),
        }
    }

    fn pad(&self, picture: &Picture, size: Size) -> Picture {
        let (width, height) = picture.dimensions();
        let (left, top) = (
            i64::from((size.width - width) / 2),
            i64::from((size.height - height) / 2),
        );
        match picture {
            Picture::Rgb8(image) => {
                let mut canvas =
                    RgbImage::from_pixel(size.width, size.height, Rgb(self.background));
                imageops::replace(&mut canvas, image, left, top);
                Picture::Rgb8(canvas)
            }
            Picture::Rgb16(image) => {
                let background = self.background.map(|channel| u16::from(channel) * 257);
                let mut canvas = Rgb16Image::from_pixel(size.width, size.height, Rgb(background));
                imageops::replace(&mut canvas, image, left, top);
                Picture::Rgb16(canvas)
            }
        }
    }
}

/// Cuts what is outside of the target's aspect, half on each side.
fn crop_to_aspect((width, height): (u32, u32), (to_width, to_height): (u32, u32)) -> ResizeOptions {
    // Rounded down to 1/1024 pixel, so that all sums are exact and none can leave the image.
    let fitting = |this: u32, other: u32, to_this: u32, to_other: u32| {
        let ideal = f64::from(other) * f64::from(to_this) / f64::from(to_other);
        (ideal.min(f64::from(this)) * 1024.0).floor() / 1024.0
    };
    let kept_width = fitting(width, height, to_width, to_height);
    let kept_height = fitting(height, width, to_height, to_width);
    let left = (f64::from(width) - kept_width) / 2.0;
    let top = (f64::from(height) - kept_height) / 2.0;
    ResizeOptions::new().crop(left, top, kept_width, kept_height)
}

/// The part of an image that becomes a sample.
#[derive(Clone, Copy)]
struct Window {
    left: u32,
    top: u32,
    size: Size,
    mirrored: bool,
}

impl Window {
    /// The window as three planes, `0..=white` mapped to [-1, 1].
    fn planes<T>(self, image: &ImageBuffer<Rgb<T>, Vec<T>>, white: f32) -> Vec<f32>
    where
        T: Copy + Into<f32>,
        Rgb<T>: Pixel<Subpixel = T>,
    {
        let [width, height] = [self.size.width as usize, self.size.height as usize];
        let stride = image.width() as usize * 3;
        let mut planes = vec![0.0; 3 * width * height];
        let (red, rest) = planes.split_at_mut(width * height);
        let (green, blue) = rest.split_at_mut(width * height);
        for row in 0..height {
            let start = (self.top as usize + row) * stride + self.left as usize * 3;
            let pixels = image.as_raw()[start..start + 3 * width].chunks_exact(3);
            for (column, pixel) in pixels.enumerate() {
                let column = if self.mirrored {
                    width - 1 - column
                } else {
                    column
                };
                let at = row * width + column;
                red[at] = signed(pixel[0].into(), white);
                green[at] = signed(pixel[1].into(), white);
                blue[at] = signed(pixel[2].into(), white);
            }
        }
        planes
    }
}

/// 0 to -1, `white` to 1.
fn signed(channel: f32, white: f32) -> f32 {
    channel / white * 2.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_images::photo;

    fn preprocess(resolution: usize, fit: Fit, crop: Crop) -> Preprocess {
        Preprocess {
            resolution,
            fit,
            crop,
            ..Default::default()
        }
    }

    fn run(preprocess: &Preprocess, image: RgbImage, index: u64) -> Vec<f32> {
        let size = preprocess.square();
        let prepared = preprocess.prepare(&Picture::Rgb8(image), size);
        preprocess.finish(&prepared, size, 1, 0, index)
    }

    #[test]
    fn values_and_layout() {
        let image = RgbImage::from_fn(2, 2, |x, y| Rgb([255 * x as u8, 255 * y as u8, 51]));
        let planes = run(&preprocess(2, Fit::Crop, Crop::Center), image.clone(), 0);
        assert_eq!(planes[..8], [-1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0]);
        assert!(planes[8..].iter().all(|&blue| (blue + 0.6).abs() < 1e-6));

        let mirrored = Preprocess {
            flip: 1.0,
            ..preprocess(2, Fit::Crop, Crop::Center)
        };
        assert_eq!(
            run(&mirrored, image, 0)[..8],
            [1.0, -1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0]
        );
    }

    #[test]
    fn sixteen_bits_are_not_rounded_to_eight() {
        let preprocess = preprocess(1, Fit::Crop, Crop::Center);
        let picture = Picture::Rgb16(Rgb16Image::from_pixel(3, 3, Rgb([1000, 65_535, 0])));
        let size = preprocess.square();
        let planes = preprocess.finish(&preprocess.prepare(&picture, size), size, 0, 0, 0);
        assert!(
            (planes[0] - (2000.0 / 65_535.0 - 1.0)).abs() < 1e-6,
            "{planes:?}"
        );
        assert_eq!(planes[1..], [1.0, -1.0]);
    }

    #[test]
    fn any_size_becomes_the_square() {
        let fits = [Fit::Crop, Fit::Pad, Fit::Stretch];
        for (width, height) in [
            (1, 1),
            (1, 9),
            (5000, 1),
            (1, 5000),
            (33, 21),
            (8, 8),
            (640, 479),
        ] {
            for fit in fits {
                for crop in [Crop::Center, Crop::Random] {
                    let planes = run(&preprocess(8, fit, crop), photo(width, height), 3);
                    assert_eq!(
                        planes.len(),
                        3 * 8 * 8,
                        "{width} x {height}, {fit:?}, {crop:?}"
                    );
                    assert!(planes.iter().all(|value| (-1.0..=1.0).contains(value)));
                }
            }
        }
    }

    #[test]
    fn any_size_becomes_any_other() {
        let white = |planes: &[f32]| planes.iter().filter(|value| **value == 1.0).count();
        for size in [[12, 8], [8, 12], [24, 1]].map(Size::from) {
            for fit in [Fit::Crop, Fit::Pad, Fit::Stretch] {
                for crop in [Crop::Center, Crop::Random] {
                    let preprocess = preprocess(4, fit, crop);
                    for (width, height) in [(1, 1), (1, 900), (900, 1), (60, 40), (41, 59), (12, 8)]
                    {
                        let black = Picture::Rgb8(RgbImage::new(width, height));
                        let prepared = preprocess.prepare(&black, size);
                        let planes = preprocess.finish(&prepared, size, 1, 0, 3);
                        assert_eq!(planes.len(), 3 * size.area() as usize);
                        if fit != Fit::Pad {
                            assert_eq!(
                                white(&planes),
                                0,
                                "{size} {fit:?} {crop:?} {width} x {height}"
                            );
                        }
                    }
                }
            }
        }
        // A picture of the size's ratio is neither cut nor padded.
        let size = Size::from([12, 8]);
        for fit in [Fit::Crop, Fit::Pad, Fit::Stretch] {
            let preprocess = preprocess(4, fit, Crop::Random);
            let prepared = preprocess.prepare(&Picture::Rgb8(photo(12, 8)), size);
            assert_eq!(prepared, Picture::Rgb8(photo(12, 8)));
            let planes = preprocess.finish(&prepared, size, 1, 0, 0);
            let red: Vec<f32> = (0..12)
                .map(|x| signed((255 * x / 12) as f32, 255.0))
                .collect();
            assert!(planes[..96].chunks(12).all(|row| row == red));
        }
    }

    #[test]
    fn one_pixel_fills_all() {
        let planes = run(
            &preprocess(4, Fit::Crop, Crop::Center),
            RgbImage::from_pixel(1, 1, Rgb([255, 0, 0])),
            0,
        );
        assert!(
            planes[..16].iter().all(|&red| red == 1.0)
                && planes[16..].iter().all(|&other| other == -1.0)
        );
    }

    #[test]
    fn the_middle_is_kept_whole() {
        // Black, a white square in the middle, black.
        let banner = RgbImage::from_fn(24, 8, |x, _| {
            Rgb([if (8..16).contains(&x) { 255 } else { 0 }; 3])
        });
        let planes = run(&preprocess(8, Fit::Crop, Crop::Center), banner, 0);
        assert!(planes.iter().all(|&value| value == 1.0), "{planes:?}");
    }

    #[test]
    fn shrinking_is_antialiased() {
        let checks = RgbImage::from_fn(64, 64, |x, y| {
            Rgb([if (x + y) % 2 == 0 { 255 } else { 0 }; 3])
        });
        let planes = run(&preprocess(8, Fit::Crop, Crop::Center), checks, 0);
        assert!(planes.iter().all(|value| value.abs() < 0.05), "{planes:?}");
    }

    #[test]
    fn padding_shows_the_background() {
        let preprocess = Preprocess {
            background: [0, 0, 255],
            ..preprocess(8, Fit::Pad, Crop::Center)
        };
        let planes = run(
            &preprocess,
            RgbImage::from_pixel(16, 8, Rgb([255, 0, 0])),
            0,
        );
        let (red, blue) = (&planes[..64], &planes[128..]);
        let band = |row: usize| (2..6).contains(&row);
        for row in 0..8 {
            assert!(
                red[row * 8..][..8]
                    .iter()
                    .all(|&value| value == if band(row) { 1.0 } else { -1.0 })
            );
            assert!(
                blue[row * 8..][..8]
                    .iter()
                    .all(|&value| value == if band(row) { -1.0 } else { 1.0 })
            );
        }
    }

    #[test]
    fn crops_and_flips_vary_by_index_and_epoch_alone() {
        let preprocess = Preprocess {
            flip: 0.5,
            ..preprocess(8, Fit::Crop, Crop::Random)
        };
        let size = preprocess.square();
        let prepared = preprocess.prepare(&Picture::Rgb8(photo(64, 16)), size);
        let of = |epoch, index| preprocess.finish(&prepared, size, 5, epoch, index);
        assert_eq!(of(1, 2), of(1, 2));
        assert_ne!(of(1, 2), of(2, 1));

        // The red channel grows to the right: mirrored samples fall.
        let falls = |planes: &Vec<f32>| planes[0] > planes[7];
        let samples: Vec<_> = (0..200).map(|index| of(0, index)).collect();
        let mirrored = samples.iter().filter(|planes| falls(planes)).count();
        assert!((70..130).contains(&mirrored), "{mirrored}");
        let lefts: std::collections::BTreeSet<i32> = samples
            .iter()
            .filter(|planes| !falls(planes))
            .map(|planes| (planes[0] * 1000.0) as i32)
            .collect();
        assert!(lefts.len() > 15, "{lefts:?}");

        let fixed = preprocess.deterministic();
        let prepared = fixed.prepare(&Picture::Rgb8(photo(64, 16)), size);
        assert_eq!(
            fixed.finish(&prepared, size, 5, 0, 0),
            fixed.finish(&prepared, size, 6, 9, 7)
        );
    }
}
