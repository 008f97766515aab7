//! From what is predicted to the plan of a stage.

use super::{
    Adversarial, Disk, Images, Line, Measured, Memory, ProbeEnd, ProbeFigures, Proposal, Sizes,
    StagePlan, Time,
    disk::times,
    facts::{FLOAT, SHEET},
    fit::propose,
    stage::Survey,
    table::{bytes, duration},
};
use crate::{reconstruct::VALIDATION_IMAGES, train::Stage};

/// Share of the memory that a prediction may take for a training to fit: peaks of equal trainings differ by some percent.
const FILLED: f64 = 0.95;

impl Survey<'_> {
    pub(super) fn plan(&self) -> StagePlan {
        let facts = &self.facts;
        let training = facts.training;
        let (size, accumulation) = (training.batch_size, training.accumulation);
        let (before, after, mean) = self.step(size, accumulation);
        let held = self.held(size, accumulation);
        let peak = self.peak(size, accumulation);
        let disk = Disk::new(self.sizes(), training, facts.latents());
        let fits = held
            .zip(self.options.memory)
            .map(|(held, memory)| held <= filled(memory));
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
            memory: held.map(|held| self.memory(held)),
            fits,
            notes: self.notes(held, proposal.as_ref()),
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
        let held = |size, accumulation| match self.too_large {
            // It was seen not to fit here, whatever the lines say, unless more is allowed than there is.
            Some(too_large) if size >= too_large && self.options.available >= Some(memory) => {
                Some(u64::MAX)
            }
            _ => self.held(size, accumulation),
        };
        let (batch_size, accumulation, held) = propose(images, filled(memory), held)?;
        let section = facts.stage.folder();
        Some(Proposal {
            batch_size,
            accumulation,
            peak_memory: held + self.mapped_latents(held),
            step_seconds: self.step(batch_size, accumulation).2,
            options: format!(
                "--set {section}.training.batch_size={batch_size} --set {section}.training.accumulation={accumulation}"
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

    /// What the memory of a training consists of that holds `held` bytes beside the file of latents.
    fn memory(&self, held: u64) -> Memory {
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
            latents: self.mapped_latents(held),
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
        memory.other = held.saturating_sub(known.iter().sum());
        memory
    }

    fn notes(&self, held: Option<u64>, proposal: Option<&Proposal>) -> Vec<String> {
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
        if held.is_none() {
            notes.push("memory can't be measured on this system".into());
        }
        if let (Some(held), Some(memory), None) = (held, self.options.memory, proposal) {
            let least = self.held(1, facts.images_per_step()).unwrap_or(held);
            notes.push(format!(
                "not even a micro-batch of one image fits: it takes {}, {} too much. What helps: a smaller data.resolution, fewer channels, {}.training.activation_checkpointing",
                bytes(least),
                bytes(least.saturating_sub(filled(memory))),
                facts.stage.folder()
            ));
        }
        notes
    }
}

/// What of `memory` a prediction may take.
fn filled(memory: u64) -> u64 {
    (FILLED * memory as f64) as u64
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
