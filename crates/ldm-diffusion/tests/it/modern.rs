//! The objective's newer options against a few lines of arithmetic in f64.

use burn::prelude::*;
use ldm_diffusion::{
    BetaSchedule, DiffusionLossConfig, LossKind, NoiseSchedule, PredictionType, SchedulerConfig,
};

use crate::common::values;

const STEPS: usize = 1000;
/// Elements of an item, `[1, 1, 3]`.
const ELEMENTS: usize = 3;
const OUTPUT: [f64; 12] = [
    0.3, -1.2, 0.8, 1.7, -0.4, 0.1, -2.2, 0.6, 0.9, -0.7, 1.1, 0.2,
];
const X0: [f64; 12] = [
    -0.5, 0.4, 1.3, 0.2, -1.1, 0.7, 0.9, -0.3, 0.5, 1.6, -0.8, 0.1,
];
const NOISE: [f64; 12] = [
    1.1, -0.6, 0.3, -1.4, 0.8, 0.2, -0.1, 1.9, -0.9, 0.4, -1.3, 0.7,
];
/// The first, the last, and between.
const TIMES: [usize; 4] = [0, 250, 800, 999];

/// `abar_t` of the schedule that is linear in sqrt(beta), after algorithm 1 of Lin et al. 2024 if asked for.
fn alphas(zero_terminal_snr: bool) -> Vec<f64> {
    let mut product = 1.0;
    let mut roots: Vec<f64> = (0..STEPS)
        .map(|t| {
            let (start, end) = (0.00085f64.sqrt(), 0.012f64.sqrt());
            let beta = (start + (end - start) * t as f64 / (STEPS - 1) as f64).powi(2);
            product *= 1.0 - beta;
            f64::sqrt(product)
        })
        .collect();
    if zero_terminal_snr {
        let (first, last) = (roots[0], roots[STEPS - 1]);
        for root in &mut roots {
            *root = (*root - last) * first / (first - last);
        }
    }
    roots.into_iter().map(|root| root * root).collect()
}

/// The objective as the papers write it.
fn expected(config: &DiffusionLossConfig, alphas: &[f64]) -> f64 {
    let item = |n: usize| {
        let abar: f64 = alphas[TIMES[n]];
        let (signal, sigma) = (abar.sqrt(), (1.0 - abar).sqrt());
        let distance: f64 = (ELEMENTS * n..ELEMENTS * (n + 1))
            .map(|i| {
                let target = match config.prediction_type {
                    PredictionType::Epsilon => NOISE[i],
                    PredictionType::Sample => X0[i],
                    PredictionType::Velocity => signal * NOISE[i] - sigma * X0[i],
                };
                match config.kind {
                    LossKind::L1 => (OUTPUT[i] - target).abs(),
                    LossKind::L2 => (OUTPUT[i] - target).powi(2),
                }
            })
            .sum::<f64>()
            / ELEMENTS as f64;
        let snr = abar / (1.0 - abar);
        let weight = match (config.min_snr_gamma, config.prediction_type) {
            (None, _) => 1.0,
            (Some(gamma), PredictionType::Epsilon) => snr.min(gamma) / snr,
            (Some(gamma), PredictionType::Sample) => snr.min(gamma),
            (Some(gamma), PredictionType::Velocity) => snr.min(gamma) / (snr + 1.0),
        };
        let t = TIMES[n].max(1);
        let elbo = match config.prediction_type {
            PredictionType::Epsilon => {
                let alpha = alphas[t] / alphas[t - 1];
                let variance = (1.0 - alpha) * (1.0 - alphas[t - 1]) / (1.0 - alphas[t]);
                (1.0 - alpha).powi(2) / (2.0 * variance * alpha * (1.0 - alphas[t]))
            }
            PredictionType::Sample => 0.5 * alphas[t].sqrt() / (2.0 - alphas[t]),
            PredictionType::Velocity => 1.0,
        };
        config.l_simple_weight * (weight * distance / config.logvar_init.exp() + config.logvar_init)
            + config.original_elbo_weight * elbo * distance
    };
    (0..TIMES.len()).map(item).sum::<f64>() / TIMES.len() as f64
}

fn tensor(values: &[f64; 12]) -> Tensor<4> {
    let values = values.map(|value| value as f32);
    Tensor::<1>::from_floats(values, &Device::flex()).reshape([4, 1, 1, ELEMENTS])
}

