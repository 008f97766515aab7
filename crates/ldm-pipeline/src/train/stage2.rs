//! Stage 2: the denoiser in the latent space of a frozen autoencoder (paper, section 3.2 and 3.3).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use image::RgbImage;
use ldm_diffusion::{DiffusionLoss, SchedulerConfig};

use super::{
    Event, Observer, Outcome, Stage,
    conditions::Conditions,
    latents::{Frozen, LatentSource},
    logvar::LearntLogvar,
    noise::TrainingNoise,
    run_loop::{Trainee, Values, finite, newest_checkpoint, run_steps, train_state},
    state::{Trained, initialise},
};
use crate::{
    checkpoint::Checkpoints,
    config::{RunConfig, Stage2Config, TimestepSampling},
    error::Error,
    generate::{Condition, Request, noise_batch},
    model::{
        Denoiser, FirstStage, FirstStageConfig, FirstStageFiles, LatentDiffusion, ModelConfigs,
        ModelFacts,
    },
    optim::Accumulator,
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
    let stage2 = run::stage2(config)?;
    let training = &stage2.training;
    let first_stage = stage2.first_stage.clone().unwrap_or_else(|| run.model());
    if stage2.first_stage.is_none() && !first_stage.exists() {
        return Err(Error::FirstStageMissing(run.path().into()));
    }
    let files = FirstStageFiles::open(&first_stage, None)?;
    check_first_stage(&files.config, config, &first_stage)?;
    let frozen = files.load(device)?;

    let (training_set, held_out) = config.data.open(config.seed)?;
    let training_set = Arc::new(training_set);
    let conditions = Conditions::new(config, stage2, &training_set, &held_out)?;
    let preview = conditions.preview(stage2, &training_set)?;

    run.start(Stage::Diffusion, config)?;
    let checkpoints = Checkpoints::open(
        &run.checkpoints(Stage::Diffusion),
        training.keep_checkpoints,
    )?;
    let newest = newest_checkpoint(&checkpoints, Stage::Diffusion, observer)?;
    let start = newest
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.state().step);
    let autodiff = device.clone().autodiff();
    let denoiser = initialise(config.seed, DENOISER_INIT, device, || Denoiser {
        unet: stage2.unet.init(&autodiff),
        conditioner: stage2.conditioner().map(|config| config.init(&autodiff)),
    });
    let mut denoiser = Trained::new(denoiser, training, training.ema());
    let mut logvar = (stage2.loss.learn_logvar).then(|| {
        let init = stage2.loss.logvar_init;
        LearntLogvar::new(stage2.noise.steps, init, training, &autodiff)
    });
    if let Some(checkpoint) = newest {
        denoiser = denoiser.restore("denoiser", &checkpoint, training)?;
        logvar = logvar
            .map(|logvar| logvar.restore(&checkpoint, training))
            .transpose()?;
    }

    let latents = LatentSource::open(
        config,
        stage2,
        training_set,
        &Frozen {
            first_stage: &frozen,
            key: files.key()?,
            device,
        },
        start * training.accumulation as u64,
        &run.stage(Stage::Diffusion).join("latents.safetensors"),
        observer,
    )?;
    let Some(latents) = latents else {
        return Ok(Outcome::Stopped(start));
    };
    let scheduler = stage2.noise.scheduler(&stage2.loss);
    let mut trainer = Stage2Trainer {
        config,
        stage2,
        checkpoints,
        device: device.clone(),
        loss: stage2.loss.init(scheduler.noise_schedule()?)?,
        scheduler,
        preview,
        first_stage: frozen,
        first_stage_config: files.config,
        conditions,
        denoiser,
        logvar,
        latents,
    };
    let outcome = run_steps(
        Stage::Diffusion,
        training,
        run,
        start,
        &mut trainer,
        observer,
    )?;
    if outcome == Outcome::Finished {
        let path = run.model();
        trainer.model().save(&path, false)?;
        let _ = observer(Event::Saved(&path));
    }
    Ok(outcome)
}

