//! Which probes to make for a stage, and what follows from them.

use burn::tensor::Device;

use super::{
    Adversarial, Measured, Memory, Options, Peaks, Probe, ProbeEnd, ProbeFigures, Runner,
    StagePlan, Time,
    disk::{Disk, Sizes, times},
    fit::{Line, Proposal, divisors, propose},
    stand_in::Images,
    table::{bytes, duration},
};
use crate::{
    config::{RunConfig, TrainingConfig},
    data::Crop,
    error::Error,
    info::count,
    model::FirstStageConfig,
    reconstruct::VALIDATION_IMAGES,
    train::Stage,
};

/// Images in a sheet of reconstructions.
const SHEET: usize = 16;
/// Probes for sizes of micro-batch, at most.
const PROBES: usize = 4;
/// What a probe of quick steps may take, in seconds of steps, and how many it then makes.
const QUICK: f64 = 20.0;
const MOST_STEPS: u64 = 30;
/// Copies of the latents while their cache is written: the values, their bytes, the file.
const LATENT_COPIES: u64 = 3;
/// Share of a peak with one image that passes for what is there without any, though parameters may take more: not all gradients are there
/// at once.
const MOST_FLOOR: f64 = 0.75;
/// Bytes of a parameter.
const FLOAT: u64 = 4;

/// What is known of a stage without running it.
struct Facts<'a> {
    config: &'a RunConfig,
    stage: Stage,
    training: &'a TrainingConfig,
    images: Images,
    /// Parameters that are trained, and those of them that are averaged.
    trained: u64,
    averaged: u64,
    /// Parameters of the frozen autoencoder.
    frozen: u64,
    /// Share of the steps with the adversarial part.
    adversarial: f64,
    /// Steps of the sampler of sheets.
    preview_steps: usize,
}

impl<'a> Facts<'a> {
    fn of(config: &'a RunConfig, stage: Stage, images: Images) -> Result<Self, Error> {
        let device = Device::default();
        let autoencoder = match config.stage1.autoencoder() {
            FirstStageConfig::Kl(vae) => count(&vae.init(&device)),
            FirstStageConfig::Vq(vq) => count(&vq.init(&device)),
            FirstStageConfig::Identity { .. } => 0,
        } as u64;
        Ok(match stage {
            Stage::Vae => {
                let discriminator = config.stage1.loss.discriminator();
                let training = &config.stage1.training;
                let share = match discriminator {
                    Some(_) => {
                        let before = config.stage1.loss.disc_start.min(training.steps);
                        (training.steps - before) as f64 / training.steps as f64
                    }
                    None => 0.0,
                };
                let discriminator =
                    discriminator.map_or(0, |disc| disc.init(&device).num_trained_params());
                Self {
                    config,
                    stage,
                    training,
                    images,
                    trained: autoencoder + discriminator as u64,
                    averaged: autoencoder,
                    frozen: 0,
                    adversarial: share,
                    preview_steps: 1,
                }
            }
            Stage::Diffusion => {
                let stage2 = crate::run::stage2(config)?;
                let conditioner = stage2.conditioner();
                let conditioner =
                    conditioner.map_or(0, |conditioner| count(&conditioner.init(&device)));
                let trained = (count(&stage2.unet.init(&device)) + conditioner) as u64;
                Self {
                    config,
                    stage,
                    training: &stage2.training,
                    images,
                    trained,
                    averaged: trained,
                    frozen: autoencoder,
                    adversarial: 0.0,
                    preview_steps: stage2.preview.steps,
                }
            }
        })
    }

    /// Images per step.
    fn images_per_step(&self) -> usize {
        self.training.batch_size * self.training.accumulation
    }

    fn ema(&self) -> u64 {
        FLOAT * self.averaged * u64::from(self.training.ema_decay.is_some())
    }

    /// What is in memory whatever the micro-batch, without working memory.
    fn floor(&self) -> u64 {
        FLOAT * (4 * self.trained + self.frozen) + self.ema()
    }

    /// What accumulated gradients add.
    fn accumulated(&self, accumulation: usize) -> u64 {
        FLOAT * self.trained * u64::from(accumulation > 1)
    }

