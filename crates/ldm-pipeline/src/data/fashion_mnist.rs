//! Fashion-MNIST (Xiao et al. 2017): 70,000 grey pictures of clothes, shoes and bags, 28 x 28 pixels, in ten classes.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;

use super::{
    CLASS_FILE,
    error::DataError,
    export::{export_folder, write_error},
};

/// The classes in the order of their labels: their folders, and what they are called.
pub const CLASSES: [(&str, &str); 10] = [
    ("0-t-shirt", "t-shirt, top"),
    ("1-trouser", "trouser"),
    ("2-pullover", "pullover"),
    ("3-dress", "dress"),
    ("4-coat", "coat"),
    ("5-sandal", "sandal"),
    ("6-shirt", "shirt"),
    ("7-sneaker", "sneaker"),
    ("8-bag", "bag"),
    ("9-ankle-boot", "ankle boot"),
];

/// Side of an exported picture: the original in the middle of a black border, a size that halves three times and more.
pub const SIDE: usize = 32;

/// The parts of the data set, and how their files begin.
const PARTS: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

const LICENSE: &str = "\
The pictures are from Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist
Copyright 2017 Zalando SE, https://tech.zalando.com; licensed under the MIT license
They are unchanged but for a black border of two pixels.
";

/// An array of bytes in the format of MNIST's files.
struct Idx {
    dims: Vec<usize>,
    data: Vec<u8>,
}

/// Writes `out/train` and `out/test`, each with `classes.txt` and a folder of PNG files for each of [`CLASSES`], from the four files
/// `{train,t10k}-{images-idx3,labels-idx1}-ubyte` in `from`, with or without `.gz`. Gives the number of pictures in each part. The folder
/// appears complete or not at all.
///
/// # Errors
/// When a file is missing, damaged or of another shape, and when `out` exists and isn't empty, or can't be written.
pub fn export(from: &Path, out: &Path) -> Result<[usize; 2], DataError> {
    let mut counts = [0; 2];
    export_folder(out, |folder| {
        for ((part, prefix), count) in PARTS.into_iter().zip(&mut counts) {
            *count = export_part(from, prefix, &folder.join(part), out)?;
        }
        fs::write(folder.join("LICENSE.txt"), LICENSE).map_err(write_error(out))
    })?;
    Ok(counts)
}

fn export_part(from: &Path, prefix: &str, folder: &Path, out: &Path) -> Result<usize, DataError> {
    let (images_path, images) = read(from, &format!("{prefix}-images-idx3-ubyte"))?;
    let (labels_path, labels) = read(from, &format!("{prefix}-labels-idx1-ubyte"))?;
    let malformed = |path: &Path, reason: String| DataError::Idx {
        path: path.to_owned(),
        reason,
    };
    let [count, height, width] = images.dims[..] else {
        return Err(malformed(
            &images_path,
            format!("images have 3 dimensions, not {}", images.dims.len()),
        ));
    };
    if count == 0 || width == 0 || height == 0 || width > SIDE || height > SIDE {
        return Err(malformed(
            &images_path,
            format!(
                "it has {count} pictures of {width} x {height} pixels, not some of at most {SIDE} x {SIDE}"
            ),
        ));
    }
    if labels.dims != [count] {
        return Err(malformed(
            &labels_path,
            format!(
                "its dimensions are {:?}, but there are {count} pictures",
                labels.dims
            ),
        ));
    }
    let mut names = String::new();
    for (class, name) in CLASSES {
        fs::create_dir_all(folder.join(class)).map_err(write_error(out))?;
        names.push_str(&format!("{class}\t{name}\n"));
    }
    fs::write(folder.join(CLASS_FILE), names).map_err(write_error(out))?;
    for (number, (pixels, &label)) in
        (images.data.chunks_exact(width * height).zip(&labels.data)).enumerate()
    {
        let (class, _) = CLASSES.get(usize::from(label)).ok_or_else(|| {
            malformed(
                &labels_path,
                format!("picture {number} has the label {label}, not one from 0 to 9"),
            )
        })?;
        let path = folder.join(class).join(format!("{number:05}.png"));
        write_png(&path, &bordered(pixels, width)).map_err(write_error(out))?;
    }
    Ok(count)
}

