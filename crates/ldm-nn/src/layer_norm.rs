use burn::{
    module::{Module, Param},
    nn::Initializer,
    prelude::*,
};

use crate::ops;

/// Layer normalisation (Ba et al. 2016) over the last axis, with a scale and a shift.
///
/// It has the fields of burn's, whose `epsilon` no kernel could read.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The scale, `[C]`.
    pub gamma: Param<Tensor<1>>,
    /// The shift, `[C]`.
    pub beta: Param<Tensor<1>>,
    /// What is added to the variance.
    pub epsilon: f64,
}

impl LayerNorm {
    /// One that leaves the scale at 1 and the shift at 0, of rows of `width` elements.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            gamma: Initializer::Ones.init([width], device),
            beta: Initializer::Zeros.init([width], device),
            epsilon,
        }
    }

    /// Normalises the rows of `[N, L, C]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(self, x)
    }
}
