//! A log-variance that is trained along with a stage's module, where the configuration says so.

use burn::{
    module::{Module, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};

use super::state::Trained;
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter},
    config::TrainingConfig,
    error::Error,
    optim::{Accumulator, Gradients},
    parallel::Workers,
};

/// Its name in a checkpoint.
const NAME: &str = "logvar";

/// The parameter alone.
#[derive(Module, Debug)]
struct LogVariance {
    value: Param<Tensor<1>>,
}

/// The parameter with its optimiser and the gradients of a step.
///
/// It is apart from the module that is exported, and has no average: CompVis' has none either, since `LitEma` averages the network
/// alone. Adam works on each number by itself, so that an optimiser of its own with the same settings does what a shared one would.
pub(super) struct LearntLogvar {
    trained: Trained<LogVariance>,
    gradients: Accumulator<LogVariance>,
}

impl LearntLogvar {
    /// `count` numbers that start at `init`, on an autodiff device.
    pub(super) fn new(count: usize, init: f64, training: &TrainingConfig, device: &Device) -> Self {
        let value = Param::from_tensor(Tensor::full([count], init, device)).set_require_grad(true);
        Self {
            trained: Trained::new(LogVariance { value }, training, None),
            gradients: Accumulator::default(),
        }
    }

    /// Takes over what a checkpoint holds. Where it has none, training with it begins now.
    pub(super) fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        training: &TrainingConfig,
    ) -> Result<(), Error> {
        match checkpoint.contains(NAME) {
            true => self.trained.restore(NAME, checkpoint, training),
            false => Ok(()),
        }
    }

    /// What of it is not finite.
    pub(super) fn damage(&self) -> Option<String> {
        self.trained.damage(NAME)
    }

    /// Forgets the gradients of a step that was not made.
    pub(super) fn forget(&mut self) {
        self.gradients = Accumulator::default();
    }

    pub(super) fn save(&self, writer: &mut CheckpointWriter) -> Result<(), Error> {
        self.trained.save(NAME, writer)
    }

    /// The variable.
    pub(super) fn value(&self) -> Tensor<1> {
        self.trained.module().value.val()
    }

    /// Adds a micro-batch's gradient of the variable.
    pub(super) fn add(&mut self, gradient: Tensor<1>) {
        let module = self.trained.module();
        let mut gradients = GradientsParams::new();
        gradients.register(module.value.id, gradient);
        self.gradients.add(module, gradients);
    }

    /// Takes the variable's gradient out of those of a micro-batch's loss.
    pub(super) fn take_from(&mut self, gradients: &mut burn::tensor::Gradients) {
        let module = self.trained.module();
        let own = GradientsParams::from_module(gradients, module);
        self.gradients.add(module, own);
    }

    /// The gradient of a step over all processes, clipped by itself.
    ///
    /// # Errors
    /// If it is not finite.
    pub(super) fn measured(
        &mut self,
        workers: &Workers,
        max_norm: Option<f64>,
        step: u64,
    ) -> Result<Gradients, Error> {
        let mut gradients = (self.gradients).take_joint(self.trained.module(), workers);
        self.trained.measure(&mut gradients, max_norm, step)?;
        Ok(gradients)
    }

    /// Makes a step at `rate` and returns the mean of the numbers before it.
    pub(super) fn update(&mut self, gradients: Gradients, rate: f64) -> f64 {
        let mean = self.value().inner().mean().into_scalar::<f32>();
        let _ = self.trained.update(gradients, rate);
        mean.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AdamW of CompVis' `configure_optimizers`, `[t]` of its numbers in a batch: the numbers without a gradient decay and drift by
    /// their momentum as PyTorch's do, whose gradient there is 0.
    #[test]
    fn it_follows_adam_number_by_number() {
        let training: TrainingConfig = toml::from_str(
            "steps = 1\nbatch_size = 1\nlr = { rate = 0.1 }\noptimizer = { betas = [0.9, 0.99] }",
        )
        .unwrap();
        let device = Device::flex().autodiff();
        let mut logvar = LearntLogvar::new(3, 0.5, &training, &device);
        let mut expected = [[0.5f64, 0.0, 0.0]; 3];
        for step in 1..=4 {
            // Two micro-batches, of which one meets the second number.
            let mut gradients = logvar.value().sum().mul_scalar(0.6).backward();
            logvar.take_from(&mut gradients);
            logvar.add(Tensor::from_floats([0.0, 1.0, -0.6], &Device::flex()));
            let gradients = logvar.measured(&Workers::default(), None, step).unwrap();
            logvar.update(gradients, 0.1);
            for ([p, m, v], g) in expected.iter_mut().zip([0.3, 0.8, 0.0]) {
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.99 * *v + 0.01 * g * g;
                let (m_hat, v_hat) = (
                    *m / (1.0 - 0.9f64.powi(step as i32)),
                    *v / (1.0 - 0.99f64.powi(step as i32)),
                );
                *p -= 0.1 * 0.01 * *p;
                *p -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        let found: Vec<f64> = logvar.value().into_data().iter().collect();
        for (found, [expected, ..]) in found.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
