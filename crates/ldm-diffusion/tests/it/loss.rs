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

#[test]
fn losses_match() {
    let (tensors, times) = (tensors(), timesteps());
    // The reference divides the simple term by exp(logvar) and adds logvar to it, a constant in these runs.
    for (name, kind, prediction_type, elbo, simple, logvar) in [
        (
            "l2_eps",
            LossKind::L2,
            PredictionType::Epsilon,
            0.0,
            1.0,
            0f64,
        ),
        (
            "l1_eps",
            LossKind::L1,
            PredictionType::Epsilon,
            0.0,
            1.0,
            0.0,
        ),
        (
            "l2_eps_elbo",
            LossKind::L2,
            PredictionType::Epsilon,
            0.01,
            0.7,
            0.3,
        ),
        (
            "l1_eps_elbo",
            LossKind::L1,
            PredictionType::Epsilon,
            0.01,
            0.7,
            0.3,
        ),
        (
            "l2_x0_elbo",
            LossKind::L2,
            PredictionType::Sample,
            0.5,
            0.7,
            0.3,
        ),
        (
            "l1_x0_elbo",
            LossKind::L1,
            PredictionType::Sample,
            0.5,
            0.7,
            0.3,
        ),
    ] {
        let config = DiffusionLossConfig {
            kind,
            prediction_type,
            l_simple_weight: simple * (-logvar).exp(),
            original_elbo_weight: elbo,
            min_snr_gamma: None,
        };
        let output = config.init(schedule()).unwrap().forward(
            tensors.get("model_output"),
            tensors.get("x0"),
            tensors.get("noise"),
            &times,
        );
        let loss = output.loss.into_scalar::<f32>() + (simple * logvar) as f32;
        let simple = output.per_item.mean().into_scalar::<f32>();
        for (what, value) in [("loss", loss), ("loss_simple", simple)] {
            let expected = tensors.values(&format!("{name}.{what}"))[0];
            let error = (value - expected).abs() / expected;
            assert!(error < 5e-5, "{name}.{what}: {value}, not {expected}");
        }
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
