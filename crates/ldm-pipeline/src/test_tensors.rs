//! Tensors that the tests of several modules draw.

use burn::tensor::{Device, Tensor, TensorData};

use crate::rng::{Stream, normal};

/// Standard normal values, the same in every run; `number` tells tensors apart.
pub(crate) fn values<const D: usize>(shape: [usize; D], number: u64) -> Tensor<D> {
    let values = normal(7, Stream::Init, number, 0, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}
