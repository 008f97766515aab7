//! Exponential moving average of a model's parameters.

use std::collections::HashMap;

use burn::Tensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};

/// An exponential moving average of a module's float parameters, gradient-free and in `f32`.
///
/// After each training step, `ema <- ema - (1 - d) (ema - parameter)` with `d = min(decay, (1 + n) / (10 + n))`, where
/// n counts the updates from 1: the ramp of CompVis' `LitEma`, without which a short run would average over the random
/// initialisation. The difference form has no rounding bias for decays near 1, unlike `d ema + (1 - d) parameter`.
#[derive(Debug)]
pub struct Ema<M> {
    /// `None` only while an update is under way.
    average: Option<M>,
    decay: f64,
    updates: u64,
}

impl<M: Module> Ema<M> {
    /// Starts the average at the present values of `module`, with a final decay such as 0.9999.
    #[must_use]
    pub fn new(module: &M, decay: f64) -> Self {
        Self::resume(module.valid(), decay, 0)
    }

    /// Goes on from an `average` read from a checkpoint, after `updates` updates.
    ///
    /// The average must have been loaded into a copy of the module being trained (`module.valid()`), because the two
    /// are matched by parameter id.
    #[must_use]
    pub fn resume(average: M, decay: f64, updates: u64) -> Self {
        Self {
            average: Some(average),
            decay,
            updates,
        }
    }

    /// The averaged module, for sampling and for saving.
    #[must_use]
    pub fn module(&self) -> &M {
        self.average.as_ref().expect("present between updates")
    }

    /// How many updates the average has seen.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The decay d of update number `n`, counted from 1.
    #[must_use]
    pub fn decay_at(&self, n: u64) -> f64 {
        self.decay.min((1.0 + n as f64) / (10.0 + n as f64))
    }

    /// Moves the average towards `module`, the one it was started from.
    ///
    /// # Panics
    /// If `module` lacks a parameter of the average.
    pub fn update(&mut self, module: &M) {
        self.updates += 1;
        let mut live = Collect::default();
        module.visit(&mut live);
        let mut step = MoveTowards {
            live: live.parameters,
            rate: 1.0 - self.decay_at(self.updates),
        };
        self.average = self.average.take().map(|average| average.map(&mut step));
    }
}

/// Parameters flattened, so that one map holds all ranks.
#[derive(Default)]
struct Collect {
    parameters: HashMap<ParamId, Tensor<1>>,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.parameters
            .insert(param.id, param.val().inner().flatten(0, D - 1));
    }
}

struct MoveTowards {
    live: HashMap<ParamId, Tensor<1>>,
    rate: f64,
}

impl ModuleMapper for MoveTowards {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let live = self
            .live
            .remove(&param.id)
            .expect("the average and the module have the same parameters");
        let rate = self.rate;
        param.map(|average| {
            let live = live.reshape(average.shape());
            let difference = average.clone() - live;
            average - difference.mul_scalar(rate)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    fn weights(linear: &Linear) -> Vec<f32> {
        linear.weight.val().into_data().iter().collect()
    }

    fn shifted(linear: &Linear, by: f64) -> Linear {
        struct Shift(f64);
        impl ModuleMapper for Shift {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|tensor| Tensor::from_inner(tensor.inner() + self.0).require_grad())
            }
        }
        linear.clone().map(&mut Shift(by))
    }

    #[test]
    fn follows_the_formula_with_its_ramp() {
        let device = Device::flex().autodiff();
        let start = LinearConfig::new(3, 2).init(&device);
        let mut ema = Ema::new(&start, 0.3);
        let mut expected: Vec<f64> = weights(&start)
            .iter()
            .map(|&weight| f64::from(weight))
            .collect();
        for n in 1..=10 {
            let live = shifted(&start, f64::from(n));
            ema.update(&live);
            let decay = 0.3f64.min((1.0 + f64::from(n)) / (10.0 + f64::from(n)));
            for (expected, live) in expected.iter_mut().zip(weights(&live)) {
                *expected = decay * *expected + (1.0 - decay) * f64::from(live);
            }
        }
        assert_eq!(ema.updates(), 10);
        assert_eq!(ema.decay_at(1), 2.0 / 11.0);
        assert_eq!(ema.decay_at(1000), 0.3);
        for (average, expected) in weights(ema.module()).iter().zip(expected) {
            assert!(
                (f64::from(*average) - expected).abs() < 1e-5,
                "{average} {expected}"
            );
        }
    }

    #[test]
    fn neither_side_disturbs_the_other() {
        let device = Device::flex().autodiff();
        let start = LinearConfig::new(3, 2).init(&device);
        let before = weights(&start);
        let mut ema = Ema::new(&start, 0.9);
        ema.update(&shifted(&start, 1.0));
        assert_eq!(weights(&start), before);
        assert_ne!(weights(ema.module()), before);
        assert!(
            !ema.module().weight.val().is_require_grad() && start.weight.val().is_require_grad()
        );
    }

    #[test]
    fn a_constant_stays_exact() {
        let start = LinearConfig::new(3, 2).init(&Device::flex());
        let mut ema = Ema::new(&start, 0.9999);
        for _ in 0..100 {
            ema.update(&start);
        }
        assert_eq!(weights(ema.module()), weights(&start));
    }
}
