//! Losses, gradients, optimiser and averages against diffusers, on its text-to-image model.

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    prelude::*,
};
use ldm_pipeline::{
    autoencoder::{self, Stage1LossConfig, Stage1Objective},
    diffusion::{self, DiffusionLossConfig},
    ema::{Ema, EmaDecay, EmaWarmup, EmaWarmupKind},
    model::{FirstStage, LatentDiffusion},
    optim::AdamConfig,
    weights,
};

use crate::common::{Expected, fixture, json, norm};

/// diffusers' text-to-image model, its expected values, and what its JSON says.
fn model() -> (LatentDiffusion, Expected, serde_json::Value) {
    let device = Device::flex().autodiff();
    let model = LatentDiffusion::load(&fixture("diffusers/ldm-text2im"), &device).unwrap();
    let expected = Expected::open("diffusers/training/expected.safetensors");
    (model, expected, json("diffusers/training/expected.json"))
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn adamw_and_averages() {
    let (model, expected, json) = model();
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
    let mut averages = [
        ("ema", EmaWarmupKind::Diffusers),
        ("ema_warmup", EmaWarmupKind::Power),
    ]
    .map(|(name, kind)| {
        let warmup = EmaWarmup {
            kind,
            ..EmaWarmup::default()
        };
        (
            name,
            Ema::new(
                &unet,
                EmaDecay {
                    max: 0.9999,
                    warmup,
                },
            ),
        )
    });
    for (step, wanted) in numbers(&json["losses"]).into_iter().enumerate() {
        let timesteps: Vec<usize> = numbers(&json["timesteps"][step])
            .into_iter()
            .map(|t| t as usize)
            .collect();
        let [x0, noise] = ["in.adamw.x0", "in.adamw.noise"].map(|name| expected.entry(name, step));
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
            average.update(&unet);
            let decay = numbers(&json["decays"][&*name])[step];
            let found = average.decay_at(average.updates());
            assert!((found - decay).abs() < 1e-12, "{name}: {found} for {decay}");
        }
    }
    let averages = averages.map(|(name, average)| (name, average.module().clone()));
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
fn autoencoder_loss_and_gradients() {
    let (model, expected, json) = model();
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
    let tensors = weights::collect(&gradients, autoencoder::weights::KEY_MAP_OUT, false).unwrap();
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

/// Puts a parameter's gradient in its place.
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
