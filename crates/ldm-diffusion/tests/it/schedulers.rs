//! Schedules and samplers against diffusers, on the fixtures' analytic model.

use std::{fs, ops::ControlFlow};

use crate::common::{Tensors, assert_close, fixture, json, values};
use burn::prelude::*;
use ldm_diffusion::{
    SamplerKind, SchedulerConfig, TimestepSpacing, VarianceType,
    samplers::{Sampler, sample, sample_from},
};
use serde_json::Value;

const FOLDER: &str = "diffusers/schedulers";

fn tensors() -> Tensors {
    Tensors::read(&format!("{FOLDER}/expected.safetensors"), &Device::flex())
}

fn expected() -> Value {
    json(&format!("{FOLDER}/expected.json"))
}

fn config(value: &Value) -> SchedulerConfig {
    SchedulerConfig::from_json(&value.to_string()).unwrap()
}

fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

#[test]
fn betas_and_alphas_match() {
    let tensors = tensors();
    for (tag, value) in expected()["schedules"].as_object().unwrap() {
        let mut config = config(value);
        // Only a noise prediction forbids zero terminal SNR.
        config.prediction_type = ldm_diffusion::PredictionType::Velocity;
        let schedule = config.noise_schedule().unwrap();
        let name = format!("out.betas.{tag}");
        // At the end of the rescaled schedule diffusers divides f32 numbers that rounding has nearly used up.
        let tolerance = if config.rescale_betas_zero_snr {
            2e-5
        } else {
            1e-7
        };
        assert_close(
            &name,
            &f32s(schedule.betas()),
            tensors.values(&name),
            tolerance,
        );
        let name = format!("out.alphas_cumprod.{tag}");
        assert_close(
            &name,
            &f32s(schedule.alphas_cumprod()),
            tensors.values(&name),
            2e-6,
        );
    }
}

#[test]
fn noising_and_velocity_match() {
    let tensors = tensors();
    for (name, case) in expected()["cases"].as_object().unwrap() {
        let schedule = config(&case["config"]).noise_schedule().unwrap();
        let times: Vec<usize> = serde_json::from_value(case["probe_timesteps"].clone()).unwrap();
        let (x0, noise) = (tensors.get("in.x0"), tensors.get("in.noise"));
        let noisy = schedule.add_noise(x0, noise, &times);
        let expected = format!("out.{name}.add_noise");
        assert_close(&expected, &values(noisy), tensors.values(&expected), 2e-6);
        let (x0, noise) = (tensors.get("in.x0"), tensors.get("in.noise"));
        let velocity = schedule.velocity(x0, noise, &times);
        let expected = format!("out.{name}.velocity");
        assert_close(
            &expected,
            &values(velocity),
            tensors.values(&expected),
            2e-6,
        );
    }
}

#[test]
fn trajectories_match() {
    let tensors = tensors();
    let mut covered = 0;
    for (name, case) in expected()["cases"].as_object().unwrap() {
        for steps in [10, 20, 50] {
            assert_trajectory(name, case, steps, &tensors);
        }
        covered += 1;
    }
    assert_eq!(covered, 18);
}

fn assert_trajectory(name: &str, case: &Value, steps: usize, tensors: &Tensors) {
    let config = config(&case["config"]);
    let kind = match case["scheduler_class"].as_str().unwrap() {
        "DDIMScheduler" => SamplerKind::Ddim,
        "DDPMScheduler" => SamplerKind::Ddpm,
        other => panic!("{other} has no sampler"),
    };
    let eta = case["step_arguments"]["eta"].as_f64().unwrap_or(0.0);
    let mut sampler = kind.build(&config, steps, eta).unwrap();
    let timesteps: Vec<f64> =
        serde_json::from_value(case["timesteps"][steps.to_string()].clone()).unwrap();
    assert_eq!(sampler.timesteps(), timesteps, "{name}");

    let mut drawn = 0;
    let result = sample::<()>(
        sampler.as_mut(),
        tensors.get("in.x_T"),
        |x, t| {
            let output = x.clone().mul_scalar(0.7) + x.clone().mul_scalar(3.0).sin() * 0.2;
            let output = output.add_scalar(0.001 * t);
            match config.variance_type {
                Some(VarianceType::LearnedRange) => {
                    Tensor::cat(vec![output, x.mul_scalar(2.0).sin()], 1)
                }
                _ => output,
            }
        },
        |step| {
            drawn += 1;
            tensors.entry("in.noise_pool", step)
        },
        |step| {
            // Entries 0, 1 and 2 are the latents after steps 1, 5 and 10.
            let kept = [1, 5, 10].iter().position(|kept| *kept == step.index + 1);
            if let (10, Some(entry)) = (steps, kept) {
                let expected = values(tensors.entry(&format!("out.{name}.x"), entry));
                let what = format!("{name}, step {} of {steps}", step.index + 1);
                assert_close(&what, &values(step.latents.clone()), &expected, 1e-4);
            }
            ControlFlow::Continue(())
        },
    );
    assert_eq!(
        drawn,
        case["noise_used"][steps.to_string()],
        "{name}: noises drawn"
    );
    if steps != 10 {
        let latents = values(result.continue_value().unwrap());
        let expected = tensors.values(&format!("out.{name}.final{steps}"));
        assert_close(&format!("{name}, {steps} steps"), &latents, expected, 1e-4);
    }
}

