//! One number is made not finite at a time, and its place has to be named.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Int, Tensor},
};
use ldm_autoencoder::{
    AutoencoderKl, AutoencoderKlConfig, DiagonalGaussian, Lpips, LpipsConfig, PatchDiscriminator,
    PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective,
};
use ldm_diffusion::UNetConfig;
use ldm_nn::watch::PathStack;
use ldm_text::LdmBertConfig;

use super::*;
use crate::{
    error::Error,
    model::{Conditioner, Denoiser},
    rng::{Stream, normal},
    train::latents::LatentBatch,
};

/// Changes one parameter of a module.
struct Change<'a> {
    stack: PathStack,
    parameter: &'a str,
    change: Value,
    done: bool,
}

#[derive(Clone, Copy)]
enum Value {
    /// The first value becomes this.
    First(f32),
    /// All are multiplied.
    Times(f32),
    /// All become the largest finite number with their sign.
    Largest,
}

impl ModuleMapper for Change<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.stack.names().join(".") != self.parameter {
            return param;
        }
        self.done = true;
        let change = self.change;
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let (device, mut data) = (tensor.device(), tensor.inner().into_data());
            let values = data.as_mut_slice::<f32>().unwrap();
            match change {
                Value::First(value) => values[0] = value,
                Value::Times(factor) => values.iter_mut().for_each(|value| *value *= factor),
                Value::Largest => values
                    .iter_mut()
                    .for_each(|value| *value = f32::MAX.copysign(*value)),
            }
            let tensor = Tensor::from_data(data, &device);
            if tracked {
                tensor.require_grad()
            } else {
                tensor
            }
        })
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }
}

#[track_caller]
fn change<M: Module>(module: M, parameter: &str, value: Value) -> M {
    let mut mapper = Change {
        stack: PathStack::default(),
        parameter,
        change: value,
        done: false,
    };
    let module = module.map(&mut mapper);
    assert!(mapper.done, "there is no {parameter}");
    module
}

fn noise(shape: [usize; 4], index: u64) -> Tensor<4> {
    let values = normal(1, Stream::PosteriorNoise, 0, index, shape.iter().product());
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape) * 0.5
}

fn name_of(image: usize) -> String {
    format!("{image}.png")
}

/// A tiny stage 1 with all of its parts.
struct Stage1 {
    config: Stage1LossConfig,
    lpips: Lpips,
    vae: AutoencoderKl,
    discriminator: PatchDiscriminator,
    batches: Vec<Micro>,
}

impl Stage1 {
    fn new() -> Self {
        let device = Device::flex().autodiff();
        device.seed(3);
        let vae = AutoencoderKlConfig {
            norm_num_groups: 4,
            ..AutoencoderKlConfig::new(vec![8, 8], 2, 0)
        };
        let discriminator = PatchDiscriminatorConfig {
            channels: 4,
            layers: 2,
            ..PatchDiscriminatorConfig::default()
        };
        let lpips = LpipsConfig {
            channels: [4; 5],
            heads: true,
        };
        let micro = |number: u64| Micro {
            images: noise([2, 3, 16, 16], 2 * number),
            indices: vec![10 + 2 * number as usize, 11 + 2 * number as usize],
            noise: noise([2, 2, 8, 8], 2 * number + 1),
        };
        Self {
            config: Stage1LossConfig {
                disc_start: 0,
                ..Stage1LossConfig::default()
            },
            lpips: lpips.init(&Device::flex()).materialize(),
            vae: vae.init(&device).materialize(),
            discriminator: discriminator.init(&device).materialize(),
            batches: (0..2).map(micro).collect(),
        }
    }

    fn culprit(&self) -> Culprit {
        let objective = Stage1Objective::new(self.config, Some(self.lpips.clone())).unwrap();
        let suspects = Stage1Suspects {
            objective: &objective,
            vae: &self.vae,
            discriminator: Some(&self.discriminator),
            batches: &self.batches,
            step: 0,
        };
        suspects.culprit(name_of)
    }
}

fn module(path: &str) -> Culprit {
    Culprit::Module(path.to_owned())
}

fn weight(path: &str) -> Culprit {
    Culprit::Weight(path.to_owned())
}

#[test]
fn finite_numbers_have_no_culprit() {
    assert_eq!(Stage1::new().culprit(), Culprit::Unknown);
    assert_eq!(Stage2::new().culprit(), Culprit::Unknown);
}

#[test]
fn damaged_weights_of_stage_1_are_named() {
    for parameter in [
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.resnets.0.norm1.gamma",
        "encoder.mid_block.attentions.0.to_q.weight",
        "quant_conv.bias",
        "decoder.mid_block.resnets.0.conv1.weight",
        "decoder.conv_out.bias",
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut stage = Stage1::new();
            stage.vae = change(stage.vae, parameter, Value::First(value));
            let (owner, _) = parameter.rsplit_once('.').unwrap();
            let culprit = stage.culprit();
            assert_eq!(culprit, weight(&format!("vae.{owner}")));
            assert!(culprit.is_state_damaged());
        }
    }
    for parameter in [
        "layers.0.conv.weight",
        "layers.1.norm.beta",
        "layers.3.conv.bias",
    ] {
        let mut stage = Stage1::new();
        stage.discriminator = change(stage.discriminator, parameter, Value::First(f32::NAN));
        let (owner, _) = parameter.rsplit_once('.').unwrap();
        assert_eq!(stage.culprit(), weight(&format!("discriminator.{owner}")));
    }
}

