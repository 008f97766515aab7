//! The gradients of one optimiser step: summed over micro-batches, measured, clipped.

use burn::Tensor;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use rayon::prelude::*;

use super::{
    all_reduce::sum_over,
    norms::{ComponentOf, Norms, Squares},
    on_host,
};
use crate::parallel::Workers;

/// Values summed by one task: small enough to balance the load, and fixed, so that the order of summation and with it
/// every bit of the norm does not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// The gradients of one optimiser step and a factor that the optimiser applies to them on the way, so that averaging
/// and clipping cost no pass over memory.
#[derive(Debug)]
pub struct Gradients {
    pub(super) params: GradientsParams,
    pub(super) scale: f64,
}

impl From<GradientsParams> for Gradients {
    fn from(params: GradientsParams) -> Self {
        Self { params, scale: 1.0 }
    }
}

impl Gradients {
    /// The gradient of `param`, not yet scaled.
    #[cfg(test)]
    pub(crate) fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        self.params.get::<D>(param.id)
    }

    /// The factor that the optimiser will apply.
    #[cfg(test)]
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// The L2 norm over all parameters of `module` together. Not finite if any gradient is not.
    #[must_use]
    pub fn norm<M: Module>(&mut self, module: &M) -> f64 {
        self.norms(module, None).total
    }

    /// As [`norm`](Self::norm), and the norm over the parameters of each component.
    #[must_use]
    pub fn norms<M: Module>(&mut self, module: &M, component_of: Option<ComponentOf>) -> Norms {
        let mut sums = SumOfSquares {
            gradients: &mut self.params,
            squares: Squares::new(component_of),
        };
        module.visit(&mut sums);
        sums.squares.norms(self.scale)
    }

    /// Scales the gradients of `module` down to a norm of `max_norm` if theirs is larger, as PyTorch's
    /// `clip_grad_norm_`: by `max_norm / (norm + 1e-6)`. Returns the norm before. One that is not finite is returned
    /// without clipping: there is nothing to save in such gradients.
    pub fn clip_norm<M: Module>(&mut self, module: &M, max_norm: f64) -> f64 {
        let norm = self.norm(module);
        self.clip(norm, max_norm);
        norm
    }

    /// Scales gradients whose norm is known to be `norm` as [`clip_norm`](Self::clip_norm) does.
    pub fn clip(&mut self, norm: f64, max_norm: f64) {
        if norm.is_finite() {
            self.scale *= (max_norm / (norm + 1e-6)).min(1.0);
        }
    }
}

struct SumOfSquares<'a> {
    gradients: &'a mut GradientsParams,
    squares: Squares,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // Taken out and put back: a gradient with a single owner gives its values without a copy.
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return;
        };
        if !on_host(&gradient) {
            self.squares.add_on_device(gradient.clone().square().sum());
            return self.gradients.register(param.id, gradient);
        }
        let device = gradient.device();
        let data = gradient.into_data();
        let values = data.as_slice::<f32>().expect("`on_host` means f32");
        let sums: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
        self.squares.add(sums.iter().sum());
        self.gradients
            .register(param.id, Tensor::<D>::from_data(data, &device));
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.squares.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.squares.exit(container_type);
    }
}

/// The sum of the squares, in lanes that don't wait for each other.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (lanes, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for lane in lanes {
        for (sum, &value) in sums.iter_mut().zip(lane) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    sums.iter().sum()
}

/// Adds up the gradients of micro-batches to the mean over all of them.
pub struct Accumulator<M> {
    sum: GradientsAccumulator<M>,
    count: usize,
}

impl<M: Module> Default for Accumulator<M> {
    fn default() -> Self {
        Self {
            sum: GradientsAccumulator::new(),
            count: 0,
        }
    }
}

impl<M: Module> Accumulator<M> {
    /// Adds the gradients of one micro-batch's mean loss.
    pub fn add(&mut self, module: &M, gradients: GradientsParams) {
        self.sum.accumulate(module, gradients);
        self.count += 1;
    }

    /// [`take`](Self::take) over the micro-batches of all processes, which have equally many each.
    #[must_use]
    pub(crate) fn take_joint(&mut self, module: &M, workers: &Workers) -> Gradients {
        let mut gradients = self.take();
        if workers.size() > 1 {
            sum_over(workers, &mut gradients.params, module);
            gradients.scale /= workers.size() as f64;
        }
        gradients
    }

    /// The mean over the micro-batches added since the last call, which for equal sizes is the gradient of the joint
    /// batch.
    #[must_use]
    pub fn take(&mut self) -> Gradients {
        let count = std::mem::take(&mut self.count).max(1);
        Gradients {
            params: self.sum.grads(),
            scale: 1.0 / count as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    fn linear() -> Linear {
        LinearConfig::new(2, 2).init(&Device::flex().autodiff())
    }

    /// Gradients of 3 for each weight and 4 for each bias.
    fn gradients(linear: &Linear) -> GradientsParams {
        let loss =
            linear.weight.val().sum() * 3.0 + linear.bias.as_ref().unwrap().val().sum() * 4.0;
        GradientsParams::from_grads(loss.backward(), linear)
    }

    fn weight_gradient(linear: &Linear, gradients: &Gradients) -> f64 {
        let raw: f32 = gradients
            .params
            .get::<2>(linear.weight.id)
            .unwrap()
            .into_data()
            .iter()
            .next()
            .unwrap();
        f64::from(raw) * gradients.scale
    }

    #[test]
    fn the_norm_spans_all_parameters() {
        let linear = linear();
        let norm = Gradients::from(gradients(&linear)).norm(&linear);
        assert!((norm - (4.0f64 * 9.0 + 2.0 * 16.0).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn clipping_keeps_the_direction_and_small_gradients() {
        let linear = linear();
        let norm = 68.0f64.sqrt();
        let mut clipped = Gradients::from(gradients(&linear));
        assert!((clipped.clip_norm(&linear, 1.0) - norm).abs() < 1e-6);
        assert!((clipped.norm(&linear) - 1.0).abs() < 1e-6);
        assert!((weight_gradient(&linear, &clipped) - 3.0 / norm).abs() < 1e-6);

        let mut kept = Gradients::from(gradients(&linear));
        kept.clip_norm(&linear, 100.0);
        assert_eq!(weight_gradient(&linear, &kept), 3.0);
    }

    #[test]
    fn a_gradient_that_is_not_finite_shows_in_the_norm() {
        let linear = linear();
        let mut params = gradients(&linear);
        params.register(
            linear.weight.id,
            Tensor::<2>::full([2, 2], f32::NAN, &Device::flex()),
        );
        assert!(Gradients::from(params).clip_norm(&linear, 1.0).is_nan());
    }

    #[test]
    fn micro_batches_average_and_the_accumulator_starts_anew() {
        let linear = linear();
        let mut accumulator = Accumulator::default();
        for _ in 0..4 {
            accumulator.add(&linear, gradients(&linear));
        }
        let mut mean = accumulator.take();
        assert_eq!(weight_gradient(&linear, &mean), 3.0);
        assert!((mean.norm(&linear) - 68.0f64.sqrt()).abs() < 1e-6);
        accumulator.add(&linear, gradients(&linear));
        assert_eq!(weight_gradient(&linear, &accumulator.take()), 3.0);
    }
}
