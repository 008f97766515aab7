//! Text on RGB images: one embedded font, anti-aliased, with wrapping and ellipsis.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, PxScaleFont, ScaleFont, point};
use image::{Rgb, RgbImage};

/// The font of sheets and plots: Noto Sans, which covers Latin, Greek and Cyrillic.
pub(crate) const FONT_BYTES: &[u8] = notosans::REGULAR_TTF;

static FONT: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(FONT_BYTES).expect("the embedded font is valid"));

const ELLIPSIS: char = '…';

/// The embedded font at one size and in one colour.
#[derive(Debug, Clone)]
pub(crate) struct Pen {
    font: PxScaleFont<&'static FontRef<'static>>,
    color: Rgb<u8>,
}

impl Pen {
    /// A pen of `px` pixels from the top of the ascenders to the bottom of the descenders.
    pub(crate) fn new(px: f32, color: Rgb<u8>) -> Self {
        Self {
            font: FONT.as_scaled(px),
            color,
        }
    }

    /// Distance between two lines of text, in pixels.
    pub(crate) fn line_height(&self) -> u32 {
        (self.font.height() + self.font.line_gap()).ceil() as u32
    }

    /// Width of `text` in pixels.
    pub(crate) fn width(&self, text: &str) -> f32 {
        self.glyphs(text).1
    }

    /// Draws one line with its top left corner at `(x, y)`; what lies outside the image is left out.
    pub(crate) fn draw(&self, image: &mut RgbImage, x: f32, y: f32, text: &str) {
        for mut glyph in self.glyphs(text).0 {
            glyph.position += point(x, y + self.font.ascent());
            let Some(outline) = self.font.outline_glyph(glyph) else {
                continue;
            };
            let origin = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (
                    origin.x as i64 + i64::from(dx),
                    origin.y as i64 + i64::from(dy),
                );
                let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
                    return;
                };
                if let Some(pixel) = image.get_pixel_mut_checked(x, y) {
                    blend(pixel, self.color, coverage.min(1.0));
                }
            });
        }
    }

    /// `text` in at most `max_lines` lines of at most `width` pixels, broken between words where possible; the rest
    /// is replaced by an ellipsis.
    pub(crate) fn wrap(&self, text: &str, width: f32, max_lines: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match lines.last_mut() {
                Some(line) if self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        if lines.len() > max_lines {
            lines.truncate(max_lines);
            if let Some(last) = lines.last_mut() {
                *last = elided(last);
            }
        }
        lines.iter().map(|line| self.fit(line, width)).collect()
    }

    /// `text`, or as much of its beginning as fits into `width` pixels with an ellipsis.
    pub(crate) fn fit(&self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut head = text.to_owned();
        while head.pop().is_some() {
            let shortened = elided(&head);
            if self.width(&shortened) <= width {
                return shortened;
            }
        }
        String::new()
    }

    fn glyphs(&self, text: &str) -> (Vec<Glyph>, f32) {
        let mut glyphs = Vec::with_capacity(text.len());
        let mut x = 0.0;
        let mut previous = None;
        for c in text.chars().filter(|c| !c.is_control()) {
            let id = self.font.glyph_id(c);
            if let Some(previous) = previous {
                x += self.font.kern(previous, id);
            }
            glyphs.push(id.with_scale_and_position(self.font.scale(), point(x, 0.0)));
            x += self.font.h_advance(id);
            previous = Some(id);
        }
        (glyphs, x)
    }
}

/// `head` with an ellipsis in place of what follows and of the punctuation before it.
fn elided(head: &str) -> String {
    format!(
        "{}{ELLIPSIS}",
        head.trim_end_matches([' ', ',', ';', ':', '.', ELLIPSIS])
    )
}

fn blend(pixel: &mut Rgb<u8>, color: Rgb<u8>, alpha: f32) {
    for (below, above) in pixel.0.iter_mut().zip(color.0) {
        *below = (f32::from(*below) * (1.0 - alpha) + f32::from(above) * alpha).round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pen() -> Pen {
        Pen::new(16.0, Rgb([0, 0, 0]))
    }

    #[test]
    fn text_is_drawn_within_its_box() {
        let pen = pen();
        let mut image = RgbImage::from_pixel(200, 40, Rgb([255; 3]));
        pen.draw(&mut image, 10.0, 5.0, "Große Ängste");
        let dark: Vec<_> = image
            .enumerate_pixels()
            .filter(|(_, _, pixel)| pixel.0[0] < 128)
            .collect();
        assert!(dark.len() > 100);
        let right = 10.0 + pen.width("Große Ängste");
        let bottom = 5 + pen.line_height();
        assert!(
            dark.iter()
                .all(|(x, y, _)| *x >= 9 && (*x as f32) <= right + 1.0 && *y >= 5 && *y < bottom)
        );
    }

    #[test]
    fn drawing_over_the_edge_is_clipped() {
        let mut image = RgbImage::from_pixel(10, 10, Rgb([255; 3]));
        pen().draw(&mut image, -6.0, -6.0, "MMMM");
        assert!(image.pixels().any(|pixel| pixel.0[0] < 128));
    }

    #[test]
    fn long_text_wraps_between_words_and_ends_in_an_ellipsis() {
        let pen = pen();
        let text = "a red apple on a wooden table in the evening sun";
        let lines = pen.wrap(text, 120.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(
            lines.iter().all(|line| pen.width(line) <= 120.0),
            "{lines:?}"
        );
        assert!(
            text.starts_with(&lines[0]) && lines[1].ends_with('…'),
            "{lines:?}"
        );
        assert_eq!(pen.wrap(text, 1e4, 2), [text]);
        assert!(pen.wrap("  ", 120.0, 2).is_empty());
    }

    #[test]
    fn one_word_too_long_is_shortened() {
        let pen = pen();
        let fitted = pen.fit("Donaudampfschifffahrtsgesellschaft", 80.0);
        assert!(fitted.starts_with("Donau") && fitted.ends_with('…') && pen.width(&fitted) <= 80.0);
        assert_eq!(pen.fit("Donau", 0.0), "");
    }
}
