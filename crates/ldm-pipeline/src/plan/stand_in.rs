//! What a probe trains on in place of the whole data set and of a trained autoencoder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use image::{GrayImage, Rgb, RgbImage};
use serde_json::json;

use super::probe::CLASSES;
use crate::{
    atomic::{WriteError, create_dir, write_file},
    config::RunConfig,
    data::{ImageEntry, ImageFolder, ImageSource},
    error::Error,
    model::{FirstStage, FirstStageConfig, save_first_stage},
    rng::{Stream, below, permutation, rng},
    sheet::save_png,
};

/// Images of a data set that a probe looks at, at most.
const SOURCES: usize = 64;
/// Pictures that are drawn where there is no data set.
const DRAWN: usize = 8;

/// Numbers of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// Trained on.
    pub training: usize,
    /// Held out.
    pub held_out: usize,
}

/// Counts the images of the data set, or takes `assumed` where the configuration names none.
///
/// # Errors
/// If the data set can't be used.
pub(super) fn count_images(config: &RunConfig, assumed: usize) -> Result<Images, Error> {
    if config.data.path.is_some() {
        let (training, held_out) = config.data.open(config.seed)?;
        return Ok(Images {
            training: training.entries().len(),
            held_out: held_out.entries().len(),
        });
    }
    let share = config.data.validation;
    let held_out = (assumed as f64 * share).round() as usize;
    let least = usize::from(share > 0.0 && assumed >= 2);
    let held_out = held_out.clamp(least, assumed.saturating_sub(1).max(least));
    Ok(Images {
        training: assumed - held_out,
        held_out,
    })
}

/// An image and what belongs to it.
struct Source {
    file: PathBuf,
    mask: Option<PathBuf>,
    class: Option<String>,
    caption: Option<String>,
}

/// Makes a data set of `images` in `root`, with masks in `masks` where the configuration has a use for them: of pictures of the configured
/// data set, repeated as often as necessary, or of drawn ones. Returns the share that is held out.
///
/// # Errors
/// If the data can't be read, or the folders not be written to.
pub(super) fn make_data(
    config: &RunConfig,
    images: Images,
    root: &Path,
    masks: &Path,
) -> Result<f64, Error> {
    let sources = match sources_of_data(config)? {
        sources if !sources.is_empty() => sources,
        _ => draw_sources(config, &root.with_extension("drawn"))?,
    };
    let total = images.training + images.held_out;
    let share = images.held_out as f64 / total as f64;
    create_dir(root)?;

    // A hash of its name decides on an image's side, so there must be more names than images.
    let mut candidates = 4 * total + 64;
    let chosen = loop {
        for number in 0..candidates {
            let path = root.join(name(number, &sources));
            if let Some(folder) = path.parent() {
                create_dir(folder)?;
            }
            fs::write(&path, []).map_err(write_error("write", &path))?;
        }
        let (training, held_out) = ImageFolder::scan(root)?.split(share);
        let parts = [(training, images.training), (held_out, images.held_out)];
        if parts
            .iter()
            .all(|(part, count)| part.entries().len() >= *count)
        {
            let take = |(part, count): &(ImageFolder, usize)| part.entries()[..*count].to_vec();
            break parts.iter().flat_map(take).collect::<Vec<ImageEntry>>();
        }
        candidates *= 2;
    };
    fs::remove_dir_all(root).map_err(write_error("remove", root))?;

    let mut metadata = String::new();
    for entry in &chosen {
        let number = number_of(&entry.name).expect("the name was made of a number");
        let source = &sources[number % sources.len()];
        place(&source.file, &root.join(&entry.name))?;
        if let Some(mask) = &source.mask {
            place(mask, &masks.join(&entry.name).with_extension("png"))?;
        }
        let line = json!({ "file_name": entry.name, "text": source.caption });
        metadata += &format!("{line}\n");
    }
    Ok(write_file(&root.join("metadata.jsonl"), metadata.as_bytes()).map(|()| share)?)
}

/// The name of image `number`.
fn name(number: usize, sources: &[Source]) -> String {
    let source = &sources[number % sources.len()];
    let extension = source.file.extension().unwrap_or_default();
    let folder = (source.class.as_ref()).map_or(String::new(), |class| format!("{class}/"));
    format!("{folder}{number:06}.{}", extension.to_string_lossy())
}

/// The number in a name that [`name`] made.
fn number_of(name: &str) -> Option<usize> {
    Path::new(name).file_stem()?.to_str()?.parse().ok()
}

/// Some images of the configured data set; none if there is no data set, or its images aren't files.
fn sources_of_data(config: &RunConfig) -> Result<Vec<Source>, Error> {
    if config.data.path.is_none() {
        return Ok(Vec::new());
    }
    let (training, _) = config.data.open(config.seed)?;
    let entries = training.entries();
    let stage2 = config.stage2.as_ref();
    let by_class = stage2.is_some_and(|stage2| stage2.class.is_some());
    let masks = stage2.and_then(|stage2| stage2.semantic.as_ref());
    let with_text = stage2.is_some_and(|stage2| stage2.text.is_some());
    Ok(permutation(config.seed, Stream::Preview, 0, entries.len())
        .into_iter()
        .map(|index| &entries[index])
        .filter(|entry| matches!(&entry.source, ImageSource::File(path) if path.is_file()))
        .filter(|entry| !with_text || entry.caption.is_some())
        .take(SOURCES)
        .map(|entry| Source {
            file: entry.location(),
            mask: masks.map(|masks| masks.masks.join(&entry.name).with_extension("png")),
            class: (entry.name.split_once('/'))
                .filter(|_| by_class)
                .map(|(class, _)| class.to_owned()),
            caption: entry.caption.clone(),
        })
        .collect())
}

