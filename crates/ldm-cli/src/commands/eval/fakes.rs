//! The samples that are measured: of a folder, or drawn from a model.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use image::RgbImage;
use ldm_eval::{Collected, Collector, Extractor, Pictures};
use ldm_pipeline::{
    Error, atomic,
    diffusion::SamplerKind,
    generate::{Condition, Request},
    model::{ConditionerConfig, ModelConfigs, ModelFiles},
    sheet::save_png,
};

use super::{
    failed,
    pictures::{Folder, Work},
};
use crate::args::FakeArgs;

/// Samples drawn if nothing says how many.
const COUNT: u64 = 1000;

/// Where samples come from.
pub(super) enum Fakes {
    Folder(Folder),
    Model(Box<Drawn>),
}

/// A model to draw samples from.
pub(super) struct Drawn {
    files: ModelFiles,
    path: PathBuf,
    size: [usize; 2],
}

/// Samples' features, and the samples themselves if they were asked for.
pub(super) struct Gathered {
    pub(super) collected: Collected,
    pub(super) images: Vec<RgbImage>,
}

impl Fakes {
    pub(super) fn open(args: &FakeArgs) -> Result<Self, Error> {
        if let Some(path) = &args.fake {
            return Folder::open(path, args.resolution, args.count).map(Self::Folder);
        }
        // Clap asks for one of the two.
        let path = args.model.clone().unwrap_or_default();
        let files = ModelFiles::open(&path, args.yaml.as_deref())?;
        let Some(side) = files.configs.native_size() else {
            return Err(Error::Request(format!(
                "{} doesn't say its size: draw with `ldm sample`, and give the folder by --fake",
                path.display()
            )));
        };
        Ok(Self::Model(Box::new(Drawn {
            files,
            path,
            size: [side; 2],
        })))
    }

    /// What they are called.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.name.clone(),
            Self::Model(drawn) => drawn.path.display().to_string(),
        }
    }

    /// The side that real pictures are brought to beside these.
    pub(super) fn resolution(&self, args: &FakeArgs) -> Option<u64> {
        let native = match self {
            Self::Folder(_) => None,
            Self::Model(drawn) => Some(drawn.size[0] as u64),
        };
        args.resolution.or(native)
    }

    /// Makes the features of all samples, keeping the samples if `keep`. `captions` are what a text-conditional model draws, in turn.
    pub(super) fn gather(
        self,
        args: &FakeArgs,
        captions: &[String],
        work: &mut Work,
        extractor: &Extractor,
        keep: bool,
    ) -> Result<Gathered, Error> {
        match self {
            Self::Folder(folder) => {
                let collected = folder.features("samples", work, extractor)?;
                let images = if keep {
                    (0..folder.len())
                        .map(|index| folder.get(index))
                        .collect::<Result<_, _>>()?
                } else {
                    Vec::new()
                };
                Ok(Gathered { collected, images })
            }
            Self::Model(drawn) => drawn.gather(args, captions, work, extractor, keep),
        }
    }
}

impl Drawn {
    fn gather(
        self,
        args: &FakeArgs,
        captions: &[String],
        work: &mut Work,
        extractor: &Extractor,
        keep: bool,
    ) -> Result<Gathered, Error> {
        let count = args.count.unwrap_or(COUNT) as usize;
        let sampler = (args.sampler)
            .or_else(|| SamplerKind::for_config(&self.files.configs.scheduler))
            .unwrap_or_default();
        let request = Request {
            conditions: conditions(&self.files.configs, args.class, captions, count)?,
            seed: args.seed,
            sampler,
            steps: args.steps as usize,
            eta: args.eta,
            guidance: args.guidance,
            size: Some(self.size),
            batch: work.batch,
            ..Request::default()
        };
        if let Some(folder) = &args.save_samples {
            atomic::create_dir(folder)?;
            atomic::check_writable(folder)?;
        }
        let model = self.files.load(&work.device)?;
        let Work {
            device, progress, ..
        } = work;
        let mut collector = Collector::new(extractor, device);
        let mut images = Vec::new();
        let mut stopped = false;
        model.generate_batches(
            &request,
            |step| {
                progress.count("sampling", step.done as u64, step.total as u64, "");
                let flow = progress.flow();
                stopped |= flow == ControlFlow::Break(());
                flow
            },
            |batch| {
                let first = collector.count();
                if let Some(folder) = &args.save_samples {
                    for (offset, image) in batch.images.iter().enumerate() {
                        save_png(&numbered(folder, first + offset), image, &[])?;
                    }
                }
                let name = |index| format!("sample {}", first + index);
                collector.push(&batch.images, name).map_err(failed)?;
                if keep {
                    images.extend(batch.images);
                }
                Ok(())
            },
        )?;
        work.progress.finish();
        if stopped {
            return Err(failed(ldm_eval::Error::Stopped));
        }
        let name = self.path.display().to_string();
        let collected = collector.finish(&name).map_err(failed)?;
        Ok(Gathered { collected, images })
    }
}

fn numbered(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("{index:06}.png"))
}

/// What each sample shows: nothing, a class, or a caption, in turn.
fn conditions(
    configs: &ModelConfigs,
    class: Option<usize>,
    captions: &[String],
    count: usize,
) -> Result<Vec<Condition>, Error> {
    let of = |condition: &dyn Fn(usize) -> Condition| (0..count).map(condition).collect();
    let classes = match &configs.conditioner {
        Some(ConditionerConfig::Semantic(_)) => {
            return Err(Error::Request(
                "this model draws scenes by their masks: draw with `ldm sample --semantic`, and give the folder by --fake".into(),
            ));
        }
        Some(ConditionerConfig::Class(config)) => Some(config.unconditional_class()),
        Some(_) if captions.is_empty() => {
            return Err(Error::Request(
                "this model draws what a prompt says, but no real picture has a caption: draw with `ldm sample`, and give the folder by --fake".into(),
            ));
        }
        Some(_) => {
            return Ok(of(&|index| {
                Condition::Prompt(captions[index % captions.len()].clone())
            }));
        }
        None => configs.unet.num_class_embeds,
    };
    match (class, classes) {
        (Some(class), _) => Ok(of(&|_| Condition::Class(class))),
        (None, Some(classes)) => Ok(of(&|index| Condition::Class(index % classes.max(1)))),
        (None, None) => Ok(of(&|_| Condition::Nothing)),
    }
}
