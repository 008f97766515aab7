//! How good generated and reconstructed pictures are, by the numbers that papers report.
//!
//! - [`Extractor`] makes features of pictures, by the [Inception v3](inception) of FID or by VGG16; [`extract`] and [`Collector`] run it.
//! - [`SetStatistics`] is what is known of a set of pictures, in memory and in files; [`compare`] sets samples against real pictures by
//!   [`Gaussian::frechet_distance`] (FID, sFID), [`kernel_distance`] (KID), [`precision_recall`] and [`inception_score`].
//! - [`nearest`] and [`memorisation`] look for copies of training pictures.
//! - [`ssim`] compares a reconstruction with its original; the perceptual distance is [`Lpips`](ldm_autoencoder::Lpips).
//!
//! The conventions are those of torch-fidelity, whose numbers these are to within rounding. Statistics are f64; networks run in the device's
//! floats. Nothing here reads weights: the networks are modules, to be filled by whoever calls.

pub mod inception;

mod compare;
mod error;
mod extract;
mod features;
mod gaussian;
mod inception_score;
mod kernel_distance;
mod linalg;
mod manifold;
mod neighbours;
mod npz;
mod numpy_order;
mod resize;
mod similarity;
mod statistics;

pub use compare::{Comparison, compare};
pub use error::Error;
pub use extract::{Collected, Collector, Extractor, Pictures, VGG_SIZE, content_key, extract};
pub use features::Features;
pub use gaussian::{Gaussian, GaussianAccumulator};
pub use inception_score::{SPLITS, inception_score};
pub use kernel_distance::{Subsets, kernel_distance};
pub use manifold::{NEIGHBOURS, PrecisionRecall, precision_recall};
pub use neighbours::{Memorisation, Neighbour, memorisation, nearest};
pub use resize::Convention;
pub use similarity::{SSIM_WINDOW, ssim};
pub use statistics::SetStatistics;

/// A number that is the mean over some parts, and how far they are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanAndDeviation {
    /// Mean.
    pub mean: f64,
    /// Standard deviation over the parts themselves (not an estimate of one beyond them).
    pub deviation: f64,
}

impl MeanAndDeviation {
    /// Of at least one number.
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (squares / count).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests;
