use std::path::{Path, PathBuf};

use ldm_pipeline::{Error, atomic, generate::Request, model::LatentDiffusion, sheet::save_png};
use serde_json::json;

use crate::{args::SampleArgs, output::print, progress::Progress};

pub(crate) fn run(args: SampleArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let model = LatentDiffusion::load(&args.model, &device)?;
    if model.text.is_some() && args.prompt.is_none() {
        return Err(Error::Request(
            "this model draws what a prompt says: give one".into(),
        ));
    }
    let request = Request {
        prompts: vec![args.prompt.clone().unwrap_or_default(); args.count as usize],
        negative: args.negative.clone(),
        seed: args.seed,
        sampler: args.sampler.into(),
        steps: args.steps as usize,
        eta: args.eta,
        guidance: args.guidance,
        size: (args.height.zip(args.width))
            .map(|(height, width)| [height as usize, width as usize]),
        batch: args.batch as usize,
    };
    model.check(&request)?;
    let paths = output_paths(&args.out, args.count as usize);
    check_writable(&paths)?;
    let mut progress = Progress::new();
    let images = model.generate(&request, |step| {
        progress.count("sampling", step.done as u64, step.total as u64, "");
        progress.flow()
    })?;
    progress.finish();
    for (index, (image, path)) in images.iter().zip(&paths).enumerate() {
        let record = describe(&args, index);
        save_png(
            path,
            image,
            &[
                ("ldm", &record),
                ("Software", concat!("ldm ", env!("CARGO_PKG_VERSION"))),
            ],
        )?;
        print(format_args!("{}", path.display()))?;
    }
    Ok(())
}

/// The request of image number `index`, as JSON for the PNG's text chunk.
fn describe(args: &SampleArgs, index: usize) -> String {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model,
        "prompt": args.prompt,
        "negative": args.negative,
        "sampler": format!("{:?}", args.sampler).to_lowercase(),
        "steps": args.steps,
        "eta": args.eta,
        "guidance": args.guidance,
        "seed": args.seed,
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
