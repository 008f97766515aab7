//! Precision and recall of a set of samples (Kynkäänniemi et al. 2019).

use std::ops::Range;

use crate::{features::Features, linalg::distances};

/// Neighbours within whose distance a picture's surroundings lie.
pub const NEIGHBOURS: usize = 3;
/// Rows whose distances are in memory at a time.
const ROWS: usize = 256;

/// How much of either set lies within the other's manifold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of the samples that lie in the manifold of real pictures.
    pub precision: f64,
    /// Share of the real pictures that lie in the manifold of samples.
    pub recall: f64,
}

/// Precision and recall, where the manifold of a set is the union of the balls around its members that reach to their third nearest
/// neighbour.
///
/// `None` if a set has no third neighbour.
///
/// # Panics
/// If the sets differ in the number of features.
pub fn precision_recall(real: &Features, samples: &Features) -> Option<PrecisionRecall> {
    assert_eq!(real.dim(), samples.dim(), "sets of the same features");
    if real.len().min(samples.len()) <= NEIGHBOURS {
        return None;
    }
    let real_radii = radii(real);
    let sample_radii = radii(samples);
    let (mut precise, mut recalled) = (0, vec![false; real.len()]);
    for range in blocks(samples.len()) {
        let block = distances(samples, range.clone(), real);
        for (index, line) in range.zip(block.chunks_exact(real.len())) {
            let within = line.iter().zip(&real_radii);
            precise += usize::from(within.clone().any(|(distance, radius)| distance <= radius));
            for (recalled, distance) in recalled.iter_mut().zip(line) {
                *recalled |= *distance <= sample_radii[index];
            }
        }
    }
    let recalled = recalled.into_iter().filter(|&inside| inside).count();
    Some(PrecisionRecall {
        precision: precise as f64 / samples.len() as f64,
        recall: recalled as f64 / real.len() as f64,
    })
}

/// Distance of each row to its third nearest neighbour.
fn radii(set: &Features) -> Vec<f64> {
    let mut radii = Vec::with_capacity(set.len());
    for range in blocks(set.len()) {
        let first = range.start;
        let mut block = distances(set, range, set);
        for (offset, line) in block.chunks_exact_mut(set.len()).enumerate() {
            // A row is its own nearest one.
            line[first + offset] = 0.0;
            let (_, radius, _) = line.select_nth_unstable_by(NEIGHBOURS, f64::total_cmp);
            radii.push(*radius);
        }
    }
    radii
}

pub(crate) fn blocks(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count)
        .step_by(ROWS)
        .map(move |first| first..count.min(first + ROWS))
}
