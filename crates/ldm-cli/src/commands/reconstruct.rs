use ldm_pipeline::{
    Error, atomic,
    model::load_vae,
    reconstruct::{load_image, pairs},
    sheet::{Sheet, psnr, save_png},
};

use crate::args::ReconstructArgs;

pub(crate) fn run(args: ReconstructArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let (vae, config) = load_vae(&args.model, &device)?;
    atomic::create_dir(&args.out)?;
    for path in &args.images {
        let images = load_image(path, config.factor(), &device)?;
        for (original, reconstruction) in pairs(&vae, images) {
            let quality = psnr(&original, &reconstruction);
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let out = args.out.join(format!("{name}.png"));
            let mut sheet = Sheet::new(format!("original | reconstruction, {quality:.2} dB"), 1);
            sheet.push([original, reconstruction], path.display().to_string());
            save_png(&out, &sheet.render(), &[])?;
            println!("{}  PSNR {quality:.2} dB", out.display());
        }
    }
    Ok(())
}