#[test]
fn every_combination_is_finite_and_right() {
    use PredictionType::{Epsilon, Sample, Velocity};
    let base = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, STEPS).unwrap();
    let mut checked = 0;
    for zero_terminal_snr in [false, true] {
        let alphas = alphas(zero_terminal_snr);
        for prediction_type in [Epsilon, Sample, Velocity] {
            if zero_terminal_snr && prediction_type == Epsilon {
                continue;
            }
            for kind in [LossKind::L2, LossKind::L1] {
                for (min_snr_gamma, original_elbo_weight, logvar_init) in [
                    (None, 0.0, 0.0),
                    (Some(5.0), 0.0, 0.0),
                    (Some(1.0), 0.0, 0.4),
                    (None, 0.01, -0.3),
                ] {
                    let config = DiffusionLossConfig {
                        kind,
                        prediction_type,
                        l_simple_weight: 0.7,
                        original_elbo_weight,
                        logvar_init,
                        min_snr_gamma,
                        ..DiffusionLossConfig::default()
                    };
                    let schedule = match zero_terminal_snr {
                        true => base.rescaled_to_zero_terminal_snr(),
                        false => base.clone(),
                    };
                    let objective = config.init(schedule).unwrap();
                    let output = tensor(&OUTPUT).autodiff().require_grad();
                    let result =
                        objective.forward(output.clone(), tensor(&X0), tensor(&NOISE), &TIMES);
                    let found = f64::from(result.loss.clone().into_scalar::<f32>());
                    let wanted = expected(&config, &alphas);
                    assert!(
                        (found - wanted).abs() <= 1e-5 * wanted.abs(),
                        "{config:?} {zero_terminal_snr}: {found}, not {wanted}"
                    );
                    let gradient = output.grad(&result.loss.backward()).unwrap();
                    assert!(values(gradient).iter().all(|value| value.is_finite()));
                    // The same with the logarithm as a variable.
                    let logvar = Tensor::full([STEPS], logvar_init, &Device::flex());
                    let learnt = objective.forward_with_logvar(
                        tensor(&OUTPUT),
                        tensor(&X0),
                        tensor(&NOISE),
                        &TIMES,
                        logvar,
                    );
                    let found = f64::from(learnt.loss.into_scalar::<f32>());
                    assert!((found - wanted).abs() <= 1e-5 * wanted.abs());
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 5 * 2 * 4);
}

/// Where nothing of the image is left, min-SNR has no weight for its velocity, and without it the target is `-x_0`.
#[test]
fn the_last_step_without_signal() {
    let schedule = NoiseSchedule::new(BetaSchedule::Linear, 0.00085, 0.012, STEPS)
        .unwrap()
        .rescaled_to_zero_terminal_snr();
    let at_the_end = |min_snr_gamma| {
        let config = DiffusionLossConfig {
            prediction_type: PredictionType::Velocity,
            min_snr_gamma,
            ..DiffusionLossConfig::default()
        };
        let objective = config.init(schedule.clone()).unwrap();
        let times = [STEPS - 1; 4];
        let output = objective.forward(tensor(&X0).neg(), tensor(&X0), tensor(&NOISE), &times);
        let noisy = objective
            .schedule()
            .add_noise(tensor(&X0), tensor(&NOISE), &times);
        assert_eq!(values(noisy), values(tensor(&NOISE)));
        (output.loss.into_scalar::<f32>(), values(output.per_item))
    };
    assert_eq!(at_the_end(None), (0.0, vec![0.0; 4]));
    let weighted = at_the_end(Some(5.0));
    assert_eq!(weighted, (0.0, vec![0.0; 4]));
}

#[test]
fn a_noise_prediction_is_refused_without_signal() {
    let mut config = SchedulerConfig::latent(0.00085, 0.012);
    config.rescale_betas_zero_snr = true;
    let error = config.noise_schedule().unwrap_err().to_string();
    assert!(
        error.contains("no signal") && error.contains("v_prediction"),
        "{error}"
    );
    for prediction_type in [PredictionType::Velocity, PredictionType::Sample] {
        config.prediction_type = prediction_type;
        let schedule = config.noise_schedule().unwrap();
        assert_eq!(schedule.snr(STEPS - 1), 0.0);
    }
}
