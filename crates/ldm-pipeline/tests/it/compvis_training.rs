//! Losses, gradients, optimiser and averages against CompVis' code, on its class-conditional model.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    prelude::*,
    tensor::{Gradients, Int},
};
use ldm_pipeline::{
    diffusion::{
        self, DiffusionLoss, DiffusionLossConfig, LossKind, PredictionType, UNet, UNetConfig,
    },
    ema::Ema,
    model::{Conditioner, Denoiser, LatentDiffusion},
    optim::AdamConfig,
    weights,
};

use crate::common::{Expected, assert_close, fixture, json, norm};

const UNET: &str = "model.diffusion_model.";
const EMBEDDING: &str = "cond_stage_model.embedding.weight";

/// The model on a device that keeps gradients.
fn model() -> (Denoiser, UNetConfig, diffusion::SchedulerConfig) {
    let device = Device::flex().autodiff();
    let model = LatentDiffusion::load(&fixture("compvis/class-vq-f4/model.ckpt"), &device).unwrap();
    (model.denoiser, model.configs.unet, model.configs.scheduler)
}

fn predict(denoiser: &Denoiser, x: Tensor<4>, timesteps: &[usize], classes: &[usize]) -> Tensor<4> {
    let device = x.device();
    let Some(Conditioner::Class(embedder)) = &denoiser.conditioner else {
        panic!("the model has classes");
    };
    let ids: Vec<i64> = classes.iter().map(|&class| class as i64).collect();
    let context = embedder.forward(Tensor::<1, Int>::from_ints(ids.as_slice(), &device));
    let floats: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    let timesteps = Tensor::<1>::from_floats(floats.as_slice(), &device);
    denoiser.unet.forward(x, timesteps, Some(context))
}

/// Every tensor of the U-Net under CompVis' names.
fn unet_tensors(unet: &UNet, config: &UNetConfig, prefix: &str) -> BTreeMap<String, Vec<f64>> {
    let tensors = weights::collect(unet, diffusion::weights::KEY_MAP_OUT, false).unwrap();
    diffusion::compvis::compvis_keys(config, false)
        .into_iter()
        .map(|pair| {
            let values = tensors
                .data(&pair.diffusers)
                .unwrap()
                .iter::<f64>()
                .collect();
            (format!("{prefix}{}", pair.compvis), values)
        })
        .collect()
}

fn all_tensors(denoiser: &Denoiser, config: &UNetConfig) -> BTreeMap<String, Vec<f64>> {
    let mut tensors = unet_tensors(&denoiser.unet, config, UNET);
    if let Some(Conditioner::Class(embedder)) = &denoiser.conditioner {
        let values = embedder
            .embedding
            .weight
            .val()
            .into_data()
            .iter::<f64>()
            .collect();
        tensors.insert(EMBEDDING.into(), values);
    }
    tensors
}

/// Puts a parameter's gradient in its place.
struct ToGradients<'a>(&'a Gradients);

impl ModuleMapper for ToGradients<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| match value.grad(self.0) {
            Some(gradient) => gradient,
            None => value.inner().zeros_like(),
        })
    }
}

#[test]
fn losses_and_gradients_of_every_kind() {
    use {LossKind::*, PredictionType::*};
    let expected = Expected::open("compvis/training/expected.safetensors");
    let reference = json("compvis/training/grad_norms.json");
    let (denoiser, config, scheduler) = model();
    let [x0, noise] = ["x0", "noise"].map(|name| expected.get::<4>(name));
    let (timesteps, classes) = (expected.indices("t"), expected.indices("class_ids"));
    for (run, kind, prediction_type, original_elbo_weight, l_simple_weight, logvar_init) in [
        ("l2_eps", L2, Epsilon, 0.0, 1.0, 0.0),
        ("l1_eps", L1, Epsilon, 0.0, 1.0, 0.0),
        ("l2_eps_elbo", L2, Epsilon, 0.01, 0.7, 0.3),
        ("l1_eps_elbo", L1, Epsilon, 0.01, 0.7, 0.3),
        ("l2_x0_elbo", L2, Sample, 0.5, 0.7, 0.3),
        ("l1_x0_elbo", L1, Sample, 0.5, 0.7, 0.3),
        ("l2_eps_learn_logvar", L2, Epsilon, 0.01, 1.0, 0.0),
    ] {
        let objective: DiffusionLoss = DiffusionLossConfig {
            kind,
            prediction_type,
            original_elbo_weight,
            l_simple_weight,
            logvar_init,
            ..DiffusionLossConfig::default()
        }
        .init(scheduler.noise_schedule().unwrap())
        .unwrap();
        let noisy = objective
            .schedule()
            .add_noise(x0.clone(), noise.clone(), &timesteps);
        let output = predict(&denoiser, noisy.clone(), &timesteps, &classes);
        for (name, found) in [("x_noisy", noisy), ("model_output", output.clone().inner())] {
            assert_close(name, found, expected.get(name), 5e-5);
        }
        let logvar = (run == "l2_eps_learn_logvar")
            .then(|| expected.get::<1>("logvar").autodiff().require_grad());
        let (x0, noise) = (x0.clone(), noise.clone());
        let result = match &logvar {
            Some(logvar) => {
                objective.forward_with_logvar(output, x0, noise, &timesteps, logvar.clone())
            }
            None => objective.forward(output, x0, noise, &timesteps),
        };
        let value = f64::from(result.loss.clone().into_scalar::<f32>());
        let wanted = expected.values(&format!("{run}.loss"))[0];
        assert!(
            (value / wanted - 1.0).abs() < 5e-5,
            "{run}: {value} instead of {wanted}"
        );

        let gradients = result.loss.backward();
        let mut norms: BTreeMap<String, f64> =
            all_tensors(&denoiser.clone().map(&mut ToGradients(&gradients)), &config)
                .into_iter()
                .map(|(name, values)| (name, norm(values)))
                .collect();
        if let Some(gradient) = logvar.and_then(|logvar| logvar.grad(&gradients)) {
            norms.insert("logvar".into(), norm(gradient.into_data().iter::<f64>()));
        }
        let reference = reference[run].as_object().unwrap();
        let largest = reference
            .values()
            .filter_map(|norm| norm.as_f64())
            .fold(0.0, f64::max);
        let mut worst = 0f64;
        for (name, wanted) in reference {
            let (found, wanted) = (norms[name], wanted.as_f64().unwrap());
            let allowed = 5e-3 * wanted + 1e-4 * largest;
            worst = worst.max((found - wanted).abs() / allowed);
            assert!(
                (found - wanted).abs() <= allowed,
                "{run} {name}: {found} instead of {wanted}"
            );
        }
        println!(
            "{run}: {} norms, {worst:.1e} of the tolerance",
            reference.len()
        );
    }
}

