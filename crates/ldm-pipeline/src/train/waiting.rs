//! Whether the steps wait for their data.

use std::collections::VecDeque;

use super::{Event, Observer};

/// The name under which a step logs how many seconds it waited for data.
pub(super) const DATA_WAIT: &str = "data_wait_seconds";

/// Steps over which the waiting is judged.
const WINDOW: usize = 50;

/// Share of the time that may go into waiting.
const TOLERATED: f64 = 0.2;

/// Warns once in a run when its steps wait for data.
#[derive(Default)]
pub(super) struct WaitWatch {
    /// Seconds waited and seconds in all, of the last steps.
    steps: VecDeque<[f64; 2]>,
    warned: bool,
}

impl WaitWatch {
    /// Takes in the figures of a step.
    pub(super) fn step(&mut self, values: &[(&'static str, f64)], observer: &mut Observer) {
        let value = |wanted| {
            (values.iter())
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| *value)
        };
        let (Some(waited), Some(taken)) = (value(DATA_WAIT), value("seconds_per_step")) else {
            return;
        };
        self.steps.push_back([waited, taken]);
        if self.steps.len() > WINDOW {
            self.steps.pop_front();
        }
        let sum = |part: usize| self.steps.iter().map(|step| step[part]).sum::<f64>();
        let share = sum(0) / sum(1);
        if self.steps.len() == WINDOW && share > TOLERATED && !self.warned {
            self.warned = true;
            let text = format!(
                "the last {WINDOW} steps spent {:.0}% of their time waiting for data: raise data.workers if processors are idle, or data.cache_mib so that images stay in memory",
                100.0 * share
            );
            let _ = observer(Event::Warning(&text));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    #[test]
    fn one_warning_when_too_much_time_is_lost() {
        let mut watch = WaitWatch::default();
        let mut warnings = Vec::new();
        let mut run = |steps: usize, waited: f64| {
            for _ in 0..steps {
                let values = [(DATA_WAIT, waited), ("seconds_per_step", 1.0)];
                watch.step(&values, &mut |event| {
                    if let Event::Warning(text) = event {
                        warnings.push(text.to_owned());
                    }
                    ControlFlow::Continue(())
                });
            }
            warnings.len()
        };
        assert_eq!(run(49, 0.19), 0);
        assert_eq!(run(51, 0.19), 0);
        // 35 of the last 50 steps waited for 0.3 s, the others for 0.19 s: 0.267 s in the mean.
        assert_eq!(run(35, 0.3), 1);
        assert_eq!(run(200, 0.9), 1);
        assert!(warnings[0].contains("data.workers"), "{warnings:?}");
    }
}
