//! Contact sheets: labelled grids of pictures, for samples and reconstructions.

mod animation;
mod convert;
mod png;
pub(crate) mod text;

pub use animation::{AnimationFormat, Frame};
pub(crate) use convert::chw_from_rgb;
pub use convert::{images_from_tensor, psnr, rgb_from_chw, tensor_from_images};
pub use png::{encode_png, save_png};

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use text::Pen;

/// Not white, so that the edges of white pictures show.
const BACKGROUND: Rgb<u8> = Rgb([244; 3]);
const TITLE_COLOR: Rgb<u8> = Rgb([20, 20, 20]);
const CAPTION_COLOR: Rgb<u8> = Rgb([70, 70, 70]);
const TITLE_PX: f32 = 22.0;
const CAPTION_PX: f32 = 16.0;
const CAPTION_LINES: usize = 2;
const CAPTION_GAP: u32 = 3;
const MARGIN: u32 = 16;
const GAP: u32 = 12;
/// Between the pictures that share a caption.
const INNER_GAP: u32 = 2;

/// A grid of pictures with captions under a title.
///
/// ```
/// # use ldm_pipeline::sheet::Sheet;
/// # use image::RgbImage;
/// let mut sheet = Sheet::new("step 1000", 8);
/// sheet.push([RgbImage::new(64, 64)], "red apple");
/// let picture = sheet.render();
/// ```
#[derive(Debug, Clone)]
pub struct Sheet {
    title: String,
    columns: usize,
    cell: u32,
    cells: Vec<Cell>,
}

#[derive(Debug, Clone)]
struct Cell {
    images: Vec<RgbImage>,
    caption: String,
}

/// Where the parts of a sheet are, in pixels.
struct Layout {
    /// The lines of each caption.
    captions: Vec<Vec<String>>,
    /// From the top of a cell to its caption.
    captions_top: u32,
    cell_width: u32,
    cell_height: u32,
    /// Of the first row.
    top: u32,
    width: u32,
    height: u32,
}

impl Sheet {
    /// An empty sheet with `columns` (at least 1) cells a row. An empty title takes no room.
    #[must_use]
    pub fn new(title: impl Into<String>, columns: usize) -> Self {
        Self {
            title: title.into(),
            columns: columns.max(1),
            cell: 128,
            cells: Vec::new(),
        }
    }

    /// Sets the size, 128 pixels by default, up to which smaller pictures are enlarged by a whole factor, pixels
    /// staying visible as squares. Larger pictures are shown as they are.
    #[must_use]
    pub fn with_cell(mut self, pixels: u32) -> Self {
        self.cell = pixels;
        self
    }

    /// Adds a cell: one picture, or several side by side, over a common caption.
    pub fn push(&mut self, images: impl IntoIterator<Item = RgbImage>, caption: impl Into<String>) {
        self.cells.push(Cell {
            images: images.into_iter().collect(),
            caption: caption.into(),
        });
    }

    /// Adds a cell with an original, its reconstruction beside it, and their PSNR as caption.
    ///
    /// # Panics
    /// If the two differ in size.
    pub fn push_reconstruction(&mut self, original: RgbImage, reconstruction: RgbImage) {
        let caption = format!("{:.1} dB", psnr(&original, &reconstruction));
        self.push([original, reconstruction], caption);
    }

    /// Width and height in pixels of what [`render`](Self::render) draws.
    #[must_use]
    pub fn dimensions(&self) -> [u32; 2] {
        let layout = self.layout();
        [layout.width, layout.height]
    }

    /// Draws the sheet. An empty one is a picture of the title alone.
    #[must_use]
    pub fn render(&self) -> RgbImage {
        let caption_pen = Pen::new(CAPTION_PX, CAPTION_COLOR);
        let title_pen = Pen::new(TITLE_PX, TITLE_COLOR);
        let scale = self.scale();
        let layout = self.layout();
        let mut sheet = RgbImage::from_pixel(layout.width, layout.height, BACKGROUND);

        let title = title_pen.fit(&self.title, (layout.width - 2 * MARGIN) as f32);
        title_pen.draw(&mut sheet, MARGIN as f32, MARGIN as f32, &title);
        for (index, (cell, caption)) in self.cells.iter().zip(&layout.captions).enumerate() {
            let column = (index % self.columns) as u32;
            let row = (index / self.columns) as u32;
            let x = MARGIN + column * (layout.cell_width + GAP);
            let y = layout.top + row * (layout.cell_height + GAP);
            cell.draw(
                &mut sheet,
                x + (layout.cell_width - cell.width(scale)) / 2,
                y,
                scale,
            );
            for (line, text) in caption.iter().enumerate() {
                let indent = (layout.cell_width as f32 - caption_pen.width(text)) / 2.0;
                let top = y + layout.captions_top + line as u32 * caption_pen.line_height();
                caption_pen.draw(&mut sheet, x as f32 + indent, top as f32, text);
            }
        }
        sheet
    }

