//! Every variety of image file that people have, made here and decoded.

use image::{
    Frame, ImageBuffer, ImageFormat, LumaA, Rgb, RgbImage, Rgba, RgbaImage, codecs::gif::GifEncoder,
};

use super::{
    DEFAULT_MAX_PIXELS, DataError, Fit, Picture, Preprocess,
    decode::decode_from,
    test_images::{FORMATS, encoded, photo},
};

const BACKGROUND: [u8; 3] = [255, 0, 10];

fn decoded(bytes: &[u8]) -> Picture {
    decode_from(bytes, "it.png".as_ref(), BACKGROUND, DEFAULT_MAX_PIXELS).unwrap()
}

fn rgb8(bytes: &[u8]) -> RgbImage {
    match decoded(bytes) {
        Picture::Rgb8(image) => image,
        Picture::Rgb16(_) => panic!("8 bits became 16"),
    }
}

fn pixels(bytes: &[u8]) -> Vec<[u8; 3]> {
    rgb8(bytes).pixels().map(|pixel| pixel.0).collect()
}

/// A marker segment of a JPEG.
fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16 + 2).to_be_bytes();
    [&[0xFF, marker], &length[..], content].concat()
}

#[test]
fn exif_orientations() {
    let stored = encoded(photo(40, 30), ImageFormat::Jpeg);
    let upright = rgb8(&stored);
    let (w, h) = upright.dimensions();
    for orientation in 1..=8 {
        // An EXIF block of one tag.
        let mut exif = *b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x00\0\0\0\0\0\0";
        exif[25] = orientation;
        let mut bytes = stored.clone();
        bytes.splice(2..2, segment(0xE1, &exif));
        let shown = rgb8(&bytes);
        let turned = orientation >= 5;
        let dimensions = if turned { (h, w) } else { (w, h) };
        assert_eq!(shown.dimensions(), dimensions, "{orientation}");
        for (x, y, pixel) in upright.enumerate_pixels() {
            // Where the standard puts row 0 and column 0 (Exif 2.32, tag 0x0112).
            let (x, y) = match orientation {
                1 => (x, y),
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (h - 1 - y, x),
                7 => (h - 1 - y, w - 1 - x),
                _ => (y, w - 1 - x),
            };
            assert_eq!(shown.get_pixel(x, y), pixel, "{orientation} at {x}, {y}");
        }
    }
}

/// A JPEG of 8 x 8 pixels of one colour in four components, as image editors write it: with Adobe's mark, whose `transform` is
/// 0 for CMYK and 2 for YCCK, and inks stored as 255 minus the ink.
fn four_component_jpeg(stored: [u8; 4], transform: u8) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8];
    bytes.extend(segment(
        0xEE,
        &[b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat(),
    ));
    // Steps of 8 for the mean of 8 x 8 pixels, which the transform scales by 8.
    bytes.extend(segment(0xDB, &[&[0][..], &[8; 64]].concat()));
    let components: Vec<u8> = (1..=4).flat_map(|id| [id, 0x11, 0]).collect();
    let frame = [&[8, 0, 8, 0, 8, 4][..], &components].concat();
    bytes.extend(segment(0xC0, &frame));
    // The standard's table of lengths for means, and one code, "end of block", for all else.
    let lengths = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
    let categories: Vec<u8> = (0..12).collect();
    bytes.extend(segment(
        0xC4,
        &[&[0x00][..], &lengths, &categories].concat(),
    ));
    let mut lengths = [0; 16];
    lengths[0] = 1;
    bytes.extend(segment(0xC4, &[&[0x10][..], &lengths, &[0]].concat()));
    let components: Vec<u8> = (1..=4).flat_map(|id| [id, 0]).collect();
    bytes.extend(segment(
        0xDA,
        &[&[4][..], &components, &[0, 63, 0]].concat(),
    ));

    let mut bits = String::new();
    for value in stored {
        let mean = i32::from(value) - 128;
        let category = 32 - mean.unsigned_abs().leading_zeros();
        bits += [
            "00", "010", "011", "100", "101", "110", "1110", "11110", "111110",
        ][category as usize];
        if category > 0 {
            let raw = if mean < 0 {
                mean + (1 << category) - 1
            } else {
                mean
            };
            bits += &format!("{raw:0width$b}", width = category as usize);
        }
        bits += "0";
    }
    bits += &"1".repeat(bits.len().next_multiple_of(8) - bits.len());
    for byte in bits.as_bytes().chunks(8) {
        let byte = byte.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
        bytes.push(byte);
        if byte == 0xFF {
            bytes.push(0);
        }
    }
    bytes.extend([0xFF, 0xD9]);
    bytes
}

