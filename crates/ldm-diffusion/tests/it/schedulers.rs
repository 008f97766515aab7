//! Schedules and samplers against diffusers, on the fixtures' analytic model.

use std::{fs, ops::ControlFlow};

use crate::common::{Tensors, assert_close, fixture, json, values};
use burn::prelude::*;
use ldm_diffusion::{
    AlgorithmType, FinalSigma, PredictionType, SamplerKind, SchedulerConfig, SigmaConfig,
    SolverConfig, SolverType, TimestepSpacing, VarianceType,
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

/// One configuration of one of diffusers' classes.
struct Case {
    name: String,
    value: Value,
    config: SchedulerConfig,
}

impl Case {
    fn all() -> Vec<Self> {
        let cases = expected()["cases"].take();
        let case = |(name, value): (&String, &Value)| {
            let mut json = value["config"].clone();
            json["_class_name"] = value["scheduler_class"].clone();
            // The fixture's way to write an infinity.
            if json["lambda_min_clipped"] == "-inf" {
                json["lambda_min_clipped"] = Value::Null;
            }
            Self {
                name: name.clone(),
                value: value.clone(),
                config: config(&json),
            }
        };
        cases.as_object().unwrap().iter().map(case).collect()
    }

    fn sampler(&self, steps: usize) -> Box<dyn Sampler> {
        let eta = self.value["step_arguments"]["eta"].as_f64().unwrap_or(0.0);
        let kind = SamplerKind::for_config(&self.config).unwrap();
        kind.build(&self.config, steps, eta).unwrap()
    }

    /// Numbers that the fixture has for 10, 20 and 50 steps.
    fn of_steps<T: serde::de::DeserializeOwned>(&self, key: &str, steps: usize) -> T {
        serde_json::from_value(self.value[key][steps.to_string()].clone()).unwrap()
    }

    /// The fixture's model.
    fn model(&self, x: Tensor<4>, t: f64) -> Tensor<4> {
        let output = x.clone().mul_scalar(0.7) + x.clone().mul_scalar(3.0).sin() * 0.2;
        let output = output.add_scalar(0.001 * t);
        if self.config.variance_type == Some(VarianceType::LearnedRange) {
            Tensor::cat(vec![output, x.mul_scalar(2.0).sin()], 1)
        } else {
            output
        }
    }
}

#[test]
fn betas_and_alphas_match() {
    let tensors = tensors();
    for (tag, value) in expected()["schedules"].as_object().unwrap() {
        let mut config = config(value);
        // Only a noise prediction forbids zero terminal SNR.
        config.prediction_type = PredictionType::Velocity;
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
fn timesteps_and_levels_match() {
    let tensors = tensors();
    for case in Case::all() {
        for steps in [10, 20, 50] {
            let name = format!("{}, {steps} steps", case.name);
            let sampler = case.sampler(steps);
            let timesteps: Vec<f64> = case.of_steps("timesteps", steps);
            assert_eq!(sampler.timesteps().len(), timesteps.len(), "{name}");
            for (t, expected) in sampler.timesteps().iter().zip(timesteps) {
                // The reference finds fractional ones in f32.
                let tolerance = if expected.fract() == 0.0 { 0.0 } else { 2e-3 };
                let difference = (*t as f32 - expected as f32).abs();
                assert!(difference <= tolerance, "{name}: {t}, not {expected}");
            }
            let start: f64 = case.of_steps("init_noise_sigma", steps);
            assert!(
                (sampler.init_noise_sigma() / start - 1.0).abs() < 2e-5,
                "{name}"
            );

            // Noise over signal is what add_noise does with a zero and a one.
            let Some(sigmas) = case.of_steps::<Option<Vec<f64>>>("sigmas", steps) else {
                continue;
            };
            let zero = Tensor::<4>::zeros([1, 1, 1, 1], &Device::flex());
            let one = zero.ones_like();
            for (step, expected) in sigmas[..sampler.timesteps().len()].iter().enumerate() {
                let noise = values(sampler.add_noise(zero.clone(), one.clone(), step))[0];
                let signal = values(sampler.add_noise(one.clone(), zero.clone(), step))[0];
                let sigma = f64::from(noise / signal);
                assert!(
                    (sigma / expected - 1.0).abs() < 2e-5,
                    "{name}: {sigma}, not {expected}"
                );
            }
        }
        let probes: Vec<f64> =
            serde_json::from_value(case.value["probe_timesteps"].clone()).unwrap();
        let sampler = case.sampler(10);
        let noisy: Vec<f32> = (probes.iter().enumerate())
            .flat_map(|(item, probe)| {
                let step = (sampler.timesteps().iter())
                    .rposition(|t| (t - probe).abs() < 2e-3)
                    .unwrap();
                let item = |name: &str| tensors.get::<4>(name).narrow(0, item, 1);
                values(sampler.add_noise(item("in.x0"), item("in.noise"), step))
            })
            .collect();
        let name = format!("out.{}.add_noise", case.name);
        assert_close(&name, &noisy, tensors.values(&name), 1e-5);
    }
}

#[test]
fn velocities_match() {
    let tensors = tensors();
    let mut compared = 0;
    for case in Case::all() {
        let name = format!("out.{}.velocity", case.name);
        if !tensors.contains(&name) {
            continue;
        }
        let schedule = case.config.noise_schedule().unwrap();
        let times: Vec<usize> =
            serde_json::from_value(case.value["probe_timesteps"].clone()).unwrap();
        let (x0, noise) = (tensors.get("in.x0"), tensors.get("in.noise"));
        let velocity = values(schedule.velocity(x0, noise, &times));
        assert_close(&name, &velocity, tensors.values(&name), 2e-6);
        compared += 1;
    }
    assert_eq!(compared, 20);
}

#[test]
fn trajectories_match() {
    let tensors = tensors();
    let cases = Case::all();
    assert_eq!(cases.len(), 58);
    for case in &cases {
        for steps in [10, 20, 50] {
            assert_trajectory(case, steps, &tensors);
        }
    }
}

fn assert_trajectory(case: &Case, steps: usize, tensors: &Tensors) {
    let name = &case.name;
    let mut sampler = case.sampler(steps);
    let mut drawn = 0;
    let result = sample::<()>(
        sampler.as_mut(),
        tensors.get("in.x_T"),
        |x, t| case.model(x, t),
        |_| {
            drawn += 1;
            tensors.entry("in.noise_pool", drawn - 1)
        },
        |step| {
            if steps == 10 {
                let expected = values(tensors.entry(&format!("out.{name}.x"), step.index + 1));
                let what = format!("{name}, step {} of 10", step.index);
                assert_close(&what, &values(step.latents.clone()), &expected, 1e-4);
            }
            ControlFlow::Continue(())
        },
    );
    let expected_draws: usize = case.of_steps("noise_used", steps);
    assert_eq!(drawn, expected_draws, "{name}: noises drawn");
    if steps != 10 {
        let latents = values(result.continue_value().unwrap());
        let expected = tensors.values(&format!("out.{name}.final{steps}"));
        assert_close(&format!("{name}, {steps} steps"), &latents, expected, 1e-4);
    }
}

/// A sampler that is used again doesn't remember the first time.
#[test]
fn samplers_start_anew() {
    let tensors = tensors();
    for case in Case::all() {
        let mut sampler = case.sampler(10);
        let mut run = || {
            let result = sample::<()>(
                sampler.as_mut(),
                tensors.get("in.x_T"),
                |x, t| case.model(x, t),
                |step| tensors.entry("in.noise_pool", step),
                |_| ControlFlow::Continue(()),
            );
            values(result.continue_value().unwrap())
        };
        assert_eq!(run(), run(), "{}", case.name);
    }
}

/// From the exact noise as prediction every deterministic sampler gets the data back, wherever it starts.
#[test]
fn samplers_recover_the_data_from_any_level() {
    let tensors = tensors();
    let (x0, noise): (Tensor<4>, Tensor<4>) = (tensors.get("in.x0"), tensors.get("in.noise"));
    for kind in SamplerKind::ALL {
        if matches!(
            kind,
            SamplerKind::Ddpm
                | SamplerKind::EulerAncestral
                | SamplerKind::SdeDpmPlusPlus2M
                | SamplerKind::Lcm
        ) {
            continue;
        }
        for skip_prk_steps in [true, false] {
            let config = SchedulerConfig {
                skip_prk_steps: Some(skip_prk_steps),
                ..SchedulerConfig::latent(0.0015, 0.0195)
            };
            for (strength, run) in [(1.0, 20), (0.97, 19), (0.9, 18), (0.72, 14), (0.05, 1)] {
                let mut sampler = kind.build(&config, 20, 0.0).unwrap();
                assert_eq!(sampler.levels(), 20, "{kind}");
                let first = sampler.img2img_start(strength);
                assert_eq!(first, sampler.step_of_level(20 - run), "{kind}");
                let start = sampler.add_noise(x0.clone(), noise.clone(), first);
                let result = sample_from::<()>(
                    first,
                    sampler.as_mut(),
                    start,
                    |_, _| noise.clone(),
                    |_| unreachable!(),
                    |_| ControlFlow::Continue(()),
                );
                let recovered = values(result.continue_value().unwrap());
                assert_close(
                    &format!("{kind} from {first}"),
                    &recovered,
                    &values(x0.clone()),
                    1e-4,
                );
            }
            let sampler = kind.build(&config, 20, 0.0).unwrap();
            assert_eq!(sampler.img2img_start(0.0), sampler.timesteps().len());
        }
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
        timestep_spacing: Some(TimestepSpacing::Leading),
        steps_offset: 1,
        ..config.clone()
    };
    assert!(message(SamplerKind::Ddim.build(&shifted, 1000, 0.0)).contains("use fewer"));
    let all = SamplerKind::Ddpm.build(&shifted, 1000, 0.0).unwrap();
    assert_eq!(all.timesteps()[..2], [999.0, 998.0]);
    assert!(message(SamplerKind::Ddim.build(&config, 50, 1.5)).contains("`eta` is 1.5"));
    let third = |algorithm_type| SchedulerConfig {
        class_name: "DPMSolverMultistepScheduler".into(),
        solver: SolverConfig {
            solver_order: Some(3),
            algorithm_type,
            lambda_min_clipped: Some(100.0),
            ..SolverConfig::default()
        },
        ..config.clone()
    };
    let sde = third(Some(AlgorithmType::SdeDpm));
    let order = message(SamplerKind::SdeDpmPlusPlus2M.build(&sde, 20, 0.0));
    assert!(order.contains("`solver_order` is 3"), "{order}");
    let clipped = message(SamplerKind::DpmPlusPlus3M.build(&third(None), 20, 0.0));
    assert!(clipped.contains("`lambda_min_clipped`"), "{clipped}");
    assert!(message(SamplerKind::Lcm.build(&config, 51, 0.0)).contains("50"));
    assert!(message(SamplerKind::Plms.build(&config, 3, 0.0)).contains("`skip_prk_steps`"));
    let emptied = SchedulerConfig {
        rescale_betas_zero_snr: true,
        ..config.clone()
    };
    for kind in [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Lcm] {
        assert!(
            message(kind.build(&emptied, 20, 0.0)).contains("v_prediction"),
            "{kind}"
        );
    }
}

/// Where the last step leads to the level that it starts from, the reference divides 0 by 0.
#[test]
fn a_step_without_length_changes_nothing() {
    let tensors = tensors();
    let config = SchedulerConfig {
        sigmas: SigmaConfig {
            use_karras_sigmas: Some(true),
            final_sigmas_type: Some(FinalSigma::SigmaMin),
            ..SigmaConfig::default()
        },
        solver: SolverConfig {
            lower_order_final: Some(false),
            solver_type: Some(SolverType::Heun),
            // UniPC's last step would also correct the one before.
            disable_corrector: (0..20).collect(),
            ..SolverConfig::default()
        },
        ..SchedulerConfig::latent(0.0015, 0.0195)
    };
    for kind in [
        SamplerKind::DpmPlusPlus2M,
        SamplerKind::DpmPlusPlus3M,
        SamplerKind::SdeDpmPlusPlus2M,
        SamplerKind::UniPc,
    ] {
        let mut sampler = kind.build(&config, 20, 0.0).unwrap();
        let mut latents = Vec::new();
        let _ = sample::<()>(
            sampler.as_mut(),
            tensors.get("in.x_T"),
            |x, _| x.mul_scalar(0.7),
            |step| tensors.entry("in.noise_pool", step),
            |step| {
                latents.push(values(step.latents.clone()));
                ControlFlow::Continue(())
            },
        );
        assert_close(kind.name(), &latents[19], &latents[18], 1e-5);
    }
}

/// Algorithm 2 as it is written visits every training step, so models trained here must allow it.
#[test]
fn every_training_step_can_be_visited() {
    let config = SchedulerConfig::latent(0.0015, 0.0195);
    for kind in [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Euler] {
        let sampler = kind.build(&config, 1000, 0.0).unwrap();
        let expected: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(sampler.timesteps(), expected);
    }
}

#[test]
fn configs_survive_a_round_trip() {
    let mut paths = vec![
        fixture("diffusers/ldm-text2im/scheduler/scheduler_config.json"),
        fixture("diffusers/ldm-uncond/scheduler/scheduler_config.json"),
    ];
    for entry in fs::read_dir(fixture(&format!("{FOLDER}/configs"))).unwrap() {
        paths.push(entry.unwrap().path().join("scheduler_config.json"));
    }
    assert_eq!(paths.len(), 13);
    for path in paths {
        let text = fs::read_to_string(path).unwrap();
        let config = SchedulerConfig::from_json(&text).unwrap();
        assert!(SamplerKind::for_config(&config).is_some());
        let written: Value = serde_json::to_value(&config).unwrap();
        let original: Value = serde_json::from_str(&text.replace("-Infinity", "null")).unwrap();
        for (key, value) in written.as_object().unwrap() {
            assert_eq!(&original[key], value, "{key}");
        }
        assert_eq!(
            SchedulerConfig::from_json(&written.to_string()).unwrap(),
            config
        );
    }
}
