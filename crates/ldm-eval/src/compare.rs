//! Samples against real pictures, by every measure that the statistics allow.

use crate::{
    MeanAndDeviation,
    error::Error,
    features::Features,
    inception_score::inception_score,
    kernel_distance::{Subsets, kernel_distance},
    manifold::{PrecisionRecall, precision_recall},
    statistics::SetStatistics,
};

/// How far samples are from real pictures. What the statistics at hand don't allow is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The Fréchet distance of the features: FID with Inception.
    pub frechet: f64,
    /// That of the intermediate features: sFID.
    pub spatial_frechet: Option<f64>,
    /// The kernel distance: KID with Inception.
    pub kernel: Option<MeanAndDeviation>,
    /// The subsets that it was taken over.
    pub subsets: Option<Subsets>,
    /// Precision and recall.
    pub manifold: Option<PrecisionRecall>,
    /// Of the samples alone, from their logits.
    pub inception_score: Option<MeanAndDeviation>,
}

/// Compares samples with real pictures; `sets` is what the real ones and the samples are called.
///
/// # Errors
/// If they are statistics of different features.
pub fn compare(
    real: &SetStatistics,
    samples: &SetStatistics,
    logits: Option<&Features>,
    subsets: Subsets,
    sets: [&str; 2],
) -> Result<Comparison, Error> {
    check_features(real, samples, sets)?;
    let spatial = real.spatial.as_ref().zip(samples.spatial.as_ref());
    let spatial_frechet = spatial
        .filter(|(a, b)| a.dim() == b.dim())
        .map(|(a, b)| a.frechet_distance(b))
        .transpose()?;
    let features = samples.features.as_ref().zip(real.features.as_ref());
    let subsets = features.map(|(samples, real)| subsets.within(samples, real));
    let kernel = features
        .zip(subsets)
        .and_then(|((samples, real), subsets)| kernel_distance(samples, real, subsets));
    Ok(Comparison {
        frechet: real.gaussian.frechet_distance(&samples.gaussian)?,
        spatial_frechet,
        subsets: subsets.filter(|_| kernel.is_some()),
        kernel,
        manifold: features.and_then(|(samples, real)| precision_recall(real, samples)),
        inception_score: logits.and_then(inception_score),
    })
}

fn check_features(
    real: &SetStatistics,
    samples: &SetStatistics,
    sets: [&str; 2],
) -> Result<(), Error> {
    let dims = [real.gaussian.dim(), samples.gaussian.dim()];
    let other_names = matches!((&real.name, &samples.name), (Some(a), Some(b)) if a != b);
    if dims[0] == dims[1] && !other_names {
        return Ok(());
    }
    let describe = |set: &SetStatistics, dim: usize| match &set.name {
        Some(name) => format!("{dim} features ({name})"),
        None => format!("{dim} features"),
    };
    Err(Error::OtherFeatures {
        first: sets[0].into(),
        second: sets[1].into(),
        features: [describe(real, dims[0]), describe(samples, dims[1])],
    })
}
