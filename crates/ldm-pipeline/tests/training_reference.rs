//! Losses, gradients, optimiser and averages against CompVis' code, on its class-conditional model, and against diffusers, on its
//! text-to-image model.

use std::{collections::BTreeMap, fs, path::PathBuf};

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    prelude::*,
    tensor::{Gradients, Int},
};
use ldm_pipeline::{
    autoencoder::{Stage1LossConfig, Stage1Objective},
    diffusion::{
        self, DiffusionLoss, DiffusionLossConfig, LossKind, PredictionType, UNet, UNetConfig,
    },
    ema::Ema,
    model::{Conditioner, Denoiser, FirstStage, LatentDiffusion},
    optim::AdamConfig,
    weights::{self, Tensors},
};

const UNET: &str = "model.diffusion_model.";
const EMBEDDING: &str = "cond_stage_model.embedding.weight";

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/compvis")
        .join(path)
}

struct Expected(Tensors);

impl Expected {
    fn open() -> Self {
        Self(weights::open(&fixture("training/expected.safetensors")).unwrap())
    }

    fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let data = self.0.data(name).unwrap().convert::<f32>();
        Tensor::from_data(data, &Device::flex())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.0.data(name).unwrap().iter::<f64>().collect()
    }

    fn indices(&self, name: &str) -> Vec<usize> {
        self.values(name)
            .into_iter()
            .map(|value| value as usize)
            .collect()
    }
}

