//! Micro-batches have the gradients of the joint batch, through the whole of stage 2's loss.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use ldm_diffusion::{
    DiffusionLossConfig, UNet, UNetConfig,
    unet::{DownBlockType, PerLevel, UpBlockType},
};
use ldm_nn::Activations;

use super::{Accumulator, Gradients};
use crate::{config::NoiseConfig, test_tensors::values};

const TIMESTEPS: [usize; 8] = [0, 5, 80, 200, 333, 500, 750, 999];

/// A tiny U-Net with transformers, none of whose layers starts at 0. Matrices are large enough for attention to prefer some keys: where it
/// doesn't, the gradients of queries and keys are differences of nearly equal numbers.
fn unet() -> UNet {
    struct Fill(u64);
    impl ModuleMapper for Fill {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.0 += 1;
            let scale = if D == 2 { 0.5 } else { 0.2 };
            param.map(|tensor| {
                let values = values(tensor.dims(), self.0).mul_scalar(scale);
                values.autodiff().require_grad()
            })
        }
    }
    let config = UNetConfig {
        norm_num_groups: 4,
        layers_per_block: 1,
        attention_head_dim: Some(PerLevel::All(2)),
        ..UNetConfig::conditional(
            4,
            6,
            vec![8, 16],
            vec![
                DownBlockType::CrossAttnDownBlock2D,
                DownBlockType::DownBlock2D,
            ],
            vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        )
    };
    config.init(&Device::flex().autodiff()).map(&mut Fill(10))
}

/// `|a - b| / |b|` of each parameter's gradient.
fn errors(unet: &UNet, found: &Gradients, expected: &Gradients) -> Vec<(ParamId, f64)> {
    struct Compare<'a>(&'a Gradients, &'a Gradients, Vec<(ParamId, f64)>);
    impl ModuleVisitor for Compare<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let of = |gradients: &Gradients| -> Vec<f64> {
                let gradient = gradients.params.get::<D>(param.id).unwrap().into_data();
                gradient
                    .iter::<f64>()
                    .map(|x| x * gradients.scale)
                    .collect()
            };
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let (found, expected) = (of(self.0), of(self.1));
            let difference: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
            self.2.push((param.id, norm(&difference) / norm(&expected)));
        }
    }
    let mut compare = Compare(found, expected, Vec::new());
    unet.visit(&mut compare);
    compare.2
}

#[test]
fn four_micro_batches_of_two_are_a_batch_of_eight() {
    let loss = DiffusionLossConfig {
        min_snr_gamma: Some(5.0),
        ..DiffusionLossConfig::default()
    };
    let schedule = NoiseConfig::default().scheduler(&loss).noise_schedule();
    let loss = loss.init(schedule.unwrap()).unwrap();
    let (x0, noise) = (values([8, 4, 8, 8], 1), values([8, 4, 8, 8], 2));
    let context = values([8, 3, 6], 3);
    let kept = unet();

    let mean = |activations: Activations, batch: usize| {
        let unet = kept.clone().with_activations(activations);
        let mut accumulator = Accumulator::default();
        for first in (0..8).step_by(batch) {
            let part = |x: &Tensor<4>| x.clone().narrow(0, first, batch);
            let timesteps = &TIMESTEPS[first..first + batch];
            let noisy = loss
                .schedule()
                .add_noise(part(&x0), part(&noise), timesteps);
            let floats: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
            let output = unet.forward(
                noisy,
                Tensor::from_floats(floats.as_slice(), &Device::flex()),
                Some(context.clone().narrow(0, first, batch)),
            );
            let loss = loss
                .forward(output, part(&x0), part(&noise), timesteps)
                .loss;
            accumulator.add(&unet, GradientsParams::from_grads(loss.backward(), &unet));
        }
        accumulator.take()
    };
    let joint = mean(Activations::Keep, 8);
    for activations in [Activations::Keep, Activations::Recompute] {
        for (param, error) in errors(&kept, &mean(activations, 2), &joint) {
            assert!(error <= 1e-5, "{activations:?}, parameter {param}: {error}");
        }
    }
}
