//! Classifier-free guidance.

use burn::prelude::*;

/// Classifier-free guidance (Ho & Salimans 2021): `eps_u + scale (eps_c - eps_u)` from one forward pass over both halves.
///
/// With a scale of 1 the unconditional half has no part in the result and isn't computed.
#[derive(Clone, Debug)]
pub struct Guidance {
    /// `[unconditional, conditional]`, `[2N, S, D]`, or the conditional alone.
    context: Tensor<3>,
    scale: f64,
}

impl Guidance {
    /// Guides from `unconditional` towards and, with a scale over 1, beyond `conditional`.
    ///
    /// # Shapes
    /// - `unconditional`, `conditional`: `[N, S, D]`, item by item
    pub fn new(unconditional: Tensor<3>, conditional: Tensor<3>, scale: f64) -> Self {
        let context = if scale == 1.0 {
            conditional
        } else {
            Tensor::cat(vec![unconditional, conditional], 0)
        };
        Self { context, scale }
    }

    /// The guided prediction for `x`, `[N, C, H, W]`, where `model` maps `([M, C, H, W], [M, S, D])` to `[M, C, H, W]`.
    pub fn predict(
        &self,
        x: Tensor<4>,
        model: impl FnOnce(Tensor<4>, Tensor<3>) -> Tensor<4>,
    ) -> Tensor<4> {
        if self.scale == 1.0 {
            return model(x, self.context.clone());
        }
        let n = x.dims()[0];
        let output = model(Tensor::cat(vec![x.clone(), x], 0), self.context.clone());
        let unconditional = output.clone().narrow(0, 0, n);
        let conditional = output.narrow(0, n, n);
        combine(unconditional, conditional, self.scale)
    }
}

/// `unconditional + scale (conditional - unconditional)`, all `[N, C, H, W]`.
pub fn combine(unconditional: Tensor<4>, conditional: Tensor<4>, scale: f64) -> Tensor<4> {
    unconditional.clone() + (conditional - unconditional).mul_scalar(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unconditional_comes_first_and_the_scale_extrapolates() {
        let device = Device::flex();
        let context = |value| Tensor::<3>::full([2, 1, 1], value, &device);
        let x = Tensor::<4>::zeros([2, 1, 1, 1], &device);
        for (scale, calls, expected) in [(3.0, 4, 7.0), (1.0, 2, 3.0), (0.0, 4, 1.0)] {
            let guidance = Guidance::new(context(1.0), context(3.0), scale);
            let output = guidance.predict(x.clone(), |x, context| {
                assert_eq!(x.dims()[0], calls);
                x + context.unsqueeze_dim::<4>(3)
            });
            assert_eq!(
                output.into_data().try_to_vec::<f32>().unwrap(),
                [expected; 2]
            );
        }
    }
}