/// A picture of rows of `width` pixels in the middle of a black one of [`SIDE`].
fn bordered(pixels: &[u8], width: usize) -> Vec<u8> {
    let height = pixels.len() / width;
    let [left, top] = [(SIDE - width) / 2, (SIDE - height) / 2];
    let mut square = vec![0; SIDE * SIDE];
    for (y, row) in pixels.chunks_exact(width).enumerate() {
        let start = (top + y) * SIDE + left;
        square[start..start + width].copy_from_slice(row);
    }
    square
}

fn write_png(path: &Path, pixels: &[u8]) -> io::Result<()> {
    let mut encoder = png::Encoder::new(File::create(path)?, SIDE as u32, SIDE as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    Ok(writer.finish()?)
}

/// The file called `name`, or `name.gz`, in a folder, and where it is.
fn read(folder: &Path, name: &str) -> Result<(PathBuf, Idx), DataError> {
    let compressed = folder.join(format!("{name}.gz"));
    let path = match compressed.is_file() {
        true => compressed,
        false => folder.join(name),
    };
    let bytes = match path.extension() {
        Some(_) => {
            let mut bytes = Vec::new();
            File::open(&path)
                .and_then(|file| MultiGzDecoder::new(file).read_to_end(&mut bytes))
                .map(|_| bytes)
        }
        None => fs::read(&path),
    };
    let bytes = bytes.map_err(|source| DataError::Read {
        path: path.clone(),
        source,
    })?;
    match parse(bytes) {
        Ok(idx) => Ok((path, idx)),
        Err(reason) => Err(DataError::Idx { path, reason }),
    }
}

/// The format of <http://yann.lecun.com/exdb/mnist/>: two zeros, the type, of which bytes are 8, the number of dimensions, each of them in
/// big-endian 32 bits, then the data, the last dimension running fastest.
fn parse(mut bytes: Vec<u8>) -> Result<Idx, String> {
    let [0, 0, 8, rank, ..] = bytes[..] else {
        return Err("it doesn't begin with 0 0 8, as an IDX file of bytes does".into());
    };
    let start = 4 + 4 * usize::from(rank);
    let Some(header) = bytes.get(4..start) else {
        return Err("it ends within its header".into());
    };
    let dims: Vec<usize> = (header.chunks_exact(4))
        .map(|dim| u32::from_be_bytes([dim[0], dim[1], dim[2], dim[3]]) as usize)
        .collect();
    let expected = dims.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
    let found = bytes.len() - start;
    if expected != Some(found) {
        return Err(format!(
            "its dimensions are {dims:?}, but it has {found} bytes of data"
        ));
    }
    bytes.drain(..start);
    Ok(Idx { dims, data: bytes })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use tempfile::TempDir;

    use super::*;
    use crate::data::{ClassNames, DEFAULT_MAX_PIXELS, ImageFolder, Picture, decode};

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    /// A folder with 12 pictures to train on, of labels 0 to 9, 0, 1, and one to test on; their first pixel is their number + 1.
    fn source() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (prefix, count) in [("train", 12_u8), ("t10k", 1)] {
            let picture = |number| {
                let mut picture = [200; 28 * 28];
                picture[0] = number + 1;
                picture
            };
            let pixels: Vec<u8> = (0..count).flat_map(picture).collect();
            let labels: Vec<u8> = (0..count).map(|number| number % 10).collect();
            let images = idx(&[count.into(), 28, 28], &pixels);
            fs::write(
                dir.path().join(format!("{prefix}-images-idx3-ubyte")),
                images,
            )
            .unwrap();
            let name = format!("{prefix}-labels-idx1-ubyte.gz");
            let file = File::create(dir.path().join(name)).unwrap();
            let mut gzip = GzEncoder::new(file, Compression::fast());
            gzip.write_all(&idx(&[count.into()], &labels)).unwrap();
            gzip.finish().unwrap();
        }
        dir
    }

    #[test]
    fn pictures_lie_in_the_folders_of_their_classes() {
        let from = source();
        let out = from.path().join("out/fashion");
        assert_eq!(export(from.path(), &out).unwrap(), [12, 1]);
        let folder = ImageFolder::scan(out.join("train")).unwrap();
        let names: Vec<&str> = (folder.entries().iter())
            .map(|entry| entry.name.as_str())
            .collect();
        assert_eq!(
            names[..3],
            [
                "0-t-shirt/00000.png",
                "0-t-shirt/00010.png",
                "1-trouser/00001.png"
            ]
        );
        assert_eq!((names.len(), names[11]), (12, "9-ankle-boot/00009.png"));
        let picture = decode(
            &out.join("train").join(names[1]),
            [255; 3],
            DEFAULT_MAX_PIXELS,
        )
        .unwrap();
        let Picture::Rgb8(pixels) = picture else {
            panic!("it has 8 bits")
        };
        assert_eq!(pixels.dimensions(), (32, 32));
        let at = |x, y| pixels.get_pixel(x, y).0;
        assert_eq!(
            [at(1, 1), at(2, 2), at(3, 2), at(29, 29), at(30, 29)],
            [[0; 3], [11; 3], [200; 3], [200; 3], [0; 3]]
        );
        let classes = ClassNames::load(&out.join("test")).unwrap().unwrap();
        assert_eq!(
            (classes.numbers()["7-sneaker"], classes.names[7].as_str()),
            (7, "sneaker")
        );
        assert!(
            out.join("test/0-t-shirt/00000.png").is_file() && out.join("LICENSE.txt").is_file()
        );
        assert!(
            export(from.path(), &out)
                .unwrap_err()
                .to_string()
                .contains("already exists")
        );
    }

    #[test]
    fn wrong_files_are_named_with_what_is_wrong() {
        let error_with = |name: &str, bytes: &[u8]| {
            let from = source();
            fs::write(from.path().join(name), bytes).unwrap();
            let out = from.path().join("out");
            let error = export(from.path(), &out).unwrap_err().to_string();
            assert!(!out.exists() && error.contains(name), "{error}");
            error
        };
        let images = "train-images-idx3-ubyte";
        for (bytes, expected) in [
            (b"\x89PNG".to_vec(), "0 0 8"),
            (vec![0, 0, 8, 3, 0, 0], "within its header"),
            (
                idx(&[12, 28, 28], &[0; 5]),
                "[12, 28, 28], but it has 5 bytes",
            ),
            (idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), "has 0 bytes"),
            (idx(&[12], &[0; 12]), "3 dimensions, not 1"),
            (idx(&[1, 40, 2], &[0; 80]), "1 pictures of 2 x 40"),
        ] {
            let error = error_with(images, &bytes);
            assert!(error.contains(expected), "{error}");
        }
        // A file that isn't compressed, and one that has lost its compressed twin's end.
        assert!(
            error_with("train-labels-idx1-ubyte.gz", &idx(&[12], &[0; 12])).contains("can't read")
        );
        let mut missing = source();
        fs::remove_file(missing.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
        let error = export(missing.path(), &missing.path().join("out")).unwrap_err();
        assert!(
            error.to_string().contains("t10k-labels-idx1-ubyte"),
            "{error}"
        );
        missing = source();
        fs::remove_file(missing.path().join("train-labels-idx1-ubyte.gz")).unwrap();
        for (labels, expected) in [
            (idx(&[11], &[0; 11]), "[11], but there are 12 pictures"),
            (idx(&[12], &[10; 12]), "picture 0 has the label 10"),
        ] {
            fs::write(missing.path().join("train-labels-idx1-ubyte"), labels).unwrap();
            let error = export(missing.path(), &missing.path().join("out")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
