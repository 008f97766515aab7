use ldm_pipeline::{
    Error,
    quickstart::{Options, quickstart},
};

use crate::{args::QuickstartArgs, output::print, progress::Progress};

pub(crate) fn run(args: QuickstartArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let options = Options {
        out: args.out.clone(),
        seed: args.seed,
        vgg: args.vgg.map(|path| path.display().to_string()),
        resume: args.resume,
        steps: args.steps,
        hardware: args.device.device.hardware(),
    };
    let mut progress = Progress::new();
    let report = quickstart(&options, &device, &mut |event| progress.on_event(event))?;
    progress.finish();
    let Some(report) = report else {
        let out = args.out.display();
        print(format_args!(
            "stopped; go on with: ldm quickstart --resume --out {out}"
        ))?;
        return Ok(());
    };
    print("")?;
    print(format_args!(
        "{} of {} samples resemble the training picture of their prompt more than any other of {}",
        report.matched, report.prompts, report.pictures
    ))?;
    print(format_args!(
        "reconstructions of held-out pictures: PSNR {:.2} dB",
        report.psnr
    ))?;
    print("")?;
    print(format_args!(
        "samples          {}",
        report.samples.display()
    ))?;
    print(format_args!(
        "reconstructions  {}",
        report.reconstructions.display()
    ))?;
    print(format_args!("loss curves      {}", report.curves.display()))?;
    print(format_args!("model            {}", report.model.display()))?;
    print("")?;
    print("try next:")?;
    print(format_args!(
        "  cargo run --release -- sample \"{}\" --model {}",
        report.example,
        report.model.display()
    ))?;
    Ok(())
}