#[test]
fn damaged_images_and_noise_are_named() {
    let mut stage = Stage1::new();
    for (batch, item) in [(0, 1), (1, 0)] {
        let images = stage.batches[batch].images.clone();
        let value = Tensor::full([1, 1, 1, 1], f32::NAN, &Device::flex());
        stage.batches[batch].images =
            images.slice_assign([item..item + 1, 2..3, 5..6, 7..8], value);
    }
    let expected = Culprit::Image(vec!["11.png".into(), "12.png".into()]);
    assert_eq!(stage.culprit(), expected);
    assert!(expected.is_in_data() && !expected.is_state_damaged());

    let mut stage = Stage1::new();
    stage.batches[1].noise = stage.batches[1].noise.clone() * f32::INFINITY;
    assert_eq!(stage.culprit(), Culprit::Noise);
}

#[test]
fn an_overflow_in_stage_1_is_traced_to_its_module() {
    for path in [
        "encoder.conv_in",
        "encoder.down_blocks.1.resnets.0.conv2",
        "decoder.up_blocks.0.resnets.0.conv1",
        "decoder.conv_out",
    ] {
        let mut stage = Stage1::new();
        // Finite all the same: their sum is what overflows.
        stage.vae = change(stage.vae, &format!("{path}.weight"), Value::Largest);
        assert_eq!(stage.culprit(), module(&format!("vae.{path}")));
    }
    let mut stage = Stage1::new();
    let parameter = "layers.3.conv.weight";
    stage.discriminator = change(stage.discriminator, parameter, Value::Largest);
    assert_eq!(stage.culprit(), module("discriminator.layers.3.conv"));
}

#[test]
fn a_loss_term_is_named() {
    let term = |name, module: Option<&str>| Culprit::Term {
        name,
        module: module.map(str::to_owned),
    };
    let mut stage = Stage1::new();
    stage.lpips = change(stage.lpips, "convs.3.weight", Value::First(f32::NAN));
    assert_eq!(stage.culprit(), term("perceptual", Some("vgg.convs.3")));

    // Means whose squares overflow; the latents themselves don't.
    let mut stage = Stage1::new();
    stage.vae = change(stage.vae, "quant_conv.bias", Value::First(3e19));
    assert_eq!(stage.culprit(), term("kl", None));

    let mut stage = Stage1::new();
    stage.vae = change(stage.vae, "decoder.conv_out.bias", Value::First(1e37));
    assert_eq!(stage.culprit(), term("rec", None));

    // Finite as a value, but not its gradient.
    let mut stage = Stage1::new();
    for factor in [1e20, 5e18] {
        let parameter = "layers.3.conv.weight";
        stage.discriminator = change(stage.discriminator, parameter, Value::Times(factor));
    }
    let culprit = stage.culprit();
    assert_eq!(culprit, term("g_loss", None));
}

/// A tiny stage 2 on captions.
struct Stage2 {
    denoiser: Denoiser,
    batches: Vec<LatentBatch>,
    loss_scale: f64,
}

impl Stage2 {
    fn new() -> Self {
        let device = Device::flex().autodiff();
        device.seed(4);
        let unet: UNetConfig = serde_json::from_value(serde_json::json!({
            "_class_name": "UNet2DConditionModel",
            "sample_size": 8,
            "in_channels": 2,
            "out_channels": 2,
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }))
        .unwrap();
        let bert = LdmBertConfig {
            vocab_size: 20,
            max_position_embeddings: 4,
            encoder_layers: 2,
            encoder_ffn_dim: 16,
            encoder_attention_heads: 2,
            head_dim: 4,
            d_model: 8,
            to_logits: false,
            ..LdmBertConfig::default()
        };
        let denoiser = Denoiser {
            unet: unet.init(&device),
            conditioner: Some(Conditioner::LdmBert(bert.init(&device))),
        }
        .materialize();
        // The last convolutions start at 0, which would hide what is before them.
        let denoiser = change(denoiser, "unet.conv_out.weight", Value::First(0.1));
        let batch = |number: u64| LatentBatch {
            posterior: DiagonalGaussian {
                mean: noise([2, 2, 8, 8], 10 + number),
                logvar: Tensor::full([2, 2, 8, 8], -10.0, &Device::flex()),
            },
            indices: vec![20 + 2 * number as usize, 21 + 2 * number as usize],
        };
        Self {
            denoiser,
            batches: (0..2).map(batch).collect(),
            loss_scale: 1.0,
        }
    }

