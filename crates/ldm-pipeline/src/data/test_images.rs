//! Images that the tests of this module draw.

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

/// All that can be read.
pub(super) const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

/// The bytes of a file.
pub(super) fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A picture in which all pixels of a row or column differ, and no axis is symmetric.
pub(super) fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([
            (255 * x / width) as u8,
            (255 * y / height) as u8,
            (255 * (x + y) / (width + height)) as u8,
        ])
    })
}

/// Writes `count` PNG files of 8 x 8 pixels, `00.png` and on, each of its own grey.
pub(super) fn write_greys(folder: &Path, count: u8) {
    for number in 0..count {
        RgbImage::from_pixel(8, 8, Rgb([number; 3]))
            .save(folder.join(format!("{number:02}.png")))
            .unwrap();
    }
}

/// Writes a tar file with GNU long names where they are needed.
pub(super) fn write_tar(path: &Path, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.finish().unwrap();
}