/// Finds out whether the data have what a stage 2 of `config` needs, which after stage 1 would be late.
///
/// # Errors
/// If the configuration has no stage 2, or the data can't be used.
pub fn check_diffusion(config: &RunConfig) -> Result<(), Error> {
    let stage2 = run::stage2(config)?;
    let (training_set, held_out) = config.data.open(config.seed)?;
    Conditions::new(config, stage2, &training_set, &held_out).map(drop)
}

struct Stage2Trainer<'a> {
    config: &'a RunConfig,
    stage2: &'a Stage2Config,
    checkpoints: Checkpoints,
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
}

impl Trainee for Stage2Trainer<'_> {
    fn step(&mut self, step: u64, observer: &mut Observer) -> Result<Values, Error> {
        let training = &self.stage2.training;
        let rate = training.lr.at(step, training.steps);
        let mut gradients = Accumulator::default();
        let mut mean_loss = 0.0;
        for micro in 0..training.accumulation {
            let batch = self.latents.next(&self.device, observer)?;
            let shape = batch.posterior.mean.dims();
            let first = (micro * training.batch_size) as u64;
            let draw = |stream, shape| {
                noise_batch(self.config.seed, stream, step, first, shape, &self.device)
            };
            let x0 = (batch.posterior.sample(draw(Stream::PosteriorNoise, shape)))
                .mul_scalar(self.first_stage_config.scaling_factor());
            let noise = TrainingNoise::new(&self.stage2.noise, shape, draw);
            let timesteps = self.timesteps(step, micro, shape[0]);
            let noisy = (self.loss.schedule()).add_noise(x0.clone(), noise.mixed, &timesteps);

            let denoiser = self.denoiser.module();
            let conditioner = denoiser.conditioner.as_ref();
            let condition =
                (self.conditions).of_batch(conditioner, &batch, step, first, &self.device)?;
            let input = match condition.channels {
                Some(channels) => Tensor::cat(vec![noisy, channels], 1),
                None => noisy,
            };
            let floats: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
            let floats = Tensor::<1>::from_floats(floats.as_slice(), &self.device);
            let output = denoiser.unet.forward(input, floats, condition.context);
            let loss = match &self.logvar {
                Some(logvar) => {
                    let logvar = logvar.value();
                    (self.loss).forward_with_logvar(output, x0, noise.target, &timesteps, logvar)
                }
                None => self.loss.forward(output, x0, noise.target, &timesteps),
            }
            .loss;

            let value: f64 = loss.clone().into_scalar::<f32>().into();
            mean_loss += finite("loss", value, step)? / training.accumulation as f64;
            let mut of_loss = loss.backward();
            if let Some(logvar) = &mut self.logvar {
                logvar.take_from(&mut of_loss);
            }
            gradients.add(denoiser, GradientsParams::from_grads(of_loss, denoiser));
        }
        let norm = self
            .denoiser
            .update(gradients.take(), rate, training.max_grad_norm, step)?;
        let mut values = vec![("loss", mean_loss), ("grad_norm", norm), ("lr", rate)];
        if let Some(logvar) = &mut self.logvar {
            let mean = logvar.update(rate, training.max_grad_norm, step)?;
            values.push(("logvar", mean));
        }
        Ok(values)
    }

    fn checkpoint(&self, step: u64) -> Result<PathBuf, Error> {
        let state = train_state(self.config, &self.stage2.training, step);
        let mut writer = self.checkpoints.writer(state)?;
        self.denoiser.save("denoiser", &mut writer)?;
        if let Some(logvar) = &self.logvar {
            logvar.save(&mut writer)?;
        }
        Ok(writer.finish()?)
    }

    fn preview(&self, step: u64) -> Result<(RgbImage, Values), Error> {
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
        Ok((sheet.render(), Values::new()))
    }
}

impl Stage2Trainer<'_> {
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
                    ..ModelFacts::default()
                },
            },
        }
    }

    /// Timesteps of `count` items.
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
