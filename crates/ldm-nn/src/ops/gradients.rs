//! What the backward passes of an operator with a weight and a bias share. A norm's are its scale and its shift.

use rayon::prelude::*;

/// Which gradients are wanted, or the gradients themselves.
pub(super) struct Gradients<T> {
    pub(super) x: T,
    pub(super) weight: T,
    pub(super) bias: T,
}

/// Elements of a sum that are one thread's work.
const SUM_BLOCK: usize = 8 * 1024;

/// The sum of parts of one length, in their order.
pub(super) fn sum_of(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    let rest = parts.split_off(parts.len().min(1));
    let mut total = parts.pop().unwrap_or_default();
    total
        .par_chunks_mut(SUM_BLOCK)
        .enumerate()
        .for_each(|(index, total)| {
            for part in &rest {
                for (total, part) in total.iter_mut().zip(&part[index * SUM_BLOCK..]) {
                    *total += part;
                }
            }
        });
    total
}
