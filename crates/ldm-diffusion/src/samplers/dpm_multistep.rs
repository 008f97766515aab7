use burn::prelude::*;

use super::{
    Sampler, Step,
    clip::Clip,
    history::History,
    invalid, predicted_mean,
    sigmas::{Course, SigmaCurve, final_sigma, solver_levels},
};
use crate::{
    AlgorithmType, BetaSchedule, Error, FinalSigma, NoiseLevel, PredictionType, SchedulerConfig,
    SolverType, prediction::signal,
};

/// Below so many steps the last ones are of lower order.
const FEW_STEPS: usize = 15;

/// Multistep DPM-Solver++ of order 1 to 3 (Lu et al. 2022b, algorithm 2), its variant for the SDE (SDE-DPM-Solver++ of the same), and both for
/// a predicted noise (Lu et al. 2022a).
///
/// With `lambda = log(signal / noise)` and `h` the step in it, the linear part of the equation is solved exactly, and the clean sample (or
/// the noise) is expanded in `lambda` with differences of the latest outputs for derivatives.
pub struct DpmMultistep {
    timesteps: Vec<f64>,
    /// `sigma` of each step, and the one that the last leads to.
    sigmas: Vec<f64>,
    algorithm: AlgorithmType,
    heun: bool,
    order: usize,
    lower_order_final: bool,
    euler_at_final: bool,
    prediction_type: PredictionType,
    clip: Clip,
    outputs: History,
}

impl DpmMultistep {
    /// Prepares `steps` steps over the schedule of `config`; fewer if `lambda_min_clipped` cuts off the first of `trailing` ones.
    ///
    /// # Errors
    /// If `config` makes no schedule, has an order that isn't there or levels that aren't supported, or `steps` don't fit into it.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, Error> {
        let keys = &config.solver;
        let algorithm = keys.algorithm_type.unwrap_or_default();
        let order = keys.solver_order.unwrap_or(2);
        let highest = if algorithm == AlgorithmType::SdeDpm {
            2
        } else {
            3
        };
        if !(1..=highest).contains(&order) {
            return Err(invalid(
                "solver_order",
                format!("is {order}: it must lie between 1 and {highest} for this algorithm"),
            ));
        }
        let (timesteps, sigmas) = levels(config, steps)?;
        let final_sigma = config.sigmas.final_sigmas_type.unwrap_or_default();
        Ok(Self {
            lower_order_final: keys.lower_order_final.unwrap_or(true)
                && timesteps.len() < FEW_STEPS,
            euler_at_final: keys.euler_at_final.unwrap_or(false) || final_sigma == FinalSigma::Zero,
            timesteps,
            sigmas,
            algorithm,
            heun: keys.solver_type == Some(SolverType::Heun),
            order,
            prediction_type: config.prediction_type,
            clip: Clip::thresholding(config),
            outputs: History::new(order),
        })
    }

    fn solves_for_noise(&self) -> bool {
        matches!(self.algorithm, AlgorithmType::Dpm | AlgorithmType::SdeDpm)
    }

    /// The order of a step: as many as there are outputs at different levels, and lower at the end.
    fn order_of(&self, step: usize) -> usize {
        let left = self.timesteps.len() - step;
        let highest = match left {
            1 if self.lower_order_final || self.euler_at_final => 1,
            2 if self.lower_order_final => self.order.min(2),
            _ => self.order,
        };
        let usable = (0..highest.min(self.outputs.len()))
            .take_while(|age| self.sigmas[step - age] > self.sigmas[step + 1 - age])
            .count();
        usable.max(1)
    }

    /// The expansion at the latest output, times powers of `h`: value, first and second derivative as far as `order` goes.
    fn derivatives(&self, step: usize, order: usize, h: f64) -> Vec<Tensor<4>> {
        let lambda = |step: usize| -self.sigmas[step].ln();
        let value = self.outputs.get(0);
        if order == 1 {
            return vec![value];
        }
        let r0 = (lambda(step) - lambda(step - 1)) / h;
        let newer = (value.clone() - self.outputs.get(1)).div_scalar(r0);
        if order == 2 {
            return vec![value, newer];
        }
        let r1 = (lambda(step - 1) - lambda(step - 2)) / h;
        let older = (self.outputs.get(1) - self.outputs.get(2)).div_scalar(r1);
        let change = newer.clone() - older;
        vec![
            value,
            newer + change.clone().mul_scalar(r0 / (r0 + r1)),
            change.div_scalar(r0 + r1),
        ]
    }
}

