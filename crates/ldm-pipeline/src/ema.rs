//! Exponential moving average of a model's parameters.

use std::collections::HashMap;

use burn::Tensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use serde::{Deserialize, Serialize};

/// How the decay of an average rises to its largest value, without which a short run would average over the random
/// initialisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmaWarmupKind {
    /// `(1 + n) / (10 + n)` for update n, counted from 1: CompVis' `LitEma`.
    #[default]
    CompVis,
    /// `(1 + m) / (10 + m)` with m = n - 1, and 0 at the first update: diffusers' `EMAModel` without `use_ema_warmup`.
    Diffusers,
    /// `1 - (1 + m / inv_gamma)^-power` with m = n - 1, and so 0 at the first update: diffusers' `EMAModel` with `use_ema_warmup`.
    Power,
    /// The largest decay from the first update on.
    None,
}

/// The course of an average's decay, before its upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaWarmup {
    /// Its formula; `compvis` by default.
    pub kind: EmaWarmupKind,
    /// Scale of the updates in `power`, above 0; 1 by default.
    pub inv_gamma: f64,
    /// Exponent of `power`, above 0; 2/3 by default, which suits a million steps.
    pub power: f64,
}

impl Default for EmaWarmup {
    fn default() -> Self {
        Self {
            kind: EmaWarmupKind::CompVis,
            inv_gamma: 1.0,
            power: 2.0 / 3.0,
        }
    }
}

impl EmaWarmup {
    /// The decay of update `n`, counted from 1, if nothing limits it.
    fn decay_at(&self, n: u64) -> f64 {
        let ramp = |n: f64| (1.0 + n) / (10.0 + n);
        let before = n.saturating_sub(1) as f64;
        match self.kind {
            EmaWarmupKind::CompVis => ramp(n as f64),
            EmaWarmupKind::Diffusers if n <= 1 => 0.0,
            EmaWarmupKind::Diffusers => ramp(before),
            EmaWarmupKind::Power => 1.0 - (1.0 + before / self.inv_gamma).powf(-self.power),
            EmaWarmupKind::None => 1.0,
        }
    }
}

/// The decay of an average: its largest value and the way there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmaDecay {
    /// Largest decay, in `[0, 1)`, such as 0.9999.
    pub max: f64,
    /// The way there.
    pub warmup: EmaWarmup,
}

impl From<f64> for EmaDecay {
    /// With CompVis' warm-up.
    fn from(max: f64) -> Self {
        Self {
            max,
            warmup: EmaWarmup::default(),
        }
    }
}

/// An exponential moving average of a module's float parameters, gradient-free and in `f32`.
///
/// After each training step, `ema <- ema - (1 - d) (ema - parameter)` with `d = min(max, warmup(n))`, where n counts the updates
/// from 1. The difference form has no rounding bias for decays near 1, unlike `d ema + (1 - d) parameter`.
#[derive(Debug)]
pub struct Ema<M> {
    /// `None` only while an update is under way.
    average: Option<M>,
    decay: EmaDecay,
    updates: u64,
}

impl<M: Module> Ema<M> {
    /// Starts the average at the present values of `module`; a number is the largest decay, with CompVis' warm-up.
    #[must_use]
    pub fn new(module: &M, decay: impl Into<EmaDecay>) -> Self {
        Self::resume(module.valid(), decay, 0)
    }

    /// Goes on from an `average` read from a checkpoint, after `updates` updates.
    ///
    /// The average must have been loaded into a copy of the module being trained (`module.valid()`), because the two
    /// are matched by parameter id.
    #[must_use]
    pub fn resume(average: M, decay: impl Into<EmaDecay>, updates: u64) -> Self {
        Self {
            average: Some(average),
            decay: decay.into(),
            updates,
        }
    }

    /// The course of the decay.
    #[must_use]
    pub fn decay(&self) -> EmaDecay {
        self.decay
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
        self.decay.max.min(self.decay.warmup.decay_at(n))
    }

    /// Changes the average by a mapper that keeps the parameters' ids.
    pub(crate) fn map(&mut self, mapper: &mut impl ModuleMapper) {
        self.average = self.average.take().map(|average| average.map(mapper));
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
        self.map(&mut step);
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

    /// The decays of diffusers 0.36's `EMAModel`, and where each course ends.
    #[test]
    fn each_warm_up_has_its_course() {
        let start = LinearConfig::new(3, 2).init(&Device::flex());
        let decays = |kind, inv_gamma, power| {
            let warmup = EmaWarmup {
                kind,
                inv_gamma,
                power,
            };
            let ema = Ema::new(&start, EmaDecay { max: 0.99, warmup });
            [1, 2, 3, 1_000_000].map(|n| ema.decay_at(n))
        };
        use EmaWarmupKind::{CompVis, Diffusers, None, Power};
        let near = |found: [f64; 4], expected: [f64; 4]| {
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        };
        near(
            decays(CompVis, 1.0, 0.5),
            [2.0 / 11.0, 0.25, 4.0 / 13.0, 0.99],
        );
        near(decays(Diffusers, 1.0, 0.5), [0.0, 2.0 / 11.0, 0.25, 0.99]);
        near(decays(None, 1.0, 0.5), [0.99; 4]);
        let roots = [0.0, 1.0 - 0.5f64.sqrt(), 1.0 - (1.0 / 3.0f64).sqrt(), 0.99];
        near(decays(Power, 1.0, 0.5), roots);
        near(decays(Power, 2.0, 1.0), [0.0, 1.0 / 3.0, 0.5, 0.99]);
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
