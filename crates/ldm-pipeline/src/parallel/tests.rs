use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::{
        Linear, LinearConfig,
        conv::{Conv2d, Conv2dConfig},
    },
    optim::GradientsParams,
    tensor::{Device, Tensor},
};

use super::{Workers, threads::connected};
use crate::{
    error::Error,
    optim::{Accumulator, Gradients},
    rng::{Stream, normal},
};

/// Parameters of several sizes, one of which is larger than a bucket, and one that is never used.
#[derive(Module, Debug)]
struct Model {
    conv: Conv2d,
    wide: Linear,
    narrow: Linear,
    unused: Linear,
}

impl Model {
    fn new() -> Self {
        let device = Device::flex().autodiff();
        let model = Self {
            conv: Conv2dConfig::new([2, 3], [3, 3]).init(&device),
            wide: LinearConfig::new(3 * 16, 24_000).init(&device),
            narrow: LinearConfig::new(24_000, 2).init(&device),
            unused: LinearConfig::new(2, 2).init(&device),
        };
        model.materialize()
    }

    /// Gradients of the mean loss of micro-batch `number`.
    fn gradients(&self, number: usize) -> GradientsParams {
        let device = Device::flex();
        let values = normal(1, Stream::DiffusionNoise, 0, number as u64, 4 * 2 * 36);
        let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([4, 2, 6, 6]);
        let h = self.conv.forward(x).reshape([4, 48]).tanh();
        let y = self.narrow.forward(self.wide.forward(h).tanh());
        GradientsParams::from_grads(y.square().mean().backward(), self)
    }
}

/// Every gradient of a module, scaled, in the module's order; `None` for a parameter without one.
struct Collect<'a> {
    gradients: &'a Gradients,
    found: Vec<Option<Vec<f64>>>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push(self.gradients.of(param).map(|gradient| {
            let scale = self.gradients.scale();
            (gradient.into_data().iter::<f64>())
                .map(|value| value * scale)
                .collect()
        }));
    }
}

fn collect(model: &Model, gradients: &Gradients) -> Vec<Option<Vec<f64>>> {
    let mut collect = Collect {
        gradients,
        found: Vec::new(),
    };
    model.visit(&mut collect);
    collect.found
}

fn relative_difference(a: &[f64], b: &[f64]) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    (difference / size).sqrt()
}

#[test]
fn two_processes_have_the_gradients_of_one_that_accumulates_twice_as_much() {
    let model = Model::new();
    let mut alone = Accumulator::default();
    for micro in 0..4 {
        alone.add(&model, model.gradients(micro));
    }
    let mut expected = alone.take_joint(&model, &Workers::default());
    let norm = expected.norm(&model);
    let expected = collect(&model, &expected);

    let shared = std::sync::Mutex::new(model);
    let results = connected(2, move |workers| {
        let model = shared.lock().unwrap().clone();
        let mut accumulator = Accumulator::default();
        for micro in 0..2 {
            accumulator.add(&model, model.gradients(workers.micro_batch(micro)));
        }
        let mut gradients = accumulator.take_joint(&model, &workers);
        (gradients.norm(&model), collect(&model, &gradients))
    });
    assert_eq!(results[0].0.to_bits(), results[1].0.to_bits());
    assert_eq!(results[0].1, results[1].1);
    assert!((results[0].0 / norm - 1.0).abs() < 1e-6);
    assert_eq!(expected.iter().filter(|found| found.is_none()).count(), 2);
    for (found, expected) in results[0].1.iter().zip(&expected) {
        match (found, expected) {
            (Some(found), Some(expected)) => {
                let difference = relative_difference(found, expected);
                assert!(difference < 1e-6, "{difference:e}");
            }
            (found, expected) => assert_eq!(found, expected),
        }
    }
}

#[test]
fn a_gradient_that_only_one_process_has_reaches_all() {
    let model = Model::new();
    let shared = std::sync::Mutex::new(model.clone());
    let found = connected(2, move |workers| {
        let model = shared.lock().unwrap().clone();
        let mut accumulator = Accumulator::default();
        let mut gradients = model.gradients(0);
        if workers.rank() == 1 {
            gradients.remove::<2>(model.narrow.weight.id);
        }
        accumulator.add(&model, gradients);
        collect(&model, &accumulator.take_joint(&model, &workers))
    });
    assert_eq!(found[0], found[1]);
    let alone = collect(&model, &model.gradients(0).into());
    // The order of the module's parameters: the convolution's two, then those of the layers.
    let halved: Vec<f64> = alone[4].as_ref().unwrap().iter().map(|g| g / 2.0).collect();
    assert_eq!(found[0][4].as_ref(), Some(&halved));
}

#[test]
fn figures_are_averaged_by_name() {
    let found = connected(3, |workers| {
        let rank = workers.rank() as f64;
        let mut figures = vec![("loss", rank), ("lr", 0.1)];
        if workers.rank() == 1 {
            figures.insert(1, ("bin", 7.0));
        }
        workers.mean(&mut figures);
        figures
    });
    assert_eq!(found[0], [("loss", 1.0), ("lr", 0.1)]);
    assert_eq!(found[1], [("loss", 1.0), ("bin", 7.0), ("lr", 0.1)]);
}

#[test]
fn all_stop_if_one_does_and_all_know_of_a_number_that_is_none() {
    let found = connected(2, |workers| {
        let first = workers.is_first();
        assert!(!workers.any(false));
        assert!(workers.any(first));
        assert!(workers.first_does(|| Ok(true)).unwrap());
        assert!(!workers.first_does(|| Ok(false)).unwrap());
        assert_eq!(workers.numbers(workers.rank() as u64 + 5), [5, 6]);
        assert_eq!(workers.agree(Ok(1)).unwrap(), 1);
        workers.agree(match first {
            true => Ok(()),
            false => Err(Error::NotFinite {
                name: "loss",
                value: f64::INFINITY,
                step: 3,
                culprit: crate::train::Culprit::Unknown,
            }),
        })
    });
    let messages: Vec<String> = (found.into_iter())
        .map(|result| result.unwrap_err().to_string())
        .collect();
    assert_eq!(
        messages,
        [
            "the loss of another process or device is inf at step 3: each of its parts is finite here",
            "the loss is inf at step 3: each of its parts is finite here"
        ]
    );
}
