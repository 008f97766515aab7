//! The objective against the reference implementation, its gradient, and a network that learns by it.

use crate::common::{Tensors, assert_close, values};
use burn::{
    optim::{AdamWConfig, GradientsParams},
    prelude::*,
};
use ldm_diffusion::{
    BetaSchedule, DiffusionLossConfig, LossKind, NoiseSchedule, PredictionType, UNetConfig,
    unet::{DownBlockType::*, PerLevel, UpBlockType::*},
};

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Linear, 0.0015, 0.0195, 1000).unwrap()
}

fn tensors() -> Tensors {
    Tensors::read("compvis/training/expected.safetensors", &Device::flex())
}

/// The fixture's timesteps, which it stores as integers.
fn timesteps() -> Vec<usize> {
    let bytes = std::fs::read(crate::common::fixture(
        "compvis/training/expected.safetensors",
    ))
    .unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("t").unwrap();
    let (chunks, _) = tensor.data().as_chunks::<8>();
    chunks
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes) as usize)
        .collect()
}

#[test]
fn noised_input_and_weights_match() {
    let tensors = tensors();
    let noisy = schedule().add_noise(tensors.get("x0"), tensors.get("noise"), &timesteps());
    assert_close("x_noisy", &values(noisy), tensors.values("x_noisy"), 5e-5);
    for (kind, name) in [
        (PredictionType::Epsilon, "lvlb_weights.eps"),
        (PredictionType::Sample, "lvlb_weights.x0"),
    ] {
        let weights: Vec<f32> = schedule()
            .lvlb_weights(kind)
            .iter()
            .map(|weight| *weight as f32)
            .collect();
        assert_close(name, &weights, tensors.values(name), 5e-5);
    }
}

/// Fails unless `value` is the scalar `name` of the fixture.
fn assert_scalar(tensors: &Tensors, name: &str, value: Tensor<1>) {
    let value: f32 = value.into_scalar();
    let expected = tensors.values(name)[0];
    let error = (value - expected).abs() / expected.abs();
    assert!(error < 5e-5, "{name}: {value}, not {expected}");
}

#[test]
fn losses_match() {
    use LossKind::{L1, L2};
    use PredictionType::{Epsilon, Sample};
    let (tensors, times) = (tensors(), timesteps());
    for (name, kind, prediction_type, elbo, simple, logvar) in [
        ("l2_eps", L2, Epsilon, 0.0, 1.0, 0.0),
        ("l1_eps", L1, Epsilon, 0.0, 1.0, 0.0),
        ("l2_eps_elbo", L2, Epsilon, 0.01, 0.7, 0.3),
        ("l1_eps_elbo", L1, Epsilon, 0.01, 0.7, 0.3),
        ("l2_x0_elbo", L2, Sample, 0.5, 0.7, 0.3),
        ("l1_x0_elbo", L1, Sample, 0.5, 0.7, 0.3),
    ] {
        let config = DiffusionLossConfig {
            kind,
            prediction_type,
            l_simple_weight: simple,
            original_elbo_weight: elbo,
            logvar_init: logvar,
            ..DiffusionLossConfig::default()
        };
        let forward = |config: &DiffusionLossConfig| {
            config.init(schedule()).unwrap().forward(
                tensors.get("model_output"),
                tensors.get("x0"),
                tensors.get("noise"),
                &times,
            )
        };
        let output = forward(&config);
        assert_scalar(&tensors, &format!("{name}.loss"), output.loss);
        let simple = output.per_item.mean();
        assert_scalar(&tensors, &format!("{name}.loss_simple"), simple);
        let variational = DiffusionLossConfig {
            l_simple_weight: 0.0,
            original_elbo_weight: 1.0,
            ..config
        };
        let loss = forward(&variational).loss;
        assert_scalar(&tensors, &format!("{name}.loss_vlb"), loss);
    }
}

#[test]
fn losses_with_a_learned_variance_match() {
    let (tensors, times) = (tensors(), timesteps());
    let name = "l2_eps_learn_logvar";
    let logvar = || tensors.get::<1>("logvar");
    let forward = |original_elbo_weight, logvar| {
        let config = DiffusionLossConfig {
            original_elbo_weight,
            ..DiffusionLossConfig::default()
        };
        config.init(schedule()).unwrap().forward_with_logvar(
            tensors.get("model_output"),
            tensors.get("x0"),
            tensors.get("noise"),
            &times,
            logvar,
        )
    };
    let learned = logvar().autodiff().require_grad();
    let output = forward(0.01, learned.clone());
    assert_scalar(&tensors, &format!("{name}.loss"), output.loss.clone());
    let simple = output.per_item.clone().mean();
    assert_scalar(&tensors, &format!("{name}.loss_simple"), simple);
    let gamma = forward(0.0, logvar()).loss;
    assert_scalar(&tensors, &format!("{name}.loss_gamma"), gamma);

    // d/dl (d / e^l + l) = 1 - d / e^l, at the timesteps of the batch only.
    let gradient = values(learned.grad(&output.loss.backward()).unwrap());
    let (distances, logvar) = (values(output.per_item), tensors.values("logvar"));
    for (t, gradient) in gradient.iter().enumerate() {
        let expected: f32 = (times.iter().zip(&distances))
            .filter(|(time, _)| **time == t)
            .map(|(_, distance)| (1.0 - distance / logvar[t].exp()) / times.len() as f32)
            .sum();
        assert!((gradient - expected).abs() < 1e-5, "step {t}");
    }
}

