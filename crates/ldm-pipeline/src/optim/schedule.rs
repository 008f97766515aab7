//! Learning rates over the course of a run.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It stays.
    #[default]
    Constant,
    /// It falls along half a cosine to the floor, reached at the last step.
    Cosine,
}

/// A learning rate as a function of the step: linear warm-up, then constant or cosine. Rates are absolute: nothing is
/// multiplied by the batch size or the number of devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// The rate after the warm-up.
    pub rate: f64,
    /// How many steps the warm-up takes; 0 for none.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What comes after it.
    #[serde(default)]
    pub decay: Decay,
    /// Where the cosine ends.
    #[serde(default)]
    pub floor: f64,
}

impl LrSchedule {
    /// A rate that stays the same from the first step on.
    #[must_use]
    pub fn constant(rate: f64) -> Self {
        Self {
            rate,
            warmup_steps: 0,
            decay: Decay::Constant,
            floor: 0.0,
        }
    }

    /// The rate of `step`, counted from 0, in a run of `total_steps`.
    ///
    /// The first step of a warm-up of w steps has 1/w of the rate, the last one all of it. Past the end of a cosine
    /// the rate is the floor.
    #[must_use]
    pub fn at(&self, step: u64, total_steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.decay {
            Decay::Constant => self.rate,
            Decay::Cosine => {
                let length = total_steps.saturating_sub(self.warmup_steps + 1).max(1);
                let progress = ((step - self.warmup_steps) as f64 / length as f64).min(1.0);
                self.floor + (self.rate - self.floor) * 0.5 * (1.0 + (PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_stays() {
        let schedule = LrSchedule {
            warmup_steps: 4,
            ..LrSchedule::constant(1e-4)
        };
        let rates: Vec<f64> = (0..6).map(|step| schedule.at(step, 6) / 1e-4).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(LrSchedule::constant(1e-4).at(0, 1), 1e-4);
    }

    #[test]
    fn cosine_ends_at_the_floor_in_the_last_step() {
        let schedule = LrSchedule {
            rate: 1.0,
            warmup_steps: 10,
            decay: Decay::Cosine,
            floor: 0.2,
        };
        assert_eq!(schedule.at(9, 111), 1.0);
        assert_eq!(schedule.at(10, 111), 1.0);
        assert!((schedule.at(60, 111) - 0.6).abs() < 1e-12);
        assert!((schedule.at(110, 111) - 0.2).abs() < 1e-12);
        assert!((schedule.at(5000, 111) - 0.2).abs() < 1e-12);
        assert!((10..110).all(|step| schedule.at(step, 111) > schedule.at(step + 1, 111)));
    }

    #[test]
    fn a_run_shorter_than_its_warmup_is_no_trouble() {
        let schedule = LrSchedule {
            rate: 1.0,
            warmup_steps: 10,
            decay: Decay::Cosine,
            floor: 0.0,
        };
        assert!((0..20).all(|step| schedule.at(step, 5).is_finite()));
    }

    #[test]
    fn read_from_a_config() {
        let schedule: LrSchedule = toml::from_str("rate = 1e-4\ndecay = \"cosine\"").unwrap();
        assert_eq!(
            schedule,
            LrSchedule {
                rate: 1e-4,
                warmup_steps: 0,
                decay: Decay::Cosine,
                floor: 0.0
            }
        );
        assert!(toml::from_str::<LrSchedule>("rate = 1e-4\nwarmup = 3").is_err());
    }
}
