use burn::tensor::Tensor;

/// The tensors that a block gets.
pub trait BlockInputs: Clone + Send + 'static {
    /// Passes each tensor through `map`, always in the same order.
    fn map(self, map: &mut impl MapInputs) -> Self;
}

/// What [`BlockInputs::map`] does to each tensor.
pub trait MapInputs {
    /// One tensor to another of the same shape.
    fn tensor<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D>;
}

impl<const D: usize> BlockInputs for Tensor<D> {
    fn map(self, map: &mut impl MapInputs) -> Self {
        map.tensor(self)
    }
}

impl<I: BlockInputs> BlockInputs for Option<I> {
    fn map(self, map: &mut impl MapInputs) -> Self {
        self.map(|inputs| inputs.map(map))
    }
}

impl<A: BlockInputs, B: BlockInputs> BlockInputs for (A, B) {
    fn map(self, map: &mut impl MapInputs) -> Self {
        (self.0.map(map), self.1.map(map))
    }
}
