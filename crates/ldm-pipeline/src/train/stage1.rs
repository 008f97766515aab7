//! Stage 1: an autoencoder of either kind, against reconstruction, perceptual and adversarial losses and its regularisation
//! (paper, section 3.1).

use std::{sync::Arc, time::Duration};

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use ldm_autoencoder::{
    Autoencoder, DiscriminatorTerms, GeneratorTerms, PatchDiscriminator, Stage1Objective,
};

use super::{
    Culprit, Event, Observer, Outcome, Stage,
    codebook::CodebookWatch,
    components::logged as logged_norms,
    damaged::DamageReport,
    diagnose::{Micro, Stage1Suspects},
    health::Health,
    images::{load_images, load_present, report_buckets, report_damage, to_tensor},
    journal::journalled,
    logvar::LearntLogvar,
    perceptual::load_lpips,
    persist::persist,
    posterior::Posterior,
    run_loop::{
        Mean, RunLoop, Trainee, Validation, Values, at_work, finite, newest_checkpoint,
        restore_newest,
    },
    state::{Trained, initialise},
    together::images_per_step,
    waiting::DATA_WAIT,
};
use crate::{
    atomic::PartialDir,
    checkpoint::{Checkpoint, CheckpointWriter, Checkpoints, TrainState},
    config::{RunConfig, Stage1Config},
    data::{DataError, Dataset, ImageDataset, Loader, LoaderConfig},
    error::Error,
    generate::noise_batch,
    latent_stats::LatentStats,
    model::{FirstStage, FirstStageConfig, ModelFacts, load_first_stage, save_first_stage},
    optim::{Accumulator, Gradients},
    parallel::Workers,
    reconstruct::{VALIDATION_IMAGES, held_out_psnr, pairs},
    rng::Stream,
    run::RunDir,
    sheet::Sheet,
};

/// Images in a sheet of reconstructions.
const PREVIEW_IMAGES: usize = 16;
/// Held-out images that are looked at before the training, so that damaged ones are named.
const CHECKED_IMAGES: usize = 1024;
/// Parts of a run whose weights are drawn separately.
const VAE_INIT: u64 = 1;
const WITH_DISCRIMINATOR_INIT: u64 = 2;

/// Trains the autoencoder of `config` in `run` and writes it, with its measured scaling factor, into the run's `model/`.
///
/// # Errors
/// If the data or the perceptual network can't be used, a file can't be written, or the training diverges.
pub fn train_vae(
    config: &RunConfig,
    run: &RunDir,
    device: &Device,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    let autoencoder = config.stage1.autoencoder();
    journalled(run, Stage::Vae, observer, |observer| {
        match autoencoder.clone() {
            FirstStageConfig::Kl(vae) => {
                let init = |device: &Device| vae.init(device);
                train(config, autoencoder, &init, run, device, observer)
            }
            FirstStageConfig::Vq(vq) => {
                let init = |device: &Device| vq.init(device);
                train(config, autoencoder, &init, run, device, observer)
            }
            FirstStageConfig::Identity { .. } => unreachable!("a configuration has an autoencoder"),
        }
    })
}

