//! Twemoji: a few thousand small pictures with their names, part of the program.
//!
//! The graphics are Copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0; whoever passes them on
//! has to say so, which is why [`export`] writes [`ATTRIBUTION`] beside them.

use std::{collections::HashSet, fmt, fmt::Write as _, fs, path::Path, str::FromStr};

use twemoji_assets::png::PngTwemojiAsset;

use super::{
    error::DataError,
    export::{export_folder, write_error},
};

/// What has to be said about the graphics wherever they are shown or passed on.
pub const ATTRIBUTION: &str = "\
The graphics in this folder are from Twemoji 17.0.2, https://github.com/jdecked/twemoji
Copyright 2019 Twitter, Inc and other contributors; Copyright 2024 jdecked and other contributors
Licensed under Creative Commons Attribution 4.0 International (CC-BY 4.0): https://creativecommons.org/licenses/by/4.0/
They are unchanged; their captions in metadata.jsonl are made of the names of the Unicode CLDR, in lower case.
";

/// One picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twemoji {
    /// The emoji itself.
    pub emoji: &'static str,
    /// Its name in lower case, which is its caption: `red apple`.
    pub name: String,
    /// What kind of thing it shows.
    pub group: Group,
    /// A PNG of 72 x 72 pixels with transparency.
    pub png: &'static [u8],
}

/// Unicode's groups of emoji.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Faces, hearts, moods.
    Smileys,
    /// People, hands, professions, families.
    People,
    /// Animals and plants.
    Animals,
    /// Food, drink and tableware.
    Food,
    /// Places, buildings, vehicles, sky and weather.
    Travel,
    /// Events, sports, games, arts.
    Activities,
    /// Clothes, tools, instruments, household.
    Objects,
    /// Signs, arrows, shapes.
    Symbols,
    /// Flags of all kinds.
    Flags,
}

impl Group {
    /// All groups in Unicode's order, with the names that [`FromStr`] reads.
    pub const ALL: [(Self, &str); 9] = [
        (Self::Smileys, "smileys"),
        (Self::People, "people"),
        (Self::Animals, "animals"),
        (Self::Food, "food"),
        (Self::Travel, "travel"),
        (Self::Activities, "activities"),
        (Self::Objects, "objects"),
        (Self::Symbols, "symbols"),
        (Self::Flags, "flags"),
    ];

    fn of(group: emojis::Group) -> Self {
        match group {
            emojis::Group::SmileysAndEmotion => Self::Smileys,
            emojis::Group::PeopleAndBody => Self::People,
            emojis::Group::AnimalsAndNature => Self::Animals,
            emojis::Group::FoodAndDrink => Self::Food,
            emojis::Group::TravelAndPlaces => Self::Travel,
            emojis::Group::Activities => Self::Activities,
            emojis::Group::Objects => Self::Objects,
            emojis::Group::Symbols => Self::Symbols,
            emojis::Group::Flags => Self::Flags,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = Self::ALL
            .iter()
            .find(|(group, _)| group == self)
            .map(|(_, name)| name);
        f.write_str(name.expect("ALL has every group"))
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(group, _)| *group)
            .ok_or_else(|| {
                format!(
                    "no group is called \"{text}\"; there are {}",
                    Self::ALL.map(|(_, name)| name).join(", ")
                )
            })
    }
}

/// Which of the pictures to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The groups to take from.
    pub groups: Vec<Group>,
    /// Whether each skin tone of a person counts, or only the yellow default.
    pub skin_tones: bool,
    /// At most this many, evenly spread over all that qualify; neighbours resemble each other.
    pub limit: Option<usize>,
}

/// What the captions of an export say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Captions {
    /// The name, with the skin tone in it: `waving hand: dark skin tone`.
    #[default]
    Name,
    /// Two captions for each picture: the name, and name, skin tone and group, `waving hand, dark skin tone, people`.
    Full,
}

