//! What each item of a batch is conditioned on: its caption, its class, or its semantic mask.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use ldm_diffusion::UNet;
use ldm_text::Tokenizer;

use super::{latents::LatentBatch, tokens::CaptionTokens};
use crate::{
    config::{ClassConfig, RunConfig, SemanticConfig, Stage2Config, TextConfig},
    data::{CLASS_FILE, ClassNames, Crop, DataError, Dataset, Fit, ImageDataset, ImageEntry, Size},
    error::Error,
    generate::{Condition, LabelMap, LabelMapping, Palette, class_tensor},
    model::Conditioner,
    rng::{Stream, permutation, rng, uniform},
};

/// Extension of a semantic mask.
const MASK_EXTENSION: &str = "png";

/// How the items of a run are conditioned.
pub(super) struct Conditions {
    kind: Kind,
    seed: u64,
}

#[expect(clippy::large_enum_variant, reason = "a run has one")]
enum Kind {
    Nothing,
    Text {
        tokenizer: Tokenizer,
        tokens: CaptionTokens,
        config: TextConfig,
    },
    Class {
        /// Of each image.
        classes: Vec<usize>,
        /// Of each class, where they have any.
        names: Vec<String>,
        config: ClassConfig,
    },
    Semantic {
        /// Of each image.
        masks: Vec<PathBuf>,
        fit: Fit,
        /// Of each image.
        sizes: Vec<Size>,
        /// Of sample sheets.
        square: Size,
        labels: usize,
        /// Colours of the labels, where the masks have any.
        palette: Option<Palette>,
        mapping: LabelMapping,
    },
}

/// What the U-Net sees beside latents and timestep.
pub(super) struct Conditioned {
    /// To attend to, `[N, S, D]`.
    pub(super) context: Option<Tensor<3>>,
    /// Beside the latent's, `[N, K, h, w]`.
    pub(super) channels: Option<Tensor<4>>,
}

impl Conditioned {
    /// What the U-Net makes of noisy latents `[N, c, h, w]` at `N` timesteps, under this condition.
    pub(super) fn predict(&self, unet: &UNet, noisy: Tensor<4>, timesteps: &[usize]) -> Tensor<4> {
        let device = noisy.device();
        let input = match &self.channels {
            Some(channels) => Tensor::cat(vec![noisy, channels.clone()], 1),
            None => noisy,
        };
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let timesteps = Tensor::<1>::from_floats(timesteps.as_slice(), &device);
        unet.forward(input, timesteps, self.context.clone())
    }
}

impl Conditions {
    /// Finds out whether the images have what [`new`](Self::new) asks for, without making tokens of every caption.
    pub(super) fn check(
        config: &RunConfig,
        stage2: &Stage2Config,
        set: &ImageDataset,
        held_out: &ImageDataset,
    ) -> Result<(), Error> {
        match &stage2.text {
            Some(_) => check_captions(config, set),
            None => Self::new(config, stage2, set, held_out).map(drop),
        }
    }

    /// Finds out what conditions the images of `set`, all of which must have what the configuration asks for. `held_out` are the other
    /// images of the data.
    pub(super) fn new(
        config: &RunConfig,
        stage2: &Stage2Config,
        set: &ImageDataset,
        held_out: &ImageDataset,
    ) -> Result<Self, Error> {
        let kind = if let Some(text) = &stage2.text {
            check_captions(config, set)?;
            let tokenizer = Tokenizer::bert();
            let captions =
                (set.entries().iter()).map(|entry| entry.caption.as_deref().unwrap_or_default());
            Kind::Text {
                tokens: CaptionTokens::new(&tokenizer, captions, text.bert.max_position_embeddings),
                tokenizer,
                config: text.clone(),
            }
        } else if let Some(class) = &stage2.class {
            let (classes, names) = classes(config, class, set, held_out)?;
            Kind::Class {
                classes,
                names,
                config: class.clone(),
            }
        } else if let Some(semantic) = &stage2.semantic {
            if config.data.flip > 0.0 || config.data.crop == Crop::Random {
                return Err(Error::Request(
                    "a semantic mask can't follow random crops and mirroring: set data.flip = 0 and data.crop = \"center\"".into(),
                ));
            }
            if config.data.fit == Fit::Pad {
                return Err(Error::Request(
                    "there is no label for the border that data.fit = \"pad\" adds: crop or stretch".into(),
                ));
            }
            let masks = masks(&semantic.masks, set)?;
            Kind::Semantic {
                palette: palette(semantic, &masks)?,
                masks,
                fit: config.data.fit,
                sizes: (0..set.len())
                    .map(|image| set.buckets().size(image))
                    .collect(),
                square: set.preprocess().square(),
                labels: semantic.in_channels,
                mapping: semantic.mapping.clone(),
            }
        } else {
            Kind::Nothing
        };
        Ok(Self {
            kind,
            seed: config.seed,
        })
    }

