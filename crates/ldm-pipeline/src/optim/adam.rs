//! Adam (Kingma and Ba 2015) with decoupled weight decay (AdamW, Loshchilov and Hutter 2019).

use std::collections::HashMap;

use burn::Tensor;
use burn::module::{Module, ModuleMapper, Param, ParamId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Gradients,
    norms::{ComponentOf, Norms, Squares},
    on_host,
};

/// Values updated by one task.
const CHUNK: usize = 1 << 16;
/// Values of such a task whose old state is kept to measure their change: few enough for the fastest cache.
const BLOCK: usize = 1 << 10;

/// The numbers of [`Adam`]. The default is PyTorch's AdamW; without weight decay it is Adam.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// Decay of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: each step takes `rate * weight_decay` of every parameter.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self::adam_w()
    }
}

impl AdamConfig {
    /// AdamW as in PyTorch and in the paper's diffusion models: betas 0.9 and 0.999, weight decay 0.01.
    #[must_use]
    pub fn adam_w() -> Self {
        Self {
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }

    /// Adam as for the paper's autoencoders and their discriminator: betas 0.5 and 0.9, no weight decay.
    #[must_use]
    pub fn autoencoder() -> Self {
        Self {
            betas: [0.5, 0.9],
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }

    /// An optimiser that has not made a step yet.
    #[must_use]
    pub fn init(&self) -> Adam {
        Adam {
            config: *self,
            moments: HashMap::new(),
        }
    }
}

/// The optimiser of one module: its configuration and, for each parameter that ever had a gradient, two moments.
///
/// ```text
/// m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
/// p <- (1 - rate decay) p - rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
/// ```
///
/// t counts the parameter's own updates, as in PyTorch; the factors are computed in `f64`.
#[derive(Debug, Clone)]
pub struct Adam {
    config: AdamConfig,
    pub(crate) moments: HashMap<ParamId, Moments>,
}

/// The state of one parameter, flattened.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    /// Updates so far, the t of the equations.
    pub(crate) updates: u64,
    pub(crate) first: Tensor<1>,
    pub(crate) second: Tensor<1>,
}

impl Adam {
    /// The configuration it was made from.
    #[must_use]
    pub fn config(&self) -> &AdamConfig {
        &self.config
    }

    /// Makes one step with learning rate `rate`. Parameters without a gradient stay as they are.
    #[must_use]
    pub fn step<M: Module>(&mut self, rate: f64, module: M, gradients: Gradients) -> M {
        self.step_measured(rate, module, gradients, None).0
    }

    /// As [`step`](Self::step); with the module, the norms of the change that the step made to it, weight decay included.
    #[must_use]
    pub fn step_measured<M: Module>(
        &mut self,
        rate: f64,
        module: M,
        gradients: Gradients,
        component_of: Option<ComponentOf>,
    ) -> (M, Norms) {
        let mut step = Step {
            adam: self,
            rate,
            gradients,
            squares: Squares::new(component_of),
        };
        let module = module.map(&mut step);
        (module, step.squares.norms(1.0))
    }
}

struct Step<'a> {
    adam: &'a mut Adam,
    rate: f64,
    gradients: Gradients,
    /// Of the changes so far.
    squares: Squares,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.params.remove::<D>(param.id) else {
            return param;
        };
        let gradient = gradient.inner().flatten::<1>(0, D - 1);
        let mut moments = self
            .adam
            .moments
            .remove(&param.id)
            .unwrap_or_else(|| Moments {
                updates: 0,
                first: gradient.zeros_like(),
                second: gradient.zeros_like(),
            });
        moments.updates += 1;
        let factors = Factors::new(
            &self.adam.config,
            self.rate,
            self.gradients.scale,
            moments.updates,
        );

        let (id, tensor, mapper) = param.consume();
        let (tracked, checkpointing, shape) = (
            tensor.is_require_grad(),
            tensor.gradient_checkpointing_strategy(),
            tensor.shape(),
        );
        let flat = tensor.inner().flatten::<1>(0, D - 1);
        let (flat, moments) = if on_host(&flat) && on_host(&gradient) && on_host(&moments.first) {
            let (flat, moments, change) = factors.update_slices(flat, gradient, moments);
            self.squares.add(change);
            (flat, moments)
        } else {
            let before = flat.clone();
            let (flat, moments) = factors.update_tensors(flat, gradient, moments);
            let change = (flat.clone() - before).square().sum();
            self.squares.add_on_device(change);
            (flat, moments)
        };
        self.adam.moments.insert(id, moments);

