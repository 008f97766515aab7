use burn::prelude::*;

use super::{
    Sampler, Step,
    clip::Clip,
    history::History,
    invalid, predicted_mean,
    sigmas::{Course, SigmaCurve, final_sigma, solver_levels},
};
use crate::{Error, NoiseLevel, PredictionType, SchedulerConfig, SolverType, prediction::signal};

/// Unified predictor-corrector (Zhao et al. 2023, algorithms 1 and 2) for the clean sample or the noise. Each call of the model first
/// corrects the step that led to it, then predicts the next.
///
/// Both halves expand the output in `lambda = log(signal / noise)` at the latest levels and find the weights of the differences from a
/// small linear system; `B(h)` is `h` or `e^h - 1`.
pub struct UniPc {
    timesteps: Vec<f64>,
    /// `sigma` of each step, and the one that the last leads to.
    sigmas: Vec<f64>,
    order: usize,
    lower_order_final: bool,
    solves_for_noise: bool,
    scale: Scale,
    disable_corrector: Vec<usize>,
    prediction_type: PredictionType,
    clip: Clip,
    outputs: History,
    last: Option<Prediction>,
}

/// `B(h)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Bh1,
    Bh2,
}

/// The step that the next call corrects.
struct Prediction {
    step: usize,
    order: usize,
    /// Where it began.
    x: Tensor<4>,
}

impl UniPc {
    /// Prepares `steps` steps over the schedule of `config`.
    ///
    /// # Errors
    /// If `config` makes no schedule, has the order 0 or levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let keys = &config.solver;
        let order = keys.solver_order.unwrap_or(2);
        if order == 0 {
            return Err(invalid("solver_order", "is 0: it must be 1 or more"));
        }
        let curve = SigmaCurve::new(&config.rescaled_schedule()?);
        let course = Course::new(config)?;
        let nearest = course == Course::Karras;
        let end = curve.end(f64::NEG_INFINITY);
        let (timesteps, mut sigmas) = solver_levels(config, &curve, end, steps, course, nearest)?;
        let smallest = match course {
            Course::Timesteps => curve.range().0,
            _ => sigmas[steps - 1],
        };
        sigmas.push(final_sigma(config, smallest));
        Ok(Self {
            timesteps,
            sigmas,
            order,
            lower_order_final: keys.lower_order_final.unwrap_or(true),
            solves_for_noise: !keys.predict_x0.unwrap_or(true),
            scale: match keys.solver_type {
                Some(SolverType::Bh1) => Scale::Bh1,
                _ => Scale::Bh2,
            },
            disable_corrector: keys.disable_corrector.clone(),
            prediction_type: config.prediction_type,
            clip: Clip::thresholding(config),
            outputs: History::new(order),
            last: None,
        })
    }

    /// The prediction that this step's `output` is to correct.
    fn to_correct(&mut self, step: usize) -> Option<Prediction> {
        let last = self.last.take().filter(|last| last.step + 1 == step)?;
        (!self.disable_corrector.contains(&last.step)).then_some(last)
    }

    /// The order of the next prediction, once there is this step's output.
    fn order_of(&self, step: usize) -> usize {
        let left = self.timesteps.len() - step;
        let mut order = self.order.min(self.outputs.len());
        if self.lower_order_final {
            order = order.min(left);
        }
        // No expansion reaches clean data, where `lambda` is infinite, or a level that is the same.
        if self.sigmas[step + 1] == 0.0 || self.sigmas[step + 1] >= self.sigmas[step] {
            order = 1;
        }
        order
    }

    /// The step from `x` at level `from` to level `from + 1`. The outputs are those at `from` and before; `corrected_by` is the one
    /// at the end, if it is known already.
    fn advance(
        &self,
        x: Tensor<4>,
        from: usize,
        order: usize,
        corrected_by: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let (start, end) = (self.sigmas[from], self.sigmas[from + 1]);
        let h = start.ln() - end.ln();
        let (alpha, alpha_ratio) = (signal(end), signal(end) / signal(start));
        let current = self.outputs.get(0);
        // The equation's exact part, and what its remainder is scaled by. The noise's `sigma_t (e^h - 1)` is written so that it has a
        // value at the end of clean data.
        let (hh, exact, remainder) = if self.solves_for_noise {
            let exact =
                x.mul_scalar(alpha_ratio) - current.clone().mul_scalar(alpha * (start - end));
            (h, exact, end * alpha)
        } else {
            let exact = x.mul_scalar(end / start * alpha_ratio)
                - current.clone().mul_scalar(alpha * (-h).exp_m1());
            (-h, exact, alpha)
        };
        // Positions of the outputs before `from`, in units of `h` from it; the end is at 1.
        let positions: Vec<f64> = (1..order)
            .map(|age| (start.ln() - self.sigmas[from - age].ln()) / h)
            .collect();
        let (scale, weights) = weights(self.scale, hh, &positions, corrected_by.is_some());
        let differences = positions.iter().enumerate().map(|(index, position)| {
            (self.outputs.get(index + 1) - current.clone()).div_scalar(*position)
        });
        let ends = corrected_by.map(|output| output - current.clone());
        let sum = (differences.chain(ends).zip(weights))
            .map(|(difference, weight)| difference.mul_scalar(weight))
            .reduce(|sum, term| sum + term);
        match sum {
            Some(sum) => exact - sum.mul_scalar(remainder * scale),
            None => exact,
        }
    }
}

