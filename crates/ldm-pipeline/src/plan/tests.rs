//! Plans of a machine that does exactly what the arithmetic assumes.

use super::{probe::Probe, *};

const MIB: u64 = 1 << 20;

/// A machine on which memory and time are linear in the micro-batch.
struct Machine {
    /// Bytes without images, and of each.
    memory: [u64; 2],
    /// Bytes of the sheet of samples.
    sheet: u64,
    /// Seconds of a micro-batch without images, and of each image.
    step: [f64; 2],
    /// Seconds of a step of the sampler, and of the rest of a sheet.
    sampler: [f64; 2],
    /// Share of a step's time that the adversarial part takes.
    adversarial: f64,
    /// What it has.
    limit: u64,
    /// How long a probe may run.
    seconds: f64,
    /// What was made on it.
    made: Vec<Probe>,
}

impl Machine {
    fn new() -> Self {
        Self {
            memory: [600 * MIB, 30 * MIB],
            sheet: 700 * MIB,
            step: [0.5, 1.0],
            sampler: [0.2, 3.0],
            adversarial: 0.5,
            limit: u64::MAX,
            seconds: 1e9,
            made: Vec::new(),
        }
    }

    fn peak(&self, size: usize) -> u64 {
        self.memory[0] + self.memory[1] * size as u64
    }

    fn micro_step(&self, probe: &Probe) -> f64 {
        let [base, image] = self.step;
        let plain = probe.stage == Stage::Vae && !probe.adversarial;
        let factor = if plain { 1.0 - self.adversarial } else { 1.0 };
        factor * (base + image * probe.batch_size as f64)
    }

    fn run(&mut self, probe: &Probe) -> ProbeRun {
        self.made.push(probe.clone());
        let step = self.micro_step(probe) * probe.accumulation as f64;
        let mut clock = 5.0;
        let mut readings = Vec::new();
        let mut peak = self.peak(probe.batch_size);
        let mut end = ProbeEnd::Complete;
        for number in 1..=probe.steps {
            clock += step;
            if !probe.steps_only && number + 1 >= probe.steps {
                clock += self.sampler[0] * probe.preview_steps as f64 + self.sampler[1];
                peak = peak.max(self.sheet);
            }
            if peak > self.limit {
                end = ProbeEnd::MemoryUp;
                break;
            }
            if clock > self.seconds {
                end = ProbeEnd::TimeUp;
                break;
            }
            readings.push(Reading {
                seconds: clock,
                peak: Some(peak),
                happening: Happening::Step {
                    step: number,
                    seconds: step,
                },
            });
        }
        if !probe.steps_only && end == ProbeEnd::Complete {
            readings.push(Reading {
                seconds: clock,
                peak: Some(peak),
                happening: Happening::Finished {
                    sizes: Sizes {
                        checkpoint: 10 * MIB,
                        ..Sizes::default()
                    },
                },
            });
        }
        ProbeRun { readings, end }
    }
}

fn config(changes: &[&str]) -> RunConfig {
    let text = include_str!("../../../../configs/quickstart.toml");
    let mut all = vec![
        "stage1.loss.perceptual_weight=0".to_owned(),
        "data.cache_mib=0".into(),
    ];
    all.extend(changes.iter().map(|&change| change.to_owned()));
    RunConfig::parse(text, "preset", &all).unwrap()
}

fn options() -> Options {
    Options {
        memory: None,
        available: None,
        probe_steps: LEAST_STEPS,
        probe_seconds: 1e9,
        images: 100,
        on_host: true,
    }
}

fn plan(
    config: &RunConfig,
    stage: Stage,
    options: &Options,
    machine: &mut Machine,
) -> Result<StagePlan, Error> {
    let mut run = |_: &RunConfig, probe: &Probe| Ok(Some(machine.run(probe)));
    let plan = make_plan(config, &[stage], options, &mut run, &mut |_| {})?;
    Ok(plan.expect("the machine doesn't stop").stages.remove(0))
}

fn near(value: f64, expected: f64) {
    assert!(
        (value / expected - 1.0).abs() < 1e-3,
        "{value} is not {expected}"
    );
}

