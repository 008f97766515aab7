//! From a file to pixels.

use std::{
    any::Any,
    fs::File,
    io::{Cursor, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits, Rgb,
    RgbImage,
};

use super::error::DataError;

/// Pixels that an image may have unless configured otherwise: 2^28, a square of 16,384. A small file can declare
/// far more than memory holds.
pub const DEFAULT_MAX_PIXELS: u64 = 1 << 28;

/// A 16-bit RGBA pixel, the largest that is decoded.
const BYTES_PER_PIXEL: u64 = 8;

/// What a decoder may need besides the pixels.
const OVERHEAD: u64 = 64 << 20;

/// RGB with 16 bits per channel.
pub type Rgb16Image = ImageBuffer<Rgb<u16>, Vec<u16>>;

/// An opaque image at the depth of its file.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// 8 bits per channel.
    Rgb8(RgbImage),
    /// 16 bits per channel.
    Rgb16(Rgb16Image),
}

impl Picture {
    /// Width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        match self {
            Self::Rgb8(image) => image.dimensions(),
            Self::Rgb16(image) => image.dimensions(),
        }
    }

    /// The memory that the pixels take, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rgb8(image) => size_of_val(image.as_raw().as_slice()),
            Self::Rgb16(image) => size_of_val(image.as_raw().as_slice()),
        }
    }
}

/// Decodes an image file to RGB with 8 or 16 bits per channel, upright, and over `background` where it is
/// transparent.
///
/// The content decides on the format, not the name: PNG, JPEG (also CMYK), WebP, GIF, BMP or TIFF, of an animation
/// the first frame, in any colour type. The EXIF orientation is applied.
///
/// # Errors
/// When the file can't be read, isn't an image, is damaged or truncated, or declares more than `max_pixels` pixels;
/// each names the file.
pub fn decode(path: &Path, background: [u8; 3], max_pixels: u64) -> Result<Picture, DataError> {
    let file = File::open(path).map_err(|source| DataError::Read {
        path: path.to_owned(),
        source,
    })?;
    decode_from(file, path, background, max_pixels)
}

/// [`decode`] of bytes that are called `path` in errors.
pub(super) fn decode_from(
    input: impl Read,
    path: &Path,
    background: [u8; 3],
    max_pixels: u64,
) -> Result<Picture, DataError> {
    let (bytes, format) = read(input, path, max_pixels)?;
    let damaged = |reason: String| DataError::Damaged {
        path: path.to_owned(),
        reason,
    };
    if format == ImageFormat::Jpeg && !jpeg_is_complete(&bytes) {
        return Err(damaged("the file ends before the image does".into()));
    }
    // Decoders are only meant not to panic on what they are fed, and one bad file mustn't end a long run.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        decode_bytes(&bytes, format, max_pixels)
    }))
    .map_err(|panic| {
        damaged(format!(
            "the decoder failed: {}",
            panic_message(panic.as_ref())
        ))
    })?
    .map_err(|error| damaged(error.to_string()))?;
    match decoded {
        Decoded::Image(image) => Ok(opaque_rgb(image, background)),
        Decoded::TooLarge { width, height } => Err(DataError::TooManyPixels {
            path: path.to_owned(),
            width,
            height,
            limit: max_pixels,
        }),
    }
}

/// All bytes and what they are, without reading much of what is no image.
fn read(
    mut input: impl Read,
    path: &Path,
    max_pixels: u64,
) -> Result<(Vec<u8>, ImageFormat), DataError> {
    let read_error = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    (input.by_ref())
        .take(16)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    let format = image::guess_format(&bytes)
        .ok()
        .filter(ImageFormat::reading_enabled)
        .ok_or_else(|| DataError::NotAnImage {
            path: path.to_owned(),
        })?;
    let most = max_pixels
        .saturating_mul(BYTES_PER_PIXEL)
        .saturating_add(OVERHEAD);
    (input.take(most))
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    Ok((bytes, format))
}

enum Decoded {
    Image(DynamicImage),
    TooLarge { width: u32, height: u32 },
}

