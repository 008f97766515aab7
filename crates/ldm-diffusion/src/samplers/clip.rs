use burn::prelude::*;

use crate::SchedulerConfig;

/// What a sampler does to the predicted clean sample before it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Clip {
    Nothing,
    /// Clamps to `[-range, range]`.
    Range(f64),
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): each item is clamped to the quantile `ratio` of its absolute
    /// values, itself kept within `[1, max]`, and divided by it.
    Quantile {
        ratio: f64,
        max: f64,
    },
}

impl Clip {
    /// Thresholding or clamping as `config` says; `clamps` where it says nothing of clamping.
    pub(super) fn new(config: &SchedulerConfig, clamps: bool) -> Self {
        match Self::thresholding(config) {
            Self::Nothing => Self::clamping(config, clamps),
            quantile => quantile,
        }
    }

    /// Thresholding alone.
    pub(super) fn thresholding(config: &SchedulerConfig) -> Self {
        if config.clip.thresholding != Some(true) {
            return Self::Nothing;
        }
        Self::Quantile {
            ratio: config
                .clip
                .dynamic_thresholding_ratio
                .map_or(0.995, |ratio| ratio.clamp(0.0, 1.0)),
            max: config.clip.sample_max_value.unwrap_or(1.0),
        }
    }

    /// Clamping alone; `default` where `config` says nothing of it.
    pub(super) fn clamping(config: &SchedulerConfig, default: bool) -> Self {
        if config.clip.clip_sample.unwrap_or(default) {
            Self::Range(config.clip.clip_sample_range.unwrap_or(1.0))
        } else {
            Self::Nothing
        }
    }

    pub(super) fn apply(self, x0: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Nothing => x0,
            Self::Range(range) => x0.clamp(-range, range),
            Self::Quantile { ratio, max } => {
                let [n, c, h, w] = x0.dims();
                let sorted = x0.clone().abs().reshape([n, c * h * w]).sort(1);
                let position = ratio * (c * h * w - 1) as f64;
                let (below, fraction) = (position.floor() as usize, position.fract());
                let above = (below + 1).min(c * h * w - 1);
                let low = sorted.clone().narrow(1, below, 1);
                let high = sorted.narrow(1, above, 1);
                let limit = (low.clone() + (high - low).mul_scalar(fraction))
                    .clamp(1.0, max)
                    .reshape([n, 1, 1, 1])
                    .expand([n, c, h, w]);
                x0.max_pair(limit.clone().neg()).min_pair(limit.clone()) / limit
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clipped(clip: Clip) -> Vec<f32> {
        let x = [0.5, -1.0, 2.0, -3.0, 4.0, 0.1, -0.2, 0.3, 0.4, -0.5];
        let x = Tensor::<1>::from_floats(x, &Device::flex()).reshape([2, 1, 1, 5]);
        clip.apply(x).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn a_range_clamps() {
        let expected = [0.5, -1.0, 1.5, -1.5, 1.5, 0.1, -0.2, 0.3, 0.4, -0.5];
        assert_eq!(clipped(Clip::Range(1.5)), expected);
    }

    #[test]
    fn a_quantile_clamps_each_item_and_rescales_it() {
        // The first item's 0.625-quantile lies half-way between 2 and 3; the second's is below 1 and leaves it alone.
        let clip = Clip::Quantile {
            ratio: 0.625,
            max: 10.0,
        };
        let expected = [0.2, -0.4, 0.8, -1.0, 1.0, 0.1, -0.2, 0.3, 0.4, -0.5];
        for (value, expected) in clipped(clip).iter().zip(expected) {
            assert!((value - expected as f32).abs() < 1e-6, "{value} {expected}");
        }
        let limited = clipped(Clip::Quantile {
            ratio: 0.625,
            max: 2.0,
        });
        assert_eq!(limited[..5], [0.25, -0.5, 1.0, -1.0, 1.0]);
    }
}