#[test]
fn the_configured_micro_batch_is_run_where_it_can_be() {
    let mut machine = Machine::new();
    let config = config(&["data.crop=random"]);
    let plan = plan(&config, Stage::Diffusion, &options(), &mut machine).unwrap();
    near(plan.step_seconds, 32.5);
    near(plan.images_per_second, 32.0 / 32.5);
    assert_eq!(plan.peak_memory, Some(machine.peak(32)));
    assert_eq!(plan.disk.checkpoints, 3 * 10 * MIB);
    // Three sheets of 50 steps of the sampler.
    near(plan.time.previews, 3.0 * (50.0 * 0.2 + 3.0));
    near(plan.time.steps, 2100.0 * 32.5);
    assert_eq!((plan.fits, plan.proposal), (None, None));
    let sizes: Vec<usize> = machine.made.iter().map(|probe| probe.batch_size).collect();
    assert_eq!(sizes, [1, 32]);
}

#[test]
fn no_probe_is_made_that_would_take_too_much_memory() {
    let config = config(&["data.crop=random", "stage2.training.batch_size=24"]);
    for limit in [850, 950, 1100, 1200, 1500] {
        let mut machine = Machine::new();
        let options = Options {
            memory: Some(limit * MIB),
            available: Some(5000 * MIB),
            ..options()
        };
        let plan = plan(&config, Stage::Diffusion, &options, &mut machine).unwrap();
        for probe in &machine.made {
            // One and two images show what an image takes.
            let fits = machine.peak(probe.batch_size) <= limit * MIB;
            assert!(fits || probe.batch_size <= 2, "{limit}: {probe:?}");
        }
        let peak = plan.peak_memory.unwrap();
        near(peak as f64, machine.peak(24) as f64);
        near(plan.step_seconds, 24.5);
        assert_eq!(plan.fits, Some(machine.peak(24) <= limit * MIB), "{limit}");

        let proposal = plan.proposal.unwrap();
        assert_eq!(proposal.batch_size * proposal.accumulation, 24);
        let taken = |size| {
            let accumulated = if size < 24 {
                4 * plan.parameters as u64
            } else {
                0
            };
            machine.peak(size).max(machine.sheet) + accumulated
        };
        // The larger of a sheet's memory and of that of the steps lies below the line between two sizes.
        let ratio = proposal.peak_memory as f64 / taken(proposal.batch_size) as f64;
        assert!((0.999..1.1).contains(&ratio), "{limit}: {ratio}");
        assert!(
            100 * proposal.peak_memory <= 95 * limit * MIB,
            "with something to spare"
        );
        let mut larger = [1, 2, 3, 4, 6, 8, 12, 24].into_iter();
        let next = larger.find(|&size| size > proposal.batch_size);
        assert!(
            next.is_none_or(|size| 110 * taken(size) > 95 * limit * MIB),
            "{limit}"
        );
        let batch = proposal.batch_size;
        assert!(
            proposal
                .options
                .contains(&format!("stage2.training.batch_size={batch} "))
        );
    }
}

#[test]
fn the_file_of_latents_takes_what_room_there_is() {
    let options = |memory| Options {
        memory,
        images: 1_000_000,
        ..options()
    };
    let stage2 = |options: &Options, change: &str| {
        let config = config(&["data.validation=0.5", change]);
        plan(&config, Stage::Diffusion, options, &mut Machine::new()).unwrap()
    };
    let held = Machine::new().peak(32);
    // Mean and variance of six channels of 8x8.
    let file = 500_000 * 2 * 6 * 64 * 4;

    let plenty = stage2(&options(None), "data.flip=0");
    assert_eq!(plenty.peak_memory, Some(held + file));
    assert_eq!(plenty.disk.latents, file);
    let mirrored = stage2(&options(None), "data.flip=0.5");
    assert_eq!(mirrored.peak_memory, Some(held + 2 * file));

    let scarce = stage2(&options(Some(1700 * MIB)), "data.flip=0");
    assert_eq!(scarce.peak_memory, Some(1700 * MIB));
    assert_eq!(scarce.fits, Some(true));
    assert_eq!(scarce.memory.unwrap().latents, 1700 * MIB - held);
    let proposal = scarce.proposal.unwrap();
    assert_eq!(
        (proposal.batch_size, proposal.peak_memory),
        (32, 1700 * MIB)
    );

    let without = stage2(&options(None), "data.latent_cache=off");
    assert_eq!((without.peak_memory, without.disk.latents), (Some(held), 0));
}

