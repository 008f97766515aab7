use std::path::Path;

use ldm_pipeline::{
    Error,
    config::RunConfig,
    run::RunDir,
    train::{Outcome, Stage, check_diffusion, train_diffusion, train_vae},
};

use crate::{args::TrainArgs, output::print, progress::Progress};

pub(crate) const VAE: &[Stage] = &[Stage::Vae];
pub(crate) const DIFFUSION: &[Stage] = &[Stage::Diffusion];
pub(crate) const ALL: &[Stage] = &[Stage::Vae, Stage::Diffusion];

pub(crate) fn run(args: TrainArgs, stages: &[Stage]) -> Result<(), Error> {
    let device = args.device.device.open();
    let config = configure(&args, stages)?;
    if stages.contains(&Stage::Diffusion) {
        check_diffusion(&config)?;
    }
    let run = RunDir::open(&args.out, &config, stages, args.resume)?
        .with_hardware(args.device.device.hardware());
    let mut progress = Progress::new();
    for &stage in stages {
        progress.say(&describe(&config, stage));
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        let outcome = train(&config, &run, &device, &mut |event| {
            progress.on_event(event)
        })?;
        progress.finish();
        if let Outcome::Stopped(step) = outcome {
            print(format_args!(
                "stopped after {step} steps of the {stage} stage; go on with the same command and --resume"
            ))?;
            return Ok(());
        }
    }
    print_next(&args.out, stages)
}

/// The configuration file with the options that change it.
fn configure(args: &TrainArgs, stages: &[Stage]) -> Result<RunConfig, Error> {
    let mut config = RunConfig::load(&args.config, &args.overrides)?;
    if let Some(steps) = args.steps {
        if stages.contains(&Stage::Vae) {
            config.stage1.training.steps = steps;
        }
        if let (Some(stage2), true) = (&mut config.stage2, stages.contains(&Stage::Diffusion)) {
            stage2.training.steps = steps;
        }
    }
    if let Some(data) = &args.data {
        config.data.path = Some(data.clone());
    }
    Ok(config)
}

/// What is about to happen, rates included: they are absolute.
fn describe(config: &RunConfig, stage: Stage) -> String {
    let training = match (stage, &config.stage2) {
        (Stage::Diffusion, Some(stage2)) => &stage2.training,
        _ => &config.stage1.training,
    };
    format!(
        "{stage}: {} steps of {} x {} images, learning rate {:e} (absolute), {} warm-up steps",
        training.steps,
        training.accumulation,
        training.batch_size,
        training.lr.rate,
        training.lr.warmup_steps
    )
}

fn print_next(out: &Path, stages: &[Stage]) -> Result<(), Error> {
    let out = out.display();
    match stages.contains(&Stage::Diffusion) {
        true => print(format_args!(
            "try next: ldm sample \"a prompt\" --model {out}"
        )),
        false => print(format_args!(
            "try next: ldm train diffusion CONFIG --out {out}"
        )),
    }
}
