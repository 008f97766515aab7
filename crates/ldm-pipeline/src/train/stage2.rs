//! Stage 2: the denoiser in the latent space of a frozen autoencoder (paper, section 3.2 and 3.3).

use std::{path::Path, sync::Arc};

use burn::{optim::GradientsParams, tensor::Device};
use image::RgbImage;
use ldm_diffusion::{DiffusionLoss, SchedulerConfig};

use super::{
    Culprit, Event, Observer, Outcome, Stage,
    components::logged as logged_norms,
    conditions::Conditions,
    diagnose::{Forward, Stage2Suspects},
    images::{report_buckets, report_damage},
    journal::journalled,
    latents::{Frozen, LatentBatch, LatentSource},
    logvar::LearntLogvar,
    noise::TrainingNoise,
    persist::persist,
    run_loop::{RunLoop, Trainee, Validation, Values, finite, restore_newest},
    state::{Trained, initialise},
    together::images_per_step,
    validation::HeldOut,
    waiting::DATA_WAIT,
};
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter, Checkpoints},
    config::{RunConfig, Stage2Config, TimestepSampling},
    data::ImageDataset,
    error::Error,
    generate::{Condition, Request, noise_batch},
    model::{
        Denoiser, FirstStage, FirstStageConfig, FirstStageFiles, LatentDiffusion, ModelConfigs,
        ModelFacts,
    },
    optim::Accumulator,
    parallel::Workers,
    rng::{Stream, below, rng, uniform},
    run::{self, RunDir},
    sheet::Sheet,
};

/// The part of a run whose weights are drawn here; stage 1 has the others.
const DENOISER_INIT: u64 = 3;

/// Trains the denoiser of `config` in `run`, on latents of the run's autoencoder or of `stage2.first_stage`, and writes the complete
/// model into the run's `model/`.
///
/// # Errors
/// If there is no autoencoder, the data can't be used, a file can't be written, or the training diverges.
pub fn train_diffusion(
    config: &RunConfig,
    run: &RunDir,
    device: &Device,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    journalled(run, Stage::Diffusion, observer, |observer| {
        train(config, run, device, observer)
    })
}

fn train(
    config: &RunConfig,
    run: &RunDir,
    device: &Device,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    let stage2 = run::stage2(config)?;
    let training = &stage2.training;
    training.precision.check(Stage::Diffusion, device)?;
    let first_stage = stage2.first_stage.clone().unwrap_or_else(|| run.model());
    if stage2.first_stage.is_none() && !first_stage.exists() {
        return Err(Error::FirstStageMissing(run.path().into()));
    }
    let files = FirstStageFiles::open(&first_stage, None)?;
    check_first_stage(&files.config, config, &first_stage)?;
    let frozen = files.load(device)?;

    let (training_set, held_out) = config.data.open(config.seed)?;
    report_damage(&training_set, observer);
    report_buckets(
        &training_set,
        images_per_step(training, run.workers()),
        observer,
    );
    let training_set = Arc::new(training_set);
    let conditions = Conditions::new(config, stage2, &training_set, &held_out)?;
    let preview = conditions.preview(stage2, &training_set)?;

    run.start(Stage::Diffusion, config)?;
    let workers = run.workers();
    let checkpoints = Checkpoints::open(&run.checkpoints(Stage::Diffusion), training.retention())?;
    let held_out = match workers.is_first() {
        true => HeldOut::new(config, stage2, &held_out, &training_set, &frozen, device),
        false => None,
    };
    let latents = LatentSource::open(
        config,
        stage2,
        training_set.clone(),
        &Frozen {
            first_stage: &frozen,
            key: files.key()?,
            device,
        },
        run,
        observer,
    )?;
    let Some(latents) = latents else {
        return Ok(Outcome::Stopped(checkpoints.latest_step()?));
    };
    let scheduler = stage2.noise.scheduler(&stage2.loss);
    let mut trainer = Stage2Trainer {
        config,
        workers,
        stage2,
        device: device.clone(),
        loss: stage2.loss.init(scheduler.noise_schedule()?)?,
        scheduler,
        preview,
        first_stage: frozen,
        first_stage_config: files.config,
        conditions,
        denoiser: workers.undisturbed(|| initial(config, stage2, device)),
        logvar: initial_logvar(stage2, device),
        latents,
        held_out,
        training_set,
    };
    let start = restore_newest(&checkpoints, &mut trainer, true, workers, observer)?;
    start.announce(Stage::Diffusion, training, run, observer);
    trainer.seek(start.step)?;
    let course = RunLoop::open(
        Stage::Diffusion,
        config,
        training,
        run,
        &checkpoints,
        &start,
    )?;
    let outcome = course.run(&mut trainer, observer)?;
    if outcome == Outcome::Finished {
        workers.first_does(|| {
            let path = run.model();
            let model = trainer.model();
            persist("model", training, true, observer, || {
                model.save(&path, false)
            })?;
            let _ = observer(Event::Saved(&path));
            Ok(true)
        })?;
    }
    Ok(outcome)
}

