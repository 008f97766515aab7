//! The U-Net against diffusers: outputs, gradients, names of the weights.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::common::{
    Tensors, assert_close, assert_relative, fixture, floats, json, load_bytes, load_unet,
    safetensors_bytes, values,
};
use burn::{
    module::{ModuleVisitor, Param},
    prelude::*,
    tensor::Gradients,
};
use burn_store::{BurnToPyTorchAdapter, KeyRemapper, ModuleSnapshot, SafetensorsStore};
use ldm_diffusion::{
    DiffusionLossConfig, Guidance, PredictionType, SchedulerConfig, UNet, UNetConfig,
    samplers::{Ddim, sample},
    unet::SpatialAttention,
    weights,
};
use safetensors::SafeTensors;

const ONE_FORWARD: f32 = 3e-5;
const TRAJECTORY: f32 = 1e-4;

fn timesteps(values: &[f32]) -> Tensor<1> {
    Tensor::from_floats(values, &Device::flex())
}

#[test]
fn text_to_image_unet_matches() {
    let device = Device::flex();
    let unet = load_unet("ldm-text2im", &device);
    let tensors = Tensors::read("diffusers/ldm-text2im/expected.safetensors", &device);
    let context: Tensor<3> = tensors.get("in.unet.context");
    for (input, times, output) in [
        ("in.unet.sample", &[1.0, 1.0][..], "out.unet.t1"),
        ("in.unet.sample", &[500.0, 500.0], "out.unet.t500"),
        ("in.unet.sample", &[981.0, 981.0], "out.unet.t981"),
        ("in.unet.sample", &[1.0, 981.0], "out.unet.t_mixed"),
        ("in.unet.sample_wide", &[500.0], "out.unet.wide"),
        ("in.unet.sample_odd", &[500.0], "out.unet.odd"),
    ] {
        let context = context.clone().narrow(0, 0, times.len());
        let actual = unet.forward(tensors.get(input), timesteps(times), Some(context));
        assert_close(output, &values(actual), tensors.values(output), ONE_FORWARD);
    }
}

#[test]
fn unconditional_unet_matches() {
    let device = Device::flex();
    let unet = load_unet("ldm-uncond", &device);
    let tensors = Tensors::read("diffusers/ldm-uncond/expected.safetensors", &device);
    for (times, output) in [
        ([1.0, 1.0], "out.unet.t1"),
        ([500.0, 500.0], "out.unet.t500"),
        ([981.0, 981.0], "out.unet.t981"),
        ([1.0, 981.0], "out.unet.t_mixed"),
    ] {
        let actual = unet.forward(tensors.get("in.unet.sample"), timesteps(&times), None);
        assert_close(output, &values(actual), tensors.values(output), ONE_FORWARD);
    }
}

/// Configurations of diffusers that the models above don't have: see the fixtures' README.
#[test]
fn other_unets_match() {
    let device = Device::flex();
    for name in [
        "resnet-updown",
        "mid-norm",
        "pixels",
        "mixed-attention",
        "uneven",
    ] {
        let unet = load_unet(&format!("unets/{name}"), &device);
        let path = format!("diffusers/unets/{name}/expected.safetensors");
        let tensors = Tensors::read(&path, &device);
        let (x, t) = (tensors.get("in.sample"), tensors.get("in.timesteps"));
        let optional = |key: &str| tensors.contains(key).then(|| key.to_owned());
        let context = optional("in.context").map(|key| tensors.get(&key));
        let actual = if let Some(key) = optional("in.class_embedding") {
            unet.forward_with_class_embedding(x, t, context, tensors.get(&key))
        } else {
            let labels = optional("in.class_labels").map(|key| tensors.get::<1>(&key).int());
            unet.forward_with_class(x, t, context, labels)
        };
        let expected = tensors.values("out.sample");
        assert_close(name, &values(actual), expected, ONE_FORWARD);
    }
}

#[test]
fn every_block_matches() {
    let device = Device::flex();
    for model in ["ldm-text2im", "ldm-uncond"] {
        let unet = load_unet(model, &device);
        let path = format!("diffusers/{model}/expected.safetensors");
        let tensors = Tensors::read(&path, &device);
        let check = |name: &str, actual: Vec<f32>| {
            let name = format!("out.trace.{name}");
            let expected = tensors.values(&name);
            assert_close(&format!("{model} {name}"), &actual, expected, ONE_FORWARD);
        };
        let context =
            (tensors.contains("in.unet.context")).then(|| tensors.get::<3>("in.unet.context"));
        let context = context.as_ref();
        let temb = unet.embed_timesteps(timesteps(&[500.0, 500.0]));
        check("time_embedding", values(temb.clone()));
        let mut x = unet.conv_in.forward(tensors.get("in.unet.sample"));
        check("conv_in", values(x.clone()));
        let mut skips = vec![x.clone()];
        for (i, block) in unet.down_blocks.iter().enumerate() {
            x = block.forward(x, &temb, context, &mut skips);
            check(&format!("down_blocks.{i}"), values(x.clone()));
        }
        x = unet.mid_block.forward(x, &temb, context);
        check("mid_block", values(x.clone()));
        for (i, block) in unet.up_blocks.iter().enumerate() {
            x = block.forward(x, &temb, context, &mut skips);
            check(&format!("up_blocks.{i}"), values(x.clone()));
        }
        check("conv_norm_out", values(unet.conv_norm_out.forward(x)));
    }
}

