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
    rescale: f64,
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
        Self {
            context,
            scale,
            rescale: 0.0,
        }
    }

    /// Brings the deviation of the result back towards the conditional prediction's, by the share `rescale` in `[0, 1]`, see
    /// [`rescaled`]. Models without signal at the last step need it.
    pub fn with_rescale(mut self, rescale: f64) -> Self {
        self.rescale = rescale;
        self
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
        let guided = combine(unconditional, conditional.clone(), self.scale);
        if self.rescale == 0.0 {
            return guided;
        }
        rescaled(guided, conditional, self.rescale)
    }
}

/// `unconditional + scale (conditional - unconditional)`, all `[N, C, H, W]`.
pub fn combine(unconditional: Tensor<4>, conditional: Tensor<4>, scale: f64) -> Tensor<4> {
    unconditional.clone() + (conditional - unconditional).mul_scalar(scale)
}

/// `share guided std(conditional) / std(guided) + (1 - share) guided`, with the deviation of each item (Lin et al. 2024, section 3.4);
/// all `[N, C, H, W]`.
pub fn rescaled(guided: Tensor<4>, conditional: Tensor<4>, share: f64) -> Tensor<4> {
    let deviation = |x: Tensor<4>| {
        let n = x.dims()[0];
        x.reshape([n as i32, -1])
            .var(1)
            .sqrt()
            .reshape([n, 1, 1, 1])
    };
    let ratio = deviation(conditional) / deviation(guided.clone());
    guided * (ratio.mul_scalar(share).add_scalar(1.0 - share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescaling_restores_the_deviation_of_each_item() {
        let tensor = |values: [f32; 6]| {
            Tensor::<1>::from_floats(values, &Device::flex()).reshape([2, 1, 1, 3])
        };
        let conditional = tensor([1.0, 2.0, 3.0, 0.0, 4.0, 8.0]);
        let guided = tensor([-4.0, 0.0, 4.0, 1.0, 2.0, 3.0]);
        let output = |share| {
            let output = rescaled(guided.clone(), conditional.clone(), share);
            output.into_data().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(output(1.0), [-1.0, 0.0, 1.0, 4.0, 8.0, 12.0]);
        assert_eq!(output(0.5), [-2.5, 0.0, 2.5, 2.5, 5.0, 7.5]);
        let guidance = Guidance::new(
            Tensor::zeros([2, 1, 1], &Device::flex()),
            Tensor::ones([2, 1, 1], &Device::flex()),
            3.0,
        );
        let predict = |guidance: &Guidance| {
            let x = conditional.clone();
            let output = guidance.predict(x, |x, context| x * context.unsqueeze_dim::<4>(3));
            output.into_data().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(predict(&guidance), [3.0, 6.0, 9.0, 0.0, 12.0, 24.0]);
        let rescaled = predict(&guidance.with_rescale(1.0));
        assert_eq!(rescaled, [1.0, 2.0, 3.0, 0.0, 4.0, 8.0]);
    }

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
