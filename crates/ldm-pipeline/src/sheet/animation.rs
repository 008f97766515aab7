//! Moving pictures: GIF, and WebP without loss.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use image::{
    Delay, DynamicImage, ExtendedColorType, RgbImage,
    codecs::{
        gif::{GifEncoder, Repeat},
        webp::WebPEncoder,
    },
};

use crate::atomic::{WriteError, write_file_with};

/// How hard the best 256 colours of a GIF's frame are looked for, from 1 (longest) to 30.
const GIF_SPEED: i32 = 10;

/// Bytes of a WebP file before its first chunk: `RIFF`, the length of the rest, `WEBP`.
const RIFF_HEAD: usize = 12;

/// In the flags of a WebP file: it moves.
const WEBP_ANIMATED: u8 = 1 << 1;

/// In the flags of a frame: it replaces what was there.
const WEBP_NO_BLENDING: u8 = 1 << 1;

/// A format of moving pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnimationFormat {
    /// GIF: up to 256 colours a frame, the best for it.
    Gif,
    /// WebP: every pixel as it is.
    WebP,
}

/// A picture of an animation.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The picture. All of an animation have the same size.
    pub image: RgbImage,
    /// How long it is shown, up to 65 s. GIF counts in hundredths of a second.
    pub shown: Duration,
}

impl AnimationFormat {
    /// The format of a file by its extension, if it is one of these.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [("gif", Self::Gif), ("webp", Self::WebP)]
            .into_iter()
            .find(|(name, _)| extension.eq_ignore_ascii_case(name))
            .map(|(_, format)| format)
    }

    /// The longest side of a picture in pixels.
    #[must_use]
    pub fn max_side(self) -> u32 {
        match self {
            Self::Gif => u16::MAX.into(),
            Self::WebP => 1 << 14,
        }
    }

    /// Writes an animation that repeats for ever; the file appears complete or not at all.
    ///
    /// # Errors
    /// [`WriteError`] with the path and the cause, also where the pictures are too large for the format, differ in size, or are none.
    pub fn save(
        self,
        path: &Path,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Result<(), WriteError> {
        write_file_with(path, |out| {
            let frames = alike(frames);
            match self {
                Self::Gif => write_gif(out, frames),
                Self::WebP => write_webp(out, frames),
            }
        })
    }
}

/// These frames, or an error in place of one of another size than the first.
fn alike(frames: impl IntoIterator<Item = Frame>) -> impl Iterator<Item = io::Result<Frame>> {
    let mut size = None;
    frames.into_iter().map(move |frame| {
        let found = frame.image.dimensions();
        if *size.get_or_insert(found) == found {
            Ok(frame)
        } else {
            Err(io::Error::other("its frames differ in size"))
        }
    })
}

fn no_frames() -> io::Error {
    io::Error::other("it has no frames")
}

fn write_gif(
    out: &mut dyn Write,
    frames: impl Iterator<Item = io::Result<Frame>>,
) -> io::Result<()> {
    let mut frames = frames.peekable();
    if frames.peek().is_none() {
        return Err(no_frames());
    }
    let mut encoder = GifEncoder::new_with_speed(out, GIF_SPEED);
    (encoder.set_repeat(Repeat::Infinite)).map_err(io::Error::other)?;
    for frame in frames {
        let frame = frame?;
        let delay = Delay::from_saturating_duration(frame.shown);
        let image = DynamicImage::ImageRgb8(frame.image).into_rgba8();
        let frame = image::Frame::from_parts(image, 0, 0, delay);
        encoder.encode_frame(frame).map_err(io::Error::other)?;
    }
    Ok(())
}

