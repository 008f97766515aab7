use std::{path::Path, time::Duration};

use ldm_pipeline::{
    Error,
    config::RunConfig,
    parallel::Workers,
    run::RunDir,
    train::{Outcome, Stage, check_diffusion, train_diffusion, train_vae},
};

use crate::{
    args::TrainArgs,
    output::{note, print},
    progress::Progress,
    report,
};

/// How long the other processes let the first report a failure.
const FIRST_SPEAKS: Duration = Duration::from_secs(1);

pub(crate) const VAE: &[Stage] = &[Stage::Vae];
pub(crate) const DIFFUSION: &[Stage] = &[Stage::Diffusion];
pub(crate) const ALL: &[Stage] = &[Stage::Vae, Stage::Diffusion];

/// Trains, together with the processes that a launcher of MPI may have started beside this one.
pub(crate) fn run(args: TrainArgs, stages: &[Stage]) -> Result<(), Error> {
    let workers = Workers::from_environment()?;
    let result = train(args, stages, &workers);
    match &result {
        Ok(()) => workers.finish(),
        Err(error) => give_up(error, &workers),
    }
    result
}

/// Ends all processes, if there are several: the others wait for this one and can't know that it failed. Otherwise returns.
fn give_up(error: &Error, workers: &Workers) {
    if workers.size() == 1 {
        return;
    }
    if !workers.is_first() {
        // What fails in all of them, such as a wrong configuration, is for the first to say.
        std::thread::sleep(FIRST_SPEAKS);
    }
    note(format_args!("process {} has failed:", workers.rank()));
    report(error);
    workers.abort();
}

fn train(args: TrainArgs, stages: &[Stage], workers: &Workers) -> Result<(), Error> {
    let device = args.device.device.open();
    let config = configure(&args, stages)?;
    if stages.contains(&Stage::Diffusion) {
        check_diffusion(&config)?;
    }
    let run = RunDir::open_shared(&args.out, &config, stages, args.resume, workers)?
        .with_hardware(args.device.device.hardware());
    let mut progress = match workers.is_first() {
        true => Progress::new(),
        false => Progress::of_process(workers.rank()),
    };
    for &stage in stages {
        if workers.is_first() {
            progress.say(&describe(&config, stage, workers));
        }
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        let outcome = train(&config, &run, &device, &mut |event| {
            progress.on_event(event)
        })?;
        progress.finish();
        if !workers.is_first() {
            if outcome != Outcome::Finished {
                return Ok(());
            }
            continue;
        }
        if let Outcome::Stopped(step) = outcome {
            print(format_args!(
                "stopped after {step} steps of the {stage} stage; go on with the same command and --resume"
            ))?;
            return Ok(());
        }
    }
    match workers.is_first() {
        true => print_next(&args.out, stages),
        false => Ok(()),
    }
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
fn describe(config: &RunConfig, stage: Stage, workers: &Workers) -> String {
    let training = match (stage, &config.stage2) {
        (Stage::Diffusion, Some(stage2)) => &stage2.training,
        _ => &config.stage1.training,
    };
    let processes = match workers.size() {
        1 => String::new(),
        size => format!("{size} processes x "),
    };
    format!(
        "{stage}: {} steps of {processes}{} x {} images, learning rate {:e} (absolute), {} warm-up steps",
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
