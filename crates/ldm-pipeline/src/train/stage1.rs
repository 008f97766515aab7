//! Stage 1: an autoencoder of either kind, against reconstruction, perceptual and adversarial losses and its regularisation
//! (paper, section 3.1).

use std::{path::PathBuf, sync::Arc};

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use ldm_autoencoder::{
    Autoencoder, DiscriminatorTerms, GeneratorTerms, PatchDiscriminator, Stage1Objective,
};

use super::{
    Event, Observer, Outcome, Stage,
    codebook::CodebookWatch,
    images::{load_images, report_skipped, to_tensor},
    logvar::LearntLogvar,
    perceptual::load_lpips,
    run_loop::{Mean, Trainee, Values, at_work, finite, newest_checkpoint, run_steps, train_state},
    state::{Trained, initialise},
};
use crate::{
    atomic::PartialDir,
    checkpoint::Checkpoints,
    config::{RunConfig, Stage1Config},
    data::{DataError, Dataset, ImageDataset, Loader, LoaderConfig},
    error::Error,
    generate::noise_batch,
    latent_stats::LatentStats,
    model::{FirstStage, FirstStageConfig, ModelFacts, load_first_stage, save_first_stage},
    optim::Accumulator,
    reconstruct::{VALIDATION_IMAGES, held_out_psnr, pairs},
    rng::Stream,
    run::RunDir,
    sheet::Sheet,
};

/// Images in a sheet of reconstructions.
const PREVIEW_IMAGES: usize = 16;
/// Parts of a run whose weights are drawn separately.
const VAE_INIT: u64 = 1;
const DISCRIMINATOR_INIT: u64 = 2;

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
    match autoencoder.clone() {
        FirstStageConfig::Kl(vae) => {
            let init = |device: &Device| vae.init(device);
            train(config, autoencoder, init, run, device, observer)
        }
        FirstStageConfig::Vq(vq) => {
            let init = |device: &Device| vq.init(device);
            train(config, autoencoder, init, run, device, observer)
        }
        FirstStageConfig::Identity { .. } => unreachable!("a configuration has an autoencoder"),
    }
}

/// [`train_vae`] of the autoencoder that `init` makes, which `autoencoder` describes.
fn train<M: Autoencoder + Into<FirstStage>>(
    config: &RunConfig,
    autoencoder: FirstStageConfig,
    init: impl FnOnce(&Device) -> M,
    run: &RunDir,
    device: &Device,
    observer: &mut Observer,
) -> Result<Outcome, Error> {
    let stage1 = &config.stage1;
    let checkpoints = Checkpoints::open(
        &run.checkpoints(Stage::Vae),
        stage1.training.keep_checkpoints,
    )?;
    let newest = newest_checkpoint(&checkpoints, Stage::Vae, observer)?;
    let start = newest
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.state().step);
    if start == stage1.training.steps && is_exported(run, start, device) {
        return Ok(Outcome::Finished);
    }
    let (training_set, validation_set) = config.data.open(config.seed)?;
    let training_set = Arc::new(training_set);
    let lpips = match stage1.loss.perceptual_weight > 0.0 {
        true => Some(load_lpips(stage1, device, observer)?),
        false => None,
    };
    let objective = Stage1Objective::new(stage1.loss, lpips)?;

    let autodiff = device.clone().autodiff();
    let vae = initialise(config.seed, VAE_INIT, device, || init(&autodiff));
    let discriminator = stage1.loss.discriminator().map(|disc| {
        initialise(config.seed, DISCRIMINATOR_INIT, device, || {
            disc.init(&autodiff)
        })
    });
    let preview_images = preview_images(&training_set, &validation_set, device)?;
    run.start(Stage::Vae, config)?;
    let training = &stage1.training;
    let mut vae = Trained::new(vae, training, training.ema());
    let mut logvar = (stage1.loss.learn_logvar)
        .then(|| LearntLogvar::new(1, stage1.loss.logvar, training, &autodiff));
    let codebook = match &autoencoder {
        FirstStageConfig::Vq(vq) => Some(CodebookWatch::new(
            vq.num_vq_embeddings,
            stage1.revive_codes_after,
            newest.as_ref().map(|checkpoint| checkpoint.state()),
        )),
        _ => None,
    };
    let mut discriminator = discriminator.map(|disc| Trained::new(disc, training, None));
    if let Some(checkpoint) = newest {
        vae = vae.restore("vae", &checkpoint, training)?;
        discriminator = discriminator
            .map(|disc| disc.restore("discriminator", &checkpoint, training))
            .transpose()?;
        logvar = logvar
            .map(|logvar| logvar.restore(&checkpoint, training))
            .transpose()?;
    }

    let mut trainer = Stage1Trainer {
        config,
        stage1,
        autoencoder,
        checkpoints,
        device: device.clone(),
        objective,
        vae,
        logvar,
        codebook,
        discriminator,
        preview_images,
        validation_set,
        loader: None,
        training_set,
    };
    let outcome = run_steps(
        Stage::Vae,
        &stage1.training,
        run,
        start,
        &mut trainer,
        observer,
    )?;
    if outcome == Outcome::Finished {
        trainer.finish(run, observer)
    } else {
        Ok(outcome)
    }
}

