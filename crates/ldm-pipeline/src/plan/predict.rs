//! From the probes of a stage to the time and memory of any micro-batch.

use super::{Line, Peaks, ProbeEnd, stage::Survey};

/// Share of a peak with one image that passes for what is there without any, though parameters may take more: not all gradients are there
/// at once.
const MOST_FLOOR: f64 = 0.75;

impl Survey<'_> {
    /// Predicted seconds of a micro-batch, with the adversarial part if there is any.
    pub(super) fn micro_step(&self, size: usize) -> f64 {
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
    pub(super) fn ratio_before(&self) -> Option<f64> {
        let before = self.before.as_ref()?;
        Some(before.micro_step() / self.micro_step(before.probe.batch_size))
    }

    /// Seconds of a step before `disc_start` and after, and on average.
    pub(super) fn step(&self, size: usize, accumulation: usize) -> (f64, f64, f64) {
        let after = self.micro_step(size) * accumulation as f64;
        let before = after * self.ratio_before().unwrap_or(1.0);
        let share = match self.before {
            Some(_) => self.facts.adversarial,
            None => 1.0,
        };
        (before, after, share * after + (1.0 - share) * before)
    }

    /// Predicted peak of resident memory of a training, the file of latents included.
    pub(super) fn peak(&self, size: usize, accumulation: usize) -> Option<u64> {
        let held = self.held(size, accumulation)?;
        Some(held + self.mapped_latents(held))
    }

    /// Pages of the file of latents in the memory of a training that holds `held` bytes itself.
    ///
    /// The peak is measured as the system counts it (VmHWM), which includes every page of a mapped file from the first access on: the whole
    /// file after an epoch. Nothing else of the latents is held, as they are written part by part. But the system takes such pages back
    /// when memory is short: there are never more of them than there is room for beside the rest.
    pub(super) fn mapped_latents(&self, held: u64) -> u64 {
        let room = (self.options.memory).map_or(u64::MAX, |memory| memory.saturating_sub(held));
        self.facts.latents().min(room)
    }

    /// Predicted peak of what a training can't do without: all but the file of latents.
    pub(super) fn held(&self, size: usize, accumulation: usize) -> Option<u64> {
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
        Some(phases.into_iter().flatten().max()? + self.data())
    }

    /// Memory of prepared images beyond what a probe has of it.
    pub(super) fn data(&self) -> u64 {
        let whole = self.facts.cached_images(self.facts.images.training);
        let measured = self.measured.last();
        let of_probe = measured.map_or(0, |made| {
            self.facts.cached_images(made.probe.images.training)
        });
        whole.saturating_sub(of_probe)
    }

    /// The line of a phase's memory by the size of the micro-batch, without accumulated gradients. From one size alone it is `few`'s.
    pub(super) fn line(
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
    pub(super) fn steep(&self, size: usize, peak: f64) -> Line {
        let floor = (self.facts.floor() as f64).min(MOST_FLOOR * peak);
        Line::from_floor(size, peak, floor)
    }

    pub(super) fn fitted(&self, size: usize, accumulation: usize) -> [Option<u64>; 4] {
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
}
