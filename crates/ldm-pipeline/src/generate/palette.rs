//! The colours that stand for labels in semantic masks.

use std::{collections::HashMap, fs::File, io::BufReader, path::Path};

use crate::{error::Error, lines::read_lines};

/// First line of a palette of GIMP.
const GIMP: &str = "GIMP Palette";

/// The colour of each label, from label 0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Palette {
    colors: Vec<[u8; 3]>,
    labels: HashMap<[u8; 3], u32>,
}

impl Palette {
    /// The palette of these colours. Of labels with one colour, the first is meant by it.
    #[must_use]
    pub fn new(colors: Vec<[u8; 3]>) -> Self {
        let mut labels = HashMap::with_capacity(colors.len());
        for (label, &color) in (0..).zip(&colors) {
            labels.entry(color).or_insert(label);
        }
        Self { colors, labels }
    }

    /// Reads a palette: that of a PNG file, or a text with a line `RED GREEN BLUE NAME` for each label, the name optional and the levels
    /// from 0 to 255. Empty lines and those that begin with `#` are passed over, as is the head of a palette of GIMP.
    ///
    /// # Errors
    /// If it can't be read, is neither, or two labels have one colour.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let malformed = |problem: String| Error::Malformed {
            path: path.into(),
            problem,
        };
        let is_png = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        if is_png {
            return match Self::of_png(path)? {
                Some(palette) => Ok(palette),
                None => Err(malformed("this PNG has no palette".into())),
            };
        }
        let palette = Self::new(parse(&read_lines(path)?).map_err(malformed)?);
        if let Some((label, color)) = palette.ambiguous() {
            return Err(malformed(format!(
                "the labels {} and {label} have the same colour {}",
                palette.labels[&color],
                shown(color)
            )));
        }
        Ok(palette)
    }

    /// The palette that a PNG file carries, if it does.
    ///
    /// # Errors
    /// If it can't be read or is no PNG.
    pub(crate) fn of_png(path: &Path) -> Result<Option<Self>, Error> {
        let file = File::open(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let reader = png::Decoder::new(BufReader::new(file))
            .read_info()
            .map_err(|error| Error::Malformed {
                path: path.into(),
                problem: format!("it is no PNG file: {error}"),
            })?;
        let info = reader.info();
        let bytes = (info.palette.as_deref())
            .filter(|_| info.color_type == png::ColorType::Indexed)
            .map(|bytes| bytes.as_chunks::<3>().0.to_vec());
        Ok(bytes.map(Self::new))
    }

    /// The colours of the first `count` labels, if there are as many and no two are alike.
    pub(crate) fn first(&self, count: usize) -> Option<Self> {
        let first = Self::new(self.colors.get(..count)?.to_vec());
        first.ambiguous().is_none().then_some(first)
    }

    /// The colour of each label.
    #[must_use]
    pub fn colors(&self) -> &[[u8; 3]] {
        &self.colors
    }

    /// The label of exactly this colour.
    #[must_use]
    pub fn label(&self, color: [u8; 3]) -> Option<u32> {
        self.labels.get(&color).copied()
    }

    /// The first label whose colour belongs to one before it, and that colour.
    fn ambiguous(&self) -> Option<(u32, [u8; 3])> {
        (0..)
            .zip(self.colors.iter().copied())
            .find(|(label, color)| self.labels[color] != *label)
    }

    /// What is wrong with a colour that no label has.
    pub(super) fn unknown(&self, color: [u8; 3], [x, y]: [usize; 2]) -> String {
        let distance = |other: &[u8; 3]| -> u32 {
            (color.iter().zip(other))
                .map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2))
                .sum()
        };
        let nearest = (0u32..)
            .zip(&self.colors)
            .min_by_key(|(_, other)| distance(other));
        let hint = match nearest {
            Some((label, other)) => {
                format!("; the nearest is {}, label {label}", shown(*other))
            }
            None => String::new(),
        };
        format!(
            "the pixel at ({x}, {y}) has the colour {}, which is none of the palette's {}{hint}",
            shown(color),
            self.colors.len()
        )
    }
}