    /// Makes ids of captions, in a text-conditional run.
    pub(super) fn tokenizer(&self) -> Option<&Tokenizer> {
        match &self.kind {
            Kind::Text { tokenizer, .. } => Some(tokenizer),
            _ => None,
        }
    }

    /// Names of the classes by their numbers, where they have any.
    pub(super) fn class_names(&self) -> &[String] {
        match &self.kind {
            Kind::Class { names, .. } => names,
            _ => &[],
        }
    }

    /// Colours of the labels of semantic masks, where these have any.
    pub(super) fn palette(&self) -> &[[u8; 3]] {
        match &self.kind {
            Kind::Semantic { palette, .. } => palette.as_ref().map_or(&[], Palette::colors),
            _ => &[],
        }
    }

    /// Labels of values in semantic masks.
    pub(super) fn label_mapping(&self) -> LabelMapping {
        match &self.kind {
            Kind::Semantic { mapping, .. } => mapping.clone(),
            _ => LabelMapping::default(),
        }
    }

    /// The conditions of a micro-batch. In training, where `drawn` is its step and the number of its first item in it, a share of captions
    /// and classes is dropped, as configured.
    ///
    /// # Errors
    /// If a semantic mask can't be read or doesn't fit.
    pub(super) fn of_batch(
        &self,
        conditioner: Option<&Conditioner>,
        batch: &LatentBatch,
        drawn: Option<(u64, u64)>,
        device: &Device,
    ) -> Result<Conditioned, Error> {
        let mut conditioned = Conditioned {
            context: None,
            channels: None,
        };
        match (&self.kind, conditioner) {
            (
                Kind::Text {
                    tokenizer,
                    tokens,
                    config,
                },
                Some(bert),
            ) => {
                let rows: Vec<&[u32]> = (batch.indices.iter().enumerate())
                    .map(|(item, &image)| {
                        if self.drops(config.dropout, drawn, item) {
                            tokens.empty()
                        } else {
                            tokens.of(image)
                        }
                    })
                    .collect();
                let length = config.bert.max_position_embeddings;
                let (ids, _) = tokenizer.pad_batch(&rows, length, device);
                conditioned.context = Some(bert.encode_ids(ids, None));
            }
            (
                Kind::Class {
                    classes, config, ..
                },
                Some(Conditioner::Class(embedder)),
            ) => {
                let unconditional = config.embedder().unconditional_class();
                let ids: Vec<usize> = (batch.indices.iter().enumerate())
                    .map(|(item, &image)| {
                        if self.drops(config.dropout, drawn, item) {
                            unconditional
                        } else {
                            classes[image]
                        }
                    })
                    .collect();
                conditioned.context = Some(embedder.forward(class_tensor(&ids, device)));
            }
            (Kind::Semantic { sizes, .. }, Some(Conditioner::Semantic(rescaler))) => {
                let maps = (batch.indices.iter())
                    .map(|&image| self.label_map(image, sizes[image]))
                    .collect::<Result<Vec<_>, _>>()?;
                let maps: Vec<&LabelMap> = maps.iter().collect();
                conditioned.channels =
                    Some(rescaler.forward_labels(LabelMap::batch(&maps, device)));
            }
            _ => {}
        }
        Ok(conditioned)
    }

    /// What sample sheets show: the configured prompts, or conditions of `count` images of the data, each with its caption.
    pub(super) fn preview(
        &self,
        stage2: &Stage2Config,
        set: &ImageDataset,
    ) -> Result<Vec<(Condition, String)>, Error> {
        let preview = &stage2.preview;
        let count = preview.count.max(1);
        if matches!(self.kind, Kind::Nothing) {
            return Ok(vec![(Condition::Nothing, String::new()); count]);
        }
        if !preview.prompts.is_empty() && matches!(self.kind, Kind::Text { .. }) {
            let prompts = preview.prompts.iter();
            return Ok(prompts
                .map(|prompt| (Condition::Prompt(prompt.clone()), prompt.clone()))
                .collect());
        }
        permutation(self.seed, Stream::Preview, 0, set.len())
            .into_iter()
            .filter(|&image| {
                !matches!(self.kind, Kind::Text { .. }) || set.entries()[image].caption.is_some()
            })
            .take(count)
            .map(|image| {
                let entry = &set.entries()[image];
                Ok(match &self.kind {
                    Kind::Class { classes, .. } => (
                        Condition::Class(classes[image]),
                        class_name(entry).unwrap_or_default().to_owned(),
                    ),
                    Kind::Semantic { square, .. } => (
                        Condition::Labels(self.label_map(image, *square)?),
                        entry.name.clone(),
                    ),
                    _ => {
                        let caption = entry.caption.clone().unwrap_or_default();
                        (Condition::Prompt(caption.clone()), caption)
                    }
                })
            })
            .collect()
    }

    fn drops(&self, dropout: f64, drawn: Option<(u64, u64)>, item: usize) -> bool {
        drawn.is_some_and(|(step, first)| {
            let index = first + item as u64;
            uniform(&mut rng(self.seed, Stream::CaptionDropout, step, index)) < dropout
        })
    }

