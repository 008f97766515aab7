//! The paper's models at their real size: each initialises and does one forward pass on the CPU.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use ldm_pipeline::{
    autoencoder::{AutoencoderKlConfig, PatchDiscriminatorConfig},
    diffusion::UNetConfig,
    info::count,
};

fn assert_finite(output: &Tensor<4>, shape: [usize; 4]) {
    assert_eq!(output.dims(), shape);
    let sum = output.clone().abs().sum().into_scalar::<f32>();
    assert!(sum.is_finite(), "{sum}");
}

#[test]
fn kl_f4_and_its_discriminator() {
    let device = Device::flex();
    let vae = AutoencoderKlConfig::kl_f4().init(&device);
    assert_eq!(count(&vae), 55_312_063);
    let vae = vae.materialize();
    let posterior = vae.encode(Tensor::zeros([1, 3, 256, 256], &device));
    assert_finite(&posterior.mean, [1, 3, 64, 64]);
    let decoded = vae.decode(posterior.mode());
    assert_finite(&decoded, [1, 3, 256, 256]);

    let discriminator = PatchDiscriminatorConfig::default().init(&device);
    assert_eq!(discriminator.num_trained_params(), 2_765_633);
    assert_finite(&discriminator.forward(decoded), [1, 1, 30, 30]);
}

#[test]
fn unets_of_celebahq_and_text_to_image() {
    let device = Device::flex();
    let timesteps = Tensor::<1>::from_floats([500.0], &device);

    let unet = UNetConfig::celebahq().init(&device);
    assert_eq!(count(&unet), 274_056_163);
    let unet = unet.materialize();
    let x = Tensor::ones([1, 3, 64, 64], &device);
    assert_finite(&unet.forward(x, timesteps.clone(), None), [1, 3, 64, 64]);
    drop(unet);

    let unet = UNetConfig::text_to_image().init(&device);
    assert_eq!(count(&unet), 872_300_484);
    let unet = unet.materialize();
    let x = Tensor::ones([1, 4, 32, 32], &device);
    let context = Tensor::ones([1, 77, 1280], &device);
    assert_finite(&unet.forward(x, timesteps, Some(context)), [1, 4, 32, 32]);
}