/// [`train_vae`] of the autoencoder that `init` makes, which `autoencoder` describes.
fn train<M: Autoencoder + Into<FirstStage>>(
    config: &RunConfig,
    autoencoder: FirstStageConfig,
    init: &dyn Fn(&Device) -> M,
    run: &RunDir,
    device: &Device,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    let stage1 = &config.stage1;
    let training = &stage1.training;
    let workers = run.workers();
    training.precision.check(Stage::Vae, device)?;
    if stage1.revive_codes_after.is_some() && workers.size() > 1 {
        return Err(Error::Processes {
            problem: "`stage1.revive_codes_after` is set, but each process or device has its own latents to revive codes from".into(),
            help: "leave it out, or train in one process on one device",
        });
    }
    let checkpoints = Checkpoints::open(&run.checkpoints(Stage::Vae), training.retention())?;
    let exported = workers.first_does(|| {
        // Checking a checkpoint reads all of it, which is only worth it here if it may be the last.
        if checkpoints.latest_step()? != training.steps {
            return Ok(false);
        }
        let newest = newest_checkpoint(&checkpoints, observer)?;
        let complete = newest.is_some_and(|newest| newest.state().step == training.steps);
        Ok(complete && is_exported(run, training.steps, device))
    })?;
    if exported {
        return Ok(Outcome::Finished);
    }
    let (training_set, validation_set) = config.data.open(config.seed)?;
    report_damage(&training_set, observer);
    report_buckets(&training_set, images_per_step(training, workers), observer);
    let training_set = Arc::new(training_set);
    let lpips = match stage1.loss.perceptual_weight > 0.0 {
        true => Some(load_lpips(stage1, device, observer)?),
        false => None,
    };
    let objective = Stage1Objective::new(stage1.loss, lpips)?;

    let preview_images = preview_images(&training_set, &validation_set, device)?;
    run.start(Stage::Vae, config)?;
    let mut damaged = DamageReport::open(run, observer);
    if workers.is_first() {
        damaged.check(
            &validation_set,
            CHECKED_IMAGES,
            config.data.strict,
            observer,
        )?;
    }
    let (vae, discriminator, logvar) = workers.undisturbed(|| initial(config, init, device));
    let codebook = codebook_watch(stage1, &autoencoder, None);
    let mut trainer = Stage1Trainer {
        config,
        workers,
        stage1,
        autoencoder,
        init,
        device: device.clone(),
        objective,
        vae,
        logvar,
        codebook,
        discriminator,
        preview_images,
        validation_set,
        damaged,
        loader: None,
        training_set,
        health: Health::new(stage1.loss.disc_weight),
    };
    let start = restore_newest(&checkpoints, &mut trainer, true, workers, observer)?;
    start.announce(Stage::Vae, training, run, observer);
    trainer.seek(start.step)?;
    let course = RunLoop::open(Stage::Vae, config, training, run, &checkpoints, &start)?;
    let outcome = course.run(&mut trainer, observer)?;
    if outcome != Outcome::Finished {
        return Ok(outcome);
    }
    let exported =
        workers.first_does(|| Ok(trainer.finish(run, observer)? == Outcome::Finished))?;
    Ok(match exported {
        true => Outcome::Finished,
        false => Outcome::Stopped(stage1.training.steps),
    })
}

/// The autoencoder before its first step, with the discriminator and the log-variance that are trained beside it, if any.
fn initial<M: Autoencoder>(
    config: &RunConfig,
    init: &dyn Fn(&Device) -> M,
    device: &Device,
) -> (
    Trained<M>,
    Option<Trained<PatchDiscriminator>>,
    Option<LearntLogvar>,
) {
    let training = &config.stage1.training;
    let autodiff = device.clone().autodiff();
    let discriminator = config.stage1.loss.discriminator();
    let part = match discriminator {
        Some(_) => WITH_DISCRIMINATOR_INIT,
        None => VAE_INIT,
    };
    let (vae, discriminator) = initialise(config.seed, part, device, || {
        (
            init(&autodiff).with_activations(training.activations()),
            discriminator.map(|discriminator| discriminator.init(&autodiff)),
        )
    });
    (
        Trained::new(vae, training, training.ema()),
        discriminator.map(|discriminator| Trained::new(discriminator, training, None)),
        (config.stage1.loss.learn_logvar)
            .then(|| LearntLogvar::new(1, config.stage1.loss.logvar, training, &autodiff)),
    )
}

/// The watch over the codes of an autoencoder that has them, as of the `state` of a checkpoint.
fn codebook_watch(
    stage1: &Stage1Config,
    autoencoder: &FirstStageConfig,
    state: Option<&TrainState>,
) -> Option<CodebookWatch> {
    match autoencoder {
        FirstStageConfig::Vq(vq) => Some(CodebookWatch::new(
            vq.num_vq_embeddings,
            stage1.revive_codes_after,
            state,
        )),
        _ => None,
    }
}

/// Whether the run's model holds the autoencoder after `steps` steps: there may be none, or that of a shorter training.
fn is_exported(run: &RunDir, steps: u64, device: &Device) -> bool {
    ModelFacts::read(&run.model()).is_ok_and(|facts| facts.training_steps[0] == steps)
        && load_first_stage(&run.model(), device).is_ok()
}