/// Files from before 2023 name the layers of plain attention otherwise.
#[test]
fn old_attention_names_load() {
    let device = Device::flex();
    let path = "diffusers/ldm-uncond/unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(fixture(path)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = (file.tensors().into_iter())
        .map(|(name, view)| {
            let name = (name.replace(".to_q.", ".query."))
                .replace(".to_k.", ".key.")
                .replace(".to_v.", ".value.")
                .replace(".to_out.0.", ".proj_attn.");
            (name, (view.shape().to_vec(), floats(view.data())))
        })
        .collect();
    let config = std::fs::read_to_string(fixture("diffusers/ldm-uncond/unet/config.json")).unwrap();
    let config = UNetConfig::from_json(&config).unwrap();
    let unet = load_bytes(config.init(&device), safetensors_bytes(&renamed));
    let tensors = Tensors::read("diffusers/ldm-uncond/expected.safetensors", &device);
    let actual = unet.forward(
        tensors.get("in.unet.sample"),
        timesteps(&[500.0, 500.0]),
        None,
    );
    let expected = tensors.values("out.unet.t500");
    assert_close("out.unet.t500", &values(actual), expected, ONE_FORWARD);
}

#[test]
fn unconditional_samples_match() {
    let unet = load_unet("ldm-uncond", &Device::flex());
    assert_samples_match("ldm-uncond", |x, t| {
        unet.forward(x, timesteps(&[t as f32]), None)
    });
}

#[test]
fn guided_samples_match() {
    let device = Device::flex();
    let unet = load_unet("ldm-text2im", &device);
    let tensors = Tensors::read("diffusers/ldm-text2im/expected.safetensors", &device);
    // The first prompt against the empty one.
    let embeddings: Tensor<3> = tensors.get("out.text.embeddings");
    let prompt = |index| embeddings.clone().narrow(0, index, 1);
    let guidance = Guidance::new(prompt(1), prompt(0), 5.0);
    assert_samples_match("ldm-text2im", |x, t| {
        guidance.predict(x, |x, context| {
            unet.forward(x, timesteps(&[t as f32; 2]), Some(context))
        })
    });
}

/// Runs the fixture's 20 DDIM steps.
fn assert_samples_match(name: &str, model: impl FnMut(Tensor<4>, f64) -> Tensor<4>) {
    let path = |file: &str| format!("diffusers/{name}/{file}");
    let tensors = Tensors::read(&path("expected.safetensors"), &Device::flex());
    let config = std::fs::read_to_string(fixture(&path("scheduler/scheduler_config.json")));
    let config = SchedulerConfig::from_json(&config.unwrap()).unwrap();
    let mut sampler = Ddim::new(&config, 20, 0.0).unwrap();
    let latents = sample::<()>(
        &mut sampler,
        tensors.get("in.sample.latents"),
        model,
        |_| unreachable!("DDIM without eta draws no noise"),
        |step| {
            if [1, 10].contains(&(step.index + 1)) {
                let tensor = format!("out.sample.step{}", step.index + 1);
                let latents = values(step.latents.clone());
                assert_close(&tensor, &latents, tensors.values(&tensor), TRAJECTORY);
            }
            ControlFlow::Continue(())
        },
    );
    let latents = values(latents.continue_value().unwrap());
    let expected = tensors.values("out.sample.final");
    assert_close("out.sample.final", &latents, expected, TRAJECTORY);
}

