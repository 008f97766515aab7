//! What the latents of a data set look like.

use std::fmt;

use burn::tensor::Tensor;

/// Mean, spread and range of latents, per channel and in all, in f64 over any number of batches.
#[derive(Clone, Debug)]
pub(crate) struct LatentStats {
    channels: Vec<Moments>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
    max_abs: f64,
}

impl Moments {
    fn merged(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            max_abs: self.max_abs.max(other.max_abs),
        }
    }

    fn mean(self) -> f64 {
        self.sum / self.count
    }

    fn std(self) -> f64 {
        (self.squares / self.count - self.mean().powi(2))
            .max(0.0)
            .sqrt()
    }
}

impl LatentStats {
    /// Statistics of nothing yet.
    pub(crate) fn new(channels: usize) -> Self {
        Self {
            channels: vec![Moments::default(); channels],
        }
    }

    /// Takes in a batch `[N, C, H, W]`.
    pub(crate) fn add(&mut self, latents: Tensor<4>) {
        let [_, channels, height, width] = latents.dims();
        let data = latents.into_data().convert::<f32>();
        let values = data.as_slice::<f32>().expect("converted to f32");
        for (index, plane) in values.chunks_exact(height * width).enumerate() {
            let moments = &mut self.channels[index % channels];
            for &value in plane {
                let value = f64::from(value);
                moments.count += 1.0;
                moments.sum += value;
                moments.squares += value * value;
                moments.max_abs = moments.max_abs.max(value.abs());
            }
        }
    }

    /// Standard deviation over all elements; its inverse is the scaling factor (paper, appendix G).
    pub(crate) fn std(&self) -> f64 {
        self.total().std()
    }

    fn total(&self) -> Moments {
        self.channels
            .iter()
            .copied()
            .fold(Moments::default(), Moments::merged)
    }
}

impl fmt::Display for LatentStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        write!(
            f,
            "latents: mean {:.3}, std {:.3}, max {:.2}, scaling factor {:.4}; std by channel",
            total.mean(),
            total.std(),
            total.max_abs,
            1.0 / total.std()
        )?;
        for channel in &self.channels {
            write!(f, " {:.3}", channel.std())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn batches_add_up() {
        let device = Device::flex();
        let mut stats = LatentStats::new(2);
        stats.add(Tensor::from_floats([[[[1.0, 3.0]], [[0.0, 0.0]]]], &device));
        stats.add(Tensor::from_floats(
            [[[[5.0, 7.0]], [[0.0, -8.0]]]],
            &device,
        ));
        // 1 3 5 7 | 0 0 0 -8: mean 1, mean square (84 + 64) / 8 = 18.5
        assert!((stats.std() - 17.5f64.sqrt()).abs() < 1e-12);
        let text = stats.to_string();
        assert!(
            text.contains("mean 1.000") && text.contains("max 8.00"),
            "{text}"
        );
        assert!(text.ends_with("std by channel 2.236 3.464"), "{text}");
    }
}
