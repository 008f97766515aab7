//! The Inception Score (Salimans et al. 2016).

use crate::{MeanAndDeviation, features::Features, numpy_order::NumpyOrder};

/// Groups of pictures that the score is averaged over.
pub const SPLITS: usize = 10;
/// torch-fidelity's seed.
const SEED: u32 = 2020;

/// `exp(E_x KL(p(y|x) || p(y)))` of logits `[N, classes]`, mean and standard deviation over 10 groups of pictures in shuffled order.
///
/// `None` if there are fewer pictures than groups.
pub fn inception_score(logits: &Features) -> Option<MeanAndDeviation> {
    let count = logits.len();
    if count < SPLITS {
        return None;
    }
    let order = NumpyOrder::new(SEED).permutation(count);
    let scores: Vec<f64> = (0..SPLITS)
        .map(|split| {
            let group = &order[split * count / SPLITS..(split + 1) * count / SPLITS];
            score(logits, group)
        })
        .collect();
    Some(MeanAndDeviation::of(&scores))
}

fn score(logits: &Features, group: &[usize]) -> f64 {
    let log_p: Vec<Vec<f64>> = (group.iter())
        .map(|&index| log_softmax(logits.row(index)))
        .collect();
    let mut marginal = vec![0.0; logits.dim()];
    for row in &log_p {
        for (sum, value) in marginal.iter_mut().zip(row) {
            *sum += value.exp() / group.len() as f64;
        }
    }
    // 0 times a finite logarithm in the sum below; without this, where a class has no probability at all, 0 times infinity.
    let log_q: Vec<f64> = (marginal.iter())
        .map(|q| q.max(f64::MIN_POSITIVE).ln())
        .collect();
    let divergence: f64 = (log_p.iter().flat_map(|row| row.iter().zip(&log_q)))
        .map(|(log_p, log_q)| log_p.exp() * (log_p - log_q))
        .sum();
    (divergence / group.len() as f64).exp()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted: Vec<f64> = (row.iter())
        .map(|&value| f64::from(value) - f64::from(largest))
        .collect();
    let log_sum = shifted.iter().map(|value| value.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|value| value - log_sum).collect()
}