/// The container of RFC 9649, section 2.7.1, round frames that the `image` crate encodes without loss.
fn write_webp(
    out: &mut dyn Write,
    frames: impl Iterator<Item = io::Result<Frame>>,
) -> io::Result<()> {
    let mut body = Vec::new();
    for frame in frames {
        let frame = frame?;
        let (width, height) = frame.image.dimensions();
        if width.max(height) > AnimationFormat::WebP.max_side() {
            return Err(io::Error::other("its frames are too large for WebP"));
        }
        let [width_less_1, height_less_1] = [width, height].map(|side| u24(side.saturating_sub(1)));
        if body.is_empty() {
            let head = [&[WEBP_ANIMATED, 0, 0, 0][..], &width_less_1, &height_less_1];
            chunk(&mut body, *b"VP8X", &head.concat())?;
            // No background, and no end of the repetitions.
            chunk(&mut body, *b"ANIM", &[0; 6])?;
        }
        let mut file = Vec::new();
        WebPEncoder::new_lossless(&mut file)
            .encode(frame.image.as_raw(), width, height, ExtendedColorType::Rgb8)
            .map_err(io::Error::other)?;
        let milliseconds = u32::try_from(frame.shown.as_millis()).unwrap_or(u32::MAX);
        let head = [
            &[0; 6][..],
            &width_less_1,
            &height_less_1,
            &u24(milliseconds.min((1 << 24) - 1)),
            &[WEBP_NO_BLENDING],
            &file[RIFF_HEAD..],
        ];
        chunk(&mut body, *b"ANMF", &head.concat())?;
    }
    if body.is_empty() {
        return Err(no_frames());
    }
    out.write_all(b"RIFF")?;
    out.write_all(&length(4 + body.len())?)?;
    out.write_all(b"WEBP")?;
    out.write_all(&body)
}

/// A chunk of a WebP file: its name, its length and its data, of an even length on the disk.
fn chunk(body: &mut Vec<u8>, name: [u8; 4], data: &[u8]) -> io::Result<()> {
    body.extend(name);
    body.extend(length(data.len())?);
    body.extend(data);
    if data.len() % 2 == 1 {
        body.push(0);
    }
    Ok(())
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    u32::try_from(bytes)
        .map(u32::to_le_bytes)
        .map_err(|_| io::Error::other("it is too large for WebP"))
}

/// The lower 24 bits.
fn u24(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::BufReader};

    use image::{
        AnimationDecoder, Rgb,
        codecs::{gif::GifDecoder, webp::WebPDecoder},
    };

    use super::*;

    fn frames() -> Vec<Frame> {
        let shade =
            |step: u8| RgbImage::from_fn(7, 5, |x, y| Rgb([40 * step, 30 * x as u8, 50 * y as u8]));
        let frame = |step: u8| Frame {
            image: shade(step),
            shown: Duration::from_millis(80 + 1000 * u64::from(step / 3)),
        };
        (0..4).map(frame).collect()
    }

    #[test]
    fn both_formats_keep_the_pictures_and_their_times() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in [
            ("a.gif", AnimationFormat::Gif),
            ("a.WebP", AnimationFormat::WebP),
        ] {
            let path = dir.path().join(name);
            assert_eq!(AnimationFormat::of(&path), Some(format));
            format.save(&path, frames()).unwrap();
            let file = BufReader::new(File::open(&path).unwrap());
            let found = match format {
                AnimationFormat::Gif => GifDecoder::new(file).unwrap().into_frames(),
                AnimationFormat::WebP => WebPDecoder::new(file).unwrap().into_frames(),
            };
            let found: Vec<_> = found.collect::<Result<_, _>>().unwrap();
            assert_eq!(found.len(), 4, "{name}");
            for (found, expected) in found.into_iter().zip(frames()) {
                let shown = Duration::from(found.delay());
                assert_eq!(shown, expected.shown, "{name}");
                // With so few colours GIF loses none.
                let image = DynamicImage::ImageRgba8(found.into_buffer()).into_rgb8();
                assert_eq!(image, expected.image, "{name}");
            }
        }
        assert_eq!(AnimationFormat::of(Path::new("a.mp4")), None);
        assert_eq!(AnimationFormat::of(Path::new("gif")), None);
    }

    #[test]
    fn what_is_no_animation_is_an_error_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut uneven = frames();
        uneven[2].image = RgbImage::new(6, 5);
        for format in [AnimationFormat::Gif, AnimationFormat::WebP] {
            assert!(format.save(&path, []).is_err());
            assert!(format.save(&path, uneven.clone()).is_err());
        }
        let wide = Frame {
            image: RgbImage::new(AnimationFormat::WebP.max_side() + 1, 1),
            shown: Duration::ZERO,
        };
        assert!(AnimationFormat::WebP.save(&path, [wide]).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