        let mut tensor = flat.reshape(shape);
        // Back onto the tape as it was: `from_inner` alone would forget both settings.
        if let Some(strategy) = checkpointing {
            tensor = Tensor::from_inner(tensor).with_gradient_checkpointing_strategy(strategy);
        }
        if tracked {
            tensor = tensor.require_grad();
        }
        Param::from_mapped_value(id, tensor, mapper)
    }

    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.squares.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.squares.exit(container_type);
    }
}

/// The factors of the update equations.
struct Factors {
    gradient: f64,
    beta_1: f64,
    beta_2: f64,
    eps: f64,
    /// 1 - rate * decay.
    keep: f64,
    /// rate / (1 - b1^t).
    rate: f64,
    /// 1 / sqrt(1 - b2^t).
    second: f64,
}

impl Factors {
    fn new(config: &AdamConfig, rate: f64, gradient: f64, updates: u64) -> Self {
        let [beta_1, beta_2] = config.betas;
        let correction = |beta: f64| 1.0 - beta.powf(updates as f64);
        Self {
            gradient,
            beta_1,
            beta_2,
            eps: config.eps,
            keep: 1.0 - rate * config.weight_decay,
            rate: rate / correction(beta_1),
            second: 1.0 / correction(beta_2).sqrt(),
        }
    }

    /// One pass over memory, on all cores. Elementwise, so the result doesn't depend on their number; nor does the squared length of
    /// the change, which comes with it.
    fn update_slices(
        &self,
        flat: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
    ) -> (Tensor<1>, Moments, f64) {
        let device = flat.device();
        let [
            gradient_scale,
            beta_1,
            beta_2,
            eps,
            keep,
            rate,
            second_scale,
        ] = [
            self.gradient,
            self.beta_1,
            self.beta_2,
            self.eps,
            self.keep,
            self.rate,
            self.second,
        ]
        .map(|factor| factor as f32);
        let [one_minus_beta_1, one_minus_beta_2] =
            [1.0 - self.beta_1, 1.0 - self.beta_2].map(|x| x as f32);

        let gradient = gradient.into_data();
        let [mut values, mut first, mut second] =
            [flat, moments.first, moments.second].map(Tensor::into_data);
        let slice = "`on_host` means f32";
        let changes: Vec<f64> = values
            .as_mut_slice::<f32>()
            .expect(slice)
            .par_chunks_mut(CHUNK)
            .zip(gradient.as_slice::<f32>().expect(slice).par_chunks(CHUNK))
            .zip(
                first
                    .as_mut_slice::<f32>()
                    .expect(slice)
                    .par_chunks_mut(CHUNK),
            )
            .zip(
                second
                    .as_mut_slice::<f32>()
                    .expect(slice)
                    .par_chunks_mut(CHUNK),
            )
            .map(|(((values, gradient), first), second)| {
                let blocks = (values.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)))
                    .zip(first.chunks_mut(BLOCK))
                    .zip(second.chunks_mut(BLOCK));
                let mut before = [0.0; BLOCK];
                let mut change = 0.0;
                for (((values, gradient), first), second) in blocks {
                    let before = &mut before[..values.len()];
                    before.copy_from_slice(values);
                    for (((p, &g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second)
                    {
                        let g = g * gradient_scale;
                        *m = beta_1 * *m + one_minus_beta_1 * g;
                        *v = beta_2 * *v + one_minus_beta_2 * (g * g);
                        *p = keep * *p - rate * (*m / (v.sqrt() * second_scale + eps));
                    }
                    change += squared_distance(values, before);
                }
                change
            })
            .collect();
        let [flat, first, second] =
            [values, first, second].map(|data| Tensor::from_data(data, &device));
        (
            flat,
            Moments {
                updates: moments.updates,
                first,
                second,
            },
            changes.iter().sum(),
        )
    }

    fn update_tensors(
        &self,
        flat: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
    ) -> (Tensor<1>, Moments) {
        let gradient = gradient.mul_scalar(self.gradient);
        let first = moments.first * self.beta_1 + gradient.clone() * (1.0 - self.beta_1);
        let second = moments.second * self.beta_2 + gradient.square() * (1.0 - self.beta_2);
        let denominator = second.clone().sqrt() * self.second + self.eps;
        let flat = flat * self.keep - first.clone() / denominator * self.rate;
        (
            flat,
            Moments {
                updates: moments.updates,
                first,
                second,
            },
        )
    }
}