/// The denoiser before its first step.
fn initial(config: &RunConfig, stage2: &Stage2Config, device: &Device) -> Trained<Denoiser> {
    let autodiff = device.clone().autodiff();
    let activations = stage2.training.activations();
    let denoiser = initialise(config.seed, DENOISER_INIT, device, || Denoiser {
        unet: stage2.unet.init(&autodiff).with_activations(activations),
        conditioner: (stage2.conditioner())
            .map(|config| config.init(&autodiff).with_activations(activations)),
    });
    Trained::new(denoiser, &stage2.training, stage2.training.ema())
}

/// The log-variances of the timesteps before their first step, where they are trained.
fn initial_logvar(stage2: &Stage2Config, device: &Device) -> Option<LearntLogvar> {
    let loss = &stage2.loss;
    loss.learn_logvar.then(|| {
        let autodiff = device.clone().autodiff();
        LearntLogvar::new(
            stage2.noise.steps,
            loss.logvar_init,
            &stage2.training,
            &autodiff,
        )
    })
}

/// Finds out whether the data have what a stage 2 of `config` needs, which after stage 1 would be late.
///
/// # Errors
/// If the configuration has no stage 2, or the data can't be used.
pub fn check_diffusion(config: &RunConfig) -> Result<(), Error> {
    let stage2 = run::stage2(config)?;
    let (training_set, held_out) = config.data.open(config.seed)?;
    Conditions::check(config, stage2, &training_set, &held_out)
}

struct Stage2Trainer<'a> {
    config: &'a RunConfig,
    workers: &'a Workers,
    stage2: &'a Stage2Config,
    device: Device,
    loss: DiffusionLoss,
    scheduler: SchedulerConfig,
    /// What sample sheets show, and its captions.
    preview: Vec<(Condition, String)>,
    first_stage: FirstStage,
    first_stage_config: FirstStageConfig,
    conditions: Conditions,
    denoiser: Trained<Denoiser>,
    /// The log-variances of the timesteps, `[T]`, where they are trained.
    logvar: Option<LearntLogvar>,
    latents: LatentSource,
    training_set: Arc<ImageDataset>,
    /// Of the first process; `None` if nothing is held out.
    held_out: Option<HeldOut>,
}

