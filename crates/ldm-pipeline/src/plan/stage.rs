//! Which probes to make for a stage.

use super::{
    Images, Measured, Options, Probe, ProbeEnd, Runner, StagePlan,
    facts::Facts,
    fit::divisors,
    table::{bytes, duration},
};
use crate::{config::RunConfig, error::Error, train::Stage};

/// Probes for sizes of micro-batch, at most.
const PROBES: usize = 4;
/// What a probe of quick steps may take, in predicted seconds of steps, and how many it then makes: memory grows a little over the first
/// dozens, as freed memory of one size is no use for another.
const QUICK_STEPS: f64 = 60.0;
const MOST_STEPS: u64 = 30;
/// What a sheet of a probe may take, in predicted seconds.
const QUICK_SHEET: f64 = 20.0;

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
pub(super) struct Survey<'a> {
    pub(super) facts: Facts<'a>,
    pub(super) options: &'a Options,
    /// By size of micro-batch, ascending.
    pub(super) measured: Vec<Measured>,
    /// Without the adversarial part, where a training has steps of both kinds.
    pub(super) before: Option<Measured>,
    /// A micro-batch for which a probe had not enough memory.
    pub(super) too_large: Option<usize>,
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
        let available = self.options.available.unwrap_or(u64::MAX);
        let limit = available.min(self.options.memory.unwrap_or(u64::MAX));
        let sizes = divisors(self.facts.images_per_step());
        let larger = |size: &&usize| **size <= configured && **size > largest.probe.batch_size;
        let within = |limit: u64, size: usize| {
            let all = match size == configured {
                true => training.accumulation,
                false => training.accumulation.min(2),
            };
            let fits = |accumulation: usize| {
                (self.held(size, accumulation)).is_none_or(|held| held <= limit)
                    && self.has_time(size, accumulation)
            };
            let accumulation = [all, all.min(2)].into_iter().find(|&n| fits(n))?;
            Some((size, accumulation))
        };
        let next = (sizes.iter().rev())
            .filter(|size| larger(size) || first && **size == configured)
            .find_map(|&size| within(limit, size));
        // From one size nothing can be concluded on others: there is a second one if this machine bears it.
        let second = || {
            let smallest = *sizes.iter().find(larger)?;
            within(available, smallest).filter(|_| first)
        };
        let (size, accumulation) = next.or_else(second)?;
        let step = self.micro_step(size) * accumulation as f64;
        let least = self.options.probe_steps;
        let seconds = QUICK_STEPS.min(self.options.probe_seconds / 3.0);
        let steps = ((seconds / step) as u64).clamp(least, MOST_STEPS.max(least));
        let sampler_steps = self.sampler_steps();
        Some(self.facts.probe(size, accumulation, steps, sampler_steps))
    }

    /// As many steps of the sampler as take little time, to learn what each takes.
    fn sampler_steps(&self) -> usize {
        let most = self.facts.preview_steps;
        let each = (self.measured.iter())
            .find_map(|made| Some(made.preview? / made.probe.preview_steps as f64));
        match each {
            Some(each) if each > 0.0 => ((QUICK_SHEET / each) as usize).clamp(most.min(4), most),
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
}
