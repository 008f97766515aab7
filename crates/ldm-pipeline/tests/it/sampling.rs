//! Whole trajectories of CompVis' and diffusers' samplers over their own networks, with the noise that they drew.

use std::ops::ControlFlow;

use burn::prelude::*;
use ldm_pipeline::{
    diffusion::{Guidance, SamplerKind, UNet, samplers},
    generate::{Blend, Condition, Drawn, Noise, NoiseKey, Request},
    model::{LatentDiffusion, ModelFiles},
    weights::{self, LoadOptions},
};

use crate::common::{Expected, assert_close, fixture, json};

/// Largest error of a trajectory's state, in units of the reference's largest absolute value. The fixtures allow 1e-3; the reference's own
/// error in f32 is 7e-5, since a prediction of x0 at an early step has that of the U-Net many times over.
const TRAJECTORY: f32 = 3e-4;
const FIRST_STAGE: f32 = 2e-4;

/// What the U-Net of a case sees beside the latents.
struct Network<'a> {
    unet: &'a UNet,
    guidance: Option<Guidance>,
    channels: Option<Tensor<4>>,
}

impl Network<'_> {
    fn new<'a>(unet: &'a UNet, expected: &Expected) -> Network<'a> {
        let context = |names: [&str; 2], scale| {
            let [with, without] = names.map(|name| expected.get::<3>(name).narrow(0, 0, 2));
            Guidance::new(without, with, scale)
        };
        Network {
            unet,
            guidance: if expected.has("cond.context") {
                Some(context(["cond.context", "cond.uncond_context"], 3.0))
            } else if expected.has("text.embedding") {
                Some(context(["text.embedding", "text.uncond_embedding"], 5.0))
            } else {
                None
            },
            channels: expected
                .has("cond.rescaled")
                .then(|| expected.get("cond.rescaled")),
        }
    }

    fn predict(&self, x: Tensor<4>, timestep: f64) -> Tensor<4> {
        let call = |x: Tensor<4>, context| {
            let timesteps = Tensor::<1>::full([x.dims()[0]], timestep, &x.device());
            self.unet.forward(x, timesteps, context)
        };
        match (&self.guidance, &self.channels) {
            (Some(guidance), _) => guidance.predict(x, |x, context| call(x, Some(context))),
            (None, Some(channels)) => call(Tensor::cat(vec![x, channels.clone()], 1), None),
            (None, None) => call(x, None),
        }
    }
}

/// Latents and predicted clean latents after every call of the model.
fn trajectory(
    model: &LatentDiffusion,
    expected: &Expected,
    (kind, steps, eta): (SamplerKind, usize, f64),
    noise: impl FnMut(usize) -> Tensor<4>,
) -> Vec<(Tensor<4>, Tensor<4>)> {
    let network = Network::new(&model.denoiser.unet, expected);
    let mut sampler = kind.build(&model.configs.scheduler, steps, eta).unwrap();
    let mut states = Vec::new();
    let _ = samplers::sample(
        sampler.as_mut(),
        expected.get("x_T"),
        |x, timestep| network.predict(x, timestep),
        noise,
        |info| {
            states.push((info.latents.clone(), info.denoised.clone()));
            ControlFlow::<()>::Continue(())
        },
    );
    states
}

#[test]
fn compvis_trajectories() {
    let device = Device::flex();
    for case in [
        "uncond-vq-f4",
        "uncond-kl",
        "class-vq-f4",
        "semantic-vq-f4",
        "text-kl-f8",
    ] {
        let expected = Expected::open(&format!("compvis/{case}/expected.safetensors"));
        let path = fixture(&format!("compvis/{case}/model.ckpt"));
        let model = LatentDiffusion::load(&path, &device).unwrap();
        let no_noise = |_| panic!("a deterministic sampler draws noise");

        let ddim = trajectory(&model, &expected, (SamplerKind::Ddim, 20, 0.0), no_noise);
        let plms = trajectory(&model, &expected, (SamplerKind::Plms, 20, 0.0), no_noise);
        assert_eq!(
            [ddim.len(), plms.len()],
            [20, 21],
            "PLMS calls the model twice for its first step"
        );
        let thirty = SamplerKind::Ddim
            .build(&model.configs.scheduler, 30, 0.0)
            .unwrap();
        assert_eq!(thirty.timesteps().len(), 31, "the original fills the range");
        // The reference keeps the states after these steps, beside the start.
        for (entry, step) in [0, 4, 9, 14, 19].into_iter().enumerate() {
            for (name, (x, x0)) in [("ddim20", &ddim[step]), ("plms20", &plms[step + 1])] {
                for (kind, found) in [("x_inter", x), ("pred_x0", x0)] {
                    let expected = expected.entry(&format!("{name}.{kind}"), entry + 1);
                    let what = format!("{case} {name}.{kind} step {step}");
                    assert_close(&what, found.clone(), expected, TRAJECTORY);
                }
            }
        }
        assert_close(
            &format!("{case} decoded"),
            model.decode(ddim[19].0.clone(), None),
            expected.get("ddim20.decoded"),
            FIRST_STAGE,
        );

        let noise = |step| expected.entry("ddim10_eta1.noise", step);
        let random = trajectory(&model, &expected, (SamplerKind::Ddim, 10, 1.0), noise);
        for (entry, step) in [0, 4, 9].into_iter().enumerate() {
            let expected = expected.entry("ddim10_eta1.x_inter", entry + 1);
            let what = format!("{case} ddim10_eta1 step {step}");
            assert_close(&what, random[step].0.clone(), expected, TRAJECTORY);
        }
    }
}

