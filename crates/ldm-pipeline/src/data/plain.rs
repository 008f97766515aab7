//! The images of a folder as they are, for measuring and looking at.

use image::{DynamicImage, RgbImage};

use super::{
    decode::Picture,
    error::DataError,
    folder::{ImageEntry, ImageFolder},
    preprocess::Preprocess,
};

/// The images of a folder with 8 bits per channel: as they are, or the middle of each at one size. Nothing is random, nothing cached.
#[derive(Clone, Debug)]
pub struct PlainImages {
    entries: Vec<ImageEntry>,
    preprocess: Preprocess,
    resized: bool,
}

impl PlainImages {
    /// The images of `folder`, each once, whatever the number of its captions. With a `resolution` they become squares of that side as in
    /// training.
    pub fn new(folder: &ImageFolder, resolution: Option<usize>) -> Self {
        let mut entries = folder.entries().to_vec();
        entries.dedup_by(|next, previous| next.source == previous.source);
        let mut preprocess = Preprocess::default();
        if let Some(resolution) = resolution {
            preprocess.resolution = resolution;
        }
        Self {
            entries,
            preprocess,
            resized: resolution.is_some(),
        }
    }

    /// The first `count` of them.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.entries.truncate(count);
        self
    }

    /// The images with their captions, in order.
    pub fn entries(&self) -> &[ImageEntry] {
        &self.entries
    }

    /// The image `index`; transparent parts are white.
    ///
    /// # Errors
    /// When it can't be read or is damaged.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn get(&self, index: usize) -> Result<RgbImage, DataError> {
        let Preprocess {
            background,
            max_pixels,
            ..
        } = self.preprocess;
        let mut picture = self.entries[index].decode(background, max_pixels)?;
        if self.resized {
            picture = (self.preprocess).prepare(&picture, self.preprocess.square());
        }
        Ok(match picture {
            Picture::Rgb8(image) => image,
            Picture::Rgb16(image) => DynamicImage::ImageRgb16(image).to_rgb8(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_images::write_greys;

    #[test]
    fn an_image_counts_once_and_has_the_size_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        write_greys(dir.path(), 3);
        let first = ImageFolder::scan(dir.path()).unwrap().entries()[0]
            .name
            .clone();
        let lines = format!(
            "{{\"file_name\": \"{first}\", \"text\": \"a\"}}\n{{\"file_name\": \"{first}\", \"text\": \"b\"}}\n"
        );
        std::fs::write(dir.path().join("metadata.jsonl"), lines).unwrap();
        let folder = ImageFolder::scan(dir.path()).unwrap();
        assert_eq!(folder.entries().len(), 4);
        let plain = PlainImages::new(&folder, None);
        assert_eq!(plain.entries().len(), 3);
        let (width, height) = plain.get(1).unwrap().dimensions();
        let resized = PlainImages::new(&folder, Some(7)).first(2);
        assert_eq!(resized.entries().len(), 2);
        assert_ne!((width, height), (7, 7));
        assert_eq!(resized.get(1).unwrap().dimensions(), (7, 7));
        assert_eq!(
            resized.get(1).unwrap().get_pixel(3, 3),
            plain.get(1).unwrap().get_pixel(0, 0)
        );
    }
}