/// `B(h)` and the weights of the differences to the outputs at `positions` and, for the corrector, to the one at the end.
fn weights(scale: Scale, h: f64, positions: &[f64], corrects: bool) -> (f64, Vec<f64>) {
    let scale = match scale {
        Scale::Bh1 => h,
        Scale::Bh2 => h.exp_m1(),
    };
    let mut nodes = positions.to_vec();
    if corrects {
        nodes.push(1.0);
    }
    // With a single unknown the reference takes 1/2, which is of the same order.
    if nodes.len() <= 1 {
        return (scale, vec![0.5; nodes.len()]);
    }
    // Row k: sum of weight * node^k = k! phi_{k+2}(h) h / B(h)
    let mut phi = h.exp_m1() / h - 1.0;
    let mut factorial = 1.0;
    let system = (0..nodes.len()).map(|power| {
        let right = phi * factorial / scale;
        factorial *= (power + 2) as f64;
        phi = phi / h - 1.0 / factorial;
        let row: Vec<f64> = nodes.iter().map(|node| node.powi(power as i32)).collect();
        (row, right)
    });
    (scale, solve(system.collect()))
}

/// The solution of a regular linear system of rows and right sides, by elimination.
fn solve(mut system: Vec<(Vec<f64>, f64)>) -> Vec<f64> {
    let n = system.len();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| {
                system[a].0[column]
                    .abs()
                    .total_cmp(&system[b].0[column].abs())
            })
            .unwrap_or(column);
        system.swap(column, pivot);
        let (done, rest) = system.split_at_mut(column + 1);
        let (pivot_row, pivot_right) = &done[column];
        for (row, right) in rest {
            let factor = row[column] / pivot_row[column];
            for (value, pivot) in row.iter_mut().zip(pivot_row) {
                *value -= factor * pivot;
            }
            *right -= factor * pivot_right;
        }
    }
    let mut solution = vec![0.0; n];
    for index in (0..n).rev() {
        let (row, right) = &system[index];
        let known: f64 = (index + 1..n).map(|j| row[j] * solution[j]).sum();
        solution[index] = (right - known) / row[index];
    }
    solution
}

impl Sampler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, x0: Tensor<4>, noise: Tensor<4>, step: usize) -> Tensor<4> {
        NoiseLevel::from_sigma(self.sigmas[step]).add_noise(x0, noise)
    }

    fn step(
        &mut self,
        step: usize,
        output: Tensor<4>,
        x: Tensor<4>,
        _noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let level = NoiseLevel::from_sigma(self.sigmas[step]);
        let output = predicted_mean(output, &x);
        let predicted = (self.prediction_type).denoise(&level, output, x.clone());
        let denoised = self.clip.apply(predicted.x0);
        let output = if self.solves_for_noise {
            predicted.eps
        } else {
            denoised.clone()
        };
        let x = match self.to_correct(step) {
            Some(last) => self.advance(last.x, last.step, last.order, Some(output.clone())),
            None => x,
        };
        self.outputs.push(step, output);
        let order = self.order_of(step);
        let latents = self.advance(x.clone(), step, order, None);
        self.last = Some(Prediction { step, order, x });
        Step { latents, denoised }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_solved_also_where_rows_must_be_swapped() {
        let system = vec![
            (vec![0.0, 2.0, 1.0], 7.0),
            (vec![1.0, 1.0, 1.0], 6.0),
            (vec![4.0, -1.0, 2.0], 8.0),
        ];
        for (value, expected) in solve(system).iter().zip([1.0, 2.0, 3.0]) {
            assert!((value - expected).abs() < 1e-12, "{value}");
        }
    }

    /// For `e^s` to be integrated over `[0, h]`, the weights must give the remainder of a polynomial exactly.
    #[test]
    fn the_corrector_is_exact_for_polynomials() {
        let (h, positions) = (0.7, [-0.8, -1.9]);
        let (scale, weights) = weights(Scale::Bh2, h, &positions, true);
        // f(s) = s: the integral of e^(h - s) s over the step is e^h - 1 - h.
        let nodes = [positions[0], positions[1], 1.0];
        let sum: f64 = weights.iter().sum();
        assert!((scale * sum * h - (h.exp_m1() - h)).abs() < 1e-12);
        // f(s) = s^2: 2 (e^h - 1 - h - h^2/2)
        let sum: f64 = weights.iter().zip(nodes).map(|(w, node)| w * node).sum();
        assert!((scale * sum * h * h - 2.0 * (h.exp_m1() - h - h * h / 2.0)).abs() < 1e-12);
    }
}
