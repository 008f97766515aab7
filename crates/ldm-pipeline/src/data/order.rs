//! Which samples make up which batch of a run.

use std::sync::Arc;

use crate::rng::{Stream, permutation, permutation_of};

/// The order of a run's samples: a pure function of the seed, the groups, and the sizes of batch and step.
///
/// Samples of a group have one shape, and so has a step, which is one or more batches. Each group is an endless sequence of epochs, each in
/// its own random order, without a gap between them; its i-th step takes the next G samples, and so may have samples of two epochs. Within
/// the first e epochs, a group of n samples comes to floor(e·n / G) steps: what doesn't fill a step is carried over to the next epoch, and
/// nothing is left out. The steps that an epoch brings to the groups are shuffled among the groups.
///
/// With one group this is one endless sequence, cut into batches.
#[derive(Debug)]
pub(super) struct Order {
    seed: u64,
    /// Samples of a batch.
    batch: u64,
    /// Batches of a step.
    batches: u64,
    /// Numbers of samples; none is empty.
    groups: Vec<Vec<usize>>,
}

/// Where a batch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its group.
    pub(super) group: usize,
    /// Number of its first sample in the endless sequence of the group.
    pub(super) first: u64,
}

/// The turns of an epoch.
struct Turns {
    /// The run's number of its first step.
    first: u64,
    /// For each step, the group and which of its steps it is.
    steps: Vec<(usize, u64)>,
}

impl Order {
    /// `batch` samples are a batch, `batches` batches a step; either is at least 1.
    pub(super) fn new(seed: u64, batch: usize, batches: usize, groups: Vec<Vec<usize>>) -> Self {
        Self {
            seed,
            batch: batch as u64,
            batches: batches as u64,
            groups: (groups.into_iter())
                .filter(|group| !group.is_empty())
                .collect(),
        }
    }

    /// The samples of each group.
    pub(super) fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// Samples of a step.
    fn step(&self) -> u64 {
        self.batch * self.batches
    }

    /// Steps that a group has come to after `epochs` epochs.
    fn steps_of(&self, group: usize, epochs: u64) -> u64 {
        let samples = u128::from(epochs) * self.groups[group].len() as u128;
        (samples / u128::from(self.step())) as u64
    }

    fn steps_before(&self, epoch: u64) -> u64 {
        (0..self.groups.len())
            .map(|group| self.steps_of(group, epoch))
            .sum()
    }

    /// The epoch of step `step`.
    fn epoch(&self, step: u64) -> u64 {
        let samples: u64 = self.groups.iter().map(|group| group.len() as u64).sum();
        // After so many epochs there are more steps than `step`, though each group may lack a part of one.
        let enough = u128::from(step + self.groups.len() as u64) * u128::from(self.step());
        let mut after = (enough / u128::from(samples)) as u64 + 1;
        let mut epoch = 0;
        while after - epoch > 1 {
            let middle = epoch + (after - epoch) / 2;
            if self.steps_before(middle) <= step {
                epoch = middle;
            } else {
                after = middle;
            }
        }
        epoch
    }

    fn turns(&self, epoch: u64) -> Turns {
        let ordered: Vec<(usize, u64)> = (0..self.groups.len())
            .flat_map(|group| {
                let steps = self.steps_of(group, epoch)..self.steps_of(group, epoch + 1);
                steps.map(move |step| (group, step))
            })
            .collect();
        Turns {
            first: self.steps_before(epoch),
            steps: permutation(self.seed, Stream::BucketTurns, epoch, ordered.len())
                .into_iter()
                .map(|turn| ordered[turn])
                .collect(),
        }
    }
}

/// An [`Order`], with what was drawn last.
pub(super) struct Visits {
    order: Arc<Order>,
    turns: Option<Turns>,
    /// For each group the epoch drawn last, and its order.
    epochs: Vec<Option<(u64, Vec<usize>)>>,
}

impl Visits {
    pub(super) fn new(order: Arc<Order>) -> Self {
        Self {
            turns: None,
            epochs: vec![None; order.groups.len()],
            order,
        }
    }

    pub(super) fn order(&self) -> &Order {
        &self.order
    }

    /// Where batch `number` of the run begins.
    pub(super) fn place(&mut self, number: u64) -> Place {
        let order = &self.order;
        if order.groups.len() == 1 {
            return Place {
                group: 0,
                first: number * order.batch,
            };
        }
        let step = number / order.batches;
        let in_turn =
            |turns: &Turns| (turns.first..turns.first + turns.steps.len() as u64).contains(&step);
        if !self.turns.as_ref().is_some_and(in_turn) {
            self.turns = Some(order.turns(order.epoch(step)));
        }
        let turns = self.turns.as_ref().expect("drawn above");
        let (group, step_of_group) = turns.steps[(step - turns.first) as usize];
        Place {
            group,
            first: step_of_group * order.step() + number % order.batches * order.batch,
        }
    }

