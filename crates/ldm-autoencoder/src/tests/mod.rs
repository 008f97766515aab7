//! Tests of the whole crate, and what they share.

mod autoencoder;
pub(crate) mod compvis;
mod diffusers;
mod first_stages;
mod logvar;
mod lpips;
mod objective;
pub(crate) mod reference;
mod running_statistics;
mod tiling;
mod training;
mod vq;
mod vq_objective;

use burn::{
    module::{ModuleMapper, Param},
    optim::GradientsParams,
    prelude::*,
};

use crate::AutoencoderKlConfig;
pub(crate) use reference::{Expected, fixture, gradient_norms, load, load_compvis, scalar, values};

/// A configuration that runs in milliseconds: one level per entry of `channels`.
pub(crate) fn tiny(channels: &[usize]) -> AutoencoderKlConfig {
    AutoencoderKlConfig {
        norm_num_groups: 4,
        ..AutoencoderKlConfig::new(channels.to_vec(), 4, 0)
    }
}

/// Reproducible values, uniform in `[-scale, scale]`.
pub(crate) fn uniform<const D: usize>(shape: [usize; D], scale: f32, mut seed: u64) -> Tensor<D> {
    let next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        scale * ((seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    let values: Vec<f32> = std::iter::repeat_with(next)
        .take(shape.iter().product())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Replaces a module's random parameters by reproducible ones of the same size; tests share the process's generator.
pub(crate) fn seeded<M: Module>(module: M) -> M {
    struct Seeded {
        path: Vec<String>,
        seed: u64,
    }
    impl ModuleMapper for Seeded {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let scale = match self.path.last().map(String::as_str) {
                Some("weight") if D == 4 => {
                    let dims = param.lazy_shape();
                    (dims.num_elements() as f32 / dims[0] as f32).powf(-0.5)
                }
                Some("weight") => (param.lazy_shape()[0] as f32).powf(-0.5),
                Some("bias") => 0.1,
                _ => return param,
            };
            self.seed += 1;
            let seed = self.seed;
            param.map(|tensor| {
                let tracked = tensor.is_require_grad();
                let values = uniform(tensor.dims(), scale, seed).to_data();
                let tensor = Tensor::from_data(values, &tensor.device());
                if tracked {
                    tensor.require_grad()
                } else {
                    tensor
                }
            })
        }
    }
    module.map(&mut Seeded {
        path: Vec::new(),
        seed: 0,
    })
}

/// Smooth pictures `[n, 3, side, side]` in `[-1, 1]`, unlike each other.
pub(crate) fn pictures(n: usize, side: usize) -> Tensor<4> {
    let value = |index: usize| {
        let (x, y) = (index % side, index / side % side);
        let (c, n) = (index / (side * side) % 3, index / (3 * side * side));
        let phase = 0.4 * x as f32 + 0.3 * (1 + c) as f32 * y as f32 + 2.0 * n as f32;
        phase.sin()
    };
    let values: Vec<f32> = (0..n * 3 * side * side).map(value).collect();
    Tensor::from_data(TensorData::new(values, [n, 3, side, side]), &Device::flex())
}

/// Paths whose gradient is above rounding noise.
pub(crate) fn moved<M: Module>(module: &M, grads: &GradientsParams) -> Vec<String> {
    let norms = gradient_norms(module, grads);
    let largest = norms.values().copied().fold(0.0, f32::max);
    norms
        .into_iter()
        .filter(|(_, norm)| *norm > 1e-6 * largest)
        .map(|(path, _)| path)
        .collect()
}

/// `max |a - b| <= tolerance * max(1, max |b|)`.
#[track_caller]
pub(crate) fn assert_close<const D: usize>(found: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let largest = expected
        .iter()
        .fold(1f32, |max, value| max.max(value.abs()));
    let error = found
        .iter()
        .zip(&expected)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(
        error <= tolerance * largest,
        "error {error}, largest value {largest}"
    );
}

/// `max |a - b| <= tolerance * max |b|`.
#[track_caller]
pub(crate) fn assert_parity<const D: usize>(found: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    let largest = scalar(expected.clone().abs().max());
    assert_close(
        found.div_scalar(largest),
        expected.div_scalar(largest),
        tolerance,
    );
}

/// `|a - b| <= tolerance * |b|`.
#[track_caller]
pub(crate) fn assert_near(found: f32, expected: f32, tolerance: f32) {
    assert!(
        (found - expected).abs() <= tolerance * expected.abs(),
        "{found} is not near {expected}"
    );
}

/// `|a - b|_2 <= tolerance * |b|_2`.
#[track_caller]
pub(crate) fn assert_relative<const D: usize>(
    found: Tensor<D>,
    expected: Tensor<D>,
    tolerance: f32,
) {
    let norm = |x: Tensor<D>| scalar(x.square().sum().sqrt());
    let error = norm(found - expected.clone()) / norm(expected);
    assert!(error <= tolerance, "relative error {error}");
}