struct Stage1Trainer<'a, M> {
    config: &'a RunConfig,
    workers: &'a Workers,
    stage1: &'a Stage1Config,
    autoencoder: FirstStageConfig,
    init: &'a dyn Fn(&Device) -> M,
    device: Device,
    objective: Stage1Objective,
    vae: Trained<M>,
    /// The log-variance of the observation model, where it is trained.
    logvar: Option<LearntLogvar>,
    /// Of an autoencoder with a codebook.
    codebook: Option<CodebookWatch>,
    discriminator: Option<Trained<PatchDiscriminator>>,
    training_set: Arc<ImageDataset>,
    validation_set: ImageDataset,
    damaged: DamageReport,
    /// `[N, 3, H, W]`
    preview_images: Tensor<4>,
    /// `None` before the first [`seek`](Trainee::seek).
    loader: Option<Loader>,
    health: Health,
}

impl<M: Autoencoder + Into<FirstStage>> Trainee for Stage1Trainer<'_, M> {
    fn step(&mut self, step: u64, rate: f64, observer: &mut Observer) -> Result<Values, Error> {
        let discriminator = self.discriminator.as_ref().map(Trained::module);
        let statistics = discriminator.map(PatchDiscriminator::running_statistics);
        let mut batches = Vec::with_capacity(self.stage1.training.accumulation);
        let workers = self.workers;
        let mut result = workers.guarded(|| self.attempt(step, rate, &mut batches, observer));
        if let Err(error) = &mut result {
            // Nothing but these statistics has changed, and the repetition of the step will change them again.
            let restore = || {
                let discriminator = self.discriminator.as_ref().map(Trained::module);
                if let Some((discriminator, statistics)) = discriminator.zip(statistics.as_ref()) {
                    discriminator.restore_running_statistics(statistics);
                }
            };
            restore();
            if let Error::NotFinite { culprit, .. } = error {
                *culprit = self.culprit(step, &batches);
                restore();
            }
        }
        result
    }

    fn save(&self, writer: &mut CheckpointWriter) -> Result<(), Error> {
        self.vae.save("vae", writer)?;
        if let Some(logvar) = &self.logvar {
            logvar.save(writer)?;
        }
        match &self.discriminator {
            Some(discriminator) => discriminator.save("discriminator", writer),
            None => Ok(()),
        }
    }

    fn note(&self, state: &mut TrainState) {
        if let Some(codebook) = &self.codebook {
            codebook.save(state);
        }
    }

    fn restore(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), Error> {
        let state = checkpoint.map(Checkpoint::state);
        self.codebook = codebook_watch(self.stage1, &self.autoencoder, state);
        let Some(checkpoint) = checkpoint else {
            (self.vae, self.discriminator, self.logvar) =
                initial(self.config, self.init, &self.device);
            return Ok(());
        };
        let training = &self.stage1.training;
        self.vae.restore("vae", checkpoint, training)?;
        if let Some(logvar) = &mut self.logvar {
            logvar.restore(checkpoint, training)?;
        }
        match &mut self.discriminator {
            Some(discriminator) => discriminator.restore("discriminator", checkpoint, training),
            None => Ok(()),
        }
    }

    fn damage(&self) -> Option<String> {
        let of_discriminator = || self.discriminator.as_ref()?.damage("discriminator");
        let of_logvar = || self.logvar.as_ref()?.damage();
        (self.vae.damage("vae"))
            .or_else(of_discriminator)
            .or_else(of_logvar)
    }

    fn seek(&mut self, step: u64) -> Result<(), Error> {
        let training = &self.stage1.training;
        // The threads of the former end first.
        self.loader = None;
        let config = LoaderConfig {
            batch: training.batch_size,
            batches_per_step: training.accumulation * self.workers.size(),
            seed: self.config.seed,
            workers: self.config.data.workers,
            start_batch: step * training.accumulation as u64,
            strict: self.config.data.strict,
        };
        self.loader = Some(Loader::start_share(
            self.training_set.clone(),
            config,
            self.workers.share(),
        )?);
        Ok(())
    }

    fn validate(&self) -> Result<Validation, Error> {
        let vae: FirstStage = self.vae.result().into();
        let psnr = held_out_psnr(&vae, &self.validation_set, &self.device);
        Ok(Validation {
            values: psnr.map(|psnr| ("val_psnr", psnr)).into_iter().collect(),
            score: psnr,
        })
    }

    fn preview(&self, step: u64) -> Result<RgbImage, Error> {
        let vae: FirstStage = self.vae.result().into();
        let title = format!("original | reconstruction, step {step}");
        let mut sheet = Sheet::new(title, 4);
        for (original, reconstruction) in pairs(&vae, self.preview_images.clone()) {
            sheet.push_reconstruction(original, reconstruction);
        }
        Ok(sheet.render())
    }
}

