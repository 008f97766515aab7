//! What one optimiser trains, and its average.

use burn::{
    module::{Module, ParamId},
    tensor::{Device, Tensor},
};
use rand_chacha::rand_core::Rng;

use super::run_loop::finite;
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter},
    config::TrainingConfig,
    ema::{Ema, EmaDecay},
    error::Error,
    optim::{Adam, Gradients, SetRows},
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
        self,
        name: &str,
        checkpoint: &Checkpoint,
        training: &TrainingConfig,
    ) -> Result<Self, Error> {
        let module = checkpoint.module(name, self.module.expect("a module between two updates"))?;
        let optimizer =
            checkpoint.optimizer(&format!("{name}_optimizer"), training.optimizer, &module)?;
        let ema_name = format!("{name}_ema");
        let ema = match self.ema {
            Some(ema) if checkpoint.contains(&ema_name) => {
                Some(checkpoint.ema(&ema_name, &module, ema.decay())?)
            }
            Some(ema) => Some(Ema::new(&module, ema.decay())),
            None => None,
        };
        Ok(Self {
            module: Some(module),
            optimizer,
            ema,
        })
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

    /// One step at `rate`; returns the gradients' norm before clipping.
    pub(super) fn update(
        &mut self,
        mut gradients: Gradients,
        rate: f64,
        max_norm: Option<f64>,
        step: u64,
    ) -> Result<f64, Error> {
        let norm = match max_norm {
            Some(max_norm) => gradients.clip_norm(self.module(), max_norm),
            None => gradients.norm(self.module()),
        };
        finite("gradient norm", norm, step)?;
        let module = self.module.take().expect("a module between two updates");
        let module = self.optimizer.step(rate, module, gradients);
        if let Some(ema) = &mut self.ema {
            ema.update(&module);
        }
        self.module = Some(module);
        Ok(norm)
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

/// Draws a module's initial weights: on a given backend a pure function of `seed` and `part`.
pub(super) fn initialise<M: Module>(
    seed: u64,
    part: u64,
    device: &Device,
    init: impl FnOnce() -> M,
) -> M {
    device.seed(rng(seed, Stream::Init, part, 0).next_u64());
    init().materialize()
}