/// Whether the run's model holds the autoencoder after `steps` steps: there may be none, or that of a shorter training.
fn is_exported(run: &RunDir, steps: u64, device: &Device) -> bool {
    ModelFacts::read(&run.model()).is_ok_and(|facts| facts.training_steps[0] == steps)
        && load_first_stage(&run.model(), device).is_ok()
}

struct Stage1Trainer<'a, M> {
    config: &'a RunConfig,
    stage1: &'a Stage1Config,
    autoencoder: FirstStageConfig,
    checkpoints: Checkpoints,
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
    /// `[N, 3, H, W]`
    preview_images: Tensor<4>,
    /// Started at the first step.
    loader: Option<Loader>,
}

impl<M: Autoencoder + Into<FirstStage>> Trainee for Stage1Trainer<'_, M> {
    fn step(&mut self, step: u64, observer: &mut Observer) -> Result<Values, Error> {
        let training = &self.stage1.training;
        let rate = training.lr.at(step, training.steps);
        let mut generator = Mean::default();
        let mut gradients = Accumulator::default();
        let mut pairs = Vec::with_capacity(training.accumulation);
        let mut usage = Vec::new();
        for micro in 0..training.accumulation {
            let images = self.next_batch(step, observer)?;
            let noise = self.posterior_noise(&images, step, micro);
            let vae = self.vae.module();
            let discriminator = self.discriminator.as_ref().map(Trained::module);
            let pictures = images.clone();
            let output = match &self.logvar {
                Some(logvar) => {
                    let logvar = logvar.value();
                    (self.objective).generator_with_logvar(
                        vae,
                        discriminator,
                        pictures,
                        noise,
                        step,
                        logvar,
                    )
                }
                None => (self.objective).generator(vae, discriminator, pictures, noise, step),
            };
            finite("loss", output.terms.total.into(), step)?;
            if let Some((logvar, gradient)) = self.logvar.as_mut().zip(output.logvar_grad) {
                logvar.add(gradient);
            }
            usage.extend(output.codebook);
            generator.add(self.logged(&output.terms));
            gradients.add(self.vae.module(), output.grads);
            pairs.push((images, output.reconstruction));
        }
        let grad_norm = self
            .vae
            .update(gradients.take(), rate, training.max_grad_norm, step)?;
        let mut values = generator.values();
        values.extend([("grad_norm", grad_norm), ("lr", rate)]);
        if let Some(logvar) = &mut self.logvar {
            let value = logvar.update(rate, training.max_grad_norm, step)?;
            values.push(("logvar", value));
        }
        if let Some(codebook) = &mut self.codebook {
            values.extend(codebook.after_step(&mut self.vae, &usage, self.config.seed, step));
        }
        values.extend(self.discriminate(pairs, rate, step)?);
        Ok(values)
    }

    fn checkpoint(&self, step: u64) -> Result<PathBuf, Error> {
        let mut state = train_state(self.config, &self.stage1.training, step);
        if let Some(codebook) = &self.codebook {
            codebook.save(&mut state);
        }
        let mut writer = self.checkpoints.writer(state)?;
        self.vae.save("vae", &mut writer)?;
        if let Some(logvar) = &self.logvar {
            logvar.save(&mut writer)?;
        }
        if let Some(discriminator) = &self.discriminator {
            discriminator.save("discriminator", &mut writer)?;
        }
        Ok(writer.finish()?)
    }

    fn preview(&self, step: u64) -> Result<(RgbImage, Values), Error> {
        let vae: FirstStage = self.vae.result().into();
        let title = format!("original | reconstruction, step {step}");
        let mut sheet = Sheet::new(title, 4);
        for (original, reconstruction) in pairs(&vae, self.preview_images.clone()) {
            sheet.push_reconstruction(original, reconstruction);
        }
        let psnr = held_out_psnr(&vae, &self.validation_set, &self.device);
        let figures = psnr.map(|psnr| ("val_psnr", psnr)).into_iter().collect();
        Ok((sheet.render(), figures))
    }
}

