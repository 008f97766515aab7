//! What the readings of a probe say.

use super::{
    disk::Sizes,
    probe::{Happening, Probe, ProbeEnd, ProbeRun, Reading},
};

/// A probe and what it measured. What it didn't come to is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What was run.
    pub probe: Probe,
    /// How it ended.
    pub end: ProbeEnd,
    /// Steps made.
    pub steps: usize,
    /// Median of a step, without those to warm up.
    pub step: f64,
    /// Until the first image was encoded or the first step began.
    pub setup: f64,
    /// A sheet.
    pub preview: Option<f64>,
    /// A checkpoint.
    pub checkpoint: Option<f64>,
    /// An image, by the autoencoder, with its mirror image where that is encoded too.
    pub encode: Option<f64>,
    /// Memory.
    pub peaks: Peaks,
    /// Files.
    pub sizes: Option<Sizes>,
}

/// The most memory up to the end of each phase, in bytes. A phase includes those before it, for freed memory stays with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Encoding before the steps.
    pub encoding: Option<u64>,
    /// Steps, and a checkpoint between them.
    pub steps: Option<u64>,
    /// A sheet, and steps after it.
    pub preview: Option<u64>,
    /// The end: measuring of latents, export.
    pub end: Option<u64>,
}

impl Peaks {
    /// In order of the phases.
    pub fn phases(&self) -> [Option<u64>; 4] {
        [self.encoding, self.steps, self.preview, self.end]
    }

    /// The most of all.
    pub fn most(&self) -> Option<u64> {
        self.phases().into_iter().flatten().max()
    }
}

/// A step of a probe.
#[derive(Clone, Copy)]
struct Step {
    number: u64,
    seconds: f64,
    /// When it was reported.
    at: f64,
    peak: Option<u64>,
}

impl Measured {
    /// Evaluates a probe; `None` if it made no step.
    pub fn of(probe: Probe, run: &ProbeRun) -> Option<Self> {
        let readings = &run.readings;
        let steps: Vec<Step> = readings.iter().filter_map(step_of).collect();
        let first = *steps.first()?;
        let is_step = |reading: &Reading| step_of(reading).is_some();
        let start = readings.iter().position(is_step)?;
        let (before, after) = readings.split_at(start);
        let encoded_before = !before.is_empty();
        let checkpoint = gap(&steps, probe.checkpoint_step() + 1);
        let (encode, first_part) = encoding(
            &probe,
            match encoded_before {
                true => before,
                false => after,
            },
        );
        let sizes = readings.iter().find_map(|reading| match reading.happening {
            Happening::Finished { sizes } => Some(sizes),
            _ => None,
        });
        let begins = match encoded_before {
            true => before[0].seconds - first_part,
            false => first.at - first.seconds,
        };
        let peak_at = |number: u64| {
            let found = steps.iter().find(|step| step.number == number);
            found.and_then(|step| step.peak)
        };
        let peaks = match probe.steps_only {
            true => Peaks {
                steps: steps.last().and_then(|step| step.peak),
                ..Peaks::default()
            },
            false => Peaks {
                encoding: before.last().and_then(|reading| reading.peak),
                // Where time was up early, the last step must do.
                steps: peak_at(probe.preview_step() - 1).or(steps
                    .iter()
                    .rfind(|step| step.number < probe.preview_step())
                    .and_then(|step| step.peak)),
                preview: peak_at(probe.steps).or_else(|| peak_at(probe.preview_step())),
                end: sizes.and_then(|_| readings.last()?.peak),
            },
        };
        Some(Self {
            end: run.end,
            steps: steps.len(),
            step: typical(steps.iter().map(|step| step.seconds).collect()),
            setup: begins.max(0.0),
            preview: match probe.steps_only {
                true => None,
                false => gap(&steps, probe.steps).or_else(|| gap(&steps, probe.preview_step())),
            },
            checkpoint: checkpoint.filter(|_| !probe.steps_only),
            encode,
            peaks,
            sizes,
            probe,
        })
    }

    /// Of a micro-batch.
    pub fn micro_step(&self) -> f64 {
        self.step / self.probe.accumulation as f64
    }
}

fn step_of(reading: &Reading) -> Option<Step> {
    match reading.happening {
        Happening::Step { step, seconds } => Some(Step {
            number: step,
            seconds,
            at: reading.seconds,
            peak: reading.peak,
        }),
        _ => None,
    }
}

/// What happened between two steps besides the second one: the sheet of step `number`, or the checkpoint of the step before.
fn gap(steps: &[Step], number: u64) -> Option<f64> {
    let pair = steps.windows(2).find(|pair| pair[1].number == number)?;
    Some((pair[1].at - pair[0].at - pair[1].seconds).max(0.0))
}

