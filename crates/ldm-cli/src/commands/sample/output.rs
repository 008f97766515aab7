//! The files that images are written to.

use std::{
    iter,
    path::{Path, PathBuf},
    time::Duration,
};

use image::RgbImage;
use ldm_pipeline::{
    Error, atomic,
    sheet::{AnimationFormat, Frame, Sheet, save_png},
};

use super::{images::Images, record::Records};
use crate::args::SampleArgs;

/// Pixels that a sheet may have; an animation twice as many.
const MAX_PIXELS: u64 = 1 << 27;

/// Time that a picture of an animation is shown.
const SHOWN: Duration = Duration::from_millis(100);

/// Time that its last one is, which is what it was about.
const LAST_SHOWN: Duration = Duration::from_millis(1500);

/// The files of a call, and what is kept for those that hold all images.
pub(super) struct Files {
    /// A file for each image; empty if there is none.
    each: Vec<PathBuf>,
    sheet: Option<PathBuf>,
    animation: Option<(PathBuf, AnimationFormat)>,
    /// Whether the animation goes from image to image.
    interpolated: bool,
    columns: usize,
    /// Images so far, kept for a sheet or an interpolation.
    images: Vec<RgbImage>,
    /// Pictures of the way so far, of all images each.
    frames: Vec<Vec<RgbImage>>,
    drawn: usize,
}

impl Files {
    /// Finds out before the work, not after it, whether its results can be saved. `size` is the images' height and width, `frames` the
    /// number of pictures of their way.
    pub(super) fn new(
        args: &SampleArgs,
        images: &Images,
        size: [usize; 2],
        frames: usize,
    ) -> Result<Self, Error> {
        let count = images.count();
        let sheet = args.grid.is_some().then(|| args.out.clone());
        let each = match sheet {
            None => numbered(&args.out, count, count > 1),
            Some(_) if args.each => numbered(&args.out, count, true),
            Some(_) => Vec::new(),
        };
        for path in each.iter().chain(&sheet) {
            check_png(path)?;
        }
        let animation = (args.animate.as_ref())
            .map(|path| match AnimationFormat::of(path) {
                Some(format) if !path.is_dir() => Ok((path.clone(), format)),
                _ => Err(Error::Request(format!(
                    "--animate names the file to write, such as sample.gif or sample.webp, not {}",
                    path.display()
                ))),
            })
            .transpose()?;
        let files = Self {
            each,
            sheet,
            animation,
            interpolated: images.interpolated(),
            columns: images.columns(args.grid.flatten()),
            images: Vec::new(),
            frames: Vec::new(),
            drawn: 0,
        };
        files.check_size(images, size, frames)?;
        // Last, so that a refused request leaves no folder.
        for path in iter::once(&args.out).chain(&args.animate) {
            check_folder(path)?;
        }
        Ok(files)
    }

    /// Whether the files that hold all images don't become too large, nor what is kept for them.
    fn check_size(
        &self,
        images: &Images,
        [height, width]: [usize; 2],
        frames: usize,
    ) -> Result<(), Error> {
        let count = images.count();
        let too_large = |what: &str, way_out: &str| {
            Err(Error::Request(format!(
                "{count} images of {width} x {height} pixels are too many for {what}: {way_out}"
            )))
        };
        let pixels = count as u64 * (width * height) as u64;
        let side_by_side = !self.interpolated && count > 1;
        let mut picture = [width, height].map(|side| side as u64);
        if self.sheet.is_some() || self.animation.is_some() && side_by_side {
            let sheet = (pixels <= MAX_PIXELS).then(|| self.sheet_size(images, [width, height]));
            let Some(sheet) = sheet.filter(|[width, height]| width * height <= MAX_PIXELS) else {
                return too_large(
                    "one picture",
                    "draw fewer at once, or without --grid and --animate",
                );
            };
            if side_by_side {
                picture = sheet;
            }
        }
        let Some((_, format)) = self.animation else {
            return Ok(());
        };
        if picture.iter().any(|&side| side > format.max_side().into()) {
            return too_large(
                "a picture of this animation",
                "draw smaller ones, or fewer at once",
            );
        }
        let (frames, way_out) = match self.interpolated {
            true => (1, "draw fewer at once"),
            false => (frames, "draw fewer at once, or raise --animate-every"),
        };
        if pixels.saturating_mul(frames as u64) > 2 * MAX_PIXELS {
            return too_large("an animation", way_out);
        }
        Ok(())
    }