#[test]
fn cmyk_jpegs() {
    for (stored, transform, expected) in [
        ([255, 0, 0, 255], 0, [255, 0, 0]),
        ([0, 255, 255, 255], 0, [0, 255, 255]),
        ([255, 255, 255, 128], 0, [128, 128, 128]),
        ([200, 100, 50, 255], 0, [200, 100, 50]),
        ([255, 255, 255, 0], 0, [0, 0, 0]),
        // Luma of the inks, no chroma.
        ([55, 128, 128, 255], 2, [200, 200, 200]),
        ([0, 128, 128, 100], 2, [100, 100, 100]),
    ] {
        for found in pixels(&four_component_jpeg(stored, transform)) {
            let difference = (0..3)
                .map(|c| i32::from(found[c]).abs_diff(expected[c]))
                .max();
            assert!(
                difference <= Some(2),
                "{stored:?}, {transform}: {found:?} instead of {expected:?}"
            );
        }
    }
}

/// A PNG of one row with the colours red, green, blue, white and the given transparency.
fn palette_png(depth: png::BitDepth, row: &[u8], width: u32, alpha: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(depth);
    encoder.set_palette(vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]);
    if let Some(alpha) = alpha {
        encoder.set_trns(alpha.to_vec());
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(row).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn palettes() {
    let colors = [[255, 255, 255], [0, 0, 255], [0, 255, 0], [255, 0, 0]];
    let opaque = palette_png(png::BitDepth::Eight, &[3, 2, 1, 0], 4, None);
    assert_eq!(pixels(&opaque), colors);
    let packed = palette_png(png::BitDepth::Two, &[0b1110_0100], 4, None);
    assert_eq!(pixels(&packed), colors);
    // Colours without an entry are opaque.
    let transparent = palette_png(png::BitDepth::Eight, &[0, 1, 2], 3, Some(&[0, 51]));
    assert_eq!(
        pixels(&transparent),
        [BACKGROUND, [204, 51, 8], [0, 0, 255]]
    );
}

#[test]
fn grey_with_transparency_and_depth() {
    let shallow = ImageBuffer::from_pixel(1, 1, LumaA([100_u8, 51]));
    assert_eq!(pixels(&encoded(shallow, ImageFormat::Png)), [[224, 20, 28]]);
    let deep = ImageBuffer::from_pixel(1, 1, LumaA([10_000_u16, 65_535]));
    match decoded(&encoded(deep, ImageFormat::Png)) {
        Picture::Rgb16(image) => assert_eq!(image.get_pixel(0, 0), &Rgb([10_000; 3])),
        Picture::Rgb8(_) => panic!("16 bits became 8"),
    }
    let deep = ImageBuffer::from_pixel(2, 2, Rgb([1_u16, 2, 65_535]));
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        match decoded(&encoded(deep.clone(), format)) {
            Picture::Rgb16(image) => assert_eq!(image, deep, "{format:?}"),
            Picture::Rgb8(_) => panic!("16 bits became 8 in {format:?}"),
        }
    }
    // 1 bit per pixel.
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0b1010_0000]).unwrap();
    writer.finish().unwrap();
    assert_eq!(pixels(&bytes), [[255; 3], [0; 3], [255; 3]]);
}