#[test]
fn the_gradient_is_that_of_the_weighted_mean_square() {
    let device = Device::flex();
    let config = DiffusionLossConfig {
        l_simple_weight: 3.0,
        ..Default::default()
    };
    let objective = config.init(schedule()).unwrap();
    let tensor = |values: [f32; 4]| Tensor::<1>::from_floats(values, &device).reshape([2, 1, 1, 2]);
    let output = tensor([1.0, 2.0, 3.0, 4.0]).autodiff().require_grad();
    let noise = tensor([0.5, 2.5, 1.0, 4.0]);
    let result = objective.forward(output.clone(), noise.zeros_like(), noise, &[3, 700]);
    assert_eq!(values(result.per_item), [0.25, 2.0]);
    let gradient = output.grad(&result.loss.backward()).unwrap();
    // 3 * 2 (output - noise) / 4 elements
    assert_close(
        "gradient",
        &values(gradient),
        &[0.75, -0.75, 3.0, 0.0],
        1e-6,
    );
}

#[test]
fn wrong_weights_are_named() {
    let message = |config: DiffusionLossConfig| config.init(schedule()).unwrap_err().to_string();
    let base = DiffusionLossConfig::default;
    assert!(
        message(DiffusionLossConfig {
            l_simple_weight: 0.0,
            ..base()
        })
        .contains("l_simple_weight")
    );
    let negative = DiffusionLossConfig {
        original_elbo_weight: -1.0,
        ..base()
    };
    assert!(message(negative).contains("`original_elbo_weight` is -1"));
    let endless = DiffusionLossConfig {
        logvar_init: f64::INFINITY,
        ..base()
    };
    assert!(message(endless).contains("`logvar_init` is inf"));
    let idle = DiffusionLossConfig {
        l_simple_weight: 0.0,
        original_elbo_weight: 1.0,
        learn_logvar: true,
        ..base()
    };
    assert!(message(idle).contains("`learn_logvar` has nothing to learn from"));
    let infinite = DiffusionLossConfig {
        original_elbo_weight: 1.0,
        ..base()
    };
    let error = infinite
        .init(schedule().rescaled_to_zero_terminal_snr())
        .unwrap_err();
    assert!(error.to_string().contains("step 999"), "{error}");
}

#[test]
fn a_small_network_overfits_one_batch() {
    let device = Device::flex().autodiff();
    let config = UNetConfig {
        norm_num_groups: 8,
        layers_per_block: 1,
        attention_head_dim: Some(PerLevel::All(2)),
        ..UNetConfig::conditional(
            2,
            8,
            vec![16, 32],
            vec![DownBlock2D, CrossAttnDownBlock2D],
            vec![CrossAttnUpBlock2D, UpBlock2D],
        )
    };
    device.seed(1);
    let mut unet = config.init(&device);
    let objective = DiffusionLossConfig::default().init(schedule()).unwrap();
    let ramp = |shape: [usize; 4], phase: f32| {
        let count = shape.iter().product::<usize>() as i64;
        let ramp = Tensor::<1, Int>::arange(0..count, &Device::flex()).float();
        (ramp * 1.7 + phase).sin().reshape(shape)
    };
    let (x0, noise) = (ramp([4, 2, 8, 8], 0.0), ramp([4, 2, 8, 8], 2.0) * 1.4);
    let context = ramp([4, 3, 8, 1], 1.0).squeeze_dim::<3>(3);
    let times = [50, 300, 600, 900];
    let noisy = objective
        .schedule()
        .add_noise(x0.clone(), noise.clone(), &times);
    let timesteps = Tensor::<1>::from_floats(times.map(|t| t as f32), &Device::flex());

    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let mut first = None;
    let mut last = f32::INFINITY;
    for _ in 0..80 {
        let output = unet.forward(noisy.clone(), timesteps.clone(), Some(context.clone()));
        let loss = objective
            .forward(output, x0.clone(), noise.clone(), &times)
            .loss;
        last = loss.clone().into_scalar();
        first.get_or_insert(last);
        let gradients = GradientsParams::from_grads(loss.backward(), &unet);
        unet = optimizer.step(4e-3, unet, gradients);
    }
    let first = first.unwrap();
    assert!(last < first / 10.0, "the loss went from {first} to {last}");
}
