//! Levels in `sigma = noise / signal` (Karras et al. 2022), and what samplers share that work with them.

use burn::prelude::*;

use super::{Sampler, Step, invalid, predicted_mean, spacing};
use crate::{
    Denoised, Error, FinalSigma, NoiseLevel, NoiseSchedule, PredictionType, SchedulerConfig,
    TimestepSpacing, prediction::signal, schedule::linspace,
};

/// `sigma` as a function of the timestep: the training levels, and in between.
pub(super) struct SigmaCurve {
    sigmas: Vec<f64>,
    logs: Vec<f64>,
}

impl SigmaCurve {
    pub(super) fn new(schedule: &NoiseSchedule) -> Self {
        let sigma = |&abar: &f64| {
            // The reference's stand-in for no signal.
            let abar = if abar == 0.0 {
                2f32.powi(-24)
            } else {
                abar as f32
            };
            f64::from(((1.0 - abar) / abar).sqrt())
        };
        let sigmas: Vec<f64> = schedule.alphas_cumprod().iter().map(sigma).collect();
        // All in f32 as in the reference: this decides on which side of a whole timestep the first level comes.
        let log = |sigma: &f64| f64::from(sigma.ln() as f32);
        let logs = sigmas.iter().map(log).collect();
        Self { sigmas, logs }
    }

    /// Smallest and largest training level.
    pub(super) fn range(&self) -> (f64, f64) {
        (self.sigmas[0], self.sigmas[self.sigmas.len() - 1])
    }

    /// The level at timestep `t`, linear between training levels.
    pub(super) fn at(&self, t: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let below = (t.floor() as usize).min(last);
        let above = (below + 1).min(last);
        let fraction = (t - below as f64).clamp(0.0, 1.0);
        self.sigmas[below] + fraction * (self.sigmas[above] - self.sigmas[below])
    }

    /// The timestep of level `sigma`, linear in `log sigma` between training levels and clamped to them.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let above = self.logs.partition_point(|level| *level <= log);
        if above == 0 {
            return 0.0;
        }
        let below = (above - 1).min(self.logs.len().saturating_sub(2));
        let (Some(low), Some(high)) = (self.logs.get(below), self.logs.get(below + 1)) else {
            return 0.0;
        };
        below as f64 + ((log - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// The first timestep with `log(signal / noise)` below `lambda_min`; the number of training steps if there is none.
    pub(super) fn end(&self, lambda_min: f64) -> usize {
        self.logs.partition_point(|log| -log >= lambda_min)
    }

    /// The timesteps of levels as whole numbers: the nearest, or the ones below.
    pub(super) fn whole_timesteps(&self, sigmas: &[f64], nearest: bool) -> Vec<f64> {
        let whole = if nearest {
            f64::round_ties_even
        } else {
            f64::floor
        };
        (sigmas.iter())
            .map(|&sigma| whole(self.timestep(sigma)))
            .collect()
    }
}

/// How levels are placed between the largest and the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Those of the timesteps.
    Timesteps,
    /// Evenly in `sigma^(1/7)` (Karras et al. 2022, eq. 5).
    Karras,
    /// Evenly in `log sigma`.
    Exponential,
    /// The same under the name of `lambda = -log sigma`, at whole timesteps (Lu et al. 2022).
    Lambda,
}

impl Course {
    /// # Errors
    /// If `config` asks for more than one, or one that isn't here.
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, Error> {
        let keys = &config.sigmas;
        for (field, value) in [
            ("use_beta_sigmas", keys.use_beta_sigmas),
            ("use_flow_sigmas", keys.use_flow_sigmas),
        ] {
            if value == Some(true) {
                return Err(invalid(field, "is not supported"));
            }
        }
        let chosen: Vec<Self> = [
            (keys.use_karras_sigmas, Self::Karras),
            (keys.use_exponential_sigmas, Self::Exponential),
        ]
        .into_iter()
        .filter_map(|(wanted, course)| (wanted == Some(true)).then_some(course))
        .collect();
        match chosen[..] {
            [] => Ok(Self::Timesteps),
            [course] => Ok(course),
            _ => Err(invalid(
                "use_karras_sigmas",
                "is on together with another spacing of the levels: choose one",
            )),
        }
    }