    /// Width and height of a sheet of images of this width and height.
    fn sheet_size(&self, images: &Images, [width, height]: [usize; 2]) -> [u64; 2] {
        let mut sheet = Sheet::new("", self.columns);
        // One picture is enough to say the size of all.
        let mut picture = Some(RgbImage::new(width as u32, height as u32));
        for index in 0..images.count() {
            sheet.push(picture.take(), images.label(index));
        }
        sheet.dimensions().map(u64::from)
    }

    /// Writes the images of a batch that have files of their own, and keeps what the other files need. `frames` are the pictures of
    /// their way.
    pub(super) fn add(
        &mut self,
        images: Vec<RgbImage>,
        frames: Vec<Vec<RgbImage>>,
        records: &Records,
    ) -> Result<(), Error> {
        for image in &images {
            if let Some(path) = self.each.get(self.drawn) {
                let record = records.image(self.drawn);
                save(path, image, &record)?;
            }
            self.drawn += 1;
        }
        if self.sheet.is_some() || self.animation.is_some() && self.interpolated {
            self.images.extend(images);
        }
        self.frames.resize(frames.len(), Vec::new());
        for (all, new) in self.frames.iter_mut().zip(frames) {
            all.extend(new);
        }
        Ok(())
    }

    /// Writes the files of all images that were drawn, and tells which there are.
    pub(super) fn finish(&mut self, records: &Records) -> Result<Vec<PathBuf>, Error> {
        self.each.truncate(self.drawn);
        let mut written = std::mem::take(&mut self.each);
        if self.drawn == 0 {
            return Ok(written);
        }
        if let Some(path) = &self.sheet {
            let sheet = self.sheet_of(&self.images, records);
            save(path, &sheet, &records.sheet(self.drawn))?;
            written.push(path.clone());
        }
        if let Some((path, format)) = &self.animation {
            let pictures: Box<dyn ExactSizeIterator<Item = RgbImage>> = if self.interpolated {
                Box::new(self.images.iter().cloned())
            } else {
                Box::new(self.frames.iter().map(|images| match &images[..] {
                    [image] => image.clone(),
                    images => self.sheet_of(images, records),
                }))
            };
            let last = pictures.len() - 1;
            let frames = pictures.enumerate().map(|(index, image)| Frame {
                image,
                shown: if index == last { LAST_SHOWN } else { SHOWN },
            });
            format.save(path, frames)?;
            written.push(path.clone());
        }
        Ok(written)
    }

    fn sheet_of(&self, images: &[RgbImage], records: &Records) -> RgbImage {
        let mut sheet = Sheet::new("", self.columns);
        for (index, image) in images.iter().enumerate() {
            sheet.push([image.clone()], records.label(index));
        }
        sheet.render()
    }
}

fn save(path: &Path, image: &RgbImage, record: &str) -> Result<(), Error> {
    let text = [
        ("ldm", record),
        ("Software", concat!("ldm ", env!("CARGO_PKG_VERSION"))),
    ];
    Ok(save_png(path, image, &text)?)
}

/// `out.png` alone, or `out-0.png`, `out-1.png` and so on.
fn numbered(out: &Path, count: usize, with_numbers: bool) -> Vec<PathBuf> {
    if !with_numbers {
        return vec![out.into()];
    }
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let digits = (count - 1).to_string().len();
    (0..count)
        .map(|index| out.with_file_name(format!("{stem}-{index:0digits$}.png")))
        .collect()
}

fn check_png(path: &Path) -> Result<(), Error> {
    let is_png = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    match is_png && !path.is_dir() {
        true => Ok(()),
        false => Err(Error::Request(format!(
            "--out names the PNG file to write, such as sample.png, not {}",
            path.display()
        ))),
    }
}

/// Whether files can be written into the folder of `path`, which is made if it isn't there.
fn check_folder(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    atomic::create_dir(folder)?;
    Ok(atomic::check_writable(folder)?)
}
