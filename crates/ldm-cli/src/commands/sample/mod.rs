//! `ldm sample`: `images.rs` says which images, `record.rs` what their files tell of them, `output.rs` which files there are.

mod images;
mod output;
mod record;

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use ldm_pipeline::{
    Error,
    diffusion::SamplerKind,
    encode::{load_picture, load_tensor, save_tensors},
    generate::{Request, Source, load_mask},
    model::{LatentDiffusion, ModelFiles, SHIPPED, find_shipped},
};

use crate::{
    args::SampleArgs,
    output::{note, print},
    progress::Progress,
};
use images::Images;
use output::Files;
use record::Records;

/// How far image-to-image leads away from the picture.
const STRENGTH: f64 = 0.8;

/// The repository that the program was built from.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

pub(crate) fn run(args: &SampleArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let path = model_path(args)?;
    let files = ModelFiles::open(&path, args.model.yaml.as_deref())?;
    let init_latents = (args.init_latents.as_ref())
        .map(|path| load_tensor(path, "latents", &device))
        .transpose()?;
    let held = init_latents.as_ref().map(|latents| latents.dims()[0]);
    let images = Images::new(args, &files, held)?;
    let sampler = (args.sampler)
        .or_else(|| SamplerKind::for_config(&files.configs.scheduler))
        .unwrap_or_default();
    let series = images.series()?;
    let animated_steps = args.animate.is_some() && args.interpolate.is_none();
    let request = Request {
        conditions: series.conditions,
        noise: series.noise,
        negative: args.negative.clone(),
        seed: args.seed,
        sampler,
        steps: args.steps as usize,
        eta: args.eta,
        guidance: args.guidance,
        guidance_rescale: args.guidance_rescale,
        size: (args.height.zip(args.width))
            .map(|(height, width)| [height as usize, width as usize]),
        batch: args.batch as usize,
        init_latents,
        source: source(args, files.configs.first_stage.factor())?,
        tile: args.tile.map(|tile| tile as usize),
        frames_every: animated_steps.then_some(args.animate_every as usize),
    };
    let model = files.load(&device)?;
    model.check(&request)?;
    let size = model.pixel_size(&request)?;
    let mut files = Files::new(args, &images, size, model.frame_count(&request)?)?;
    let name = match &args.model.model {
        Some(path) => path.as_path(),
        None => Path::new(SHIPPED),
    };
    let records = Records::new(args, name, sampler, &images);
    draw(&model, &request, args, &records, &mut files)
}

/// The model that was named, or the one that comes with the program.
fn model_path(args: &SampleArgs) -> Result<PathBuf, Error> {
    if let Some(path) = &args.model.model {
        return Ok(path.clone());
    }
    let path = find_shipped(Path::new(REPOSITORY))?;
    note(format_args!(
        "no --model given: drawing with {SHIPPED}, which comes with ldm, from {}",
        path.display()
    ));
    Ok(path)
}

fn draw(
    model: &LatentDiffusion,
    request: &Request,
    args: &SampleArgs,
    records: &Records,
    files: &mut Files,
) -> Result<(), Error> {
    let mut progress = Progress::new();
    let mut latents = Vec::new();
    model.generate_batches(
        request,
        |step| {
            progress.count("sampling", step.done as u64, step.total as u64, "");
            progress.flow()
        },
        |batch| {
            if let Some(path) = &args.save_latents {
                latents.push(batch.latents);
                // Before anything else can go wrong, and again with every batch.
                save_tensors(path, &[("latents", &Tensor::cat(latents.clone(), 0))])?;
            }
            files.add(batch.images, batch.frames, records)
        },
    )?;
    progress.finish();
    for path in files.finish(records)? {
        print(format_args!("{}", path.display()))?;
    }
    Ok(())
}

/// The picture to start from, at the requested size.
fn source(args: &SampleArgs, factor: usize) -> Result<Option<Source>, Error> {
    let Some(path) = &args.init_image else {
        return Ok(None);
    };
    let image = load_picture(path, args.width.zip(args.height), factor)?;
    let mask = (args.mask.as_ref())
        .map(|path| load_mask(path, image.width(), image.height()))
        .transpose()?;
    let default = if mask.is_some() { 1.0 } else { STRENGTH };
    Ok(Some(Source {
        image,
        strength: args.strength.unwrap_or(default),
        mask,
    }))
}