/// With the exact noise as prediction, every deterministic step lies on the line from noise to data.
#[test]
fn ddim_recovers_the_data_from_exact_noise() {
    let tensors = tensors();
    let (x0, noise): (Tensor<4>, Tensor<4>) = (tensors.get("in.x0"), tensors.get("in.noise"));
    let config = SchedulerConfig::latent(0.0015, 0.0195);
    for first_step in [0, 6, 13] {
        let mut sampler = SamplerKind::Ddim.build(&config, 20, 0.0).unwrap();
        let start = sampler.add_noise(x0.clone(), noise.clone(), first_step);
        let mut calls = 0;
        let result = sample_from::<()>(
            first_step,
            sampler.as_mut(),
            start,
            |_, _| {
                calls += 1;
                noise.clone()
            },
            |_| unreachable!(),
            |step| {
                assert_close(
                    "denoised",
                    &values(step.denoised.clone()),
                    &values(x0.clone()),
                    1e-4,
                );
                ControlFlow::Continue(())
            },
        );
        let recovered = values(result.continue_value().unwrap());
        assert_close("recovered", &recovered, &values(x0.clone()), 1e-4);
        assert_eq!(calls, 20 - first_step);
    }
}

#[test]
fn the_caller_may_stop_and_may_replace_the_latents() {
    let config = SchedulerConfig::latent(0.0015, 0.0195);
    let mut sampler = SamplerKind::Ddpm.build(&config, 10, 0.0).unwrap();
    let zeros = Tensor::<4>::zeros([1, 1, 2, 2], &Device::flex());
    let mut seen = Vec::new();
    let result = sample(
        sampler.as_mut(),
        zeros.clone(),
        |x, _| {
            seen.push(values(x.clone())[0]);
            x
        },
        |_| zeros.clone(),
        |step| {
            assert_eq!(step.total, 10);
            *step.latents = zeros.clone().add_scalar(7.0);
            if step.index == 3 {
                ControlFlow::Break(step.timestep)
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert_eq!(result.break_value(), Some(699.0));
    assert_eq!(seen, [0.0, 7.0, 7.0, 7.0]);
}

#[test]
fn wrong_requests_are_named() {
    let config = SchedulerConfig::latent(0.0015, 0.0195);
    let message = |result: Result<Box<dyn Sampler>, ldm_diffusion::Error>| match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(message(SamplerKind::Ddim.build(&config, 0, 0.0)).contains("`steps` is 0"));
    assert!(message(SamplerKind::Ddim.build(&config, 1001, 0.0)).contains("`steps` is 1001"));
    let shifted = SchedulerConfig {
        timestep_spacing: TimestepSpacing::Leading,
        steps_offset: 1,
        ..config.clone()
    };
    assert!(message(SamplerKind::Ddpm.build(&shifted, 1000, 0.0)).contains("use fewer"));
    assert!(message(SamplerKind::Ddim.build(&config, 50, 1.5)).contains("`eta` is 1.5"));
    let unknown = "dpmm".parse::<SamplerKind>().unwrap_err().to_string();
    assert!(unknown.contains("ddpm, ddim"), "{unknown}");
    for kind in SamplerKind::ALL {
        assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
    }
}

/// Algorithm 2 as it is written visits every training step, so models trained here must allow it.
#[test]
fn every_training_step_can_be_visited() {
    let config = SchedulerConfig::latent(0.0015, 0.0195);
    for kind in SamplerKind::ALL {
        let sampler = kind.build(&config, 1000, 0.0).unwrap();
        let expected: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(sampler.timesteps(), expected);
    }
}

#[test]
fn configs_survive_a_round_trip() {
    for path in ["ldm-text2im", "ldm-uncond"] {
        let path = fixture(&format!("diffusers/{path}/scheduler/scheduler_config.json"));
        let text = fs::read_to_string(path).unwrap();
        let config = SchedulerConfig::from_json(&text).unwrap();
        let written: Value = serde_json::to_value(&config).unwrap();
        let original: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in written.as_object().unwrap() {
            assert_eq!(&original[key], value, "{key}");
        }
    }
}