/// A chunk of a RIFF file.
fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    let padding = &[0][..content.len() % 2];
    [&name[..], &length, content, padding].concat()
}

#[test]
fn the_first_frame_stands_for_an_animation() {
    let frames =
        [[200, 0, 0, 255], [0, 200, 0, 255]].map(|color| RgbaImage::from_pixel(4, 4, Rgba(color)));

    let mut gif = Vec::new();
    let mut encoder = GifEncoder::new(&mut gif);
    for frame in frames.clone() {
        encoder.encode_frame(Frame::new(frame)).unwrap();
    }
    drop(encoder);
    assert_eq!(pixels(&gif), [[200, 0, 0]; 16]);

    let webp = |how: u8| {
        let mut body = b"WEBP".to_vec();
        let last = [3, 0, 0, 3, 0, 0]; // Width and height, less 1.
        body.extend(chunk(b"VP8X", &[&[0x02, 0, 0, 0][..], &last].concat()));
        body.extend(chunk(b"ANIM", &[0; 6]));
        for frame in &frames {
            let whole = encoded(frame.clone(), ImageFormat::WebP);
            let still = &whole[12..];
            let place = [0; 6];
            let frame = [&place[..], &last, &[100, 0, 0, how], still].concat();
            body.extend(chunk(b"ANMF", &frame));
        }
        chunk(b"RIFF", &body)
    };
    let replacing = 0x02;
    assert_eq!(pixels(&webp(replacing)), [[200, 0, 0]; 16]);
    // The decoder's arithmetic for blending costs opaque pixels up to one level.
    let blending = 0;
    for [red, green, blue] in pixels(&webp(blending)) {
        assert!((199..=200).contains(&red) && green == 0 && blue == 0);
    }
}

#[test]
fn the_smallest_and_the_longest() {
    for format in FORMATS {
        let bytes = encoded(RgbImage::from_pixel(1, 1, Rgb([255; 3])), format);
        let found = pixels(&bytes);
        assert!(found[0].iter().all(|&c| c >= 250), "{format:?}: {found:?}");
    }
    // WebP ends at 16,383 pixels a side.
    for format in FORMATS
        .into_iter()
        .filter(|format| *format != ImageFormat::WebP)
    {
        for (width, height) in [(20_000, 4), (1, 20_000)] {
            let bytes = encoded(photo(width, height), format);
            let picture = decoded(&bytes);
            assert_eq!(picture.dimensions(), (width, height), "{format:?}");
            for fit in [Fit::Crop, Fit::Pad, Fit::Stretch] {
                let preprocess = Preprocess {
                    resolution: 8,
                    fit,
                    ..Default::default()
                };
                let size = preprocess.square();
                let prepared = preprocess.prepare(&picture, size);
                let planes = preprocess.finish(&prepared, size, 0, 0, 0);
                assert_eq!(planes.len(), 3 * 8 * 8);
                assert!(planes.iter().all(|value| (-1.0..=1.0).contains(value)));
            }
            let limit = u64::from(width * height);
            let decode = |limit| decode_from(&bytes[..], "it".as_ref(), BACKGROUND, limit);
            assert!(decode(limit).is_ok(), "{format:?}");
            assert!(
                matches!(decode(limit - 1), Err(DataError::TooManyPixels { .. })),
                "{format:?}"
            );
        }
    }
}

#[test]
fn a_square_of_20000_is_refused_by_its_header() {
    let mut bytes = encoded(photo(1, 1), ImageFormat::Bmp);
    bytes[18..22].copy_from_slice(&20_000_u32.to_le_bytes());
    bytes[22..26].copy_from_slice(&20_000_u32.to_le_bytes());
    let error = decode_from(&bytes[..], "it".as_ref(), BACKGROUND, DEFAULT_MAX_PIXELS)
        .unwrap_err()
        .to_string();
    assert!(error.contains("20000 x 20000 pixels"), "{error}");
}