impl Trainee for Stage2Trainer<'_> {
    fn step(&mut self, step: u64, rate: f64, observer: &mut Observer) -> Result<Values, Error> {
        let mut batches = Vec::with_capacity(self.stage2.training.accumulation);
        let workers = self.workers;
        match workers.guarded(|| self.attempt(step, rate, &mut batches, observer)) {
            Err(Error::NotFinite {
                name, value, step, ..
            }) => Err(Error::NotFinite {
                name,
                value,
                step,
                culprit: self.culprit(step, &batches)?,
            }),
            result => result,
        }
    }

    fn save(&self, writer: &mut CheckpointWriter) -> Result<(), Error> {
        self.denoiser.save("denoiser", writer)?;
        match &self.logvar {
            Some(logvar) => logvar.save(writer),
            None => Ok(()),
        }
    }

    fn restore(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), Error> {
        match checkpoint {
            Some(checkpoint) => {
                let training = &self.stage2.training;
                (self.denoiser).restore("denoiser", checkpoint, training)?;
                match &mut self.logvar {
                    Some(logvar) => logvar.restore(checkpoint, training),
                    None => Ok(()),
                }
            }
            None => {
                self.denoiser = initial(self.config, self.stage2, &self.device);
                self.logvar = initial_logvar(self.stage2, &self.device);
                Ok(())
            }
        }
    }

    fn damage(&self) -> Option<String> {
        let of_logvar = || self.logvar.as_ref()?.damage();
        self.denoiser.damage("denoiser").or_else(of_logvar)
    }

    fn seek(&mut self, step: u64) -> Result<(), Error> {
        let number = step * self.stage2.training.accumulation as u64;
        Ok(self.latents.seek(number)?)
    }

    fn validate(&self) -> Result<Validation, Error> {
        let Some(held_out) = &self.held_out else {
            return Ok(Validation::default());
        };
        held_out.validate(
            &self.denoiser.result(),
            &self.loss,
            self.first_stage_config.scaling_factor(),
            self.config.seed,
            &self.device,
        )
    }

    fn preview(&self, step: u64) -> Result<RgbImage, Error> {
        let preview = &self.stage2.preview;
        let request = Request {
            conditions: (self.preview.iter())
                .map(|(condition, _)| condition.clone())
                .collect(),
            seed: self.config.seed,
            sampler: preview.sampler,
            steps: preview.steps,
            eta: preview.eta,
            guidance: preview.guidance,
            size: Some([self.config.data.resolution; 2]),
            ..Request::default()
        };
        let images = self
            .model()
            .generate(&request, |_| std::ops::ControlFlow::Continue(()))?;
        let mut sheet = Sheet::new(format!("step {step}"), 4);
        for (image, (_, caption)) in images.into_iter().zip(&self.preview) {
            sheet.push([image], caption);
        }
        Ok(sheet.render())
    }
}

