use burn::{
    nn::BatchNorm,
    tensor::{
        Tensor,
        module::{batch_norm as normalise, batch_norm_train},
    },
};

/// The running mean and variance of some norms, as they were at one time.
#[derive(Clone, Debug)]
pub struct RunningStatistics(Vec<[Tensor<1>; 2]>);

impl RunningStatistics {
    pub(crate) fn of<'a>(norms: impl Iterator<Item = &'a BatchNorm>) -> Self {
        let of = |norm: &BatchNorm| [&norm.running_mean, &norm.running_var].map(|x| x.value_sync());
        Self(norms.map(of).collect())
    }

    /// Puts them back into the same norms, and all that share their state.
    pub(crate) fn restore<'a>(&self, norms: impl Iterator<Item = &'a BatchNorm>) {
        for (norm, [mean, variance]) in norms.zip(&self.0) {
            for (running, value) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
                running.update(value.clone());
                running.value_sync();
            }
        }
    }
}

/// Batch normalisation (Ioffe & Szegedy 2015) of `[N, C, H, W]` with PyTorch's running statistics.
///
/// With gradients on, the batch's own statistics normalise, and the running ones take the *unbiased* variance in; burn's own
/// `forward` takes the biased one. The update is committed at once, so that a record saved after the step holds it.
pub(crate) fn batch_norm(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    if !(x.is_autodiff() && norm.training.is_enabled()) {
        let device = x.device();
        let mean = norm.running_mean.value_sync().to_device(&device);
        let variance = norm.running_var.value_sync().to_device(&device);
        return normalise(x, gamma, beta, mean, variance, norm.epsilon);
    }
    let [n, _, h, w] = x.dims();
    let count = (n * h * w) as f64;
    let unbiased = count / (count - 1.0).max(1.0);
    let batch = batch_norm_train(x, gamma, beta, norm.epsilon);
    for (running, batch) in [
        (&norm.running_mean, batch.mean),
        (&norm.running_var, batch.variance.mul_scalar(unbiased)),
    ] {
        let batch = batch.detach();
        let kept = running
            .value_sync()
            .to_device(&batch.device())
            .mul_scalar(1.0 - norm.momentum);
        running.update((kept + batch.mul_scalar(norm.momentum)).detach());
        running.value_sync();
    }
    batch.output
}