    /// The semantic mask of an image, brought to `size` like the image.
    fn label_map(&self, image: usize, size: Size) -> Result<LabelMap, Error> {
        let Kind::Semantic {
            masks,
            fit,
            labels,
            palette,
            mapping,
            ..
        } = &self.kind
        else {
            unreachable!("only called for semantic masks")
        };
        let path = &masks[image];
        let map = LabelMap::load(path, palette.as_ref(), mapping)?;
        if let Some(label) = map.labels.iter().find(|label| **label as usize >= *labels) {
            return Err(Error::Malformed {
                path: path.clone(),
                problem: format!(
                    "it has the label {label}, but `stage2.semantic.in_channels` counts {labels} labels, from 0: if the value stands for something else, give it a label in `stage2.semantic.mapping`"
                ),
            });
        }
        Ok(match fit {
            Fit::Stretch => map.stretched(size),
            Fit::Crop | Fit::Pad => map.cropped(size),
        })
    }
}

fn check_captions(config: &RunConfig, set: &ImageDataset) -> Result<(), Error> {
    match set.entries().iter().any(|entry| entry.caption.is_some()) {
        true => Ok(()),
        false => Err(Error::NoCaptions(
            config.data.path.clone().unwrap_or_default(),
        )),
    }
}

/// The class of an image: what its sample says, or the folder that it lies in.
fn class_name(entry: &ImageEntry) -> Option<&str> {
    let folder = || entry.name.split_once('/').map(|(folder, _)| folder);
    entry.class.as_deref().or_else(folder)
}

/// The class of each image: the number that its sample gives, if all give one, or the number of its folder or class in
/// `classes.txt`, or without that among all, by name. And what the classes are called, if anything.
fn classes(
    config: &RunConfig,
    class: &ClassConfig,
    set: &ImageDataset,
    held_out: &ImageDataset,
) -> Result<(Vec<usize>, Vec<String>), Error> {
    // All images decide on the numbers, not those that happen to be for training.
    let all = || set.entries().iter().chain(held_out.entries());
    let given = |entry: &ImageEntry| entry.class.as_ref()?.parse::<usize>().ok();
    let known = class.n_classes - 1;
    let root = config.data.path.as_ref().ok_or(DataError::NoFolder)?;
    if all().all(|entry| given(entry).is_some()) {
        if let Some(entry) = all().find(|entry| given(entry) >= Some(known)) {
            return Err(Error::Request(format!(
                "{} is of class {}, but `stage2.class.n_classes` has room for {known} from 0 on, beside the last, which is none",
                entry.location().display(),
                given(entry).unwrap_or_default()
            )));
        }
        let classes = set.entries().iter().filter_map(given).collect();
        let names = ClassNames::load(root)?.map_or(Vec::new(), |listed| listed.names);
        return Ok((classes, names));
    }
    let listed = ClassNames::load(root)?;
    let named = listed.unwrap_or_else(|| ClassNames::of_folders(all().filter_map(class_name)));
    if named.folders.len() > known {
        return Err(Error::Request(format!(
            "{} has {} classes, but `stage2.class.n_classes` has room for {known} beside the last, which is none",
            root.display(),
            named.folders.len()
        )));
    }
    let numbers = named.numbers();
    let classes = (set.entries().iter())
        .map(|entry| {
            let class = class_name(entry).ok_or_else(|| {
                Error::Request(format!(
                    "{} is in no folder of a class: a class-conditional model needs one folder per class",
                    entry.location().display()
                ))
            })?;
            numbers.get(class).copied().ok_or_else(|| {
                Error::Request(format!(
                    "{} is of the class \"{class}\", which {} doesn't list",
                    entry.location().display(),
                    root.join(CLASS_FILE).display()
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((classes, named.names))
}

/// The colours of the labels: those of the configuration, or of the first mask's palette if they all differ.
fn palette(semantic: &SemanticConfig, masks: &[PathBuf]) -> Result<Option<Palette>, Error> {
    if let Some(path) = &semantic.palette {
        return Palette::load(path).map(Some);
    }
    let Some(stored) = masks
        .first()
        .map(|path| Palette::of_png(path))
        .transpose()?
    else {
        return Ok(None);
    };
    Ok(stored.and_then(|palette| {
        semantic
            .mapping
            .palette(&palette)
            .first(semantic.in_channels)
    }))
}

/// The mask of each image.
fn masks(folder: &Path, set: &ImageDataset) -> Result<Vec<PathBuf>, Error> {
    (set.entries().iter())
        .map(|entry| {
            let path = folder.join(&entry.name).with_extension(MASK_EXTENSION);
            match path.is_file() {
                true => Ok(path),
                false => Err(Error::Request(format!(
                    "{} has no semantic mask: {} is missing",
                    entry.location().display(),
                    path.display()
                ))),
            }
        })
        .collect()
}
