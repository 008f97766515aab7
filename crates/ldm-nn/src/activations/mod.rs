//! Activation checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"), block by block.
//!
//! A block of a network is one node of the autodiff graph. Its forward pass runs on plain tensors, which are freed as it goes,
//! and keeps its inputs alone. Its backward pass runs the block once more, now on a graph of its own, and takes the gradients
//! of inputs and parameters from there. Both passes call the same operators on the same values, so the gradients are those of
//! a block that kept its activations, bit for bit where the operators are deterministic.
//!
//! The block's parameters are no parents of the node: their gradients are entered under their own nodes, to which others may
//! add. An engine that counts the parents of a parameter in order to know when its gradient is complete, such as burn's
//! distributed backward pass, would miss these.

mod inputs;
mod segment;

use burn::{module::Module, tensor::Tensor};

pub use inputs::{BlockInputs, MapInputs};

/// What becomes of a block's activations between its forward and its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// They are kept: the most memory, the least time.
    #[default]
    Keep,
    /// They are computed again from the block's inputs: a third more time, the memory of one block at a time.
    Recompute,
}

impl Activations {
    /// `block(module, inputs)`, differentiable in the inputs and in the parameters of `module`.
    ///
    /// `block` runs twice under [`Recompute`](Self::Recompute) and must do the same both times: no random draws, and no state
    /// that changes. Parameters have to be leaves, as a module's are.
    ///
    /// Nothing is recomputed where nothing is tracked, as in inference, and where it can't be: on a backend whose feature
    /// of this crate is off, or under burn's own checkpointing strategy, which works by the operation.
    ///
    /// # Panics
    /// If more than three inputs are tracked.
    pub fn run<M, I, const D: usize>(
        self,
        module: &M,
        inputs: I,
        block: impl Fn(&M, I) -> Tensor<D> + Send + 'static,
    ) -> Tensor<D>
    where
        M: Module + 'static,
        I: BlockInputs,
    {
        match self {
            Self::Keep => block(module, inputs),
            Self::Recompute => segment::run(module, inputs, block),
        }
    }
}
