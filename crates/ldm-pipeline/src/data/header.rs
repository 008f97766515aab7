//! The size of an image, without its pixels.

use std::{
    io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{ImageDecoder, ImageFormat, ImageReader, metadata::Orientation};

use super::{buckets::Size, source::ImageSource};

/// Bytes of a JPEG file that its header is looked for in before all of it is read, which is what its decoder does.
const JPEG_HEADER: u64 = 1 << 18;

/// The size of an image once its EXIF orientation is applied; `None` where the header can't be read.
pub(super) fn upright_dimensions(source: &ImageSource) -> Option<Size> {
    // Decoders are only meant not to panic on what they are fed.
    catch_unwind(AssertUnwindSafe(|| read_header(source)))
        .ok()
        .flatten()
}

fn read_header(source: &ImageSource) -> Option<Size> {
    let mut bytes = BufReader::new(source.open_seekable().ok()?);
    let format = image::guess_format(bytes.fill_buf().ok()?).ok()?;
    if format != ImageFormat::Jpeg {
        return of_format(bytes, format);
    }
    let mut header = Vec::new();
    bytes
        .by_ref()
        .take(JPEG_HEADER)
        .read_to_end(&mut header)
        .ok()?;
    of_format(Cursor::new(&header), format).or_else(|| {
        bytes.read_to_end(&mut header).ok()?;
        of_format(Cursor::new(&header), format)
    })
}

fn of_format(bytes: impl BufRead + Seek, format: ImageFormat) -> Option<Size> {
    let mut decoder = ImageReader::with_format(bytes, format)
        .into_decoder()
        .ok()?;
    let (width, height) = decoder.dimensions();
    let lying = matches!(
        decoder.orientation().ok()?,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    Some(match lying {
        true => Size::from((height, width)),
        false => Size::from((width, height)),
    })
}

/// A part of a file that is read as if it were all of it.
pub(super) struct Region<R> {
    file: R,
    start: u64,
    length: u64,
    position: u64,
}

impl<R: Read + Seek> Region<R> {
    /// `length` bytes from `start` on.
    pub(super) fn new(mut file: R, start: u64, length: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        Ok(Self {
            file,
            start,
            length,
            position: 0,
        })
    }
}

impl<R: Read> Read for Region<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..most])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Region<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let in_file = self.start.checked_add(position);
        let in_file = in_file.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.file.seek(SeekFrom::Start(in_file))?;
        self.position = position;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use image::{DynamicImage, ImageEncoder, codecs::jpeg::JpegEncoder};

    use super::*;
    use crate::data::{
        decode::decode_from,
        test_images::{FORMATS, encoded, photo},
    };

    /// A TIFF block with nothing but an orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        block.extend([orientation, 0, 0, 0, 0, 0, 0]);
        block
    }

    fn jpeg(orientation: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder
            .encode_image(&DynamicImage::from(photo(40, 30)))
            .unwrap();
        bytes
    }

    fn png(orientation: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        DynamicImage::from(photo(40, 30))
            .write_with_encoder(encoder)
            .unwrap();
        bytes
    }

    #[test]
    fn sizes_are_those_of_the_decoded_image() {
        let mut files: Vec<Vec<u8>> = FORMATS.map(|format| encoded(photo(40, 30), format)).into();
        files.extend((1..=8).flat_map(|orientation| [jpeg(orientation), png(orientation)]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut lying = 0;
        for bytes in &files {
            let decoded = decode_from(bytes.as_slice(), &path, [0; 3], 10_000).unwrap();
            let expected = Some(Size::from(decoded.dimensions()));
            fs::write(&path, bytes).unwrap();
            assert_eq!(
                upright_dimensions(&ImageSource::File(path.clone())),
                expected
            );
            lying += usize::from(expected == Some(Size::from((30, 40))));

            // The same in the middle of a shard.
            fs::write(&path, [&[9; 700], bytes.as_slice(), &[9; 300]].concat()).unwrap();
            let member = ImageSource::Member {
                shard: Arc::from(path.as_path()),
                offset: 700,
                length: bytes.len() as u64,
            };
            assert_eq!(upright_dimensions(&member), expected);
        }
        assert_eq!(lying, 8);
    }

    #[test]
    fn a_jpeg_header_may_be_long_and_any_header_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            upright_dimensions(&ImageSource::File(path.clone()))
        };
        let whole = jpeg(6);
        let comment = [&[0xFF, 0xFE, 0xFF, 0xFF][..], &[b' '; 0xFFFD]].concat();
        let long = [&whole[..2], &comment.repeat(5), &whole[2..]].concat();
        assert!(long.len() as u64 > JPEG_HEADER);
        assert_eq!(of(&long), Some(Size::from((30, 40))));

        assert_eq!(of(b""), None);
        assert_eq!(of(b"just some text"), None);
        assert_eq!(of(&whole[..20]), None);
        assert_eq!(of(&png(1)[..20]), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(upright_dimensions(&ImageSource::File(path.clone())), None);
    }

    #[test]
    fn a_region_is_a_file_of_its_own() {
        let mut region = Region::new(Cursor::new(b"0123456789"), 3, 4).unwrap();
        let mut text = String::new();
        region.read_to_string(&mut text).unwrap();
        assert_eq!(text, "3456");
        let mut from = |to| {
            let mut text = String::new();
            let position = region.seek(to).unwrap();
            region.read_to_string(&mut text).unwrap();
            (position, text)
        };
        assert_eq!(from(SeekFrom::Start(1)), (1, "456".into()));
        assert_eq!(from(SeekFrom::End(-1)), (3, "6".into()));
        assert_eq!(from(SeekFrom::Current(-2)), (2, "56".into()));
        assert_eq!(from(SeekFrom::End(5)), (9, String::new()));
        assert!(region.seek(SeekFrom::End(-5)).is_err());
    }
}
