use ldm_pipeline::{
    Error, atomic,
    encode::{load_tensor, save_tensors},
    model::FirstStageFiles,
    sheet::{images_from_tensor, save_png},
};

use crate::{args::DecodeArgs, output::print};

pub(crate) fn run(args: DecodeArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let files = FirstStageFiles::open(&args.model.model, args.model.yaml.as_deref())?;
    let config = &files.config;
    let latents = load_tensor(&args.latents, "latents", &device)?;
    if latents.dims()[1] != config.latent_channels() {
        return Err(Error::Request(format!(
            "the latents in {} have {} channels, but the autoencoder's {}",
            args.latents.display(),
            latents.dims()[1],
            config.latent_channels()
        )));
    }
    let first_stage = files.load(&device)?;
    let tile = args.tile.map(|tile| tile as usize);
    let images = first_stage.decode_scaled(latents, config, tile);
    atomic::create_dir(&args.out)?;
    save_tensors(&args.out.join("images.safetensors"), &[("images", &images)])?;
    for (index, image) in images_from_tensor(images).iter().enumerate() {
        let path = args.out.join(format!("{index:04}.png"));
        save_png(&path, image, &[])?;
        print(format_args!("{}", path.display()))?;
    }
    Ok(())
}
