//! PNG files with text chunks, by which a picture carries the request that made it.

use std::io;
use std::path::Path;

use image::RgbImage;

use crate::atomic::{WriteError, write_file, write_file_with};

/// `image` as the bytes of a PNG, with `text` as iTXt chunks (UTF-8; a keyword is 1 to 79 Latin-1 characters).
///
/// # Errors
/// [`io::Error`] for a keyword that PNG doesn't allow.
pub fn encode_png(image: &RgbImage, text: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, value) in text {
        encoder.add_itxt_chunk((*keyword).to_owned(), (*value).to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Writes `image` to `path` as PNG with `text` as iTXt chunks; the file appears complete or not at all.
///
/// # Errors
/// [`WriteError`] with the path and the cause.
pub fn save_png(path: &Path, image: &RgbImage, text: &[(&str, &str)]) -> Result<(), WriteError> {
    match encode_png(image, text) {
        Ok(bytes) => write_file(path, &bytes),
        Err(error) => write_file_with(path, |_| Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_text_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 80, 7]));
        save_png(
            &path,
            &image,
            &[
                ("ldm", "{\"prompt\":\"ein Äffchen 🐒\"}"),
                ("Software", "ldm 0.1"),
            ],
        )
        .unwrap();

        assert_eq!(image::open(&path).unwrap().into_rgb8(), image);
        let file = io::BufReader::new(std::fs::File::open(&path).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let texts: Vec<_> = reader
            .info()
            .utf8_text
            .iter()
            .map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()))
            .collect();
        assert_eq!(
            texts[0],
            ("ldm".into(), "{\"prompt\":\"ein Äffchen 🐒\"}".into())
        );
        assert_eq!(texts[1].0, "Software");
    }

    #[test]
    fn a_bad_keyword_is_an_error_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let keyword = "k".repeat(80);
        assert!(save_png(&path, &RgbImage::new(1, 1), &[(&keyword, "")]).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