    /// `steps` levels from `largest` down to `smallest`; `None` leaves them to the timesteps.
    pub(super) fn levels(self, largest: f64, smallest: f64, steps: usize) -> Option<Vec<f64>> {
        match self {
            Self::Timesteps => None,
            Self::Karras => {
                const RHO: f64 = 7.0;
                let (from, to) = (largest.powf(1.0 / RHO), smallest.powf(1.0 / RHO));
                let levels = linspace(from, to, steps).map(|root| root.powf(RHO));
                Some(levels.collect())
            }
            Self::Exponential | Self::Lambda => {
                let levels = linspace(largest.ln(), smallest.ln(), steps).map(f64::exp);
                Some(levels.collect())
            }
        }
    }
}

/// Levels of DPM-Solver and UniPC, which work on `x = signal x_0 + noise eps` and know whole timesteps only: those of the timesteps below
/// `end`, or on `course`, whose timesteps are the `nearest` whole ones or those below. Without the level that the last step leads to.
///
/// # Errors
/// If `steps` don't fit into the schedule.
pub(super) fn solver_levels(
    config: &SchedulerConfig,
    curve: &SigmaCurve,
    end: usize,
    steps: usize,
    course: Course,
    nearest: bool,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let spaced = spacing::without_last(config, curve.sigmas.len(), end, steps)?;
    let (largest, smallest) = ends(config, curve.range());
    Ok(match course.levels(largest, smallest, steps) {
        None => {
            let timesteps: Vec<f64> = spaced.into_iter().map(|t| t as f64).collect();
            let sigmas: Vec<f64> = timesteps.iter().map(|&t| curve.at(t)).collect();
            (timesteps, sigmas)
        }
        Some(sigmas) => (curve.whole_timesteps(&sigmas, nearest), sigmas),
    })
}

/// The largest and the smallest level of a course: what `config` says, or else the ends of `range`.
pub(super) fn ends(config: &SchedulerConfig, range: (f64, f64)) -> (f64, f64) {
    let keys = &config.sigmas;
    (
        keys.sigma_max.unwrap_or(range.1),
        keys.sigma_min.unwrap_or(range.0),
    )
}

/// Where the last step leads to; `smallest` is the smallest level.
pub(super) fn final_sigma(config: &SchedulerConfig, smallest: f64) -> f64 {
    match config.sigmas.final_sigmas_type.unwrap_or_default() {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => smallest,
    }
}

/// Levels of a sampler on `x = x_0 + sigma eps`: Euler's, Heun's and their like, which show the model `x / sqrt(1 + sigma^2)`.
pub(super) struct SigmaLevels {
    /// The timestep of each level but the last.
    pub(super) timesteps: Vec<f64>,
    /// From the largest down to where the last step leads.
    pub(super) sigmas: Vec<f64>,
    prediction_type: PredictionType,
    /// Whether the first latents are pure noise or a mixture with a signal of variance 1.
    starts_from_noise: bool,
}

/// A sampler that calls the model once at each of its [`SigmaLevels`]: all of a [`Sampler`] but its step follows from these.
pub(super) trait OneCall {
    fn sigma_levels(&self) -> &SigmaLevels;

    /// [`Sampler::step`].
    fn advance(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step;
}

impl<S: OneCall> Sampler for S {
    fn timesteps(&self) -> &[f64] {
        &self.sigma_levels().timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.sigma_levels().init_noise_sigma()
    }

    fn scale_model_input(&self, x: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::scale(x, self.sigma_levels().sigmas[step])
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        SigmaLevels::add_noise(x0, noise, self.sigma_levels().sigmas[step])
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        self.advance(step, output, x, noise)
    }
}

impl SigmaLevels {
    /// The levels of the timesteps, down to clean data.
    ///
    /// # Errors
    /// If `steps` don't fit into the schedule.
    pub(super) fn spaced(
        config: &SchedulerConfig,
        curve: &SigmaCurve,
        steps: usize,
    ) -> Result<Self, Error> {
        let timesteps = spacing::fractional(config, curve.sigmas.len(), steps)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| curve.at(t)).collect();
        sigmas.push(0.0);
        Ok(Self {
            timesteps,
            sigmas,
            prediction_type: config.prediction_type,
            starts_from_noise: config.timestep_spacing != Some(TimestepSpacing::Leading),
        })
    }