/// One step of algorithm 2 at several timesteps, over the weights that aren't averaged.
#[test]
fn compvis_ancestral_steps() {
    let device = Device::flex();
    for case in ["uncond-vq-f4", "uncond-kl"] {
        let expected = Expected::open(&format!("compvis/{case}/expected.safetensors"));
        let path = fixture(&format!("compvis/{case}/model.ckpt"));
        let configs = ModelFiles::open(&path, None).unwrap().configs;
        let keys = ldm_pipeline::diffusion::compvis::compvis_keys(&configs.unet, false);
        let raw = weights::open(&path).unwrap();
        let raw = weights::from_compvis(&raw, "model.diffusion_model.", &keys).unwrap();
        let options = LoadOptions {
            key_map: ldm_pipeline::diffusion::weights::KEY_MAP,
            skip: &[],
        };
        let (unet, _) = weights::load_from(configs.unet.init(&device), &raw, &options).unwrap();

        let mut sampler = SamplerKind::Ddpm
            .build(&configs.scheduler, 1000, 0.0)
            .unwrap();
        for (entry, timestep) in [999, 500, 1, 0].into_iter().enumerate() {
            let x: Tensor<4> = expected.get("unet.x");
            let step = 999 - timestep;
            assert_eq!(sampler.timesteps()[step], timestep as f64);
            let timesteps = Tensor::<1>::full([x.dims()[0]], timestep as f64, &device);
            let output = unet.forward(x.clone(), timesteps, None);
            let mut noise = |_| expected.entry("ddpm_step.noise", entry);
            let found = sampler.step(step, output, x, &mut noise).latents;
            let expected = expected.entry("ddpm_step.out", entry);
            assert_close(
                &format!("{case} ddpm_step {timestep}"),
                found,
                expected,
                TRAJECTORY,
            );
        }
    }
}

#[test]
fn diffusers_image_to_image() {
    let device = Device::flex();
    let expected = Expected::open("diffusers/ldm-text2im/expected.safetensors");
    let model = LatentDiffusion::load(&fixture("diffusers/ldm-text2im"), &device).unwrap();
    let json = json("diffusers/ldm-text2im/expected.json");
    let spec = &json["spec"];
    let (steps, strength) = (
        spec["steps"].as_u64().unwrap(),
        spec["strength"].as_f64().unwrap(),
    );

    let scale = model.configs.first_stage.scaling_factor();
    let clean = model
        .first_stage
        .encode(expected.get("in.image"))
        .mode()
        .mul_scalar(scale);
    assert_close(
        "img2img.clean",
        clean.clone(),
        expected.get("out.img2img.clean"),
        FIRST_STAGE,
    );
    let mut sampler = SamplerKind::Ddim
        .build(&model.configs.scheduler, steps as usize, 0.0)
        .unwrap();
    let first = sampler.img2img_start(strength);
    assert_eq!(
        Some(sampler.timesteps()[first]),
        json["img2img_start_timestep"].as_f64()
    );
    let noisy = sampler.add_noise(clean, expected.get("in.img2img.noise"), first);
    assert_close(
        "img2img.noisy",
        noisy.clone(),
        expected.get("out.img2img.noisy"),
        TRAJECTORY,
    );

    let embeddings: Tensor<3> = expected.get("out.text.embeddings");
    let guidance = Guidance::new(
        embeddings.clone().narrow(0, 1, 1),
        embeddings.narrow(0, 0, 1),
        spec["guidance"].as_f64().unwrap(),
    );
    let unet = &model.denoiser.unet;
    let result = samplers::sample_from(
        first,
        sampler.as_mut(),
        noisy,
        |x, timestep| {
            guidance.predict(x, |x, context| {
                let timesteps = Tensor::<1>::full([x.dims()[0]], timestep, &x.device());
                unet.forward(x, timesteps, Some(context))
            })
        },
        |_| panic!("eta is 0"),
        |_| ControlFlow::<()>::Continue(()),
    );
    let ControlFlow::Continue(latents) = result else {
        unreachable!("nothing stops it");
    };
    assert_close(
        "img2img.final",
        latents.clone(),
        expected.get("out.img2img.final"),
        TRAJECTORY,
    );
    let image = model
        .decode(latents, None)
        .div_scalar(2.0)
        .add_scalar(0.5)
        .clamp(0.0, 1.0);
    assert_close(
        "img2img.image",
        image,
        expected.get("out.img2img.image"),
        FIRST_STAGE,
    );
}