#[test]
fn three_steps_of_adamw_and_the_average() {
    let expected = Expected::open("compvis/training/expected.safetensors");
    let reference = json("compvis/training/grad_norms.json");
    let (mut denoiser, config, scheduler) = model();
    let objective = DiffusionLossConfig::default()
        .init(scheduler.noise_schedule().unwrap())
        .unwrap();
    let classes = expected.indices("class_ids");
    let x0: Tensor<4> = expected.get("x0");
    let before = all_tensors(&denoiser, &config);
    let mut optimizer = AdamConfig {
        weight_decay: 0.01,
        ..AdamConfig::adam_w()
    }
    .init();
    let mut average = Ema::new(&denoiser.unet, 0.9999);
    for step in 0..3 {
        let timesteps = expected.indices("adamw.t")[4 * step..][..4].to_vec();
        let noise = expected.entry("adamw.noise", step);
        let noisy = objective
            .schedule()
            .add_noise(x0.clone(), noise.clone(), &timesteps);
        let output = predict(&denoiser, noisy, &timesteps, &classes);
        let loss = objective
            .forward(output, x0.clone(), noise, &timesteps)
            .loss;
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let wanted = expected.values("adamw.loss")[step];
        assert!(
            (value / wanted - 1.0).abs() < 5e-5,
            "step {step}: {value} instead of {wanted}"
        );
        let gradients = GradientsParams::from_grads(loss.backward(), &denoiser);
        denoiser = optimizer.step(1e-4, denoiser, gradients.into());
        average.update(&denoiser.unet);
    }

    let after = all_tensors(&denoiser, &config);
    let averaged = unet_tensors(average.module(), &config, "diffusion_model.");
    let close = |name: &str, found: &[f64], wanted: Vec<f64>| {
        let largest = wanted.iter().fold(0f64, |m, v| m.max(v.abs()));
        let error =
            (found.iter().zip(&wanted)).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
        println!("{name}: {error:.1e}");
        assert!(error < 5e-5, "{name}: {error:e}");
    };
    let name = "model.diffusion_model.out.2.weight";
    close(
        name,
        &after[name],
        expected.values(&format!("adamw.final.{name}")),
    );
    close(
        "average",
        &averaged["diffusion_model.out.2.weight"],
        expected.values("adamw.final.model_ema.diffusion_modelout2weight"),
    );

    let moved = |kind: &str, now: &BTreeMap<String, Vec<f64>>, start: &dyn Fn(&str) -> String| {
        let mut worst = 0f64;
        for (name, wanted) in reference[kind].as_object().unwrap() {
            let wanted = wanted.as_f64().unwrap();
            let from = &before[&start(name)];
            let found = norm(now[name].iter().zip(from).map(|(a, b)| a - b));
            worst = worst.max((found / wanted - 1.0).abs());
            assert!(
                (found / wanted - 1.0).abs() < 5e-3,
                "{kind} {name}: {found} instead of {wanted}"
            );
        }
        println!("{kind}: {worst:.1e}");
    };
    moved("adamw.param_delta", &after, &str::to_owned);
    moved("adamw.ema_delta", &averaged, &|name| {
        format!("model.{name}")
    });
}

/// A module of one parameter; an average knows no more of a module than its parameters.
#[derive(Module, Debug)]
struct Toy {
    parameter: Param<Tensor<1>>,
}

#[test]
fn the_average_alone_from_its_start_and_late() {
    let expected = Expected::open("compvis/training/expected.safetensors");
    for tensor in [
        "body.0.bias",
        "body.0.weight",
        "body.1.bias",
        "body.1.weight",
        "head.bias",
        "head.weight",
    ] {
        let short = tensor.replace('.', "");
        let module = |step: usize, id: Option<burn::module::ParamId>| {
            let values = expected.values(&format!("ema.step{step}.{tensor}"));
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            let value = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
            let parameter = match id {
                Some(id) => Param::initialized(id, value),
                None => Param::from_tensor(value),
            };
            Toy { parameter }
        };
        let start = module(0, None);
        let id = start.parameter.id;
        for (run, updates) in [("ema_fresh", 0), ("ema_late", 500_000)] {
            let mut average = Ema::resume(start.clone(), 0.9999, updates);
            for step in 1..=3 {
                average.update(&module(step, Some(id)));
                let found: Vec<f64> = average
                    .module()
                    .parameter
                    .val()
                    .into_data()
                    .iter::<f64>()
                    .collect();
                let wanted = expected.values(&format!("{run}.after{step}.{short}"));
                let largest = wanted.iter().fold(0f64, |m, v| m.max(v.abs()));
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert!(
                        (found - wanted).abs() <= 5e-5 * largest,
                        "{run} {tensor} {step}"
                    );
                }
            }
        }
    }
}