/// Seconds to encode an image, and to encode the first part of the images. `readings` begin with the first part or with a step before it.
fn encoding(probe: &Probe, readings: &[Reading]) -> (Option<f64>, f64) {
    let parts: Vec<(usize, f64)> = (readings.iter())
        .filter_map(|reading| match reading.happening {
            Happening::Encoded { done } => Some((done, reading.seconds)),
            _ => None,
        })
        .collect();
    let size = |part: usize| {
        let before = (part - 1) * probe.batch_size;
        (probe.images.training.saturating_sub(before)).min(probe.batch_size)
    };
    // The first part comes after other things: a whole one from one end to the next is needed.
    let each: Vec<f64> = (parts.windows(2))
        .filter(|pair| pair[1].0 == pair[0].0 + 1 && size(pair[1].0) > 0)
        .map(|pair| (pair[1].1 - pair[0].1) / size(pair[1].0) as f64)
        .collect();
    let encode = (!each.is_empty()).then(|| median(each));
    (encode, encode.unwrap_or(0.0) * size(1) as f64)
}

/// The median of what follows the warm-up: two steps, or one if there are few.
fn typical(mut seconds: Vec<f64>) -> f64 {
    let warm_up = match seconds.len() {
        0 | 1 => 0,
        2 | 3 => 1,
        _ => 2,
    };
    median(seconds.split_off(warm_up))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{plan::stand_in::Images, train::Stage};

    fn probe(steps: u64) -> Probe {
        Probe {
            stage: Stage::Vae,
            batch_size: 4,
            accumulation: 2,
            steps,
            adversarial: false,
            preview_steps: 2,
            steps_only: false,
            images: Images {
                training: 8,
                held_out: 2,
            },
            cached: true,
        }
    }

    /// Readings of a stage 1 that takes 10 s to begin, 2 s for a step (5 s for the first), 7 s for a sheet, 3 s for a checkpoint, 0.5 s to
    /// encode an image.
    fn readings(probe: &Probe) -> Vec<Reading> {
        let mut clock = 10.0;
        let mut list = Vec::new();
        let reading = |seconds, peak: u64, happening| Reading {
            seconds,
            peak: Some(peak),
            happening,
        };
        for step in 1..=probe.steps {
            let seconds = if step == 1 { 5.0 } else { 2.0 };
            clock += seconds;
            let sheet = step == probe.steps || step.is_multiple_of(probe.preview_step());
            clock += if sheet { 7.0 } else { 0.0 };
            let peak = if step >= probe.preview_step() {
                300
            } else {
                200
            };
            list.push(reading(clock, peak, Happening::Step { step, seconds }));
            let checkpoint = step == probe.steps || step.is_multiple_of(probe.checkpoint_step());
            clock += if checkpoint { 3.0 } else { 0.0 };
        }
        for done in [1, 2] {
            clock += 2.0;
            list.push(reading(clock, 300, Happening::Encoded { done }));
        }
        let sizes = Sizes {
            checkpoint: 9,
            ..Sizes::default()
        };
        list.push(reading(clock + 1.0, 400, Happening::Finished { sizes }));
        list
    }

    #[test]
    fn everything_is_told_apart() {
        for steps in [6, 7, 8, 30] {
            let probe = probe(steps);
            let run = ProbeRun {
                readings: readings(&probe),
                end: ProbeEnd::Complete,
            };
            let measured = Measured::of(probe, &run).unwrap();
            assert_eq!(measured.steps, steps as usize);
            assert_eq!(
                [measured.step, measured.micro_step(), measured.setup],
                [2.0, 1.0, 10.0]
            );
            assert_eq!(measured.preview, Some(7.0), "{steps}");
            assert_eq!(measured.checkpoint, Some(3.0), "{steps}");
            assert_eq!(measured.encode, Some(0.5));
            let peaks = [None, Some(200), Some(300), Some(400)];
            assert_eq!(measured.peaks.phases(), peaks);
            assert_eq!(measured.sizes.unwrap().checkpoint, 9);
        }
    }

    #[test]
    fn what_is_encoded_before_the_steps_is_not_set_up() {
        let probe = probe(6);
        let mut readings = readings(&probe);
        for reading in &mut readings {
            reading.seconds += 4.0;
        }
        let encoded = [1, 2].map(|done| Reading {
            seconds: 10.0 + 2.0 * done as f64,
            peak: Some(150),
            happening: Happening::Encoded { done },
        });
        readings.splice(0..0, encoded);
        let run = ProbeRun {
            readings,
            end: ProbeEnd::Complete,
        };
        let measured = Measured::of(probe, &run).unwrap();
        assert_eq!([measured.setup, measured.encode.unwrap()], [10.0, 0.5]);
        assert_eq!(measured.peaks.encoding, Some(150));
    }

    #[test]
    fn a_probe_cut_short_has_what_it_came_to() {
        let probe = probe(6);
        let all = readings(&probe);
        let cut = |count: usize| {
            let run = ProbeRun {
                readings: all[..count].to_vec(),
                end: ProbeEnd::TimeUp,
            };
            Measured::of(probe.clone(), &run)
        };
        assert_eq!(cut(0), None);
        let one = cut(1).unwrap();
        assert_eq!((one.step, one.preview, one.checkpoint), (5.0, None, None));
        assert_eq!(one.peaks.most(), Some(200));
        let five = cut(5).unwrap();
        assert_eq!((five.preview, five.checkpoint), (Some(7.0), Some(3.0)));
        assert_eq!((five.peaks.end, five.sizes), (None, None));
    }
}