/// Draws pictures of the training's size, with what the configuration needs beside them.
fn draw_sources(config: &RunConfig, folder: &Path) -> Result<Vec<Source>, Error> {
    create_dir(folder)?;
    let side = config.data.resolution as u32;
    let stage2 = config.stage2.as_ref();
    let class = stage2.and_then(|stage2| stage2.class.as_ref());
    let classes = class.map(|class| CLASSES.min(class.n_classes - 1));
    let mask = match stage2.and_then(|stage2| stage2.semantic.as_ref()) {
        Some(_) => {
            let path = folder.join("mask.png");
            GrayImage::new(side, side)
                .save(&path)
                .map_err(|error| write_error("write", &path)(std::io::Error::other(error)))?;
            Some(path)
        }
        None => None,
    };
    let draw = |number: usize| -> Result<Source, Error> {
        let mut random = rng(config.seed, Stream::Preview, 0, number as u64);
        let tint = [0; 3].map(|_: u8| below(&mut random, 128) as u32);
        // Gradients with a little noise, as photos are.
        let picture = RgbImage::from_fn(side, side, |x, y| {
            let grain = below(&mut random, 8) as u32;
            let slopes = [128 * x / side, 128 * y / side, 64 * (x + y) / side];
            Rgb([0, 1, 2].map(|i| (tint[i] + slopes[i]).saturating_sub(grain).min(255) as u8))
        });
        let file = folder.join(format!("{number}.png"));
        save_png(&file, &picture, &[])?;
        Ok(Source {
            file,
            mask: mask.clone(),
            class: classes.map(|classes| (number % classes).to_string()),
            caption: Some("a picture with colours that run from one side to another".into()),
        })
    };
    (0..DRAWN).map(draw).collect()
}

/// Puts a file into another place, without a copy where the file system can do that.
fn place(from: &Path, to: &Path) -> Result<(), Error> {
    if let Some(folder) = to.parent() {
        create_dir(folder)?;
    }
    let from = (from.canonicalize()).map_err(|source| Error::Read {
        path: from.into(),
        source,
    })?;
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).map_err(write_error("write", to))?;
    }
    Ok(())
}

fn write_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError {
        action,
        path,
        source,
    }
}

/// Writes an autoencoder with random weights into `dir`.
///
/// # Errors
/// If it can't be written.
pub(super) fn write_first_stage(
    config: &RunConfig,
    dir: &Path,
    device: &Device,
) -> Result<(), Error> {
    let config = (config.stage1.autoencoder())
        .with_scaling_factor(1.0)
        .with_sample_size(config.data.resolution);
    let model = match &config {
        FirstStageConfig::Kl(config) => FirstStage::Kl(config.init(device)),
        FirstStageConfig::Vq(config) => FirstStage::Vq(config.init(device)),
        FirstStageConfig::Identity { .. } => FirstStage::Identity,
    };
    save_first_stage(&model, &config, dir, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[&str]) -> RunConfig {
        let text = include_str!("../../../../configs/quickstart.toml");
        let changes: Vec<String> = changes.iter().map(|&change| change.into()).collect();
        RunConfig::parse(text, "preset", &changes).unwrap()
    }

    #[test]
    fn drawn_data_have_the_numbers_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let [root, masks] = ["data", "masks"].map(|name| dir.path().join(name));
        let images = Images {
            training: 32,
            held_out: 5,
        };
        let mut config = config(&[]);
        config.data.validation = make_data(&config, images, &root, &masks).unwrap();
        config.data.path = Some(root);
        assert_eq!(count_images(&config, 0).unwrap(), images);
        assert!(!masks.exists());
        crate::train::check_diffusion(&config).unwrap();
    }

    #[test]
    fn data_are_sampled_with_all_that_belongs_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = String::new();
        for number in 0..6 {
            let name = format!("{}/{number}.png", ["cat", "dog"][number % 2]);
            let path = dir.path().join("pictures").join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::new(8, 8 + number as u32).save(path).unwrap();
            metadata += &format!(
                "{}\n",
                json!({"file_name": name, "text": format!("no. {number}")})
            );
        }
        fs::write(dir.path().join("pictures/metadata.jsonl"), metadata).unwrap();
        let mut config = config(&[]);
        config.data.path = Some(dir.path().join("pictures"));
        config.data.validation = 0.3;
        let known = count_images(&config, 0).unwrap();
        assert_eq!(known.training + known.held_out, 6);

        let images = Images {
            training: 9,
            held_out: 0,
        };
        let root = dir.path().join("data");
        config.stage2.as_mut().unwrap().class = Some(crate::config::ClassConfig {
            n_classes: 3,
            embed_dim: 128,
            dropout: 0.1,
        });
        let share = make_data(&config, images, &root, &dir.path().join("masks")).unwrap();
        assert_eq!(share, 0.0);
        let folder = ImageFolder::scan(&root).unwrap();
        assert_eq!(folder.entries().len(), 9);
        for entry in folder.entries() {
            assert!(entry.name.starts_with("cat/") || entry.name.starts_with("dog/"));
            assert!(entry.caption.as_ref().unwrap().starts_with("no. "));
        }
    }

    #[test]
    fn images_that_are_not_there_are_split_like_others() {
        let count = |share: &str, assumed| {
            let config = config(&[&format!("data.validation={share}")]);
            let images = count_images(&config, assumed).unwrap();
            [images.training, images.held_out]
        };
        assert_eq!(count("0.1", 1000), [900, 100]);
        assert_eq!(count("0.0", 1000), [1000, 0]);
        assert_eq!(count("0.001", 100), [99, 1]);
        assert_eq!(count("0.99", 2), [1, 1]);
        assert_eq!(count("0.5", 1), [1, 0]);
    }
}
