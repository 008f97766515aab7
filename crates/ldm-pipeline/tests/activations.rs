//! Networks that compute their activations again in the backward pass learn exactly what the others do.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Distribution, Int, Tensor},
};
use ldm_autoencoder::{
    Autoencoder, AutoencoderKlConfig, PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective,
    VqModelConfig,
};
use ldm_diffusion::{
    DiffusionLossConfig, UNetConfig,
    unet::{DownBlockType, PerLevel, ResampleType, TimeScaleShift, UpBlockType},
};
use ldm_nn::Activations;
use ldm_pipeline::{
    config::NoiseConfig,
    model::{Conditioner, ConditionerConfig, Denoiser},
};
use ldm_text::LdmBertConfig;

/// Gives every parameter a value, since layers that start at 0 would hide the gradients of those before them.
fn filled<M: Module>(module: M) -> M {
    struct Fill;
    impl ModuleMapper for Fill {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| {
                let noise = Distribution::Normal(0.0, 0.2);
                Tensor::random(tensor.shape(), noise, &tensor.device()).require_grad()
            })
        }
    }
    module.map(&mut Fill)
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// The gradient of each parameter in the order of the module, `None` where there is none.
fn list(module: &impl Module, gradients: &GradientsParams) -> Vec<Option<Vec<f32>>> {
    struct Collect<'a>(&'a GradientsParams, Vec<Option<Vec<f32>>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = self.0.get::<D>(param.id);
            self.1
                .push(gradient.map(|x| x.into_data().try_to_vec().unwrap()));
        }
    }
    let mut collect = Collect(gradients, Vec::new());
    module.visit(&mut collect);
    collect.1
}

/// The same parameters have gradients, and each gradient differs by at most 1e-5 of its own norm: those of a tensor that many
/// blocks use, such as the timestep's embedding, are added in another order. What is 0 but for rounding, as the gradient of a bias before
/// a norm, may differ by 1e-8 of the largest.
#[track_caller]
fn assert_close(kept: &[Option<Vec<f32>>], recomputed: &[Option<Vec<f32>>]) {
    assert_eq!(kept.len(), recomputed.len());
    let norm =
        |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let largest = (kept.iter().flatten())
        .map(|gradient| norm(&mut gradient.iter().copied()))
        .fold(0.0, f64::max);
    for (index, (kept, recomputed)) in kept.iter().zip(recomputed).enumerate() {
        assert_eq!(kept.is_some(), recomputed.is_some(), "parameter {index}");
        let (Some(kept), Some(recomputed)) = (kept, recomputed) else {
            continue;
        };
        let size = norm(&mut kept.iter().copied());
        let error = norm(&mut kept.iter().zip(recomputed).map(|(a, b)| a - b));
        assert!(
            error <= 1e-5 * size + 1e-8 * largest,
            "parameter {index}: {error} of {size}"
        );
    }
}

/// A U-Net with transformers, resampling ResNet blocks and scale-shift norms, and its text transformer.
fn denoiser() -> Denoiser {
    let device = Device::flex().autodiff();
    let unet = UNetConfig {
        norm_num_groups: 4,
        layers_per_block: 1,
        attention_head_dim: Some(PerLevel::All(2)),
        downsample_type: ResampleType::Resnet,
        upsample_type: ResampleType::Resnet,
        resnet_time_scale_shift: TimeScaleShift::ScaleShift,
        ..UNetConfig::conditional(
            4,
            12,
            vec![8, 16],
            vec![
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::DownBlock2D,
            ],
            vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        )
    };
    let bert = LdmBertConfig {
        vocab_size: 11,
        max_position_embeddings: 5,
        encoder_layers: 2,
        encoder_ffn_dim: 16,
        encoder_attention_heads: 2,
        head_dim: 4,
        d_model: 12,
        to_logits: false,
        ..LdmBertConfig::default()
    };
    filled(Denoiser {
        unet: unet.init(&device),
        conditioner: Some(ConditionerConfig::LdmBert(bert).init(&device)),
    })
}

