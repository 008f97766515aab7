//! The models compute the same on every backend of this build as on the CPU. `scripts/test-backends.sh` builds them in.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use ldm_pipeline::{
    autoencoder::{
        AutoencoderKlConfig, PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective,
    },
    diffusion::{DiffusionLossConfig, SchedulerConfig, UNetConfig},
    rng::{Stream, normal},
};

/// The backends to compare with the CPU.
fn devices() -> Vec<(&'static str, Device)> {
    vec![
        ("flex", Device::flex()),
        #[cfg(feature = "wgpu")]
        ("wgpu", Device::wgpu(Default::default())),
        #[cfg(feature = "tch")]
        ("tch", Device::libtorch()),
    ]
}

fn noise<const D: usize>(index: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = normal(7, Stream::Preview, 0, index, shape.iter().product());
    Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
}

/// The weights of `module`, drawn on the CPU, on `device`.
fn on<M: Module>(module: M, device: &Device) -> M {
    module.fork(device)
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected
        .iter()
        .fold(1e-6f32, |max, value| max.max(value.abs()));
    let error = found
        .iter()
        .zip(expected)
        .fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    println!("{name}: relative error {:.1e}", error / scale);
    assert!(error <= tolerance * scale, "{name}: {error} of {scale}");
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[test]
fn unet_forward_and_gradient() {
    let config: UNetConfig = UNetConfig::from_json(
        r#"{"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 3,
            "block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1,
            "cross_attention_dim": 24, "attention_head_dim": 4, "norm_num_groups": 16}"#,
    )
    .expect("a valid configuration");
    let schedule = SchedulerConfig::latent(0.0015, 0.0195)
        .noise_schedule()
        .expect("a valid schedule");
    let loss = DiffusionLossConfig::default()
        .init(schedule)
        .expect("a valid loss");
    Device::flex().seed(1);
    let model = config.init(&Device::flex().autodiff()).materialize();
    let mut expected: Option<(Vec<f32>, Vec<f32>)> = None;
    for (name, device) in devices() {
        let model = on(model.clone(), &device.clone().autodiff());
        let (x, context) = (
            noise(0, [2, 3, 12, 8], &device),
            noise(1, [2, 5, 24], &device),
        );
        let timesteps = Tensor::<1>::from_floats([10.0, 900.0], &device);
        let output = model.forward(x.clone(), timesteps, Some(context));
        let target = noise(2, [2, 3, 12, 8], &device);
        let loss = loss.forward(output.clone(), x, target, &[10, 900]).loss;
        let gradients = loss.backward();
        let gradient = model.conv_out.weight.grad(&gradients).expect("a gradient");
        let found = (values(output.inner()), values(gradient));
        match &expected {
            None => expected = Some(found),
            Some((output, gradient)) => {
                assert_close(&format!("{name} U-Net output"), &found.0, output, 1e-4);
                assert_close(&format!("{name} U-Net gradient"), &found.1, gradient, 1e-3);
            }
        }
    }
}

#[test]
fn autoencoder_objective() {
    let config = AutoencoderKlConfig {
        norm_num_groups: 8,
        ..AutoencoderKlConfig::new(vec![16, 32], 3, 0)
    };
    let loss = Stage1LossConfig {
        perceptual_weight: 0.0,
        disc_start: 0,
        ..Stage1LossConfig::default()
    };
    let objective = Stage1Objective::new(loss, None).expect("a valid objective");
    let discriminator = PatchDiscriminatorConfig {
        channels: 8,
        layers: 2,
        ..PatchDiscriminatorConfig::default()
    };
    let cpu = Device::flex().autodiff();
    Device::flex().seed(2);
    let (vae, discriminator) = (
        config.init(&cpu).materialize(),
        discriminator.init(&cpu).materialize(),
    );
    let mut expected: Option<(Vec<f32>, Vec<f32>)> = None;
    for (name, device) in devices() {
        let autodiff = device.clone().autodiff();
        let (vae, discriminator) = (
            on(vae.clone(), &autodiff),
            on(discriminator.clone(), &autodiff),
        );
        let images = noise(3, [2, 3, 32, 32], &device).tanh();
        let step = objective.generator(
            &vae,
            Some(&discriminator),
            images,
            noise(4, [2, 3, 16, 16], &device),
            1,
        );
        let terms = step.terms;
        let gradient = step
            .grads
            .get::<4>(vae.encoder.conv_in.weight.id)
            .expect("a gradient");
        let found = (vec![terms.total, terms.nll, terms.kl], values(gradient));
        match &expected {
            None => expected = Some(found),
            Some((terms, gradient)) => {
                assert_close(&format!("{name} objective"), &found.0, terms, 1e-4);
                assert_close(
                    &format!("{name} encoder gradient"),
                    &found.1,
                    gradient,
                    1e-2,
                );
            }
        }
    }
}