/// `sum((a - b)^2)`, each difference rounded to `f32`; in eight sums side by side, which a compiler can keep in a vector.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let square = |(a, b): (&f32, &f32)| {
        let difference = f64::from(a - b);
        difference * difference
    };
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = (a.remainder().iter().zip(b.remainder())).map(square).sum();
    for (a, b) in a.zip(b) {
        for (sum, pair) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += square(pair);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::GradientsParams;
    use burn::tensor::Device;

    fn linear() -> Linear {
        LinearConfig::new(3, 2).init(&Device::flex().autodiff())
    }

    fn weights(linear: &Linear) -> Vec<f32> {
        linear.weight.val().into_data().iter().collect()
    }

    /// The gradient of `sum(weight^2 * (step + 1))`, different for each weight and step.
    fn gradients(linear: &Linear, step: u32) -> GradientsParams {
        let loss = linear.weight.val().square().sum() * f64::from(step + 1);
        GradientsParams::from_grads(loss.backward(), linear)
    }

    /// The equations in `f64`, for one parameter.
    fn reference(config: &AdamConfig, rate: f64, start: f64, steps: u32, scale: f64) -> f64 {
        let [b1, b2] = config.betas;
        let (mut p, mut m, mut v) = (start, 0.0, 0.0);
        for step in 0..steps {
            let g = scale * 2.0 * p * f64::from(step + 1);
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            let t = step as i32 + 1;
            let (m_hat, v_hat) = (m / (1.0 - b1.powi(t)), v / (1.0 - b2.powi(t)));
            p -= rate * config.weight_decay * p;
            p -= rate * m_hat / (v_hat.sqrt() + config.eps);
        }
        p
    }

    #[test]
    fn steps_follow_the_equations() {
        for config in [AdamConfig::adam_w(), AdamConfig::autoencoder()] {
            let mut linear = linear();
            let start = weights(&linear);
            let mut adam = config.init();
            for step in 0..7 {
                let mut step_gradients = Gradients::from(gradients(&linear, step));
                step_gradients.scale = 0.5;
                linear = adam.step(0.01, linear, step_gradients);
            }
            for (start, end) in start.iter().zip(weights(&linear)) {
                let expected = reference(&config, 0.01, f64::from(*start), 7, 0.5);
                assert!((f64::from(end) - expected).abs() < 1e-6, "{end} {expected}");
            }
        }
    }

    #[test]
    fn the_change_is_measured() {
        let linear = linear();
        let before = weights(&linear);
        let mut adam = AdamConfig::adam_w().init();
        let gradients = gradients(&linear, 0).into();
        let component_of = |path: &[String]| path.join(".");
        let (linear, norms) = adam.step_measured(0.01, linear, gradients, Some(component_of));
        let squares = (before.iter().zip(weights(&linear)))
            .map(|(before, after)| f64::from(after - before).powi(2));
        let expected = squares.sum::<f64>().sqrt();
        assert!(expected > 0.01, "{expected}");
        assert!((norms.total - expected).abs() < 1e-12);
        assert_eq!(norms.components, [("weight".to_owned(), norms.total)]);
    }

    #[test]
    fn squared_distances_of_any_length() {
        for length in [0, 1, 7, 8, 9, 1025] {
            let a: Vec<f32> = (0..length).map(|i| i as f32 * 0.5).collect();
            let b = vec![0.0; length];
            let expected: f64 = a.iter().map(|&a| f64::from(a).powi(2)).sum();
            assert_eq!(squared_distance(&a, &b), expected);
        }
    }

    #[test]
    fn slices_and_tensors_agree() {
        let device = Device::flex();
        let tensor =
            |from: f32| Tensor::<1>::from_floats([from, 0.5 - from, from * from, -1.5], &device);
        let moments = || Moments {
            updates: 3,
            first: tensor(0.1),
            second: tensor(0.2).square(),
        };
        let factors = Factors::new(&AdamConfig::adam_w(), 0.01, 0.7, 3);
        let by_slices = factors.update_slices(tensor(0.3), tensor(0.4), moments());
        let by_tensors = factors.update_tensors(tensor(0.3), tensor(0.4), moments());
        for (a, b) in [
            (by_slices.0, by_tensors.0),
            (by_slices.1.first, by_tensors.1.first),
            (by_slices.1.second, by_tensors.1.second),
        ] {
            let difference = (a - b).abs().max().into_scalar::<f32>();
            assert!(difference < 1e-6, "{difference}");
        }
    }

    #[test]
    fn parameters_stay_trainable_and_those_without_gradient_stay_put() {
        let linear = linear();
        let bias: Vec<f32> = linear
            .bias
            .as_ref()
            .unwrap()
            .val()
            .into_data()
            .iter()
            .collect();
        let mut adam = AdamConfig::adam_w().init();
        let step = gradients(&linear, 0);
        let linear = adam.step(0.01, linear, step.into());
        assert!(linear.weight.val().is_require_grad());
        assert_eq!(
            linear
                .bias
                .as_ref()
                .unwrap()
                .val()
                .into_data()
                .iter::<f32>()
                .collect::<Vec<_>>(),
            bias
        );
        assert_eq!(adam.moments.len(), 1);
        assert!(!gradients(&linear, 1).is_empty());
    }
}