impl Stage2Trainer<'_> {
    /// A step that changes weights once all of its numbers are known to be finite; its micro-batches are left in `batches`.
    fn attempt(
        &mut self,
        step: u64,
        rate: f64,
        batches: &mut Vec<LatentBatch>,
        observer: &mut Observer,
    ) -> Result<Values, Error> {
        let training = &self.stage2.training;
        let waited = self.latents.waited();
        if let Some(logvar) = &mut self.logvar {
            logvar.forget();
        }
        let mut gradients = Accumulator::default();
        let mut mean_loss = 0.0;
        let master = self.denoiser.module();
        let copy = training.precision.working_copy(master);
        let denoiser = copy.as_ref().unwrap_or(master);
        for micro in 0..training.accumulation {
            batches.push(self.latents.next(&self.device, observer)?);
            let loss = self.forward(denoiser, &batches[micro], step, micro)?.loss;

            let value: f64 = loss.clone().into_scalar::<f32>().into();
            let value = self.workers.agree(finite("loss", value, step))?;
            mean_loss += value / training.accumulation as f64;
            let mut of_loss = loss.backward();
            if let Some(logvar) = &mut self.logvar {
                logvar.take_from(&mut of_loss);
            }
            let found = GradientsParams::from_grads(of_loss, denoiser);
            gradients.add(master, training.precision.to_master(master, found));
        }
        drop(copy);
        let mut gradients = gradients.take_joint(master, self.workers);
        let max_norm = training.max_grad_norm;
        let norms = (self.denoiser).measure(&mut gradients, max_norm, step)?;
        let of_logvar = (self.logvar.as_mut())
            .map(|logvar| logvar.measured(self.workers, max_norm, step))
            .transpose()?;
        let update = self.denoiser.update(gradients, rate);
        finite("update", update.total, step)?;
        let mut values = vec![("loss", mean_loss)];
        values.extend(logged_norms("grad_norm", &norms));
        values.extend(logged_norms("update_norm", &update));
        if let Some((logvar, gradients)) = self.logvar.as_mut().zip(of_logvar) {
            values.push(("logvar", logvar.update(gradients, rate)));
        }
        let waited = (self.latents.waited() - waited).as_secs_f64();
        values.extend([("lr", rate), (DATA_WAIT, waited)]);
        Ok(values)
    }

    /// The loss of `denoiser` on this process's micro-batch `micro` of a step, a pure function of its arguments.
    fn forward(
        &self,
        denoiser: &Denoiser,
        batch: &LatentBatch,
        step: u64,
        micro: usize,
    ) -> Result<Forward, Error> {
        let micro = self.workers.micro_batch(micro);
        let shape = batch.posterior.mean.dims();
        let first = (micro * self.stage2.training.batch_size) as u64;
        let draw =
            |stream, shape| noise_batch(self.config.seed, stream, step, first, shape, &self.device);
        let x0 = (batch.posterior.sample(draw(Stream::PosteriorNoise, shape)))
            .mul_scalar(self.first_stage_config.scaling_factor());
        let noise = TrainingNoise::new(&self.stage2.noise, shape, draw);
        let timesteps = self.timesteps(step, micro, shape[0]);
        let noisy = (self.loss.schedule()).add_noise(x0.clone(), noise.mixed.clone(), &timesteps);

        let conditioner = denoiser.conditioner.as_ref();
        let drawn = Some((step, first));
        let condition = (self.conditions).of_batch(conditioner, batch, drawn, &self.device)?;
        let output = condition.predict(&denoiser.unet, noisy, &timesteps);
        let target = noise.target;
        let loss = match &self.logvar {
            Some(logvar) => {
                let logvar = logvar.value();
                (self.loss).forward_with_logvar(output, x0, target, &timesteps, logvar)
            }
            None => self.loss.forward(output, x0, target, &timesteps),
        }
        .loss;
        Ok(Forward {
            noise: noise.mixed,
            loss,
        })
    }

    /// What made step `step` fail, whose micro-batches were `batches`.
    fn culprit(&self, step: u64, batches: &[LatentBatch]) -> Result<Culprit, Error> {
        let master = self.denoiser.module();
        let copy = self.stage2.training.precision.working_copy(master);
        let denoiser = copy.as_ref().unwrap_or(master);
        let suspects = Stage2Suspects { denoiser, batches };
        suspects.culprit(
            |image| self.training_set.entries()[image].name.clone(),
            |batch, micro| self.forward(denoiser, batch, step, micro),
        )
    }

    /// The model as it stands.
    fn model(&self) -> LatentDiffusion {
        let training = &self.stage2.training;
        LatentDiffusion {
            first_stage: self.first_stage.clone(),
            denoiser: self.denoiser.result(),
            tokenizer: self.conditions.tokenizer().cloned(),
            configs: ModelConfigs {
                first_stage: self.first_stage_config.clone(),
                unet: self.stage2.unet.clone(),
                conditioner: self.stage2.conditioner(),
                scheduler: self.scheduler.clone(),
                facts: ModelFacts {
                    ldm_version: env!("CARGO_PKG_VERSION").into(),
                    resolution: Some(self.config.data.resolution),
                    training_steps: [self.config.stage1.training.steps, training.steps],
                    ema_decay: training.ema_decay,
                    seed: self.config.seed,
                    classes: self.conditions.class_names().to_vec(),
                    palette: self.conditions.palette().to_vec(),
                    label_mapping: self.conditions.label_mapping(),
                    ..ModelFacts::default()
                },
            },
        }
    }

    /// Timesteps of the `count` items of micro-batch `micro` of the step.
    fn timesteps(&self, step: u64, micro: usize, count: usize) -> Vec<usize> {
        let total = self.stage2.noise.steps;
        let first = micro * self.stage2.training.batch_size;
        let draw = |item: usize| {
            rng(
                self.config.seed,
                Stream::Timestep,
                step,
                (first + item) as u64,
            )
        };
        match self.stage2.noise.timesteps {
            TimestepSampling::Uniform => (0..count)
                .map(|item| below(&mut draw(item), total))
                .collect(),
            TimestepSampling::Stratified => (0..count)
                .map(|item| {
                    let position = (item as f64 + uniform(&mut draw(item))) / count as f64;
                    ((position * total as f64) as usize).min(total - 1)
                })
                .collect(),
        }
    }
}

/// An autoencoder fits if its latents are what the configuration says.
fn check_first_stage(
    found: &FirstStageConfig,
    config: &RunConfig,
    path: &Path,
) -> Result<(), Error> {
    let expected = config.stage1.autoencoder();
    let expected = [expected.latent_channels(), expected.factor()];
    let found = [found.latent_channels(), found.factor()];
    if found != expected {
        return Err(Error::NoModel {
            path: path.into(),
            problem: format!(
                "its autoencoder has {} latent channels at a factor of {}, but the configuration's has {} at {}",
                found[0], found[1], expected[0], expected[1]
            ),
        });
    }
    Ok(())
}
