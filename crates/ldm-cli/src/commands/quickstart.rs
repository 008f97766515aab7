use ldm_pipeline::{
    Error,
    quickstart::{Options, quickstart},
};

use crate::{args::QuickstartArgs, progress::Progress};

pub(crate) fn run(args: QuickstartArgs) -> Result<(), Error> {
    let device = args.device.device.open();
    let options = Options {
        out: args.out.clone(),
        seed: args.seed,
        vgg: args.vgg.map(|path| path.display().to_string()),
        resume: args.resume,
        steps: args.steps,
    };
    let mut progress = Progress::new();
    let report = quickstart(&options, &device, &mut |event| progress.on_event(event))?;
    progress.finish();
    let Some(report) = report else {
        let out = args.out.display();
        println!("stopped; go on with: ldm quickstart --resume --out {out}");
        return Ok(());
    };
    println!();
    println!(
        "{} of {} samples resemble the training picture of their prompt more than any other of {}",
        report.matched, report.prompts, report.pictures
    );
    println!("reconstructions of held-out pictures: PSNR {:.2} dB", report.psnr);
    println!();
    println!("samples          {}", report.samples.display());
    println!("reconstructions  {}", report.reconstructions.display());
    println!("loss curves      {}", report.curves.display());
    println!("model            {}", report.model.display());
    println!();
    println!("try next:");
    println!(
        "  cargo run --release -- sample \"{}\" --model {}",
        report.example,
        report.model.display()
    );
    Ok(())
}