impl Default for Selection {
    /// All but flags and skin tones.
    fn default() -> Self {
        let groups = Group::ALL
            .map(|(group, _)| group)
            .into_iter()
            .filter(|group| *group != Group::Flags);
        Self {
            groups: groups.collect(),
            skin_tones: false,
            limit: None,
        }
    }
}

/// The pictures of a selection, always the same and in Unicode's order, no name twice.
pub fn select(selection: &Selection) -> Vec<Twemoji> {
    let mut names = HashSet::new();
    let found: Vec<Twemoji> = emojis::iter()
        .filter(|emoji| selection.groups.contains(&Group::of(emoji.group())))
        .flat_map(|emoji| {
            let tones = selection.skin_tones.then(|| emoji.skin_tones()).flatten();
            // The default tone comes first.
            std::iter::once(emoji).chain(tones.into_iter().flatten().skip(1))
        })
        .filter_map(picture)
        .filter(|twemoji| names.insert(twemoji.name.clone()))
        .collect();
    match selection.limit {
        Some(limit) if limit < found.len() => (0..limit)
            .map(|number| found[number * found.len() / limit].clone())
            .collect(),
        _ => found,
    }
}

fn picture(emoji: &'static emojis::Emoji) -> Option<Twemoji> {
    // Unicode newer than the graphics is passed over; the selector for coloured display is in some of the graphics'
    // names.
    let asset = PngTwemojiAsset::from_emoji(emoji.as_str())
        .or_else(|| PngTwemojiAsset::from_emoji(&emoji.as_str().replace('\u{fe0f}', "")))?;
    Some(Twemoji {
        emoji: emoji.as_str(),
        name: emoji.name().to_lowercase(),
        group: Group::of(emoji.group()),
        png: asset.data.0,
    })
}

/// Writes pictures as an image folder with captions: the PNG files, `metadata.jsonl` and `ATTRIBUTION.md`. The
/// folder appears complete or not at all.
///
/// # Errors
/// When `out` exists and isn't empty, or can't be written.
pub fn export(out: &Path, pictures: &[Twemoji], captions: Captions) -> Result<(), DataError> {
    export_folder(out, |folder| {
        let mut metadata = String::new();
        for picture in pictures {
            let file_name = picture.file_name();
            fs::write(folder.join(&file_name), picture.png).map_err(write_error(out))?;
            for text in picture.captions(captions) {
                let line = serde_json::json!({ "file_name": file_name, "text": text });
                metadata.push_str(&format!("{line}\n"));
            }
        }
        fs::write(folder.join("metadata.jsonl"), metadata).map_err(write_error(out))?;
        fs::write(folder.join("ATTRIBUTION.md"), ATTRIBUTION).map_err(write_error(out))
    })
}

impl Twemoji {
    /// Its captions, each of which makes it a sample.
    fn captions(&self, captions: Captions) -> Vec<String> {
        match captions {
            Captions::Name => vec![self.name.clone()],
            Captions::Full => vec![
                self.name.clone(),
                format!("{}, {}", self.name.replace(": ", ", "), self.group),
            ],
        }
    }

    /// Readable and unique: `red-apple-1f34e.png`.
    fn file_name(&self) -> String {
        let words = self
            .name
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        let mut name = words.collect::<Vec<_>>().join("-");
        for code_point in self.emoji.chars() {
            let _ = write!(name, "-{:x}", u32::from(code_point));
        }
        name + ".png"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DEFAULT_MAX_PIXELS, ImageFolder, Picture, decode};

    #[test]
    fn default_selection() {
        let pictures = select(&Selection::default());
        assert!(pictures.len() > 1400, "{}", pictures.len());
        assert_eq!(pictures[0].name, "grinning face");
        assert!(pictures.iter().all(|picture| picture.group != Group::Flags && picture.png.starts_with(b"\x89PNG")));
        let names: HashSet<&str> = pictures
            .iter()
            .map(|picture| picture.name.as_str())
            .collect();
        assert_eq!(names.len(), pictures.len());
        assert!(names.contains("red apple") && names.contains("red heart"));
        assert!(!names.iter().any(|name| name.contains("skin tone")));
    }

