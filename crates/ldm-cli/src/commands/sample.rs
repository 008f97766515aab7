use std::{
    iter::repeat_n,
    path::{Path, PathBuf},
};

use burn::tensor::Tensor;
use ldm_pipeline::{
    Error, atomic,
    diffusion::SamplerKind,
    encode::{load_picture, load_tensor, save_tensors},
    generate::{Condition, LabelMap, Request, Source, load_mask},
    model::{LatentDiffusion, ModelFiles},
    sheet::save_png,
};
use serde_json::json;

use crate::{args::SampleArgs, output::print, progress::Progress};

/// How far image-to-image leads away from the picture.
const STRENGTH: f64 = 0.8;

pub(crate) fn run(args: &SampleArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let files = ModelFiles::open(&args.model.model, args.model.yaml.as_deref())?;
    let init_latents = (args.init_latents.as_ref())
        .map(|path| load_tensor(path, "latents", &device))
        .transpose()?;
    let held = init_latents.as_ref().map_or(1, |latents| latents.dims()[0]);
    let count = args.count.map_or(held, |count| count as usize);
    let condition = condition(args, files.tokenizer.is_some())?;
    let sampler = (args.sampler)
        .or_else(|| SamplerKind::for_config(&files.configs.scheduler))
        .unwrap_or_default();
    let request = Request {
        conditions: repeat_n(condition, count).collect(),
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
    };
    let model = files.load(&device)?;
    model.check(&request)?;
    let paths = output_paths(&args.out, count);
    check_writable(&paths)?;
    draw(&model, &request, args, &paths)
}

fn draw(
    model: &LatentDiffusion,
    request: &Request,
    args: &SampleArgs,
    paths: &[PathBuf],
) -> Result<(), Error> {
    let mut progress = Progress::new();
    let mut latents = Vec::new();
    let mut drawn = Vec::new();
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
            for image in batch.images {
                let index = drawn.len();
                let record = describe(args, request.sampler, index);
                save_png(
                    &paths[index],
                    &image,
                    &[
                        ("ldm", &record),
                        ("Software", concat!("ldm ", env!("CARGO_PKG_VERSION"))),
                    ],
                )?;
                drawn.push(&paths[index]);
            }
            Ok(())
        },
    )?;
    progress.finish();
    for path in drawn {
        print(format_args!("{}", path.display()))?;
    }
    Ok(())
}

/// What the options say is to be drawn.
fn condition(args: &SampleArgs, takes_text: bool) -> Result<Condition, Error> {
    Ok(match (&args.prompt, args.class, &args.semantic) {
        (Some(prompt), ..) => Condition::Prompt(prompt.clone()),
        (_, Some(class), _) => Condition::Class(class),
        (.., Some(path)) => Condition::Labels(LabelMap::load(path)?),
        _ if takes_text => {
            return Err(Error::Request(
                "this model draws what a prompt says: give one".into(),
            ));
        }
        _ => Condition::Nothing,
    })
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

/// The request of image number `index`, as JSON for the PNG's text chunk.
fn describe(args: &SampleArgs, sampler: SamplerKind, index: usize) -> String {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model.model,
        "prompt": args.prompt,
        "negative": args.negative,
        "class": args.class,
        "semantic": args.semantic,
        "init_image": args.init_image,
        "strength": args.strength,
        "mask": args.mask,
        "sampler": sampler.name(),
        "steps": args.steps,
        "eta": args.eta,
        "guidance": args.guidance,
        "guidance_rescale": args.guidance_rescale,
        "seed": args.seed,
        "init_latents": args.init_latents,
        "image": index,
        "width": args.width,
        "height": args.height,
    })
    .to_string()
}

/// `out.png` alone, or `out-0.png`, `out-1.png` and so on.
fn output_paths(out: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![out.into()];
    }
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let digits = (count - 1).to_string().len();
    (0..count)
        .map(|index| out.with_file_name(format!("{stem}-{index:0digits$}.png")))
        .collect()
}

/// Finds out before the work, not after it, whether its results can be saved. They are all in one folder.
fn check_writable(paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        if path.is_dir()
            || path
                .extension()
                .is_none_or(|extension| !extension.eq_ignore_ascii_case("png"))
        {
            let problem = format!(
                "--out names the PNG file to write, such as sample.png, not {}",
                path.display()
            );
            return Err(Error::Request(problem));
        }
    }
    let folder = match paths[0].parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    atomic::create_dir(folder)?;
    Ok(atomic::check_writable(folder)?)
}