    /// Bytes of the latents of the data set, if they are kept.
    fn latents(&self) -> u64 {
        if self.stage == Stage::Vae || self.config.data.crop == Crop::Random {
            return 0;
        }
        let autoencoder = self.config.stage1.autoencoder();
        let factor = autoencoder.factor() as u64;
        let pixels = self.config.data.largest_size().area() / factor.pow(2);
        let variants = if self.config.data.flip > 0.0 { 2 } else { 1 };
        let moments = 2 * autoencoder.latent_channels() as u64 * pixels;
        self.images.training as u64 * variants * moments * FLOAT
    }

    /// Bytes that `images` prepared images take in the cache.
    fn cached_images(&self, images: usize) -> u64 {
        if self.latents() > 0 {
            return 0;
        }
        let picture = 3 * self.config.data.largest_size().area();
        (images as u64 * picture).min((self.config.data.cache_mib as u64) << 20)
    }

    /// Bytes of the images and reconstructions that stage 1 keeps until the discriminator's turn, for each micro-batch.
    fn kept_pairs(&self, size: usize) -> u64 {
        let image = 3 * self.config.data.largest_size().area() * FLOAT;
        match self.stage {
            Stage::Vae => 2 * image * size as u64,
            Stage::Diffusion => 0,
        }
    }

    fn probe(&self, size: usize, accumulation: usize, steps: u64, preview_steps: usize) -> Probe {
        let held_out = self.images.held_out.min(SHEET);
        // Two parts to encode, and a whole sheet.
        let least = if held_out > 0 { 2 } else { SHEET };
        let whole = self.cached_images(self.images.training);
        Probe {
            stage: self.stage,
            batch_size: size,
            accumulation,
            steps,
            adversarial: self.adversarial > 0.0,
            preview_steps,
            steps_only: false,
            images: Images {
                training: self.images.training.min((2 * size).max(least)),
                held_out,
            },
            cached: whole < (self.config.data.cache_mib as u64) << 20,
        }
    }
}

/// Makes the probes of a stage and predicts from them; `None` if the runner was stopped.
pub(super) fn plan_stage(
    config: &RunConfig,
    stage: Stage,
    images: Images,
    options: &Options,
    run: &mut Runner,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<StagePlan>, Error> {
    let facts = Facts::of(config, stage, images)?;
    let mut survey = Survey {
        facts,
        options,
        measured: Vec::new(),
        before: None,
        too_large: None,
    };
    if !survey.measure(run, tell)? {
        return Ok(None);
    }
    Ok(Some(survey.plan()))
}

/// The probes of a stage.
struct Survey<'a> {
    facts: Facts<'a>,
    options: &'a Options,
    /// By size of micro-batch, ascending.
    measured: Vec<Measured>,
    /// Without the adversarial part, where a training has steps of both kinds.
    before: Option<Measured>,
    /// A micro-batch for which a probe had not enough memory.
    too_large: Option<usize>,
}

