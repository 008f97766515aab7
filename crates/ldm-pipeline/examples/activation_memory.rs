//! Memory and time of a training step of a middle-sized U-Net, with its activations kept or computed again.
//!
//! `cargo run --release -p ldm-pipeline --example activation_memory -- keep|recompute [BATCH]`: a U-Net of 64 channels times
//! 1, 2, 3, 4 with transformers at the three coarser levels, latents of 32x32x4, a context of 77x256, three steps of AdamW. The
//! peak of resident memory is the process's, so each run has to be one of its own.

use std::time::Instant;

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Distribution, Tensor},
};
use ldm_diffusion::{
    DiffusionLossConfig, UNetConfig,
    unet::{DownBlockType, PerLevel, UpBlockType},
};
use ldm_nn::Activations;
use ldm_pipeline::{config::NoiseConfig, memory::peak_memory, optim::AdamConfig};

const STEPS: usize = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let activations = match arguments.next().as_deref() {
        Some("keep") => Activations::Keep,
        Some("recompute") => Activations::Recompute,
        _ => panic!("usage: activation_memory keep|recompute [BATCH]"),
    };
    let batch: usize = (arguments.next()).map_or(8, |batch| batch.parse().expect("a number"));

    let device = Device::flex();
    let config = UNetConfig {
        attention_head_dim: Some(PerLevel::All(8)),
        ..UNetConfig::conditional(
            4,
            256,
            vec![64, 128, 192, 256],
            vec![
                DownBlockType::DownBlock2D,
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::CrossAttnDownBlock2D,
            ],
            vec![
                UpBlockType::CrossAttnUpBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
                UpBlockType::CrossAttnUpBlock2D,
                UpBlockType::UpBlock2D,
            ],
        )
    };
    let mut unet = (config.init(&device.clone().autodiff())).with_activations(activations);
    let mut optimizer = AdamConfig::default().init();
    let loss = DiffusionLossConfig::default();
    let schedule = NoiseConfig::default().scheduler(&loss).noise_schedule();
    let loss = (loss.init(schedule.expect("the default schedule"))).expect("the default loss");
    println!(
        "{:.1} million parameters, batch {batch}",
        unet.num_params() as f64 / 1e6
    );

    let normal = Distribution::Normal(0.0, 1.0);
    for step in 0..STEPS {
        let x0 = Tensor::<4>::random([batch, 4, 32, 32], normal, &device);
        let noise = Tensor::<4>::random([batch, 4, 32, 32], normal, &device);
        let context = Tensor::<3>::random([batch, 77, 256], normal, &device);
        let timesteps: Vec<usize> = (0..batch).map(|item| 1000 * item / batch).collect();
        let floats: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();

        let began = Instant::now();
        let noisy = (loss.schedule()).add_noise(x0.clone(), noise.clone(), &timesteps);
        let timestep = Tensor::from_floats(floats.as_slice(), &device);
        let output = unet.forward(noisy, timestep, Some(context));
        let loss = loss.forward(output, x0, noise, &timesteps).loss;
        let value: f32 = loss.clone().into_scalar();
        let gradients = GradientsParams::from_grads(loss.backward(), &unet);
        unet = optimizer.step(1e-4, unet, gradients.into());
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "step {step}: loss {value:.6}, {seconds:.2} s, peak {} MiB",
            peak_memory(None).unwrap_or_default() >> 20
        );
    }
}
