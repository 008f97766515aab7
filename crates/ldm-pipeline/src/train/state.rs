//! What one optimiser trains, and its average.

use std::sync::{Mutex, PoisonError};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{Device, Tensor},
};
use rand_chacha::rand_core::Rng;

use super::{components::component_of, diagnose::search::damaged_parameter, run_loop::finite};
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter},
    config::TrainingConfig,
    ema::{Ema, EmaDecay},
    error::Error,
    optim::{Adam, Gradients, Norms, SetRows},
    rng::{Stream, rng},
};

/// A module with its optimiser and, if configured, the average of its weights.
pub(super) struct Trained<M> {
    /// `None` only within [`update`](Self::update): the optimiser takes the module and gives it back.
    module: Option<M>,
    optimizer: Adam,
    ema: Option<Ema<M>>,
}

impl<M: Module> Trained<M> {
    /// `module` before its first step. An autodiff device must hold it.
    pub(super) fn new(module: M, training: &TrainingConfig, ema: Option<EmaDecay>) -> Self {
        Self {
            ema: ema.map(|decay| Ema::new(&module, decay)),
            module: Some(module),
            optimizer: training.optimizer.init(),
        }
    }

    /// Writes everything into a checkpoint, as `name`.
    pub(super) fn save(&self, name: &str, writer: &mut CheckpointWriter) -> Result<(), Error> {
        writer.module(name, self.module())?;
        writer.optimizer(&format!("{name}_optimizer"), &self.optimizer, self.module())?;
        if let Some(ema) = &self.ema {
            writer.ema(&format!("{name}_ema"), ema)?;
        }
        Ok(())
    }

    /// Takes over what a checkpoint holds as `name`. An average that it lacks starts at its weights.
    pub(super) fn restore(
        &mut self,
        name: &str,
        checkpoint: &Checkpoint,
        training: &TrainingConfig,
    ) -> Result<(), Error> {
        let module = checkpoint.module(name, self.module().clone())?;
        self.optimizer =
            checkpoint.optimizer(&format!("{name}_optimizer"), training.optimizer, &module)?;
        let ema_name = format!("{name}_ema");
        self.ema = match &self.ema {
            Some(ema) if checkpoint.contains(&ema_name) => {
                Some(checkpoint.ema(&ema_name, &module, ema.decay())?)
            }
            Some(ema) => Some(Ema::new(&module, ema.decay())),
            None => None,
        };
        self.module = Some(module);
        Ok(())
    }

    /// The first of its weights, averages and moments that is not finite, of what is called `name`.
    pub(super) fn damage(&self, name: &str) -> Option<String> {
        let weight =
            damaged_parameter(name, self.module()).map(|path| format!("`{}`", path.join(".")));
        let average = || {
            let path = damaged_parameter(name, self.ema.as_ref()?.module())?;
            Some(format!("the average of `{}`", path.join(".")))
        };
        let moment = || {
            let finite = self.optimizer.is_finite();
            (!finite).then(|| format!("a moment of the optimiser of `{name}`"))
        };
        weight.or_else(average).or_else(moment)
    }

    pub(super) fn module(&self) -> &M {
        self.module.as_ref().expect("a module between two updates")
    }

    /// What is to be sampled from and exported, without autodiff: the average, or the module itself if there is none.
    pub(super) fn result(&self) -> M {
        match &self.ema {
            Some(ema) => ema.module().valid(),
            None => self.module().valid(),
        }
    }

    /// Norms of the gradients, which are clipped afterwards; an error if the total is not finite.
    pub(super) fn measure(
        &self,
        gradients: &mut Gradients,
        max_norm: Option<f64>,
        step: u64,
    ) -> Result<Norms, Error> {
        let norms = gradients.norms(self.module(), Some(component_of));
        finite("gradient norm", norms.total, step)?;
        if let Some(max_norm) = max_norm {
            gradients.clip(norms.total, max_norm);
        }
        Ok(norms)
    }

    /// One step at `rate`; returns the norms of the change.
    pub(super) fn update(&mut self, gradients: Gradients, rate: f64) -> Norms {
        let module = self.module.take().expect("a module between two updates");
        let (module, norms) =
            (self.optimizer).step_measured(rate, module, gradients, Some(component_of));
        if let Some(ema) = &mut self.ema {
            ema.update(&module);
        }
        self.module = Some(module);
        norms
    }

    /// Gives rows of the parameter `id`, a matrix, new values `[rows, columns]`: in the module and in its average, while the
    /// optimiser forgets what it knew of them.
    pub(super) fn replace_rows(&mut self, id: ParamId, rows: &[usize], values: Tensor<2>) {
        let mut change = SetRows { id, rows, values };
        self.module = self.module.take().map(|module| module.map(&mut change));
        if let Some(ema) = &mut self.ema {
            ema.map(&mut change);
        }
        self.optimizer
            .forget_rows(id, rows, change.values.dims()[1]);
    }
}

/// Held while weights are drawn, as burn's generator is one for the process.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Draws a module's initial weights: on a given backend a pure function of `seed` and `part`.
pub(super) fn initialise<M: Module>(
    seed: u64,
    part: u64,
    device: &Device,
    init: impl FnOnce() -> M,
) -> M {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(rng(seed, Stream::Init, part, 0).next_u64());
    let module = init();
    module.visit(&mut Draw);
    module
}

/// Looks at each parameter, as burn draws one when it is first looked at, which would be after the generator was seeded anew.
struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let _ = param.val();
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};

    use super::*;

    #[test]
    fn initial_weights_depend_on_nothing_that_is_drawn_beside_or_later() {
        let draw = || {
            let device = Device::flex();
            let linear = initialise(3, 1, &device, || {
                let linear: Linear = LinearConfig::new(4, 4).init(&device);
                linear
            });
            device.seed(9);
            linear.weight.val().into_data().try_to_vec::<f32>().unwrap()
        };
        let expected = draw();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    }
}
