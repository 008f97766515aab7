use burn::tensor::Tensor;

/// Bounds of the log-variance: beyond them its exponential overflows or vanishes in f32.
const LOGVAR_RANGE: [f64; 2] = [-30.0, 20.0];

/// The posterior `N(mean, exp(logvar))` over latents, with independent elements.
#[derive(Clone, Debug)]
pub struct DiagonalGaussian {
    /// Means, `[N, c, h, w]`.
    pub mean: Tensor<4>,
    /// Logarithms of the variances, `[N, c, h, w]`, within `[-30, 20]`.
    pub logvar: Tensor<4>,
}

impl DiagonalGaussian {
    /// Splits moments `[N, 2c, h, w]` into means and log-variances, and clamps the latter.
    ///
    /// # Panics
    /// If the number of channels is odd.
    pub fn from_moments(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1];
        assert!(
            channels.is_multiple_of(2),
            "moments need an even number of channels, got {channels}"
        );
        let half = channels / 2;
        let [low, high] = LOGVAR_RANGE;
        Self {
            mean: moments.clone().narrow(1, 0, half),
            logvar: moments.narrow(1, half, half).clamp(low, high),
        }
    }

    /// The inverse of [`from_moments`](Self::from_moments), for moments within the bounds: `[N, 2c, h, w]`.
    pub fn moments(&self) -> Tensor<4> {
        Tensor::cat(vec![self.mean.clone(), self.logvar.clone()], 1)
    }

    /// `mean + exp(logvar / 2) * noise`, with standard normal `noise` of `[N, c, h, w]`.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.logvar.clone().mul_scalar(0.5).exp() * noise
    }

    /// The most likely latents, `[N, c, h, w]`.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone()
    }

    /// Statistics of each channel over batch and space, without gradients, `[4, c]`: the mean of the posterior's means, their
    /// variance, their largest magnitude, and the divergence from the standard normal, summed over space, per image.
    pub fn channel_statistics(&self) -> Tensor<2> {
        let batch = self.mean.dims()[0] as f64;
        let [mean, logvar] = [&self.mean, &self.logvar].map(|x| {
            let channels = x.clone().detach().inner().swap_dims(0, 1);
            channels.flatten::<2>(1, 3)
        });
        let centre = mean.clone().mean_dim(1);
        let variance = (mean.clone() - centre.clone()).square().mean_dim(1);
        let largest = mean.clone().abs().max_dim(1);
        let kl = (mean.square() + logvar.clone().exp() - logvar)
            .sub_scalar(1.0)
            .sum_dim(1)
            .mul_scalar(0.5 / batch);
        Tensor::cat(vec![centre, variance, largest, kl], 1).transpose()
    }

    /// Kullback-Leibler divergence from the standard normal, summed over each image's elements: `[N]`.
    ///
    /// `KL(q | N(0, I)) = 1/2 sum (mean^2 + exp(logvar) - 1 - logvar)`; a sum and not a mean, which is why its weight
    /// is as small as 1e-6.
    pub fn kl(&self) -> Tensor<1> {
        let logvar = self.logvar.clone();
        let terms = self.mean.clone().square() + logvar.clone().exp() - logvar;
        terms
            .sub_scalar(1.0)
            .mul_scalar(0.5)
            .flatten::<2>(1, 3)
            .sum_dim(1)
            .squeeze_dim(1)
    }
}