#[test]
fn losses_and_gradients_match() {
    let device = Device::flex().autodiff();
    let unet = load_unet("ldm-text2im", &device);
    let tensors = Tensors::read("diffusers/training/expected.safetensors", &Device::flex());
    let expected = json("diffusers/training/expected.json");
    let times = [37, 731];
    for (name, prediction_type, min_snr_gamma) in [
        ("eps", PredictionType::Epsilon, None),
        ("eps_snr", PredictionType::Epsilon, Some(5.0)),
        ("v", PredictionType::Velocity, None),
        ("v_snr", PredictionType::Velocity, Some(5.0)),
    ] {
        let config = DiffusionLossConfig {
            prediction_type,
            min_snr_gamma,
            ..DiffusionLossConfig::default()
        };
        let schedule = SchedulerConfig::latent(0.00085, 0.012).noise_schedule();
        let objective = config.init(schedule.unwrap()).unwrap();
        let (x0, noise) = (tensors.get("in.x0"), tensors.get("in.noise"));
        let noisy = objective.schedule().add_noise(x0, noise, &times);
        let context = tensors.get("in.context");
        let output = unet.forward(noisy, timesteps(&times.map(|t| t as f32)), Some(context));
        let (x0, noise) = (tensors.get("in.x0"), tensors.get("in.noise"));
        let loss = objective.forward(output, x0, noise, &times).loss;

        let value: f32 = loss.clone().into_scalar();
        let wanted = expected["losses"][name].as_f64().unwrap() as f32;
        assert!(
            (value - wanted).abs() < 1e-5 * wanted,
            "{name}: {value}, not {wanted}"
        );

        let gradients = loss.backward();
        let of = |parameter: &str, gradient: Tensor<1>| {
            let name = format!("out.{name}.grad.{parameter}");
            assert_relative(&name, &values(gradient), tensors.values(&name), 1e-3);
        };
        let first = unet.conv_in.weight.grad(&gradients).unwrap();
        of("conv_in.weight", first.flatten(0, 3));
        let SpatialAttention::Transformer(transformer) = &unet.mid_block.attentions[0] else {
            panic!("the middle attends to the context");
        };
        let to_k = &transformer.transformer_blocks[0].attn2.to_k;
        let keys = to_k.weight.grad(&gradients).unwrap();
        // PyTorch's layout is the transpose.
        of(
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            keys.transpose().flatten(0, 1),
        );

        let norms = gradient_norms(&unet, &gradients);
        let wanted = expected["gradient_norms"][name].as_object().unwrap();
        assert_eq!(norms.len(), wanted.len());
        let largest = (wanted.values()).fold(0.0, |max: f64, norm| max.max(norm.as_f64().unwrap()));
        for (key, norm) in norms {
            let wanted = wanted[&key].as_f64().unwrap();
            let allowed = 1e-3 * wanted + 1e-6 * largest;
            assert!(
                (norm - wanted).abs() <= allowed,
                "{name} {key}: {norm}, not {wanted}"
            );
        }
    }
}

#[test]
fn written_weights_have_diffusers_names_and_shapes() {
    let shapes = |bytes: &[u8]| -> BTreeMap<String, Vec<usize>> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        (file.tensors().into_iter())
            .map(|(name, view)| (name, view.shape().to_vec()))
            .collect()
    };
    for model in [
        "ldm-text2im",
        "ldm-uncond",
        "unets/resnet-updown",
        "unets/mixed-attention",
    ] {
        let unet = load_unet(model, &Device::flex());
        let keys = KeyRemapper::from_patterns(weights::KEY_MAP_OUT.to_vec()).unwrap();
        let mut store = SafetensorsStore::from_bytes(None)
            .with_to_adapter(BurnToPyTorchAdapter)
            .remap(keys)
            .skip_enum_variants(true);
        unet.save_into(&mut store).unwrap();
        let path = format!("diffusers/{model}/unet/diffusion_pytorch_model.safetensors");
        let original = std::fs::read(fixture(&path)).unwrap();
        assert_eq!(shapes(&store.get_bytes().unwrap()), shapes(&original));
    }
}

/// L2 norm of every parameter's gradient, under diffusers' names.
fn gradient_norms(unet: &UNet, gradients: &Gradients) -> BTreeMap<String, f64> {
    let mut visitor = GradientNorms {
        gradients,
        path: Vec::new(),
        norms: BTreeMap::new(),
    };
    unet.visit(&mut visitor);
    visitor.norms
}

struct GradientNorms<'a> {
    gradients: &'a Gradients,
    path: Vec<Option<String>>,
    norms: BTreeMap<String, f64>,
}

impl ModuleVisitor for GradientNorms<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        let is_variant = container_type.starts_with("Enum:");
        self.path.push((!is_variant).then(|| name.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path: Vec<&str> = self.path.iter().flatten().map(String::as_str).collect();
        let key = (path
            .join(".")
            .replace(".gamma", ".weight")
            .replace(".beta", ".bias"))
        .replace(".ff.proj_in.", ".ff.net.0.proj.")
        .replace(".ff.proj_out.", ".ff.net.2.");
        let gradient = param
            .val()
            .grad(self.gradients)
            .expect("every parameter has a gradient");
        let squares = values(gradient)
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>();
        self.norms.insert(key, squares.sqrt());
    }
}
