//! What the backward passes of an operator with a weight and a bias share. A norm's are its scale and its shift.

/// Which gradients are wanted, or the gradients themselves.
pub(super) struct Gradients<T> {
    pub(super) x: T,
    pub(super) weight: T,
    pub(super) bias: T,
}

/// The sum of parts of one length, in their order.
pub(super) fn sum_of(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    total
}
