use std::{path::Path, sync::OnceLock, time::Duration};

use burn::tensor::Device;
use ldm_pipeline::{
    Error,
    config::RunConfig,
    parallel::{Workers, on_devices},
    run::RunDir,
    train::{Outcome, Stage, check_diffusion, train_diffusion, train_vae},
};

use crate::{
    args::TrainArgs,
    output::{note, print},
    progress::{Interrupt, Progress},
    report,
};

/// How long the other processes let the first report a failure.
const FIRST_SPEAKS: Duration = Duration::from_secs(1);

pub(crate) const VAE: &[Stage] = &[Stage::Vae];
pub(crate) const DIFFUSION: &[Stage] = &[Stage::Diffusion];
pub(crate) const ALL: &[Stage] = &[Stage::Vae, Stage::Diffusion];

/// Trains on one device or several, or together with the processes that a launcher of MPI may have started beside this one.
pub(crate) fn run(args: TrainArgs, stages: &'static [Stage]) -> Result<(), Error> {
    let workers = Workers::from_environment()?;
    let mut devices = args.devices.open();
    let several = devices.len() > 1;
    let result = match (several, workers.size()) {
        (true, 1) => return train_on(devices, args, stages),
        (true, _) => Err(Error::Processes {
            problem: format!(
                "--device {} names several devices, but MPI has started several processes",
                args.devices
            ),
            help: "let each process have one device, or start one process without mpirun",
        }),
        (false, _) => {
            let progress = || match workers.rank() {
                0 => Progress::new(),
                rank => Progress::beside(format!("process {rank}"), Interrupt::listen()),
            };
            train(&args, stages, &workers, &devices.remove(0), progress)
        }
    };
    match &result {
        Ok(()) => workers.finish(),
        Err(error) => give_up(error, &workers),
    }
    result
}

/// Trains on each of several devices at once.
fn train_on(devices: Vec<Device>, args: TrainArgs, stages: &'static [Stage]) -> Result<(), Error> {
    let interrupt = OnceLock::new();
    on_devices(devices, move |workers, device| {
        let progress = || {
            let interrupt = interrupt.get_or_init(Interrupt::listen).clone();
            match workers.rank() {
                0 => Progress::hearing(interrupt),
                rank => Progress::beside(format!("device {rank}"), interrupt),
            }
        };
        train(&args, stages, &workers, device, progress)
    })
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

fn train(
    args: &TrainArgs,
    stages: &[Stage],
    workers: &Workers,
    device: &Device,
    progress: impl FnOnce() -> Progress,
) -> Result<(), Error> {
    let config = configure(args, stages)?;
    if stages.contains(&Stage::Diffusion) {
        check_diffusion(&config)?;
    }
    let run = RunDir::open_shared(&args.out, &config, stages, args.resume, workers)?
        .with_hardware(args.devices.hardware());
    // Before this, Ctrl-C needn't wait for anything.
    let mut progress = progress();
    for &stage in stages {
        if workers.is_first() {
            progress.say(&describe(&config, stage, args, workers));
        }
        let train = match stage {
            Stage::Vae => train_vae,
            Stage::Diffusion => train_diffusion,
        };
        let outcome = train(&config, &run, device, &mut |event| progress.on_event(event))?;
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
        true => print_next(&args.out, &config, stages),
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
fn describe(config: &RunConfig, stage: Stage, args: &TrainArgs, workers: &Workers) -> String {
    let training = match (stage, &config.stage2) {
        (Stage::Diffusion, Some(stage2)) => &stage2.training,
        _ => &config.stage1.training,
    };
    let together = match (args.devices.len(), workers.size()) {
        (1, 1) => String::new(),
        (1, size) => format!("{size} processes x "),
        (devices, _) => format!("{devices} devices x "),
    };
    format!(
        "{stage}: {} steps of {together}{} x {} images, learning rate {:e} (absolute), {} warm-up steps",
        training.steps,
        training.accumulation,
        training.batch_size,
        training.lr.rate,
        training.lr.warmup_steps
    )
}

fn print_next(out: &Path, config: &RunConfig, stages: &[Stage]) -> Result<(), Error> {
    let out = out.display();
    if !stages.contains(&Stage::Diffusion) {
        return print(format_args!(
            "try next: ldm train diffusion CONFIG --out {out}"
        ));
    }
    let condition = match &config.stage2 {
        Some(stage2) if stage2.text.is_some() => " \"a prompt\"",
        Some(stage2) if stage2.class.is_some() => " --class 0",
        Some(stage2) if stage2.semantic.is_some() => " --semantic MASK.png",
        _ => "",
    };
    print(format_args!(
        "try next: ldm sample{condition} --model {out}"
    ))
}
