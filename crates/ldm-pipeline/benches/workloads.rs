//! Times whole workloads on the CPU: forward passes of the paper's models, and training steps of small and full-size ones.
//!
//! `cargo bench -p ldm-pipeline --bench workloads -- WORKLOAD [--repeats N] [--threads N]` makes one run that isn't timed, then
//! N that are, and prints one line of JSON; `--list` says which workloads there are. Weights are random. The peak of resident
//! memory is the process's, so each workload has to be a process of its own. `scripts/bench.sh` compares with PyTorch.

use std::{process::ExitCode, time::Instant};

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use ldm_pipeline::{
    autoencoder::{AutoencoderKl, AutoencoderKlConfig},
    diffusion::{
        UNet, UNetConfig,
        unet::{DownBlockType, PerLevel, UpBlockType},
    },
    info::count,
    memory::{keep_freed_memory, peak_memory},
    optim::AdamConfig,
    rng::{self, Stream},
};

/// What is timed, with the number of the model's parameters.
struct Run {
    parameters: usize,
    step: Box<dyn FnMut()>,
}

/// A name, what it is, and how it is set up.
type Workload = (&'static str, &'static str, fn() -> Run);

const WORKLOADS: [Workload; 8] = [
    (
        "celebahq_unet_forward",
        "U-Net of the CelebA-HQ 256 system (274M parameters), one 64x64x3 latent, no gradients",
        celebahq_unet_forward,
    ),
    (
        "text_unet_forward",
        "U-Net of the text-to-image system (872M), a guidance pair of 32x32x4 latents, 77x1280 context, no gradients",
        text_unet_forward,
    ),
    (
        "kl_f4_decode",
        "KL-f4 decoder, 64x64x3 to 256x256x3, no gradients",
        kl_f4_decode,
    ),
    (
        "kl_f4_encode",
        "KL-f4 encoder, 256x256x3 to moments, no gradients",
        kl_f4_encode,
    ),
    (
        "small_unet_train",
        "text-conditional 3-level U-Net (64 128 192), batch 32 of 16x16x3 latents, 32x128 context: forward, backward, AdamW",
        small_unet_train,
    ),
    (
        "celebahq_unet_train",
        "the 274M U-Net, batch 1 of 64x64x3: forward, backward, AdamW",
        celebahq_unet_train,
    ),
    (
        "small_vae_train",
        "KL-f4 at 32 64 128 channels, batch 8 of 64x64x3 images: L1 + 1e-6 KL, forward, backward, AdamW",
        small_vae_train,
    ),
    (
        "kl_f4_train",
        "KL-f4 at full width, batch 1 of 256x256x3: L1 + 1e-6 KL, forward, backward, AdamW",
        kl_f4_train,
    ),
];

const USAGE: &str = "usage: workloads WORKLOAD [--repeats N] [--threads N] | --list";

struct Arguments {
    workload: Workload,
    repeats: usize,
    threads: usize,
}