/// The colours of numbered lines.
fn parse(lines: &[(usize, String)]) -> Result<Vec<[u8; 3]>, String> {
    let of_gimp = lines.first().is_some_and(|(_, line)| line == GIMP);
    let in_head = |line: &str| {
        of_gimp && (line == GIMP || line.starts_with("Name:") || line.starts_with("Columns:"))
    };
    let mut colors = Vec::new();
    for (number, line) in lines.iter().skip_while(|(_, line)| in_head(line)) {
        let levels: Vec<u8> = line
            .split_whitespace()
            .take(3)
            .filter_map(|level| level.parse().ok())
            .collect();
        let color = <[u8; 3]>::try_from(levels).map_err(|_| {
            format!("line {number} is \"{line}\", not a colour such as 255 0 0 and perhaps a name")
        })?;
        colors.push(color);
    }
    match colors.is_empty() {
        true => Err("it has no colours, one a line, such as 255 0 0 and perhaps a name".into()),
        false => Ok(colors),
    }
}

fn shown([r, g, b]: [u8; 3]) -> String {
    format!("({r}, {g}, {b})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_a_colour_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("palette.txt");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Palette::load(&path)
        };
        let text = "# hair, skin\n255 0 0\n\n 0 128 255\tthe sky at noon\n";
        assert_eq!(load(text).unwrap().colors(), [[255, 0, 0], [0, 128, 255]]);
        let text = "GIMP Palette\nName: mine\nColumns: 2\n#\n  0   0   0\tblack\n255 255 255\n";
        assert_eq!(load(text).unwrap().colors(), [[0; 3], [255; 3]]);
        let text = "\u{feff}1 2 3\r\n4 5 6\r\n";
        assert_eq!(load(text).unwrap().colors(), [[1, 2, 3], [4, 5, 6]]);
        for (text, culprit) in [
            ("1 2 3\n\n1 2\n", "line 3"),
            ("1 2 300\n", "line 1"),
            ("red\n", "line 1"),
            ("Name: mine\n1 2 3\n", "line 1"),
            ("#ff0000\n", "255 0 0"),
            ("1 2 3\n4 5 6\n1 2 3\n", "labels 0 and 2"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }

    #[test]
    fn colours_are_found_exactly_or_not_at_all() {
        let palette = Palette::new(vec![[0; 3], [9, 9, 9], [0; 3], [200, 0, 0]]);
        assert_eq!(palette.label([9, 9, 9]), Some(1));
        assert_eq!(palette.label([0; 3]), Some(0), "the first of two");
        assert_eq!(palette.label([9, 9, 8]), None);
        let problem = palette.unknown([190, 1, 2], [7, 3]);
        for expected in ["(7, 3)", "(190, 1, 2)", "(200, 0, 0), label 3"] {
            assert!(problem.contains(expected), "{problem}");
        }
        assert_eq!(palette.first(2).unwrap().colors(), [[0; 3], [9; 3]]);
        assert!(palette.first(3).is_none(), "two alike");
        assert!(palette.first(5).is_none(), "too few");
    }

    #[test]
    fn files_are_texts_or_pictures_with_a_palette() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("palette.png");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(vec![1, 2, 3, 4, 5, 6]);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1]).unwrap();
        writer.finish().unwrap();
        let expected = Palette::new(vec![[1, 2, 3], [4, 5, 6]]);
        assert_eq!(Palette::load(&path).unwrap(), expected);
        image::GrayImage::new(1, 1).save(&path).unwrap();
        assert!(Palette::load(&path).is_err());

        let text = dir.path().join("palette.txt");
        std::fs::write(&text, "1 2 3 hair\n4 5 6\n").unwrap();
        assert_eq!(Palette::load(&text).unwrap(), expected);
    }
}
