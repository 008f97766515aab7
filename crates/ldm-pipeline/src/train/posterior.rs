//! What a KL autoencoder's posterior looks like, channel by channel.

use burn::tensor::Tensor;

use super::{components::interned, run_loop::Values};

/// Statistics over a step's images.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Posterior {
    /// One per latent channel.
    pub(super) channels: Vec<Channel>,
    /// Micro-batches taken in.
    pub(super) batches: usize,
}

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Channel {
    /// Mean of the posterior's means.
    pub(super) mean: f64,
    /// Their standard deviation.
    pub(super) std: f64,
    /// Their largest magnitude.
    pub(super) largest: f64,
    /// Divergence from the standard normal, summed over space, per image.
    pub(super) kl: f64,
}

impl Posterior {
    /// Takes a micro-batch in: `[4, c]`, as [`channel_statistics`](ldm_autoencoder::DiagonalGaussian::channel_statistics) gives it.
    /// Micro-batches are of equal size.
    pub(super) fn add(&mut self, statistics: Tensor<2>) {
        let [_, count] = statistics.dims();
        let values: Vec<f64> = statistics.into_data().iter::<f64>().collect();
        self.channels.resize(count, Channel::default());
        self.batches += 1;
        let share = 1.0 / self.batches as f64;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            let [mean, variance, largest, kl] = [0, 1, 2, 3].map(|row| values[row * count + index]);
            // The variance within batches and that of their means (Chan et al. 1982).
            let between = share * (1.0 - share) * (mean - channel.mean).powi(2);
            let variance = channel.std.powi(2) * (1.0 - share) + variance * share + between;
            *channel = Channel {
                mean: channel.mean + (mean - channel.mean) * share,
                std: variance.sqrt(),
                largest: channel.largest.max(largest),
                kl: channel.kl + (kl - channel.kl) * share,
            };
        }
    }

    /// The figures of the log.
    pub(super) fn logged(&self) -> Values {
        let of_channel = |(index, channel): (usize, &Channel)| {
            [
                ("posterior_mean", channel.mean),
                ("posterior_std", channel.std),
                ("posterior_max", channel.largest),
                ("kl", channel.kl),
            ]
            .map(|(name, value)| (interned(format!("{name}/{index}")), value))
        };
        (self.channels.iter().enumerate())
            .flat_map(of_channel)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use ldm_autoencoder::DiagonalGaussian;

    use super::*;

    /// Four images of two channels: the first of N(mean, 1), the second of N(0, 1), which is the prior.
    fn posterior() -> DiagonalGaussian {
        let device = Device::flex();
        let means: Vec<f32> = (0..8).map(|i| i as f32 * 0.5 - 1.0).collect();
        let first = Tensor::<1>::from_floats(means.as_slice(), &device).reshape([4, 1, 1, 2]);
        let mean = Tensor::cat(vec![first.clone(), first.zeros_like()], 1);
        DiagonalGaussian {
            logvar: mean.zeros_like(),
            mean,
        }
    }

    #[test]
    fn channels_are_measured_apart() {
        let posterior = posterior();
        let mut whole = Posterior::default();
        whole.add(posterior.channel_statistics());
        let [first, second] = whole.channels[..] else {
            panic!("two channels");
        };
        assert!((first.mean - 0.75).abs() < 1e-6 && (first.largest - 2.5).abs() < 1e-6);
        assert!((first.std - 1.3125f64.sqrt()).abs() < 1e-6, "{}", first.std);
        assert_eq!(second, Channel::default());
        // 1/2 sum mean^2, per image.
        assert!((first.kl - 15.0 / 8.0).abs() < 1e-6, "{}", first.kl);
        let kl = f64::from(posterior.kl().mean().into_scalar::<f32>());
        assert!((first.kl + second.kl - kl).abs() < 1e-6);

        let mut parts = Posterior::default();
        for part in 0..4 {
            let narrow = |x: &Tensor<4>| x.clone().narrow(0, part, 1);
            let part = DiagonalGaussian {
                mean: narrow(&posterior.mean),
                logvar: narrow(&posterior.logvar),
            };
            parts.add(part.channel_statistics());
        }
        for (part, whole) in parts.channels.iter().zip(&whole.channels) {
            for (part, whole) in [
                (part.mean, whole.mean),
                (part.std, whole.std),
                (part.largest, whole.largest),
                (part.kl, whole.kl),
            ] {
                assert!((part - whole).abs() < 1e-6, "{part} {whole}");
            }
        }
        let logged = whole.logged();
        assert_eq!(logged.len(), 8);
        assert_eq!(logged[1], ("posterior_std/0", first.std));
        assert_eq!(logged[4].0, "posterior_mean/1");
    }
}