    /// As [`spaced`](Self::spaced), then on the course that `config` asks for between the same ends.
    ///
    /// # Errors
    /// Those of [`spaced`](Self::spaced), and those of [`Course::new`].
    pub(super) fn new(
        config: &SchedulerConfig,
        curve: &SigmaCurve,
        steps: usize,
    ) -> Result<Self, Error> {
        let mut levels = Self::spaced(config, curve, steps)?;
        let ends = ends(config, (levels.sigmas[steps - 1], levels.sigmas[0]));
        levels.follow(Course::new(config)?, ends, curve);
        Ok(levels)
    }

    /// Replaces the levels by those of `course` from `largest` to `smallest`, and the timesteps by theirs.
    pub(super) fn follow(
        &mut self,
        course: Course,
        (largest, smallest): (f64, f64),
        curve: &SigmaCurve,
    ) {
        if let Some(sigmas) = course.levels(largest, smallest, self.timesteps.len()) {
            self.timesteps = sigmas.iter().map(|&sigma| curve.timestep(sigma)).collect();
            self.sigmas = sigmas;
            self.sigmas.push(0.0);
        }
    }

    /// Standard deviation of the first latents.
    pub(super) fn init_noise_sigma(&self) -> f64 {
        let largest = self.sigmas.iter().copied().fold(0.0, f64::max);
        if self.starts_from_noise {
            largest
        } else {
            signal(largest).recip()
        }
    }

    /// `x` with unit variance, for the model.
    pub(super) fn scale(x: Tensor<4>, sigma: f64) -> Tensor<4> {
        x.mul_scalar(signal(sigma))
    }

    /// `x_0 + sigma eps`.
    pub(super) fn add_noise(x0: Tensor<4>, noise: Tensor<4>, sigma: f64) -> Tensor<4> {
        x0 + noise.mul_scalar(sigma)
    }

    /// Splits `x = x_0 + sigma eps` by the model's `output` for the scaled `x`. `eps` is the derivative of `x` with respect to
    /// `sigma`.
    pub(super) fn denoise(&self, output: Tensor<4>, x: Tensor<4>, sigma: f64) -> Denoised {
        let output = predicted_mean(output, &x);
        (self.prediction_type).denoise(
            &NoiseLevel::from_sigma(sigma),
            output,
            Self::scale(x, sigma),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BetaSchedule, SigmaConfig};

    #[test]
    fn timesteps_and_levels_are_inverse() {
        let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, 1000).unwrap();
        let curve = SigmaCurve::new(&schedule);
        for t in [0.0, 1.0, 499.0, 998.0, 999.0] {
            assert!((curve.timestep(curve.at(t)) - t).abs() < 1e-4, "{t}");
        }
        assert!((curve.timestep(curve.at(500.5)) - 500.5).abs() < 1e-2);
        assert_eq!(curve.timestep(0.0), 0.0);
        assert_eq!(curve.timestep(1e9), 999.0);
    }

    #[test]
    fn courses_keep_their_ends() {
        for course in [Course::Karras, Course::Exponential] {
            let levels = course.levels(14.0, 0.03, 9).unwrap();
            assert!((levels[0] - 14.0).abs() < 1e-12 && (levels[8] - 0.03).abs() < 1e-12);
            assert!(levels.windows(2).all(|pair| pair[1] < pair[0]));
        }
        let middle = Course::Exponential.levels(4.0, 0.25, 3).unwrap()[1];
        assert!((middle - 1.0).abs() < 1e-12);
    }

    #[test]
    fn courses_exclude_each_other_and_may_be_missing() {
        let course = |sigmas| {
            Course::new(&SchedulerConfig {
                sigmas,
                ..SchedulerConfig::default()
            })
        };
        let both = SigmaConfig {
            use_karras_sigmas: Some(true),
            use_exponential_sigmas: Some(true),
            ..SigmaConfig::default()
        };
        assert!(course(both).unwrap_err().to_string().contains("choose one"));
        let beta = SigmaConfig {
            use_beta_sigmas: Some(true),
            ..SigmaConfig::default()
        };
        let error = course(beta).unwrap_err().to_string();
        assert!(error.contains("`use_beta_sigmas`"), "{error}");
    }
}