    /// Where everything goes.
    fn layout(&self) -> Layout {
        let caption_pen = Pen::new(CAPTION_PX, CAPTION_COLOR);
        let title_pen = Pen::new(TITLE_PX, TITLE_COLOR);
        let scale = self.scale();
        let cell_width = self
            .cells
            .iter()
            .map(|cell| cell.width(scale))
            .max()
            .unwrap_or(self.cell);
        let picture_height = self
            .cells
            .iter()
            .map(|cell| cell.height(scale))
            .max()
            .unwrap_or(0);
        let captions: Vec<_> = self
            .cells
            .iter()
            .map(|cell| caption_pen.wrap(&cell.caption, cell_width as f32, CAPTION_LINES))
            .collect();
        let caption_lines = captions.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let captions_top = if caption_lines > 0 {
            picture_height + CAPTION_GAP
        } else {
            picture_height
        };
        let cell_height = captions_top + caption_lines * caption_pen.line_height();
        let title_height = if self.title.is_empty() {
            0
        } else {
            title_pen.line_height() + GAP
        };
        let columns = self.columns.min(self.cells.len()).max(1) as u32;
        let rows = self.cells.len().div_ceil(self.columns) as u32;
        let grid_height = (rows * (cell_height + GAP)).saturating_sub(GAP);
        Layout {
            captions,
            captions_top,
            cell_width,
            cell_height,
            top: MARGIN + title_height,
            width: columns * (cell_width + GAP) - GAP + 2 * MARGIN,
            height: title_height + grid_height + 2 * MARGIN,
        }
    }

    /// One factor for all pictures, so that their sizes stay comparable.
    fn scale(&self) -> u32 {
        let sides = self
            .cells
            .iter()
            .flat_map(|cell| &cell.images)
            .map(|image| image.width().max(image.height()));
        let largest = sides.max().unwrap_or(1).max(1);
        (self.cell / largest).max(1)
    }
}

impl Cell {
    fn width(&self, scale: u32) -> u32 {
        let pictures: u32 = self.images.iter().map(|image| image.width() * scale).sum();
        pictures + INNER_GAP * (self.images.len() as u32).saturating_sub(1)
    }

    fn height(&self, scale: u32) -> u32 {
        self.images
            .iter()
            .map(|image| image.height() * scale)
            .max()
            .unwrap_or(0)
    }

    fn draw(&self, sheet: &mut RgbImage, mut x: u32, y: u32, scale: u32) {
        for image in &self.images {
            let (width, height) = (image.width() * scale, image.height() * scale);
            let enlarged = imageops::resize(image, width, height, FilterType::Nearest);
            imageops::replace(sheet, &enlarged, x.into(), y.into());
            x += width + INNER_GAP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Rgb<u8> = Rgb([250, 0, 0]);
    const BLUE: Rgb<u8> = Rgb([0, 0, 250]);

    fn count(image: &RgbImage, color: Rgb<u8>) -> usize {
        image.pixels().filter(|pixel| **pixel == color).count()
    }

    #[test]
    fn every_picture_is_shown_whole_and_enlarged() {
        let mut sheet = Sheet::new("title", 3);
        for index in 0..5 {
            sheet.push(
                [RgbImage::from_pixel(64, 64, RED)],
                format!("caption {index}"),
            );
        }
        let picture = sheet.render();
        assert_eq!(sheet.dimensions(), [picture.width(), picture.height()]);
        assert_eq!(count(&picture, RED), 5 * 128 * 128);
        assert_eq!(picture.width(), 3 * 128 + 2 * GAP + 2 * MARGIN);
    }

    #[test]
    fn larger_pictures_keep_their_size() {
        let mut sheet = Sheet::new("", 2).with_cell(128);
        sheet.push([RgbImage::from_pixel(200, 100, RED)], "");
        assert_eq!(count(&sheet.render(), RED), 200 * 100);
    }

    #[test]
    fn a_pair_stands_side_by_side_with_its_psnr() {
        let (original, reconstruction) = (
            RgbImage::from_pixel(32, 32, RED),
            RgbImage::from_pixel(32, 32, BLUE),
        );
        let mut sheet = Sheet::new("", 4);
        sheet.push_reconstruction(original.clone(), reconstruction);
        let picture = sheet.render();
        assert_eq!(
            (count(&picture, RED), count(&picture, BLUE)),
            (128 * 128, 128 * 128)
        );
        assert_eq!(picture.get_pixel(MARGIN, MARGIN), &RED);
        assert_eq!(picture.get_pixel(MARGIN + 128 + INNER_GAP, MARGIN), &BLUE);
    }

    #[test]
    fn captions_and_titles_are_drawn_in_the_room_made_for_them() {
        let blank = |title: &str, caption: &str| {
            let mut sheet = Sheet::new(title, 1);
            sheet.push([RgbImage::from_pixel(64, 64, RED)], caption);
            let picture = sheet.render();
            let text = picture
                .pixels()
                .filter(|p| p.0[0] < 128 && p.0[0] == p.0[1])
                .count();
            (picture.height(), text)
        };
        let (bare, ink) = blank("", "");
        assert_eq!((bare, ink), (128 + 2 * MARGIN, 0));
        let (captioned, ink) = blank("", "an apple");
        assert!(captioned > bare && ink > 30);
        let (wrapped, _) = blank(
            "",
            "an apple on a table, a pear on a chair, a plum on the floor",
        );
        assert!(wrapped > captioned);
        let (titled, ink) = blank("title", "");
        assert!(titled > bare && ink > 30);
    }

    #[test]
    fn an_empty_sheet_still_renders() {
        assert!(Sheet::new("nothing yet", 4).render().height() > 0);
    }
}