impl<M: Autoencoder + Into<FirstStage>> Stage1Trainer<'_, M> {
    /// The images of the next micro-batch, `[N, 3, H, W]`.
    fn next_batch(&mut self, step: u64, observer: &mut Observer) -> Result<Tensor<4>, Error> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                let training = &self.stage1.training;
                let config = LoaderConfig {
                    batch: training.batch_size,
                    seed: self.config.seed,
                    workers: self.config.data.workers,
                    start_batch: step * training.accumulation as u64,
                    strict: self.config.data.strict,
                };
                self.loader
                    .insert(Loader::start(self.training_set.clone(), config)?)
            }
        };
        let batch = loader.next().expect("a loader never ends")?;
        report_skipped(loader, observer);
        Ok(to_tensor(&batch, &self.device))
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

    /// Standard normal noise in the shape of the images' latents.
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

    /// The discriminator's update, on the images and the reconstructions that the autoencoder made before its own.
    fn discriminate(
        &mut self,
        pairs: Vec<(Tensor<4>, Tensor<4>)>,
        rate: f64,
        step: u64,
    ) -> Result<Values, Error> {
        let Some(discriminator) = &mut self.discriminator else {
            return Ok(Values::new());
        };
        let mut gradients = Accumulator::default();
        let mut mean: Option<DiscriminatorTerms> = None;
        let count = pairs.len() as f32;
        let mut active = false;
        for (images, reconstruction) in pairs {
            let module = discriminator.module();
            let Some(output) = (self.objective).discriminator(module, images, reconstruction, step)
            else {
                return Ok(Values::new());
            };
            finite("discriminator loss", output.terms.loss.into(), step)?;
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
        if active {
            let max_norm = self.stage1.training.max_grad_norm;
            let norm = discriminator.update(gradients.take(), rate, max_norm, step)?;
            values.push(("disc_grad_norm", norm));
        }
        if let Some(terms) = mean {
            values.extend([
                ("disc_loss", f64::from(terms.loss)),
                ("logits_real", f64::from(terms.logits_real)),
                ("logits_fake", f64::from(terms.logits_fake)),
                ("disc_accuracy", f64::from(terms.accuracy)),
            ]);
        }
        Ok(values)
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
        let partial = PartialDir::create(&path)?;
        save_first_stage(&vae, &config, &partial.path().join("vqvae"), false)?;
        let facts = ModelFacts {
            ldm_version: env!("CARGO_PKG_VERSION").into(),
            resolution: Some(resolution),
            training_steps: [self.stage1.training.steps, 0],
            ema_decay: None,
            seed: self.config.seed,
            ..ModelFacts::default()
        };
        facts.write(partial.path())?;
        partial.commit()?;
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
        let total = self.training_set.len().div_ceil(batch_size);
        let mut stats = LatentStats::new(self.autoencoder.latent_channels());
        let set = self.training_set.without_augmentation();
        for part in 0..total {
            let indices = part * batch_size..set.len().min((part + 1) * batch_size);
            if let Some((images, _)) = load_images(&set, indices, &self.device) {
                let posterior = vae.encode(images.clone());
                let noise = self.posterior_noise(&images, u64::MAX, part);
                stats.add(posterior.sample(noise));
            }
            if at_work(observer, "measuring latents", part + 1, total) {
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
    for set in [validation_set, training_set] {
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