impl Survey<'_> {
    /// Makes all probes; `false` if the runner was stopped.
    fn measure(&mut self, run: &mut Runner, tell: &mut dyn FnMut(&str)) -> Result<bool, Error> {
        let (training, options) = (self.facts.training, self.options);
        self.check_floor()?;
        let few = training.accumulation.min(2);
        let steps = options.probe_steps;
        let sampler_steps = self.facts.preview_steps.min(2);
        let mut next = Some(self.facts.probe(1, few, steps, sampler_steps));
        while let Some(probe) = next {
            if !self.make(probe, run, tell)? {
                return Ok(false);
            }
            next = match self.measured.len() {
                count if count < PROBES && self.too_large.is_none() => self.next_probe(),
                _ => None,
            };
        }
        if (0.0..1.0).contains(&self.facts.adversarial)
            && self.facts.adversarial > 0.0
            && let Some(largest) = self.measured.last()
        {
            let probe = Probe {
                adversarial: false,
                steps_only: true,
                ..largest.probe.clone()
            };
            return self.make(probe, run, tell);
        }
        Ok(true)
    }

    /// What no probe can show: that not even the weights have room.
    fn check_floor(&self) -> Result<(), Error> {
        let floor = self.facts.floor();
        match self.options.available {
            Some(available) if self.options.on_host && floor > available => {
                Err(Error::Request(format!(
                    "nothing can be measured here: weights, gradients, optimiser and averages of the {} stage alone take {}, {} more than there is",
                    self.facts.stage,
                    bytes(floor),
                    bytes(floor - available)
                )))
            }
            _ => Ok(()),
        }
    }

    fn make(
        &mut self,
        probe: Probe,
        run: &mut Runner,
        tell: &mut dyn FnMut(&str),
    ) -> Result<bool, Error> {
        let stage = self.facts.stage;
        tell(&format!(
            "{stage}: measuring {} steps of {} x {} images{}",
            probe.steps,
            probe.accumulation,
            probe.batch_size,
            match (stage, probe.adversarial) {
                (Stage::Vae, true) => " with the adversarial part",
                (Stage::Vae, false) if self.facts.adversarial > 0.0 =>
                    " without the adversarial part",
                _ => "",
            }
        ));
        let Some(made) = run(self.facts.config, &probe)? else {
            return Ok(false);
        };
        let smallest = self.measured.is_empty();
        if made.end == ProbeEnd::MemoryUp {
            if smallest {
                return Err(Error::Request(format!(
                    "nothing can be measured here: the {stage} stage needs more memory than there is even for a micro-batch of one image"
                )));
            }
            tell(&format!(
                "{stage}: a micro-batch of {} needs more memory than it may take",
                probe.batch_size
            ));
            self.too_large = Some(probe.batch_size);
            return Ok(true);
        }
        let (end, before) = (made.end, probe.steps_only);
        match Measured::of(probe, &made) {
            Some(measured) => {
                tell(&format!(
                    "{stage}: {} a step{}",
                    duration(measured.step),
                    match measured.peaks.most() {
                        Some(peak) => format!(", {} at most", bytes(peak)),
                        None => String::new(),
                    }
                ));
                match before {
                    true => self.before = Some(measured),
                    false => self.measured.push(measured),
                }
                Ok(true)
            }
            None if smallest && end == ProbeEnd::TimeUp => Err(Error::Request(format!(
                "the {stage} stage made no step within {}: give it more by --probe-seconds",
                duration(self.options.probe_seconds)
            ))),
            None => Ok(true),
        }
    }

    /// The largest micro-batch up to the configured one for which there are memory and time; `None` if that was measured.
    fn next_probe(&self) -> Option<Probe> {
        let training = self.facts.training;
        let configured = training.batch_size;
        let largest = self.measured.last()?;
        let first = self.measured.len() == 1;
        let limit = match (self.options.available, self.options.memory) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).unwrap_or(u64::MAX),
        };
        let has_memory = |size: usize, accumulation: usize| {
            (self.peak(size, accumulation)).is_none_or(|peak| peak <= limit)
        };
        (divisors(self.facts.images_per_step()).into_iter().rev())
            .filter(|&size| size <= configured)
            .filter(|&size| size > largest.probe.batch_size || first && size == configured)
            .find_map(|size| {
                let all = match size == configured {
                    true => training.accumulation,
                    false => training.accumulation.min(2),
                };
                let choices = [all, all.min(2)];
                let accumulation = choices.into_iter().find(|&accumulation| {
                    has_memory(size, accumulation) && self.has_time(size, accumulation)
                })?;
                let step = self.micro_step(size) * accumulation as f64;
                let quick = (QUICK / step) as u64;
                let steps = quick.clamp(
                    self.options.probe_steps,
                    MOST_STEPS.max(self.options.probe_steps),
                );
                Some(
                    self.facts
                        .probe(size, accumulation, steps, self.sampler_steps()),
                )
            })
    }

    /// As many steps of the sampler as take little time, to learn what each takes.
    fn sampler_steps(&self) -> usize {
        let most = self.facts.preview_steps;
        let each = (self.measured.iter())
            .find_map(|made| Some(made.preview? / made.probe.preview_steps as f64));
        match each {
            Some(each) if each > 0.0 => ((QUICK / each) as usize).clamp(most.min(4), most),
            _ => most.min(4),
        }
    }

    /// Whether a probe of the least number of steps ends in time.
    fn has_time(&self, size: usize, accumulation: usize) -> bool {
        let Some(last) = self.measured.last() else {
            return true;
        };
        let steps = self.options.probe_steps as f64 * self.micro_step(size) * accumulation as f64;
        let encoding = 2.0 * size as f64 * last.encode.unwrap_or(0.0);
        let others =
            last.setup + 2.0 * last.preview.unwrap_or(0.0) + 2.0 * last.checkpoint.unwrap_or(0.0);
        steps + encoding + others <= self.options.probe_seconds
    }

    /// Predicted seconds of a micro-batch, with the adversarial part if there is any.
    fn micro_step(&self, size: usize) -> f64 {
        let exact = (self.measured.iter()).rfind(|made| made.probe.batch_size == size);
        match exact {
            Some(made) => made.micro_step(),
            None => {
                let points: Vec<(usize, f64)> = (self.measured.iter())
                    .map(|made| (made.probe.batch_size, made.micro_step()))
                    .collect();
                Line::through(&points).map_or(0.0, |line| line.at(size))
            }
        }
    }

    /// Seconds of a step without the adversarial part, per second of one with it.
    fn ratio_before(&self) -> Option<f64> {
        let before = self.before.as_ref()?;
        Some(before.micro_step() / self.micro_step(before.probe.batch_size))
    }

    /// Seconds of a step before `disc_start` and after, and on average.
    fn step(&self, size: usize, accumulation: usize) -> (f64, f64, f64) {
        let after = self.micro_step(size) * accumulation as f64;
        let before = after * self.ratio_before().unwrap_or(1.0);
        let share = match self.before {
            Some(_) => self.facts.adversarial,
            None => 1.0,
        };
        (before, after, share * after + (1.0 - share) * before)
    }

    /// Predicted memory of a training.
    fn peak(&self, size: usize, accumulation: usize) -> Option<u64> {
        let facts = &self.facts;
        let exact = (self.measured.iter())
            .rfind(|made| made.probe.batch_size == size && made.end == ProbeEnd::Complete)
            .filter(|made| (made.probe.accumulation > 1) == (accumulation > 1));
        let phases = match exact {
            Some(made) => {
                let more = accumulation.saturating_sub(made.probe.accumulation) as u64;
                let kept = more * facts.kept_pairs(size);
                let [encoding, steps, preview, end] = made.peaks.phases();
                [encoding, steps.map(|peak| peak + kept), preview, end]
            }
            None => self.fitted(size, accumulation),
        };
        let [encoding, others @ ..] = phases;
        let latents = facts.latents();
        let encoding = encoding.map(|peak| {
            (peak + latents).max(FLOAT * (facts.trained + facts.frozen) + LATENT_COPIES * latents)
        });
        let others = others.into_iter().flatten().max()?;
        Some(encoding.unwrap_or(0).max(others + self.data()))
    }

    /// Memory of the data set beyond what a probe has of it.
    fn data(&self) -> u64 {
        let whole = self.facts.cached_images(self.facts.images.training);
        let measured = self.measured.last();
        let of_probe = measured.map_or(0, |made| {
            self.facts.cached_images(made.probe.images.training)
        });
        self.facts.latents() + whole.saturating_sub(of_probe)
    }

    /// The line of a phase's memory by the size of the micro-batch, without accumulated gradients. From one size alone it is `few`'s.
    fn line(
        &self,
        phase: impl Fn(&Peaks) -> Option<u64>,
        few: impl Fn(usize, f64) -> Line,
    ) -> Option<Line> {
        let facts = &self.facts;
        let points: Vec<(usize, f64)> = (self.measured.iter())
            .filter_map(|made| {
                let probe = &made.probe;
                let more = facts.accumulated(probe.accumulation)
                    + probe.accumulation as u64 * facts.kept_pairs(probe.batch_size);
                let peak = phase(&made.peaks)?.saturating_sub(more);
                Some((probe.batch_size, peak as f64))
            })
            .collect();
        let &(size, peak) = points.first()?;
        match points.iter().all(|point| point.0 == size) {
            true => Some(few(size, peak)),
            false => Line::through(&points),
        }
    }

    /// All that isn't known to be there without images as if it grew with them: rather too much than too little.
    fn steep(&self, size: usize, peak: f64) -> Line {
        let floor = (self.facts.floor() as f64).min(MOST_FLOOR * peak);
        Line::from_floor(size, peak, floor)
    }

    fn fitted(&self, size: usize, accumulation: usize) -> [Option<u64>; 4] {
        let more = self.facts.accumulated(accumulation)
            + accumulation as u64 * self.facts.kept_pairs(size);
        [0, 1, 2, 3].map(|phase| {
            let few = |size, peak| match phase {
                0 | 1 => self.steep(size, peak),
                // A sheet is as large with any micro-batch; what grows has grown in the steps before it.
                _ => Line::from_floor(size, peak, peak),
            };
            let line = self.line(|peaks| peaks.phases()[phase], few)?;
            Some(line.at(size) as u64 + more)
        })
    }

    fn plan(&self) -> StagePlan {
        let facts = &self.facts;
        let training = facts.training;
        let (size, accumulation) = (training.batch_size, training.accumulation);
        let (before, after, mean) = self.step(size, accumulation);
        let peak = self.peak(size, accumulation);
        let disk = Disk::new(self.sizes(), training, facts.latents());
        let fits = peak
            .zip(self.options.memory)
            .map(|(peak, memory)| peak <= memory);
        let proposal = self.options.memory.and_then(|memory| self.propose(memory));
        StagePlan {
            stage: facts.stage.to_string(),
            parameters: facts.trained as usize,
            steps: training.steps,
            batch_size: size,
            accumulation,
            step_seconds: mean,
            adversarial: self.before.as_ref().map(|_| Adversarial {
                before,
                after,
                share: facts.adversarial,
            }),
            images_per_second: facts.images_per_step() as f64 / mean,
            time: self.time(mean),
            peak_memory: peak,
            memory: peak.map(|peak| self.memory(peak)),
            fits,
            notes: self.notes(peak, proposal.as_ref()),
            proposal,
            disk,
            probes: (self.measured.iter().chain(&self.before))
                .map(figures)
                .collect(),
        }
    }

    fn propose(&self, memory: u64) -> Option<Proposal> {
        let facts = &self.facts;
        let images = facts.images_per_step();
        let peak = |size, accumulation| match self.too_large {
            // It was seen not to fit here, whatever the lines say, unless more is allowed than there is.
            Some(too_large) if size >= too_large && self.options.available >= Some(memory) => {
                Some(u64::MAX)
            }
            _ => self.peak(size, accumulation),
        };
        let (batch_size, accumulation, peak_memory) = propose(images, memory, peak)?;
        let section = match facts.stage {
            Stage::Vae => "stage1.training",
            Stage::Diffusion => "stage2.training",
        };
        Some(Proposal {
            batch_size,
            accumulation,
            peak_memory,
            step_seconds: self.step(batch_size, accumulation).2,
            options: format!(
                "--set {section}.batch_size={batch_size} --set {section}.accumulation={accumulation}"
            ),
        })
    }

    /// Sizes of files: measured, or by the number of parameters where no probe came to its end.
    fn sizes(&self) -> Sizes {
        let facts = &self.facts;
        let averages = facts.ema();
        (self.measured.iter().rev())
            .find_map(|made| made.sizes)
            .unwrap_or(Sizes {
                checkpoint: 3 * FLOAT * facts.trained + averages,
                model: FLOAT * (facts.averaged + facts.frozen),
                ..Sizes::default()
            })
    }

    fn time(&self, step: f64) -> Time {
        let facts = &self.facts;
        let training = facts.training;
        let last = self.measured.last();
        let newest = |of: fn(&Measured) -> Option<f64>| {
            (self.measured.iter().rev().find_map(of)).unwrap_or(0.0)
        };
        let encode = newest(|made| made.encode);
        let pair = self.reconstruction();
        let held_out = facts.images.held_out.min(VALIDATION_IMAGES) as f64;
        let mut time = Time {
            setup: last.map_or(0.0, |made| made.setup),
            // Stage 1 ends with the held-out images once more.
            encoding: facts.images.training as f64 * encode + held_out * pair,
            steps: training.steps as f64 * step,
            previews: times(training.steps, training.sample_every) as f64 * self.preview(),
            checkpoints: times(training.steps, training.checkpoint_every) as f64
                * newest(|made| made.checkpoint),
            total: 0.0,
        };
        time.total = time.setup + time.encoding + time.steps + time.previews + time.checkpoints;
        time
    }

    /// Seconds of a held-out image through the autoencoder and back; 0 in stage 2.
    fn reconstruction(&self) -> f64 {
        let measured = self.measured.iter().rev();
        let mut pairs = measured.filter_map(|made| {
            let of_probe = made.probe.images;
            // All of them are in the sheet, and once more in the figure beside it.
            let count = match of_probe.held_out {
                0 => of_probe.training.min(SHEET),
                held_out => 2 * held_out,
            };
            Some(made.preview? / count as f64)
        });
        match self.facts.stage {
            Stage::Vae => pairs.next().unwrap_or(0.0),
            Stage::Diffusion => 0.0,
        }
    }

    /// Seconds of a sheet.
    fn preview(&self) -> f64 {
        let facts = &self.facts;
        let Images { training, held_out } = facts.images;
        match facts.stage {
            Stage::Vae => {
                let in_sheet = if held_out > 0 { held_out } else { training }.min(SHEET);
                let judged = held_out.min(VALIDATION_IMAGES);
                self.reconstruction() * (in_sheet + judged) as f64
            }
            Stage::Diffusion => {
                let points: Vec<(usize, f64)> = (self.measured.iter())
                    .filter_map(|made| Some((made.probe.preview_steps, made.preview?)))
                    .collect();
                let exact = points.iter().rfind(|point| point.0 == facts.preview_steps);
                let line = || Some(Line::through(&points)?.at(facts.preview_steps));
                exact.map(|point| point.1).or_else(line).unwrap_or(0.0)
            }
        }
    }

    /// What a training's memory consists of.
    fn memory(&self, peak: u64) -> Memory {
        let facts = &self.facts;
        let accumulation = facts.training.accumulation;
        let weights = FLOAT * facts.trained;
        let steps = self.line(|peaks| peaks.steps, |size, peak| self.steep(size, peak));
        let per_image = steps.map_or(0, |line| line.slope as u64);
        let mut memory = Memory {
            weights,
            gradients: weights + facts.accumulated(accumulation),
            optimizer: 2 * weights,
            ema: facts.ema(),
            per_image,
            data: self.data(),
            other: 0,
        };
        let known = [
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.ema,
            memory.per_image * facts.training.batch_size as u64,
            memory.data,
        ];
        memory.other = peak.saturating_sub(known.iter().sum());
        memory
    }

    fn notes(&self, peak: Option<u64>, proposal: Option<&Proposal>) -> Vec<String> {
        let facts = &self.facts;
        let training = facts.training;
        let size = training.batch_size;
        let mut notes = Vec::new();
        let exact = (self.measured.iter()).rfind(|made| made.probe.batch_size == size);
        if exact.is_none() {
            let largest = self.measured.last().map_or(0, |made| made.probe.batch_size);
            notes.push(format!(
                "micro-batch {size} was not run: its figures are extrapolated from micro-batches of up to {largest}"
            ));
        }
        let accumulated = exact
            .or(self.measured.last())
            .map(|made| made.probe.accumulation);
        if let Some(accumulated) = accumulated.filter(|&n| n < training.accumulation) {
            notes.push(format!(
                "{accumulated} of {} micro-batches per step were run: the optimiser's time counts too often",
                training.accumulation
            ));
        }
        if self
            .measured
            .iter()
            .any(|made| made.end == ProbeEnd::TimeUp)
        {
            notes.push(format!(
                "a probe reached its limit of {} (--probe-seconds)",
                duration(self.options.probe_seconds)
            ));
        }
        if self.measured.iter().all(|made| made.preview.is_none()) {
            notes.push(
                "no sheet was drawn in time: neither its time nor its memory is part of the figures"
                    .into(),
            );
        }
        if peak.is_none() {
            notes.push("memory can't be measured on this system".into());
        }
        if let (Some(peak), Some(memory), None) = (peak, self.options.memory, proposal) {
            let least = self.peak(1, facts.images_per_step()).unwrap_or(peak);
            notes.push(format!(
                "not even a micro-batch of one image fits: it takes {}, {} too much. What helps: a smaller data.resolution, fewer channels, {}.training.activation_checkpointing",
                bytes(least),
                bytes(least.saturating_sub(memory)),
                facts.stage.folder()
            ));
        }
        notes
    }
}

fn figures(made: &Measured) -> ProbeFigures {
    ProbeFigures {
        batch_size: made.probe.batch_size,
        accumulation: made.probe.accumulation,
        adversarial: made.probe.adversarial,
        steps: made.steps,
        step_seconds: made.step,
        peak_memory: made.peaks.most(),
        complete: made.end == ProbeEnd::Complete,
    }
}
