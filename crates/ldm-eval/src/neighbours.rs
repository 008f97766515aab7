//! The training picture that a sample resembles most: has the model learnt the pictures by heart?

use crate::{features::Features, linalg::distances, manifold::blocks};

/// The nearest row of another set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its number.
    pub index: usize,
    /// Its Euclidean distance.
    pub distance: f64,
}

/// How far a set of samples is from the training pictures, beside real pictures that weren't trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Memorisation {
    /// Median distance of a sample to its nearest training picture.
    pub median: f64,
    /// Smallest such distance.
    pub least: f64,
    /// Median distance of a held-out picture to its nearest training picture.
    pub held_out_median: f64,
    /// [`median`](Self::median) by [`held_out_median`](Self::held_out_median): about 1 for samples that are as new as real pictures,
    /// near 0 for copies, large for samples that look like nothing in the set.
    pub ratio: f64,
    /// Distance below which a sample counts as a copy.
    pub copying_distance: f64,
    /// Numbers of the samples that count as copies.
    pub copies: Vec<usize>,
}

/// The nearest row of `set` for each row of `samples`; of several as near, the first.
///
/// # Panics
/// If `set` is empty, or the two differ in the number of features.
pub fn nearest(samples: &Features, set: &Features) -> Vec<Neighbour> {
    assert!(!set.is_empty(), "a set to look in");
    assert_eq!(samples.dim(), set.dim(), "sets of the same features");
    let mut neighbours = Vec::with_capacity(samples.len());
    for range in blocks(samples.len()) {
        let block = distances(samples, range.clone(), set);
        for (row, line) in range.zip(block.chunks_exact(set.len())) {
            let (index, _) = (line.iter().enumerate())
                .min_by(|(_, a), (_, b)| a.total_cmp(b))
                .expect("a set to look in");
            let distance = exact_distance(samples.row(row), set.row(index));
            neighbours.push(Neighbour { index, distance });
        }
    }
    neighbours
}

/// Without the rounding of distances from products, so that a copy is at distance 0.
fn exact_distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = (a.iter().zip(b)).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Compares the distances of samples with those of held-out pictures. A sample that is nearer to a training picture than `copy_ratio` times
/// the held-out median counts as a copy.
///
/// # Panics
/// If either list is empty.
pub fn memorisation(
    samples: &[Neighbour],
    held_out: &[Neighbour],
    copy_ratio: f64,
) -> Memorisation {
    let median = median(samples);
    let held_out_median = self::median(held_out);
    let copying_distance = copy_ratio * held_out_median;
    let copies = (samples.iter().enumerate())
        .filter(|(_, neighbour)| neighbour.distance < copying_distance)
        .map(|(index, _)| index)
        .collect();
    let least = (samples.iter().map(|neighbour| neighbour.distance)).fold(f64::INFINITY, f64::min);
    Memorisation {
        median,
        least,
        held_out_median,
        ratio: median / held_out_median,
        copying_distance,
        copies,
    }
}

fn median(neighbours: &[Neighbour]) -> f64 {
    let mut distances: Vec<f64> = neighbours.iter().map(|item| item.distance).collect();
    distances.sort_unstable_by(f64::total_cmp);
    let middle = distances.len() / 2;
    if distances.len() % 2 == 1 {
        distances[middle]
    } else {
        (distances[middle - 1] + distances[middle]) / 2.0
    }
}
