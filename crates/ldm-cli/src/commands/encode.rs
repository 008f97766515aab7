use ldm_pipeline::{
    Error,
    encode::{encode_files, save_encoded},
    model::FirstStageFiles,
};

use crate::{args::EncodeArgs, output::print};

pub(crate) fn run(args: EncodeArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let files = FirstStageFiles::open(&args.model.model, args.model.yaml.as_deref())?;
    let first_stage = files.load(&device)?;
    let encoded = encode_files(&args.images, &first_stage, &files.config, &device)?;
    save_encoded(&args.out, &encoded)?;
    let [n, c, h, w] = encoded.latents.dims();
    print(format_args!("{}  [{n}, {c}, {h}, {w}]", args.out.display()))
}