impl<M: Autoencoder + Into<FirstStage>> Stage1Trainer<'_, M> {
    /// How long the steps have waited for images in all.
    fn waited(&self) -> Duration {
        self.loader.as_ref().map_or(Duration::ZERO, Loader::waited)
    }

    /// A step that changes weights once all of its numbers are known to be finite; its micro-batches are left in `batches`.
    fn attempt(
        &mut self,
        step: u64,
        rate: f64,
        batches: &mut Vec<Micro>,
        observer: &mut Observer,
    ) -> Result<Values, Error> {
        let training = &self.stage1.training;
        let waited = self.waited();
        if let Some(logvar) = &mut self.logvar {
            logvar.forget();
        }
        let mut usage = Vec::new();
        let mut generator = Mean::default();
        let mut posterior = Posterior::default();
        let mut gradients = Accumulator::default();
        let mut reconstructions = Vec::with_capacity(training.accumulation);
        // All that can fail without a fault of the networks comes first, as their running statistics follow every pass.
        for micro in 0..training.accumulation {
            let (images, indices) = self.next_batch(observer)?;
            let noise = self.posterior_noise(&images, step, self.workers.micro_batch(micro));
            batches.push(Micro {
                images,
                indices,
                noise,
            });
        }
        let master = self.vae.module();
        let copy = training.precision.working_copy(master);
        let vae = copy.as_ref().unwrap_or(master);
        for batch in batches.iter() {
            let discriminator = self.discriminator.as_ref().map(Trained::module);
            let (images, noise) = (batch.images.clone(), batch.noise.clone());
            let logvar = self.logvar.as_ref().map(LearntLogvar::value);
            let output = (self.objective).generator_with_logvar(
                vae,
                discriminator,
                images,
                noise,
                step,
                logvar,
            );
            (self.workers).agree(finite("loss", output.terms.total.into(), step))?;
            generator.add(self.logged(&output.terms));
            if let Some(statistics) = output.posterior {
                posterior.add(statistics);
            }
            if let Some((logvar, gradient)) = self.logvar.as_mut().zip(output.logvar_grad) {
                logvar.add(gradient);
            }
            usage.extend(output.codebook);
            gradients.add(master, training.precision.to_master(master, output.grads));
            reconstructions.push(output.reconstruction);
        }
        drop(copy);
        let mut gradients = gradients.take_joint(master, self.workers);
        let norms = (self.vae).measure(&mut gradients, training.max_grad_norm, step)?;
        let of_logvar = (self.logvar.as_mut())
            .map(|logvar| logvar.measured(self.workers, training.max_grad_norm, step))
            .transpose()?;
        let mut values = generator.values();
        values.extend(posterior.logged());
        values.extend(logged_norms("grad_norm", &norms));
        values.push(("lr", rate));

        // The discriminator judges what the autoencoder made before its update, so its gradients may come before that as well.
        let pairs = (batches.iter().map(|batch| batch.images.clone())).zip(reconstructions);
        let (figures, for_discriminator) = self.discriminate(pairs, step)?;
        let update = self.vae.update(gradients, rate);
        finite("update", update.total, step)?;
        values.extend(logged_norms("update_norm", &update));
        if let Some((logvar, gradients)) = self.logvar.as_mut().zip(of_logvar) {
            values.push(("logvar", logvar.update(gradients, rate)));
        }
        if let Some(codebook) = &mut self.codebook {
            values.extend(codebook.after_step(&mut self.vae, &usage, self.config.seed, step));
        }
        values.extend(figures);
        if let Some((discriminator, gradients)) = self.discriminator.as_mut().zip(for_discriminator)
        {
            let update = discriminator.update(gradients, rate);
            finite("discriminator update", update.total, step)?;
            values.push(("disc_update_norm", update.total));
        }

        let posterior = (!posterior.channels.is_empty()).then_some(&posterior);
        let pixels = batches.first().map_or(1, |batch| {
            let [_, _, h, w] = batch.noise.dims();
            h * w
        });
        for warning in self.health.observe(&values, posterior, pixels) {
            let _ = observer(Event::Warning(&warning));
        }
        values.push((DATA_WAIT, (self.waited() - waited).as_secs_f64()));
        Ok(values)
    }

    /// What made step `step` fail, whose micro-batches were `batches`.
    fn culprit(&self, step: u64, batches: &[Micro]) -> Culprit {
        let master = self.vae.module();
        let copy = self.stage1.training.precision.working_copy(master);
        let suspects = Stage1Suspects {
            objective: &self.objective,
            vae: copy.as_ref().unwrap_or(master),
            discriminator: self.discriminator.as_ref().map(Trained::module),
            batches,
            step,
        };
        suspects.culprit(|image| self.training_set.entries()[image].name.clone())
    }

    /// The images of the next micro-batch, `[N, 3, H, W]`, and their numbers in the data set.
    fn next_batch(&mut self, observer: &mut Observer) -> Result<(Tensor<4>, Vec<usize>), Error> {
        let loader = (self.loader.as_mut()).expect("steps follow a call of `seek`");
        let batch = loader.next().expect("a loader never ends")?;
        let skipped = loader.take_skipped();
        self.damaged.name(&self.training_set, skipped, observer);
        Ok((to_tensor(&batch, &self.device), batch.indices))
    }

    /// A micro-batch's terms under the names of the log, without those of the other kind of autoencoder.
    fn logged(&self, terms: &GeneratorTerms) -> Values {
        let regularisation = match self.autoencoder {
            FirstStageConfig::Vq(_) => vec![
                ("codebook", terms.codebook),
                ("codes_used", terms.codes_used),
                ("codebook_perplexity", terms.codebook_perplexity),
            ],
            _ => vec![("kl", terms.kl)],
        };
        let before = [
            ("total", terms.total),
            ("nll", terms.nll),
            ("rec", terms.rec),
            ("perceptual", terms.perceptual),
        ];
        let after = [
            ("g_loss", terms.g_loss),
            ("d_weight", terms.d_weight),
            ("disc_factor", terms.disc_factor),
        ];
        (before.into_iter())
            .chain(regularisation)
            .chain(after)
            .map(|(name, value)| (name, f64::from(value)))
            .collect()
    }

    /// Standard normal noise in the shape of the images' latents, for micro-batch `micro` of the step.
    fn posterior_noise(&self, images: &Tensor<4>, step: u64, micro: usize) -> Tensor<4> {
        let [n, _, height, width] = images.dims();
        let factor = self.autoencoder.factor();
        let shape = [
            n,
            self.autoencoder.latent_channels(),
            height / factor,
            width / factor,
        ];
        let first = (micro * self.stage1.training.batch_size) as u64;
        noise_batch(
            self.config.seed,
            Stream::PosteriorNoise,
            step,
            first,
            shape,
            &self.device,
        )
    }

    /// The discriminator's figures, and its clipped gradients where it learns, on images and what the autoencoder made of them.
    fn discriminate(
        &self,
        pairs: impl ExactSizeIterator<Item = (Tensor<4>, Tensor<4>)>,
        step: u64,
    ) -> Result<(Values, Option<Gradients>), Error> {
        let Some(discriminator) = &self.discriminator else {
            return Ok(Default::default());
        };
        let mut gradients = Accumulator::default();
        let mut mean: Option<DiscriminatorTerms> = None;
        let count = pairs.len() as f32;
        let mut active = false;
        for (images, reconstruction) in pairs {
            let module = discriminator.module();
            let Some(output) = (self.objective).discriminator(module, images, reconstruction, step)
            else {
                return Ok(Default::default());
            };
            let loss = finite("discriminator loss", output.terms.loss.into(), step);
            self.workers.agree(loss)?;
            active |= !output.grads.is_empty();
            gradients.add(module, output.grads);
            let terms = output.terms;
            let sum = mean.get_or_insert(DiscriminatorTerms {
                loss: 0.0,
                logits_real: 0.0,
                logits_fake: 0.0,
                accuracy: 0.0,
            });
            sum.loss += terms.loss / count;
            sum.logits_real += terms.logits_real / count;
            sum.logits_fake += terms.logits_fake / count;
            sum.accuracy += terms.accuracy / count;
        }
        let mut values = Values::new();
        let mut gradients =
            active.then(|| gradients.take_joint(discriminator.module(), self.workers));
        if let Some(gradients) = &mut gradients {
            let max_norm = self.stage1.training.max_grad_norm;
            let norms = discriminator.measure(gradients, max_norm, step)?;
            values.push(("disc_grad_norm", norms.total));
        }
        if let Some(terms) = mean {
            values.extend([
                ("disc_loss", f64::from(terms.loss)),
                ("logits_real", f64::from(terms.logits_real)),
                ("logits_fake", f64::from(terms.logits_fake)),
                ("disc_accuracy", f64::from(terms.accuracy)),
            ]);
        }
        Ok((values, gradients))
    }

    /// Measures the latents and exports the autoencoder.
    fn finish(&self, run: &RunDir, observer: &mut Observer) -> Result<Outcome, Error> {
        let vae: FirstStage = self.vae.result().into();
        let Some(stats) = self.measure_latents(&vae, observer)? else {
            return Ok(Outcome::Stopped(self.stage1.training.steps));
        };
        let resolution = self.config.data.resolution;
        let config = (self.autoencoder.clone())
            .with_scaling_factor(1.0 / stats.std())
            .with_sample_size(resolution);
        // All of `model/` is replaced: a denoiser there was trained on another autoencoder's latents.
        let path = run.model();
        let facts = ModelFacts {
            ldm_version: env!("CARGO_PKG_VERSION").into(),
            resolution: Some(resolution),
            training_steps: [self.stage1.training.steps, 0],
            ema_decay: None,
            seed: self.config.seed,
            ..ModelFacts::default()
        };
        persist("model", &self.stage1.training, true, observer, || {
            let partial = PartialDir::create(&path)?;
            save_first_stage(&vae, &config, &partial.path().join("vqvae"), false)?;
            facts.write(partial.path())?;
            Ok(partial.commit()?)
        })?;
        let _ = observer(Event::Note(&stats.to_string()));
        if let Some(psnr) = held_out_psnr(&vae, &self.validation_set, &self.device) {
            let count = self.validation_set.len().min(VALIDATION_IMAGES);
            let note = format!("reconstruction of {count} held-out images: PSNR {psnr:.2} dB");
            let _ = observer(Event::Note(&note));
        }
        let _ = observer(Event::Saved(&path));
        Ok(Outcome::Finished)
    }

    /// Statistics of a sample of each training image's posterior, or of its latents before quantisation; `None` if the observer
    /// stopped it.
    fn measure_latents(
        &self,
        vae: &FirstStage,
        observer: &mut Observer,
    ) -> Result<Option<LatentStats>, Error> {
        let batch_size = self.stage1.training.batch_size;
        let parts = self.training_set.buckets().chunks(batch_size);
        let mut stats = LatentStats::new(self.autoencoder.latent_channels());
        let set = self.training_set.without_augmentation();
        for (part, indices) in parts.iter().enumerate() {
            if let Some((images, _)) = load_present(&set, indices, &self.device)? {
                let posterior = vae.encode(images.clone());
                let noise = self.posterior_noise(&images, u64::MAX, part);
                stats.add(posterior.sample(noise));
            }
            if at_work(observer, "measuring latents", part + 1, parts.len()) {
                return Ok(None);
            }
        }
        Ok(Some(stats))
    }
}

/// What reconstruction sheets show: held-out images, or training images where none of those can be read.
fn preview_images(
    training_set: &ImageDataset,
    validation_set: &ImageDataset,
    device: &Device,
) -> Result<Tensor<4>, Error> {
    for set in [validation_set, &training_set.squares()] {
        for first in (0..set.len()).step_by(PREVIEW_IMAGES) {
            let indices = first..set.len().min(first + PREVIEW_IMAGES);
            if let Some((images, _)) = load_images(set, indices, device) {
                return Ok(images);
            }
        }
    }
    let count = training_set.len();
    Err(match (count > 0).then(|| training_set.get(0, 0)) {
        Some(Err(source)) => DataError::AllUnusable {
            count,
            source: Box::new(source),
        },
        _ => DataError::NoSamples,
    }
    .into())
}