    /// The sample at `offset` of an epoch of a group.
    pub(super) fn sample(&mut self, group: usize, epoch: u64, offset: usize) -> usize {
        let members = &self.order.groups[group];
        let drawn = &mut self.epochs[group];
        if drawn.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            let (seed, index) = (self.order.seed, group as u64);
            let order = permutation_of(seed, Stream::Order, epoch, index, members.len());
            *drawn = Some((epoch, order));
        }
        let (_, order) = drawn.as_ref().expect("drawn above");
        members[order[offset]]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn visits(batch: usize, batches: usize, groups: &[usize]) -> Visits {
        let mut number = 0;
        let groups = (groups.iter())
            .map(|&count| {
                number += count;
                (number - count..number).collect()
            })
            .collect();
        Visits::new(Arc::new(Order::new(7, batch, batches, groups)))
    }

    /// The samples of batch `number`, with their epochs.
    fn batch(visits: &mut Visits, number: u64) -> Vec<(usize, u64)> {
        let Place { group, first } = visits.place(number);
        let count = visits.order.groups[group].len() as u64;
        (first..first + visits.order.batch)
            .map(|position| {
                let (epoch, offset) = (position / count, (position % count) as usize);
                (visits.sample(group, epoch, offset), epoch)
            })
            .collect()
    }

    #[test]
    fn every_epoch_of_a_group_has_each_sample_once_and_nothing_is_left_out() {
        // One group fills a step only every third epoch.
        let counts = [23, 2, 11];
        let mut visits = visits(3, 2, &counts);
        let mut seen = BTreeMap::new();
        // 36 samples an epoch, 6 a step: ten epochs but for what is carried over.
        for number in 0..2 * 60 {
            for visit in batch(&mut visits, number) {
                *seen.entry(visit).or_insert(0) += 1;
            }
        }
        assert!(seen.values().all(|&times| times == 1));
        for epoch in 0..9 {
            for sample in [0..23, 25..36].into_iter().flatten() {
                assert!(
                    seen.contains_key(&(sample, epoch)),
                    "{sample} in epoch {epoch}"
                );
            }
        }
        assert!((23..25).all(|sample| seen.contains_key(&(sample, 8))));
    }

    #[test]
    fn a_step_has_one_group_and_steps_take_turns() {
        let mut visits = visits(2, 4, &[40, 24, 16]);
        let groups: Vec<usize> = (0..10 * 4 * 3)
            .map(|number| visits.place(number).group)
            .collect();
        for step in groups.chunks(4) {
            assert!(step.iter().all(|group| *group == step[0]));
        }
        // Each epoch has five, three and two steps, in an order of its own.
        let epochs: Vec<Vec<usize>> = (groups.chunks(40))
            .map(|epoch| epoch.iter().step_by(4).copied().collect())
            .collect();
        for epoch in &epochs {
            let count = |group| epoch.iter().filter(|turn| **turn == group).count();
            assert_eq!([count(0), count(1), count(2)], [5, 3, 2]);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        assert!(epochs.iter().any(|epoch| !epoch.is_sorted()));
    }

    #[test]
    fn a_batch_is_found_from_its_number_alone() {
        for groups in [&[5, 1, 9][..], &[7], &[1, 1], &[100, 3]] {
            let mut going = visits(2, 3, groups);
            let all: Vec<_> = (0..200).map(|number| batch(&mut going, number)).collect();
            for number in (0..200).rev().step_by(7) {
                let mut fresh = visits(2, 3, groups);
                assert_eq!(
                    batch(&mut fresh, number as u64),
                    all[number],
                    "{groups:?} {number}"
                );
            }
        }
        // Far into a run nothing overflows.
        visits(64, 8, &[1_000_000, 3]).place(1 << 40);
    }

    #[test]
    fn the_samples_of_a_step_do_not_depend_on_how_it_is_split() {
        let step = |batch_size: usize, batches: usize, step: u64| {
            let mut visits = visits(batch_size, batches, &[13, 8, 30]);
            (step * batches as u64..(step + 1) * batches as u64)
                .flat_map(|number| batch(&mut visits, number))
                .collect::<Vec<_>>()
        };
        for number in 0..30 {
            let whole = step(8, 1, number);
            assert_eq!(step(2, 4, number), whole);
            assert_eq!(step(4, 2, number), whole);
        }
    }
}