fn with_activations(denoiser: Denoiser, activations: Activations) -> Denoiser {
    Denoiser {
        unet: denoiser.unet.with_activations(activations),
        conditioner: (denoiser.conditioner).map(|it| it.with_activations(activations)),
    }
}

fn forward(denoiser: &Denoiser, x: Tensor<4>) -> Tensor<4> {
    let device = Device::flex();
    let Some(Conditioner::LdmBert(bert)) = &denoiser.conditioner else {
        panic!("the text transformer")
    };
    let context = bert.forward(Tensor::<2, Int>::from_data(
        [[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]],
        &device,
    ));
    let timesteps = Tensor::<1>::from_floats([3.0, 700.0], &device);
    denoiser.unet.forward(x, timesteps, Some(context))
}

#[test]
fn a_denoiser_with_its_text_transformer() {
    let denoiser = denoiser();
    let loss = DiffusionLossConfig::default();
    let schedule = NoiseConfig::default()
        .scheduler(&loss)
        .noise_schedule()
        .unwrap();
    let loss = loss.init(schedule).unwrap();
    let (x0, noise) = (random([2, 4, 8, 8]), random([2, 4, 8, 8]));
    let run = |activations| {
        let denoiser = with_activations(denoiser.clone(), activations);
        let timesteps = [3, 700];
        let noisy = loss
            .schedule()
            .add_noise(x0.clone(), noise.clone(), &timesteps);
        let output = forward(&denoiser, noisy);
        let loss = loss
            .forward(output, x0.clone(), noise.clone(), &timesteps)
            .loss;
        let value: f32 = loss.clone().into_scalar();
        let gradients = GradientsParams::from_grads(loss.backward(), &denoiser);
        (value, list(&denoiser, &gradients))
    };
    let (kept, recomputed) = (run(Activations::Keep), run(Activations::Recompute));
    assert_eq!(kept.0, recomputed.0);
    assert!(kept.1.iter().all(Option::is_some));
    assert_close(&kept.1, &recomputed.1);
}

#[test]
fn sampling_is_unaffected() {
    let denoiser = denoiser();
    let x = random([2, 4, 8, 8]);
    let run = |activations| {
        let denoiser = with_activations(denoiser.clone(), activations).valid();
        forward(&denoiser, x.clone()).into_data()
    };
    assert_eq!(run(Activations::Keep), run(Activations::Recompute));
}

fn assert_autoencoder(model: impl Autoencoder) {
    let model = filled(model);
    let disc = PatchDiscriminatorConfig {
        channels: 8,
        ..PatchDiscriminatorConfig::default()
    };
    let discriminator = disc.init(&Device::flex().autodiff());
    let objective = Stage1LossConfig {
        perceptual_weight: 0.0,
        disc_start: 0,
        kl_weight: 1e-3,
        ..Stage1LossConfig::default()
    };
    let objective = Stage1Objective::new(objective, None).unwrap();
    let (images, noise) = (random([2, 3, 32, 32]).tanh(), random([2, 4, 16, 16]));
    let run = |activations| {
        let model = model.clone().with_activations(activations);
        let step = objective.generator(
            &model,
            Some(&discriminator),
            images.clone(),
            noise.clone(),
            1,
        );
        (step.terms, list(&model, &step.grads))
    };
    let (kept, recomputed) = (run(Activations::Keep), run(Activations::Recompute));
    assert_eq!(kept.0.total, recomputed.0.total);
    assert!(kept.0.d_weight > 0.0);
    assert!(kept.1.iter().all(Option::is_some));
    // Nothing in an autoencoder is used by several blocks.
    assert!(kept.1 == recomputed.1);
}

#[test]
fn a_kl_autoencoder_under_its_objective() {
    let config = AutoencoderKlConfig {
        norm_num_groups: 4,
        ..AutoencoderKlConfig::new(vec![8, 16], 4, 1)
    };
    assert_autoencoder(config.init(&Device::flex().autodiff()));
}

#[test]
fn a_vq_autoencoder_under_its_objective() {
    let config: VqModelConfig = parsed(
        r#"{
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4
    }"#,
    );
    assert_autoencoder(config.init(&Device::flex().autodiff()));
}

fn parsed<T: serde::de::DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}