/// Timesteps and levels.
fn levels(config: &SchedulerConfig, steps: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let curve = SigmaCurve::new(&config.rescaled_schedule()?);
    let lambda_min = config.solver.lambda_min_clipped;
    let end = curve.end(lambda_min.unwrap_or(f64::NEG_INFINITY));
    if end == 0 {
        return Err(invalid(
            "lambda_min_clipped",
            "is above every level's: it leaves none",
        ));
    }
    let course = match Course::new(config)? {
        Course::Karras => Course::Karras,
        _ if config.sigmas.use_lu_lambdas == Some(true) => Course::Lambda,
        course => course,
    };
    let nearest = course != Course::Exponential && config.beta_schedule != BetaSchedule::Cosine;
    let (timesteps, mut sigmas) = solver_levels(config, &curve, end, steps, course, nearest)?;
    sigmas.push(final_sigma(config, curve.range().0));
    Ok((timesteps, sigmas))
}

/// A step of the solver: `x_t = x x_s + sum_k derivatives[k] D_k + noise z`, with `D_k` times `h^k`.
struct Coefficients {
    x: f64,
    derivatives: [f64; 3],
    noise: f64,
}

impl Coefficients {
    /// The step from level `from` to `to`, of `order` 1 to 3.
    fn new(algorithm: AlgorithmType, heun: bool, order: usize, from: f64, to: f64) -> Self {
        let h = from.ln() - to.ln();
        // Signal at the end of the step, as a multiple of that at its start too.
        let (alpha, alpha_ratio) = (signal(to), signal(to) / signal(from));
        // Noise at the end of the step, and its ratio.
        let (sigma, sigma_ratio) = (to * alpha, to / from * alpha_ratio);
        // The weight of the value, and those of the derivatives, which are integrals of e^(h - s) s^k / k!.
        let (x, weights, noise) = match algorithm {
            AlgorithmType::DpmPlusPlus => {
                let e = (-h).exp_m1();
                let weights = [
                    -alpha * e,
                    alpha * (e / h + 1.0),
                    -alpha * ((e + h) / (h * h) - 0.5),
                ];
                (sigma_ratio, weights, 0.0)
            }
            AlgorithmType::Dpm => {
                let e = h.exp_m1();
                let weights = [
                    -alpha * (from - to),
                    -sigma * (e / h - 1.0),
                    -sigma * ((e - h) / (h * h) - 0.5),
                ];
                (alpha_ratio, weights, 0.0)
            }
            AlgorithmType::SdeDpmPlusPlus => {
                let h2 = 2.0 * h;
                let e = (-h2).exp_m1();
                let weights = [
                    -alpha * e,
                    alpha * (e / h2 + 1.0),
                    alpha * ((-e - h2) / (h2 * h2) - 0.5),
                ];
                (
                    sigma_ratio * (-h).exp(),
                    weights,
                    sigma * (-e).max(0.0).sqrt(),
                )
            }
            AlgorithmType::SdeDpm => {
                let e = h.exp_m1();
                let weights = [
                    -2.0 * alpha * (from - to),
                    -2.0 * sigma * (e / h - 1.0),
                    0.0,
                ];
                let noise = alpha * (from * from - to * to).max(0.0).sqrt();
                (alpha_ratio, weights, noise)
            }
        };
        let mut derivatives = weights;
        if order == 2 && !heun {
            derivatives[1] = weights[0] / 2.0;
        }
        Self {
            x,
            derivatives,
            noise,
        }
    }
}

impl Sampler for DpmMultistep {
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
        noise: &mut dyn FnMut(usize) -> Tensor<4>,
    ) -> Step {
        let (from, to) = (self.sigmas[step], self.sigmas[step + 1]);
        let level = NoiseLevel::from_sigma(from);
        let output = predicted_mean(output, &x);
        let predicted = (self.prediction_type).denoise(&level, output, x.clone());
        let denoised = self.clip.apply(predicted.x0);
        let eps = match self.clip {
            Clip::Nothing => predicted.eps,
            _ => {
                PredictionType::Sample
                    .denoise(&level, denoised.clone(), x.clone())
                    .eps
            }
        };
        let expanded = if self.solves_for_noise() {
            eps
        } else {
            denoised.clone()
        };
        self.outputs.push(step, expanded);

        let order = self.order_of(step);
        let coefficients = Coefficients::new(self.algorithm, self.heun, order, from, to);
        let derivatives = self.derivatives(step, order, from.ln() - to.ln());
        let mut latents = x.mul_scalar(coefficients.x);
        for (derivative, weight) in derivatives.into_iter().zip(coefficients.derivatives) {
            latents = latents + derivative.mul_scalar(weight);
        }
        if matches!(
            self.algorithm,
            AlgorithmType::SdeDpm | AlgorithmType::SdeDpmPlusPlus
        ) {
            latents = latents + noise(step).mul_scalar(coefficients.noise);
        }
        Step { latents, denoised }
    }
}