    #[test]
    fn options() {
        let of = |text: &str| vec![text.parse::<Group>().unwrap()];
        let people = Selection {
            groups: of("people"),
            ..Default::default()
        };
        let toned = Selection {
            skin_tones: true,
            ..people.clone()
        };
        assert!(select(&toned).len() > 3 * select(&people).len());
        assert!(
            select(&toned)
                .iter()
                .any(|picture| picture.name.ends_with("dark skin tone"))
        );

        let food = select(&Selection {
            groups: of("food"),
            limit: Some(10),
            ..Default::default()
        });
        assert_eq!(food.len(), 10);
        assert!(food.iter().all(|picture| picture.group == Group::Food));
        assert_eq!(
            food,
            select(&Selection {
                groups: of("food"),
                limit: Some(10),
                ..Default::default()
            })
        );

        assert!(
            "foods"
                .parse::<Group>()
                .unwrap_err()
                .contains("smileys, people, animals, food")
        );
        assert!(
            Group::ALL
                .iter()
                .all(|(group, name)| group.to_string() == *name)
        );
    }

    #[test]
    fn exported_folder_is_a_captioned_data_set() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/emoji");
        let pictures = select(&Selection {
            limit: Some(25),
            ..Default::default()
        });
        export(&out, &pictures, Captions::Name).unwrap();

        let folder = ImageFolder::scan(&out).unwrap();
        assert_eq!((folder.entries().len(), folder.captioned()), (25, 25));
        let captions: HashSet<&str> = folder
            .entries()
            .iter()
            .filter_map(|entry| entry.caption.as_deref())
            .collect();
        assert!(
            pictures
                .iter()
                .all(|picture| captions.contains(picture.name.as_str()))
        );
        assert!(
            fs::read_to_string(out.join("ATTRIBUTION.md"))
                .unwrap()
                .contains("CC-BY 4.0")
        );
        let picture = decode(
            folder.entries()[0].source.file(),
            [255; 3],
            DEFAULT_MAX_PIXELS,
        )
        .unwrap();
        assert_eq!(picture.dimensions(), (72, 72));
        let Picture::Rgb8(pixels) = picture else {
            panic!("Twemoji has 8 bits")
        };
        assert_eq!(
            pixels.get_pixel(0, 0).0,
            [255; 3],
            "the corner is transparent"
        );

        let error = export(&out, &pictures, Captions::Name)
            .unwrap_err()
            .to_string();
        assert!(error.contains("already exists"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn full_captions_name_tone_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("people");
        let pictures: Vec<Twemoji> = select(&Selection {
            groups: vec![Group::People, Group::Flags],
            skin_tones: true,
            ..Default::default()
        });
        let wanted = |picture: &Twemoji| {
            ["waving hand: dark skin tone", "flag: Japan"]
                .iter()
                .any(|name| name.to_lowercase() == picture.name)
        };
        let pictures: Vec<Twemoji> = pictures.into_iter().filter(wanted).collect();
        export(&out, &pictures, Captions::Full).unwrap();
        let folder = ImageFolder::scan(&out).unwrap();
        let mut captions: Vec<&str> = (folder.entries().iter())
            .filter_map(|entry| entry.caption.as_deref())
            .collect();
        captions.sort_unstable();
        assert_eq!(
            captions,
            [
                "flag, japan, flags",
                "flag: japan",
                "waving hand, dark skin tone, people",
                "waving hand: dark skin tone",
            ]
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 4);
    }

    #[test]
    fn export_into_the_unwritable() {
        let error = export(Path::new("/dev/null/emoji"), &[], Captions::Name).unwrap_err();
        assert!(error.to_string().contains("/dev/null/emoji"), "{error}");
    }
}