fn decode_bytes(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> ImageResult<Decoded> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(
        max_pixels
            .saturating_mul(BYTES_PER_PIXEL)
            .saturating_add(OVERHEAD),
    );
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Ok(Decoded::TooLarge { width, height });
    }
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(Decoded::Image(image))
}

/// Whether a JPEG's segments lead to its end-of-image marker. The decoder fills in grey for what a truncated file
/// lacks.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xD9;
    // After SOI and in the scans the next marker is searched for: 0xFF and neither stuffing (0) nor fill (0xFF).
    let mut position = 2;
    while let Some(offset) = bytes
        .get(position..)
        .and_then(|rest| rest.iter().position(|&byte| byte == 0xFF))
    {
        position += offset + 1;
        match bytes.get(position) {
            Some(&END_OF_IMAGE) => return true,
            // Stuffing, restart markers and TEM stand alone.
            Some(0x00 | 0x01 | 0xD0..=0xD7) => position += 1,
            Some(0xFF) => {}
            // Segments have a length. A scan's is that of its header; its data follow and are searched.
            Some(_) => match bytes.get(position + 1..position + 3) {
                Some(&[high, low]) => position += 1 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            None => return false,
        }
    }
    false
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("for an unknown reason")
}

/// RGB at the image's own depth, 8 bits or else 16.
fn opaque_rgb(image: DynamicImage, background: [u8; 3]) -> Picture {
    let color = image.color();
    let deep = color.bytes_per_pixel() > color.channel_count();
    match (deep, color.has_alpha()) {
        (false, false) => Picture::Rgb8(image.into_rgb8()),
        (true, false) => Picture::Rgb16(image.into_rgb16()),
        (false, true) => {
            let image = image.into_rgba8();
            let mut opaque = RgbImage::new(image.width(), image.height());
            for (to, from) in opaque.pixels_mut().zip(image.pixels()) {
                let [color @ .., alpha] = from.0.map(u32::from);
                for ((to, color), background) in to.0.iter_mut().zip(color).zip(background) {
                    *to =
                        ((color * alpha + u32::from(background) * (255 - alpha) + 127) / 255) as u8;
                }
            }
            Picture::Rgb8(opaque)
        }
        (true, true) => {
            let image = image.into_rgba16();
            let mut opaque = Rgb16Image::new(image.width(), image.height());
            for (to, from) in opaque.pixels_mut().zip(image.pixels()) {
                let [color @ .., alpha] = from.0.map(u64::from);
                for ((to, color), background) in to.0.iter_mut().zip(color).zip(background) {
                    let background = u64::from(background) * 257;
                    *to =
                        ((color * alpha + background * (65_535 - alpha) + 32_767) / 65_535) as u16;
                }
            }
            Picture::Rgb16(opaque)
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgba, RgbaImage};

    use super::*;
    use crate::data::test_images::{FORMATS, encoded, photo};

    const WHITE: [u8; 3] = [255; 3];

    fn decoded_with_limit(bytes: &[u8], max_pixels: u64) -> Result<Picture, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("culprit.png");
        std::fs::write(&path, bytes).unwrap();
        decode(&path, [255, 0, 10], max_pixels)
    }

    fn decoded(bytes: &[u8]) -> Result<Picture, DataError> {
        decoded_with_limit(bytes, DEFAULT_MAX_PIXELS)
    }

    fn rgb8(picture: Picture) -> RgbImage {
        match picture {
            Picture::Rgb8(image) => image,
            Picture::Rgb16(_) => panic!("8 bits became 16"),
        }
    }

    fn rgb16(picture: Picture) -> Rgb16Image {
        match picture {
            Picture::Rgb8(_) => panic!("16 bits became 8"),
            Picture::Rgb16(image) => image,
        }
    }

    #[test]
    fn every_format_under_any_name_and_none_truncated() {
        for format in FORMATS {
            let bytes = encoded(photo(40, 30), format);
            let image = decoded(&bytes).unwrap_or_else(|error| panic!("{format:?}: {error}"));
            assert_eq!(image.dimensions(), (40, 30), "{format:?}");
            let difference = rgb8(image)
                .pixels()
                .zip(photo(40, 30).pixels())
                .flat_map(|(a, b)| (0..3).map(move |c| i32::from(a[c]).abs_diff(i32::from(b[c]))))
                .max();
            let tolerance = if matches!(format, ImageFormat::Jpeg | ImageFormat::Gif) {
                60
            } else {
                0
            };
            assert!(difference <= Some(tolerance), "{format:?}: {difference:?}");

            for length in [bytes.len() / 2, bytes.len() * 3 / 4] {
                let error = decoded(&bytes[..length])
                    .expect_err(&format!("{format:?} cut at {length}"))
                    .to_string();
                assert!(
                    error.contains("culprit.png is damaged"),
                    "{format:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn jpeg_with_bytes_after_its_end_is_complete() {
        let mut bytes = encoded(photo(16, 16), ImageFormat::Jpeg);
        bytes.extend([0, 0xFF, 0xDA, 7, 7]);
        assert!(decoded(&bytes).is_ok());
    }

    #[test]
    fn other_content_is_no_image() {
        for content in [
            &b"just some text, longer than a header"[..],
            b"",
            b"%PDF-1.7",
            b"P6 1 1 255 abc",
        ] {
            let error = decoded(content).unwrap_err();
            assert!(matches!(error, DataError::NotAnImage { .. }), "{error}");
            assert!(error.to_string().contains("culprit.png"), "{error}");
        }
        let missing = decode(Path::new("/no/such.png"), WHITE, 1).unwrap_err();
        assert!(missing.to_string().contains("/no/such.png"), "{missing}");
    }

    #[test]
    fn declared_size_is_limited_before_memory_is_taken() {
        let bytes = encoded(photo(40, 30), ImageFormat::Png);
        assert!(decoded_with_limit(&bytes, 1200).is_ok());
        let error = decoded_with_limit(&bytes, 1199).unwrap_err().to_string();
        assert!(
            error.contains("40 x 30 pixels, more than the 1199"),
            "{error}"
        );

        // A bomb: 60,000 x 60,000 in a BMP header of 54 bytes.
        let mut bomb = encoded(photo(1, 1), ImageFormat::Bmp);
        bomb[18..22].copy_from_slice(&60_000_u32.to_le_bytes());
        bomb[22..26].copy_from_slice(&60_000_u32.to_le_bytes());
        assert!(matches!(
            decoded(&bomb).unwrap_err(),
            DataError::TooManyPixels { .. }
        ));
    }

    #[test]
    fn transparency_shows_the_background() {
        let pixels = [
            [10, 20, 30, 0],
            [10, 20, 30, 255],
            [100, 100, 100, 128],
            [0, 0, 0, 51],
        ];
        let image = RgbaImage::from_fn(4, 1, |x, _| Rgba(pixels[x as usize]));
        let opaque = rgb8(decoded(&encoded(image, ImageFormat::Png)).unwrap());
        let found: Vec<[u8; 3]> = opaque.pixels().map(|pixel| pixel.0).collect();
        assert_eq!(
            found,
            [[255, 0, 10], [10, 20, 30], [177, 50, 55], [204, 0, 8]]
        );
    }

    #[test]
    fn depth_is_kept_and_grey_becomes_rgb() {
        let deep = ImageBuffer::from_pixel(2, 1, Luma([12_345_u16]));
        let image = decoded(&encoded(deep, ImageFormat::Png)).unwrap();
        assert_eq!(rgb16(image).get_pixel(1, 0), &Rgb([12_345; 3]));

        let translucent = ImageBuffer::from_pixel(1, 1, Rgba([60_000_u16, 0, 0, 32_768]));
        let image = decoded(&encoded(translucent, ImageFormat::Png)).unwrap();
        assert_eq!(rgb16(image).get_pixel(0, 0), &Rgb([62_767, 0, 1285]));

        let grey = GrayImage::from_pixel(1, 1, Luma([7]));
        let image = decoded(&encoded(grey, ImageFormat::Png)).unwrap();
        assert_eq!(rgb8(image).get_pixel(0, 0), &Rgb([7; 3]));
    }
}