    fn forward(&self, batch: &LatentBatch, micro: usize) -> Result<Forward, Error> {
        let device = Device::flex();
        let noise = noise(batch.posterior.mean.dims(), 30 + micro as u64);
        let Some(Conditioner::LdmBert(bert)) = &self.denoiser.conditioner else {
            unreachable!("made with one")
        };
        let ids = Tensor::<2, Int>::from_data([[1_i64, 2, 3, 4], [5, 6, 7, 8]], &device);
        let context = bert.forward(ids);
        let timesteps = Tensor::<1>::from_floats([100.0, 700.0], &device);
        let noisy = batch.posterior.mean.clone() + noise.clone();
        let output = (self.denoiser.unet).forward(noisy, timesteps, Some(context));
        let loss = (output - noise.clone()).square().mean();
        Ok(Forward {
            noise,
            loss: loss * self.loss_scale,
        })
    }

    fn culprit(&self) -> Culprit {
        let suspects = Stage2Suspects {
            denoiser: &self.denoiser,
            batches: &self.batches,
        };
        let forward = |batch: &LatentBatch, micro| self.forward(batch, micro);
        suspects.culprit(name_of, forward).unwrap()
    }
}

#[test]
fn damaged_weights_of_stage_2_are_named() {
    for parameter in [
        "unet.conv_in.weight",
        "unet.time_embedding.linear_2.bias",
        "unet.down_blocks.0.resnets.0.time_emb_proj.weight",
        "unet.down_blocks.0.attentions.0.proj_in.weight",
        "unet.mid_block.resnets.1.norm2.beta",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.proj_out.bias",
        "unet.conv_norm_out.gamma",
        "conditioner.model.embed_tokens.weight",
        "conditioner.model.layers.1.self_attn.v_proj.weight",
        "conditioner.model.layer_norm.beta",
    ] {
        let mut stage = Stage2::new();
        stage.denoiser = change(stage.denoiser, parameter, Value::First(f32::NAN));
        let (owner, _) = parameter.rsplit_once('.').unwrap();
        assert_eq!(stage.culprit(), weight(owner));
    }
}

#[test]
fn damaged_latents_are_named() {
    let mut stage = Stage2::new();
    let logvar = stage.batches[1].posterior.logvar.clone();
    let value = Tensor::full([1, 1, 1, 1], f32::INFINITY, &Device::flex());
    stage.batches[1].posterior.logvar = logvar.slice_assign([1..2, 0..1, 3..4, 3..4], value);
    assert_eq!(stage.culprit(), Culprit::Latent(vec!["23.png".into()]));
}

#[test]
fn an_overflow_in_stage_2_is_traced_to_its_module() {
    for path in [
        "unet.time_embedding.linear_1",
        "unet.down_blocks.0.resnets.0.conv1",
        "unet.mid_block.resnets.0.conv2",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.proj_in",
        "conditioner.model.layers.0.fc1",
        "conditioner.model.layers.1.self_attn.out_proj",
    ] {
        let mut stage = Stage2::new();
        stage.denoiser = change(stage.denoiser, &format!("{path}.weight"), Value::Largest);
        assert_eq!(stage.culprit(), module(path));
    }
    // Queries and keys are finite, their products are not: the attention itself is named.
    let attention = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1";
    let mut stage = Stage2::new();
    for projection in ["to_q", "to_k"] {
        let parameter = format!("{attention}.{projection}.weight");
        stage.denoiser = change(stage.denoiser, &parameter, Value::Times(1e25));
    }
    assert_eq!(stage.culprit(), module(attention));
}

#[test]
fn a_damaged_gradient_is_traced_to_where_the_backward_pass_met_it_first() {
    // Nothing goes into the last convolution, so the loss is finite, as is that convolution's gradient. But what goes back through its
    // large weight is not.
    let mut stage = Stage2::new();
    for (parameter, value) in [
        ("unet.conv_norm_out.gamma", Value::Times(0.0)),
        ("unet.conv_out.weight", Value::First(1e6)),
    ] {
        stage.denoiser = change(stage.denoiser, parameter, value);
    }
    stage.loss_scale = 1e37;
    let culprit = stage.culprit();
    assert_eq!(culprit, Culprit::Gradient("unet.conv_norm_out".into()));
}

#[test]
fn messages_name_the_place() {
    let error = |culprit| Error::NotFinite {
        name: "loss",
        value: f64::NAN,
        step: 120,
        culprit,
    };
    let attention = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1";
    assert_eq!(
        error(module(attention)).to_string(),
        format!("the loss is NaN at step 120: first produced by `{attention}`")
    );
    assert_eq!(
        error(weight("vae.decoder.conv_in")).to_string(),
        "the loss is NaN at step 120: the weight of `vae.decoder.conv_in` is not finite"
    );
    let images = (0..7).map(name_of).collect();
    let error = error(Culprit::Image(images));
    assert_eq!(
        error.to_string(),
        "the loss is NaN at step 120: not finite in 0.png, 1.png, 2.png, 3.png, 4.png and 2 more"
    );
    assert!(error.help().unwrap().contains("files"));
}