#[test]
fn requests_whose_parts_do_not_fit_together() {
    let path = fixture("compvis/text-kl-f8/model.ckpt");
    let model = LatentDiffusion::load(&path, &Device::flex()).unwrap();
    let prompt = |text: &str| Condition::Prompt(text.into());
    let between = |from, to, share| Condition::Between(Box::new(Blend { from, to, share }));
    let problem = |conditions: Vec<Condition>, noise: Vec<Noise>| {
        let request = Request {
            conditions,
            noise,
            steps: 1,
            ..Request::default()
        };
        model.check(&request).err().map(|error| error.to_string())
    };
    let noise = Noise::Of(NoiseKey { seed: 1, index: 0 });
    assert_eq!(problem(vec![prompt("a"); 2], vec![noise; 2]), None);
    for (conditions, noise, expected) in [
        (vec![prompt("a"); 2], vec![noise], "noise for 1 images"),
        (
            vec![between(prompt("a"), Condition::Class(1), 0.5)],
            Vec::new(),
            "two prompts or two classes",
        ),
        (
            vec![between(Condition::Class(0), Condition::Class(1), 0.5)],
            Vec::new(),
            "a prompt",
        ),
        (
            vec![between(prompt("a"), prompt("b"), 1.5)],
            Vec::new(),
            "share of 1.5",
        ),
        (
            vec![between(prompt("a"), prompt("b"), f64::NAN)],
            Vec::new(),
            "share of NaN",
        ),
    ] {
        let problem = problem(conditions, noise).expect(expected);
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn classes_that_are_no_contexts_are_not_mixed() {
    let path = fixture("compvis/class-vq-f4/model.ckpt");
    let mut model = LatentDiffusion::load(&path, &Device::flex()).unwrap();
    let [from, to] = [0, 1].map(Condition::Class);
    let request = Request {
        conditions: vec![Condition::Between(Box::new(Blend {
            from,
            to,
            share: 0.5,
        }))],
        ..Request::default()
    };
    model.check(&request).unwrap();
    // A network that adds the class to the timestep, as those of pixels do.
    model.configs.conditioner = None;
    model.configs.unet.num_class_embeds = Some(3);
    let error = model.check(&request).unwrap_err().to_string();
    assert!(error.contains("mixed"), "{error}");
}

#[test]
fn the_pictures_of_the_way_are_counted_beforehand() {
    let path = fixture("compvis/text-kl-f8/model.ckpt");
    let model = LatentDiffusion::load(&path, &Device::flex()).unwrap();
    let mut request = Request {
        conditions: vec![Condition::Prompt("a".into())],
        steps: 4,
        ..Request::default()
    };
    assert_eq!(model.frame_count(&request).unwrap(), 0);
    // Heun's method calls the network twice a step, but once in the last.
    for (sampler, every, expected) in [
        (SamplerKind::Ddim, 1, 4),
        (SamplerKind::Ddim, 3, 2),
        (SamplerKind::Ddim, 4, 1),
        (SamplerKind::Heun, 1, 7),
        (SamplerKind::Heun, 2, 4),
    ] {
        (request.sampler, request.frames_every) = (sampler, Some(every));
        assert_eq!(model.frame_count(&request).unwrap(), expected);
        let proceed = |_| ControlFlow::Continue(());
        let on_batch = |drawn: Drawn| {
            assert_eq!(drawn.frames.len(), expected, "{sampler:?}, {every}");
            Ok(())
        };
        model.generate_batches(&request, proceed, on_batch).unwrap();
    }
}
