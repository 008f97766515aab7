use std::collections::VecDeque;

use burn::prelude::*;

/// What a multistep method remembers of the latest steps. Steps that don't follow each other have no common history, so a
/// sampler may start late and may be used again.
pub(super) struct History {
    entries: VecDeque<Tensor<4>>,
    capacity: usize,
    /// The step that continues this history.
    next: usize,
}

impl History {
    /// A history of at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: VecDeque::with_capacity(capacity + 1),
            capacity,
            next: 0,
        }
    }

    /// Whether `step` is the one after the last.
    pub(super) fn follows(&self, step: usize) -> bool {
        step == self.next
    }

    /// Adds what belongs to `step`, or nothing. What came before is forgotten if `step` doesn't follow it.
    pub(super) fn push(&mut self, step: usize, entry: impl Into<Option<Tensor<4>>>) {
        if !self.follows(step) {
            self.entries.clear();
        }
        if let Some(entry) = entry.into() {
            self.entries.push_front(entry);
            self.entries.truncate(self.capacity);
        }
        self.next = step + 1;
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of `age` steps ago; 0 is the latest.
    pub(super) fn get(&self, age: usize) -> Tensor<4> {
        self.entries[age].clone()
    }

    /// `sum_i weights[i] entry_i`, the latest first.
    pub(super) fn combine(&self, weights: &[f64]) -> Tensor<4> {
        (self.entries.iter().zip(weights))
            .map(|(entry, weight)| entry.clone().mul_scalar(*weight))
            .reduce(|sum, term| sum + term)
            .expect("a step was pushed and has a weight")
    }
}
