use burn::prelude::*;

use super::{Sampler, Step, at_level, history::History, invalid, predicted_mean, spacing};
use crate::{Error, NoiseLevel, NoiseSchedule, PredictionType, SchedulerConfig};

/// Number of levels that are left by the Runge-Kutta method, and of model calls for each.
const RUNGE_KUTTA_LEVELS: usize = 3;
const RUNGE_KUTTA_CALLS: usize = 4;

/// Pseudo linear multistep method (Liu et al. 2022, algorithm 2): a fourth-order Adams-Bashforth formula for the noise, then DDIM's
/// step (eq. 9) with it.
///
/// It needs three earlier outputs. They come from steps of the pseudo Runge-Kutta method (eq. 13) with four calls each or, with
/// `skip_prk_steps`, from formulas of lower order after a first step that is made twice, as in CompVis' PLMS.
pub struct Plms {
    timesteps: Vec<f64>,
    /// `abar` where each call's latents are.
    alphas: Vec<f64>,
    /// `abar` that each call goes from and to.
    moves: Vec<(f64, f64)>,
    runge_kutta: bool,
    prediction_type: PredictionType,
    outputs: History,
    /// What the calls within a level start from.
    base: Option<Tensor<4>>,
    /// Weighted outputs of the calls within a level.
    sum: Option<Tensor<4>>,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// One of the calls of a Runge-Kutta step.
    RungeKutta(usize),
    /// The first step once more, with the mean of both outputs.
    Repeat,
    Multistep,
}

impl Plms {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule, `steps` don't fit into it, or are too few for the Runge-Kutta method.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let schedule = config.plain_schedule()?;
        let levels = spacing::whole(config, schedule.num_train_timesteps(), steps)?;
        let runge_kutta = !config.skip_prk_steps.unwrap_or(false);
        if runge_kutta && steps <= RUNGE_KUTTA_LEVELS {
            return Err(invalid(
                "steps",
                format!("is {steps}: without `skip_prk_steps` this sampler needs 4 or more"),
            ));
        }
        let stride = schedule.num_train_timesteps() / steps;
        let calls = if runge_kutta {
            runge_kutta_calls(&levels, stride)
        } else {
            repeated_calls(&levels, stride)
        };
        let clean = if config.set_alpha_to_one.unwrap_or(false) {
            1.0
        } else {
            schedule.alphas_cumprod()[0]
        };
        let abar = |t: isize| abar(&schedule, t, clean);
        Ok(Self {
            timesteps: calls.iter().map(|call| call.timestep as f64).collect(),
            alphas: calls.iter().map(|call| abar(call.timestep)).collect(),
            moves: calls
                .iter()
                .map(|call| (abar(call.from), abar(call.to)))
                .collect(),
            runge_kutta,
            prediction_type: config.prediction_type,
            outputs: History::new(4),
            base: None,
            sum: None,
        })
    }

    fn role(&self, step: usize) -> Role {
        if self.runge_kutta && step < RUNGE_KUTTA_LEVELS * RUNGE_KUTTA_CALLS {
            Role::RungeKutta(step % RUNGE_KUTTA_CALLS)
        } else if !self.runge_kutta && step == 1 {
            Role::Repeat
        } else {
            Role::Multistep
        }
    }

    /// Adams-Bashforth over as many outputs as there are (Liu et al. 2022, eq. 12).
    fn multistep(&self) -> Tensor<4> {
        self.outputs.combine(match self.outputs.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        })
    }
}

/// A call of the model at `timestep`, and the timesteps between which its output moves the latents. Negative is clean data.
struct Call {
    timestep: isize,
    from: isize,
    to: isize,
}

/// Every level once, but the second twice.
fn repeated_calls(levels: &[usize], stride: usize) -> Vec<Call> {
    let stride = stride as isize;
    let mut calls: Vec<Call> = levels
        .iter()
        .map(|&t| Call {
            timestep: t as isize,
            from: t as isize,
            to: t as isize - stride,
        })
        .collect();
    if let Some(&second) = levels.get(1) {
        let second = second as isize;
        let repeat = Call {
            timestep: second,
            from: second + stride,
            to: second,
        };
        calls.insert(1, repeat);
    }
    calls
}

/// Four calls for each of the first three levels, at it, twice half-way, and at the next; then every level once.
fn runge_kutta_calls(levels: &[usize], stride: usize) -> Vec<Call> {
    let half = (stride / 2) as isize;
    let prologue = levels.windows(2).take(RUNGE_KUTTA_LEVELS).flat_map(|pair| {
        let (from, next) = (pair[0] as isize, pair[1] as isize);
        let call = |timestep, to| Call { timestep, from, to };
        [
            call(from, from - half),
            call(next + half, next + half),
            call(next + half, next),
            call(next, next),
        ]
    });
    let rest = levels[RUNGE_KUTTA_LEVELS..].iter().map(|&t| Call {
        timestep: t as isize,
        from: t as isize,
        to: t as isize - stride as isize,
    });
    prologue.chain(rest).collect()
}

fn abar(schedule: &NoiseSchedule, timestep: isize, clean: f64) -> f64 {
    let last = schedule.num_train_timesteps() - 1;
    usize::try_from(timestep).map_or(clean, |t| schedule.alphas_cumprod()[t.min(last)])
}

impl Sampler for Plms {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn levels(&self) -> usize {
        if self.runge_kutta {
            self.timesteps.len() - RUNGE_KUTTA_LEVELS * (RUNGE_KUTTA_CALLS - 1)
        } else {
            (self.timesteps.len() - 1).max(1)
        }
    }

    fn step_of_level(&self, level: usize) -> usize {
        if self.runge_kutta {
            level + (RUNGE_KUTTA_CALLS - 1) * level.min(RUNGE_KUTTA_LEVELS)
        } else {
            // A single step isn't repeated.
            (level + level.min(1)).min(self.timesteps.len())
        }
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        NoiseLevel::uniform(self.alphas[step]).add_noise(x0, noise)
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let output = predicted_mean(output, &x);
        if !self.outputs.follows(step) {
            (self.base, self.sum) = (None, None);
        }
        let role = self.role(step);
        if matches!(role, Role::RungeKutta(0) | Role::Multistep) {
            self.outputs.push(step, output.clone());
            self.base = Some(x.clone());
        } else {
            self.outputs.push(step, None);
        }
        let Some(base) = self.base.clone() else {
            // Begun within a level: the latents wait for the next.
            return Step {
                latents: x.clone(),
                denoised: x,
            };
        };
        let output = match role {
            Role::Multistep => self.multistep(),
            Role::Repeat => (output + self.outputs.get(0)).div_scalar(2.0),
            Role::RungeKutta(call) => {
                let weight = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0][call];
                let weighted = output.clone().mul_scalar(weight);
                let sum = match self.sum.take() {
                    Some(sum) => sum + weighted,
                    None => weighted,
                };
                if call + 1 == RUNGE_KUTTA_CALLS {
                    sum
                } else {
                    self.sum = Some(sum);
                    output
                }
            }
        };
        let (from, to) = self.moves[step];
        let predicted = (self.prediction_type).denoise(&NoiseLevel::uniform(from), output, base);
        Step {
            denoised: predicted.x0.clone(),
            latents: at_level(predicted, to),
        }
    }
}
