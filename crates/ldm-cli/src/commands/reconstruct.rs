use std::{collections::HashSet, path::PathBuf};

use ldm_pipeline::{
    Error, atomic,
    encode::load_image,
    model::FirstStageFiles,
    reconstruct::pairs,
    sheet::{Sheet, psnr, save_png},
};

use crate::{args::ReconstructArgs, output::print};

pub(crate) fn run(args: ReconstructArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let outputs = output_paths(&args)?;
    let files = FirstStageFiles::open(&args.model.model, args.model.yaml.as_deref())?;
    let first_stage = files.load(&device)?;
    for (path, out) in args.images.iter().zip(&outputs) {
        let images = load_image(path, files.config.factor(), &device)?;
        atomic::create_dir(&args.out)?;
        for (original, reconstruction) in pairs(&first_stage, images) {
            let quality = psnr(&original, &reconstruction);
            let mut sheet = Sheet::new(format!("original | reconstruction, {quality:.2} dB"), 1);
            sheet.push([original, reconstruction], path.display().to_string());
            save_png(out, &sheet.render(), &[])?;
            print(format_args!("{}  PSNR {quality:.2} dB", out.display()))?;
        }
    }
    Ok(())
}

/// A picture in the output folder for each image, under its name. None may be written over an image or another picture.
fn output_paths(args: &ReconstructArgs) -> Result<Vec<PathBuf>, Error> {
    let images: HashSet<PathBuf> = args
        .images
        .iter()
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    let mut taken = HashSet::new();
    let mut outputs = Vec::with_capacity(args.images.len());
    for path in &args.images {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let out = args.out.join(format!("{name}.png"));
        let is_input = out.canonicalize().is_ok_and(|out| images.contains(&out));
        if is_input || !taken.insert(out.clone()) {
            return Err(Error::Request(format!(
                "the reconstruction of {} would overwrite {}: choose another --out, or reconstruct one at a time",
                path.display(),
                out.display()
            )));
        }
        outputs.push(out);
    }
    Ok(outputs)
}