fn main() -> ExitCode {
    keep_freed_memory();
    match parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => {
            println!("{}", measure(&arguments));
            ExitCode::SUCCESS
        }
        Ok(None) => {
            for (name, about, _) in WORKLOADS {
                println!("{name:24} {about}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// `None` asks for the list.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let (mut workload, mut repeats, mut threads) = (None, 5, 2);
    while let Some(argument) = arguments.next() {
        let count = match argument.as_str() {
            "--list" => return Ok(None),
            // What cargo passes to every bench.
            "--bench" => continue,
            "--repeats" => &mut repeats,
            "--threads" => &mut threads,
            name => {
                let found = WORKLOADS.into_iter().find(|(known, ..)| *known == name);
                workload = Some(found.ok_or(format!("`{name}` is no workload"))?);
                continue;
            }
        };
        let value = arguments.next().unwrap_or_default();
        *count = match value.parse() {
            Ok(value) if value > 0 => value,
            _ => return Err(format!("`{argument}` takes a number from 1 on")),
        };
    }
    Ok(workload.map(|workload| Arguments {
        workload,
        repeats,
        threads,
    }))
}

fn measure(arguments: &Arguments) -> serde_json::Value {
    rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads)
        .build_global()
        .expect("nothing has used the thread pool yet");
    let (name, _, prepare) = arguments.workload;
    let mut run = prepare();
    (run.step)();
    let mut seconds: Vec<f64> = (0..arguments.repeats)
        .map(|_| {
            let start = Instant::now();
            (run.step)();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let middle = arguments.repeats / 2;
    let median = match arguments.repeats.is_multiple_of(2) {
        true => f64::midpoint(seconds[middle - 1], seconds[middle]),
        false => seconds[middle],
    };
    serde_json::json!({
        "workload": name,
        "median_s": median,
        "best_s": seconds[0],
        "peak_rss_mib": peak_memory(None).map(|bytes| bytes as f64 / f64::from(1 << 20)),
        "parameters": run.parameters,
    })
}

fn celebahq_unet_forward() -> Run {
    let unet = UNetConfig::celebahq().init(&Device::flex());
    unet_forward(unet, [1, 3, 64, 64], None)
}

fn text_unet_forward() -> Run {
    let unet = UNetConfig::text_to_image().init(&Device::flex());
    unet_forward(unet, [2, 4, 32, 32], Some([2, 77, 1280]))
}

fn unet_forward(unet: UNet, latents: [usize; 4], context: Option<[usize; 3]>) -> Run {
    let (x, context) = (normal(latents, 0), context.map(|shape| normal(shape, 1)));
    let timesteps = Tensor::full([latents[0]], 500.0, &Device::flex());
    run(unet, move |unet| {
        drop(unet.forward(x.clone(), timesteps.clone(), context.clone()));
    })
}

fn kl_f4_decode() -> Run {
    let latents = normal([1, 3, 64, 64], 0);
    let vae = AutoencoderKlConfig::kl_f4().init(&Device::flex());
    run(vae, move |vae| drop(vae.decode(latents.clone())))
}

fn kl_f4_encode() -> Run {
    let images = normal([1, 3, 256, 256], 0);
    let vae = AutoencoderKlConfig::kl_f4().init(&Device::flex());
    run(vae, move |vae| drop(vae.encode(images.clone()).mean))
}

/// A forward pass without gradients.
fn run<M: Module + 'static>(model: M, forward: impl Fn(&M) + 'static) -> Run {
    Run {
        parameters: count(&model),
        step: Box::new(move || forward(&model)),
    }
}

fn small_unet_train() -> Run {
    use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
    use UpBlockType::{CrossAttnUpBlock2D, UpBlock2D};
    let config = UNetConfig {
        // The number of heads: the class is the conditional one.
        attention_head_dim: Some(PerLevel::All(4)),
        ..UNetConfig::conditional(
            3,
            128,
            vec![64, 128, 192],
            vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
        )
    };
    let timesteps: Vec<f32> = (0..32).map(|item| (item * 31) as f32).collect();
    unet_train(&config, [32, 3, 16, 16], &timesteps, Some([32, 32, 128]))
}

fn celebahq_unet_train() -> Run {
    unet_train(&UNetConfig::celebahq(), [1, 3, 64, 64], &[500.0], None)
}

fn unet_train(
    config: &UNetConfig,
    latents: [usize; 4],
    timesteps: &[f32],
    context: Option<[usize; 3]>,
) -> Run {
    let (x, noise) = (normal(latents, 0), normal(latents, 1));
    let context = context.map(|shape| normal(shape, 2));
    let timesteps = Tensor::from_floats(timesteps, &Device::flex());
    let unet = config.init(&Device::flex().autodiff());
    train(unet, move |unet: &UNet, _| {
        let output = unet.forward(x.clone(), timesteps.clone(), context.clone());
        (output - noise.clone()).square().mean()
    })
}

fn small_vae_train() -> Run {
    let config = AutoencoderKlConfig {
        block_out_channels: vec![32, 64, 128],
        ..AutoencoderKlConfig::kl_f4()
    };
    vae_train(&config, [8, 3, 64, 64])
}

fn kl_f4_train() -> Run {
    vae_train(&AutoencoderKlConfig::kl_f4(), [1, 3, 256, 256])
}

fn vae_train(config: &AutoencoderKlConfig, shape: [usize; 4]) -> Run {
    let images = normal(shape, 0).clamp(-1.0, 1.0);
    let vae = config.init(&Device::flex().autodiff());
    train(vae, move |vae: &AutoencoderKl, step| {
        let posterior = vae.encode(images.clone());
        let noise = normal(posterior.mean.dims(), step);
        let output = vae.decode(posterior.sample(noise));
        let reconstruction = (output - images.clone()).abs().sum() / shape[0] as f64;
        reconstruction + posterior.kl().mean() * 1e-6
    })
}

/// Training steps: forward, backward and AdamW. The loss also gets the step's number.
fn train<M: Module + 'static>(model: M, loss: impl Fn(&M, u64) -> Tensor<1> + 'static) -> Run {
    let parameters = count(&model);
    let mut optimizer = AdamConfig::adam_w().init();
    let (mut model, mut step) = (Some(model), 0);
    Run {
        parameters,
        step: Box::new(move || {
            step += 1;
            let before = model.take().expect("every step puts it back");
            let gradients = loss(&before, step).backward();
            let gradients = GradientsParams::from_grads(gradients, &before);
            model = Some(optimizer.step(1e-4, before, gradients.into()));
        }),
    }
}

/// Standard normal numbers, the same for the same `index`.
fn normal<const D: usize>(shape: [usize; D], index: u64) -> Tensor<D> {
    let values = rng::normal(0, Stream::Preview, 0, index, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}