fn reference_norms() -> serde_json::Value {
    let text = fs::read_to_string(fixture("training/grad_norms.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The model on a device that keeps gradients.
fn model() -> (Denoiser, UNetConfig, diffusion::SchedulerConfig) {
    let device = Device::flex().autodiff();
    let model = LatentDiffusion::load(&fixture("class-vq-f4/model.ckpt"), &device).unwrap();
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

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values
        .into_iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt()
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
    let expected = Expected::open();
    let reference = reference_norms();
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
        let output = predict(&denoiser, noisy, &timesteps, &classes);
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
    let expected = Expected::open();
    let reference = reference_norms();
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
        let noise: Tensor<4> = expected
            .get::<5>("adamw.noise")
            .narrow(0, step, 1)
            .squeeze_dim(0);
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
    let expected = Expected::open();
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

/// diffusers' text-to-image model, its expected values, and what its JSON says.
fn diffusers() -> (LatentDiffusion, Expected, serde_json::Value) {
    let folder = fixture("../diffusers");
    let device = Device::flex().autodiff();
    let model = LatentDiffusion::load(&folder.join("ldm-text2im"), &device).unwrap();
    let expected = Expected(weights::open(&folder.join("training/expected.safetensors")).unwrap());
    let text = fs::read_to_string(folder.join("training/expected.json")).unwrap();
    (model, expected, serde_json::from_str(&text).unwrap())
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn diffusers_adamw_and_averages() {
    let (model, expected, json) = diffusers();
    let json = &json["adamw"];
    let objective = DiffusionLossConfig::default()
        .init(model.configs.scheduler.noise_schedule().unwrap())
        .unwrap();
    let mut unet = model.denoiser.unet;
    let mut optimizer = AdamConfig {
        betas: numbers(&json["betas"]).try_into().unwrap(),
        eps: json["eps"].as_f64().unwrap(),
        weight_decay: json["weight_decay"].as_f64().unwrap(),
    }
    .init();
    let mut averages = ["ema", "ema_warmup"].map(|name| (name, unet.valid()));
    for (step, wanted) in numbers(&json["losses"]).into_iter().enumerate() {
        let timesteps: Vec<usize> = numbers(&json["timesteps"][step])
            .into_iter()
            .map(|t| t as usize)
            .collect();
        let [x0, noise] = ["in.adamw.x0", "in.adamw.noise"].map(|name| {
            expected
                .get::<5>(name)
                .narrow(0, step, 1)
                .squeeze_dim::<4>(0)
        });
        let noisy = objective
            .schedule()
            .add_noise(x0.clone(), noise.clone(), &timesteps);
        let floats: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let floats = Tensor::<1>::from_floats(floats.as_slice(), &noisy.device());
        let output = unet.forward(noisy, floats, Some(expected.get("in.context")));
        let loss = objective.forward(output, x0, noise, &timesteps).loss;
        let value = f64::from(loss.clone().into_scalar::<f32>());
        assert!(
            (value / wanted - 1.0).abs() < 1e-5,
            "step {step}: {value} instead of {wanted}"
        );
        let gradients = GradientsParams::from_grads(loss.backward(), &unet);
        unet = optimizer.step(json["lr"].as_f64().unwrap(), unet, gradients.into());
        for (name, average) in &mut averages {
            // So late that the ramp of ours is above any decay.
            let decay = numbers(&json["decays"][&*name])[step];
            let mut moving = Ema::resume(average.clone(), decay, u64::MAX / 2);
            moving.update(&unet);
            *average = moving.module().clone();
        }
    }
    let modules = [("adamw", unet.valid())].into_iter().chain(averages);
    for (name, module) in modules {
        let tensors = weights::collect(&module, diffusion::weights::KEY_MAP_OUT, false).unwrap();
        for parameter in [
            "conv_out.weight",
            "time_embedding.linear_1.weight",
            "up_blocks.1.attentions.0.norm.weight",
        ] {
            let found = tensors.data(parameter).unwrap();
            let wanted = expected.values(&format!("out.{name}.{parameter}"));
            let error =
                (found.iter::<f64>().zip(wanted)).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            println!("{name} {parameter}: {error:.1e}");
            assert!(error < 1e-5, "{name} {parameter}: {error:e}");
        }
    }
}

#[test]
fn diffusers_autoencoder_loss_and_gradients() {
    let (model, expected, json) = diffusers();
    let json = &json["vae"];
    let FirstStage::Kl(vae) = model.first_stage else {
        panic!("it has a KL autoencoder");
    };
    let images: Tensor<4> = expected.get("in.images");
    let noise: Tensor<4> = expected.get("in.posterior_noise");
    let relative = |name: &str, found: f64, wanted: f64| {
        println!("{name}: {:.1e}", (found / wanted - 1.0).abs());
        assert!(
            (found / wanted - 1.0).abs() < 1e-5,
            "{name}: {found} instead of {wanted}"
        );
    };
    let plain = vae.valid();
    let posterior = plain.encode(images.clone());
    for (found, wanted) in posterior
        .kl()
        .into_data()
        .iter::<f64>()
        .zip(numbers(&json["kl"]))
    {
        relative("kl", found, wanted);
    }
    let squares = (plain.decode(posterior.sample(noise.clone())) - images.clone()).square();
    relative(
        "l2",
        squares.sum().into_scalar::<f32>().into(),
        json["l2_sum"].as_f64().unwrap(),
    );

    let config = Stage1LossConfig {
        perceptual_weight: 0.0,
        disc_weight: 0.0,
        kl_weight: 1e-6,
        ..Stage1LossConfig::default()
    };
    let objective = Stage1Objective::new(config, None).unwrap();
    let mut step = objective.generator(&vae, None, images, noise, 0);
    relative(
        "total",
        step.terms.total.into(),
        json["total"].as_f64().unwrap(),
    );
    relative(
        "l1",
        step.terms.rec.into(),
        json["l1_mean"].as_f64().unwrap(),
    );

    let gradients = vae.clone().map(&mut TakeGradients(&mut step.grads));
    let tensors = weights::collect(
        &gradients,
        ldm_pipeline::autoencoder::weights::KEY_MAP_OUT,
        false,
    )
    .unwrap();
    let reference = json["gradient_norms"].as_object().unwrap();
    let largest = reference
        .values()
        .filter_map(|norm| norm.as_f64())
        .fold(0.0, f64::max);
    for (name, wanted) in reference {
        let wanted = wanted.as_f64().unwrap();
        let found = norm(tensors.data(name).unwrap().iter::<f64>());
        let allowed = 1e-3 * wanted + 1e-6 * largest;
        assert!(
            (found - wanted).abs() <= allowed,
            "{name}: {found} instead of {wanted}"
        );
    }
    println!("{} norms", reference.len());
}

/// As [`ToGradients`], for gradients by parameter.
struct TakeGradients<'a>(&'a mut GradientsParams);

impl ModuleMapper for TakeGradients<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.remove::<D>(param.id);
        param.map(|value| match gradient {
            Some(gradient) => gradient.inner(),
            None => value.inner().zeros_like(),
        })
    }
}