#[test]
fn quick_steps_are_measured_more_often() {
    let config = config(&["data.crop=random"]);
    for (image, steps) in [(0.05, 30), (0.1, 18), (10.0, LEAST_STEPS)] {
        let mut machine = Machine::new();
        machine.step = [0.0, image];
        plan(&config, Stage::Diffusion, &options(), &mut machine).unwrap();
        assert_eq!(machine.made.last().unwrap().steps, steps, "{image}");
    }
}

#[test]
fn too_little_memory_for_one_image_is_said() {
    let config = config(&["data.crop=random"]);
    let options = Options {
        memory: Some(300 * MIB),
        available: Some(5000 * MIB),
        ..options()
    };
    let plan = plan(&config, Stage::Diffusion, &options, &mut Machine::new()).unwrap();
    assert_eq!((plan.fits, &plan.proposal), (Some(false), &None));
    let note = plan
        .notes
        .iter()
        .find(|note| note.contains("not even"))
        .unwrap();
    assert!(
        note.contains("too much") && note.contains("data.resolution"),
        "{note}"
    );

    let mut small = Machine::new();
    small.limit = 300 * MIB;
    let error = super::tests::plan(&config, Stage::Diffusion, &options, &mut small).unwrap_err();
    assert!(
        error.to_string().contains("more memory than there is"),
        "{error}"
    );
    let options = Options {
        available: Some(MIB),
        ..options
    };
    let error = super::tests::plan(&config, Stage::Diffusion, &options, &mut small).unwrap_err();
    assert!(error.to_string().contains("more than there is"), "{error}");
}

#[test]
fn the_adversarial_part_counts_by_its_share() {
    let mut machine = Machine::new();
    let config = config(&["stage1.training.steps=1000", "stage1.loss.disc_start=750"]);
    let plan = plan(&config, Stage::Vae, &options(), &mut machine).unwrap();
    let kinds = plan.adversarial.unwrap();
    near(kinds.after, 16.5);
    near(kinds.before, 16.5 / 2.0);
    assert_eq!(kinds.share, 0.25);
    near(plan.step_seconds, 0.25 * 16.5 + 0.75 * 16.5 / 2.0);
    assert_eq!(
        machine
            .made
            .iter()
            .filter(|probe| !probe.adversarial)
            .count(),
        1
    );

    for (start, adversarial) in [("0", true), ("1000", false)] {
        let mut machine = Machine::new();
        let start = format!("stage1.loss.disc_start={start}");
        let config = super::tests::config(&["stage1.training.steps=1000", &start]);
        let plan = super::tests::plan(&config, Stage::Vae, &options(), &mut machine).unwrap();
        assert!(
            machine
                .made
                .iter()
                .all(|probe| probe.adversarial == adversarial)
        );
        near(
            plan.step_seconds,
            if adversarial { 16.5 } else { 16.5 / 2.0 },
        );
    }
}

#[test]
fn accumulation_is_measured_in_part_where_time_is_short() {
    let config = config(&[
        "data.crop=random",
        "stage2.training.batch_size=4",
        "stage2.training.accumulation=100",
    ]);
    let options = Options {
        probe_seconds: 200.0,
        ..options()
    };
    let mut machine = Machine::new();
    let plan = plan(&config, Stage::Diffusion, &options, &mut machine).unwrap();
    near(plan.step_seconds, 450.0);
    assert!(machine.made.iter().all(|probe| probe.accumulation == 2));
    assert!(
        plan.notes.iter().any(|note| note.contains("2 of 100")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn a_limit_of_time_is_kept_and_said() {
    let config = config(&["data.crop=random"]);
    let options = Options {
        probe_seconds: 60.0,
        ..options()
    };
    let mut machine = Machine::new();
    machine.seconds = 60.0;
    let plan = super::tests::plan(&config, Stage::Diffusion, &options, &mut machine).unwrap();
    near(plan.step_seconds, 32.5);
    assert!(machine.made.iter().all(|probe| probe.batch_size < 32));
    assert!(
        plan.notes.iter().any(|note| note.contains("extrapolated")),
        "{:?}",
        plan.notes
    );

    machine.seconds = 1.0;
    let error = super::tests::plan(&config, Stage::Diffusion, &options, &mut machine).unwrap_err();
    assert!(error.to_string().contains("--probe-seconds"), "{error}");
}

#[test]
fn a_perceptual_network_must_be_there() {
    let config = config(&["stage1.loss.perceptual_weight=1"]);
    let error = plan(&config, Stage::Vae, &options(), &mut Machine::new()).unwrap_err();
    assert!(matches!(error, Error::PerceptualNetworkMissing), "{error}");
}
