//! Data-parallel training: several processes, or threads of one that drive a device each, with their own copy of the model and their own
//! part of every batch. What is said of processes here holds for such threads.
//!
//! W processes that accumulate A micro-batches of B images make the steps of one process that accumulates W·A of them. The micro-batches
//! of a step are numbered 0, ..., W·A - 1 and dealt out in turn; data, noise, timesteps and dropped conditions depend on the number alone.
//! Gradients are summed over all processes, so that all copies take the same step and stay equal. Process 0 alone writes files.

mod environment;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use burn::tensor::Device;

pub use threads::on_devices;

use self::meeting::Over;
use crate::{data::Share, error::Error, train::Culprit};

/// What processes need to train together. All of them have to call the same functions in the same order.
pub trait Communicator: fmt::Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes, at least 1.
    fn size(&self) -> usize;

    /// Replaces `values` by their sums over all processes, the same bits everywhere. The lengths have to agree.
    fn sum(&self, values: &mut [f32]);

    /// What every process gave, by rank.
    fn gather(&self, part: &[u8]) -> Vec<Vec<u8>>;

    /// Returns when all have called it. May take long: must leave the processor to others.
    fn wait(&self);

    /// The devices of all, by rank, if their backend sums tensors over them: then gradients needn't go through the host's memory.
    fn devices(&self) -> Option<&[Device]> {
        None
    }

    /// Ends all processes at once, without success.
    fn abort(&self) -> !;

    /// Called once, after everything else.
    fn finish(&self);
}

/// The processes of a run; by default this one alone.
#[derive(Clone, Debug, Default)]
pub struct Workers(Option<Arc<dyn Communicator>>);

impl Workers {
    /// Processes that are connected by `communicator`.
    pub fn new(communicator: Arc<dyn Communicator>) -> Self {
        Self(Some(communicator).filter(|communicator| communicator.size() > 1))
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.rank())
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |all| all.size())
    }

    /// Whether this process is the one that writes files and reports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Ends all processes at once after a failure of this one, which the others can't know of. Returns if there are no others.
    pub fn abort(&self) {
        if let Some(all) = &self.0 {
            all.abort();
        }
    }

    /// Takes leave of the others, after everything else.
    pub fn finish(&self) {
        if let Some(all) = &self.0 {
            all.finish();
        }
    }

    /// Number in its step, over all processes, of the micro-batch that is this process's `micro`-th.
    pub(crate) fn micro_batch(&self, micro: usize) -> usize {
        micro * self.size() + self.rank()
    }

    /// Which of a run's batches are this process's.
    pub(crate) fn share(&self) -> Share {
        Share {
            first: self.rank() as u64,
            of: self.size() as u64,
        }
    }

    /// Replaces `values` by their sums over all processes.
    pub(crate) fn sum(&self, values: &mut [f32]) {
        if let Some(all) = &self.0 {
            all.sum(values);
        }
    }

    /// The devices over which tensors are summed where they are.
    pub(crate) fn devices(&self) -> Option<&[Device]> {
        self.0.as_ref().and_then(|all| all.devices())
    }

    /// Does `work`, before and after which no process does anything else: burn's random generator is one for all devices of a process.
    pub(crate) fn undisturbed<T>(&self, work: impl FnOnce() -> T) -> T {
        self.wait();
        let result = work();
        self.wait();
        result
    }

    /// What `work` returns, or an error if it needs another device whose training has ended; outside of this that ends the thread.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if self.0.is_none() {
            return work();
        }
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => result,
            Err(payload) if payload.is::<Over>() => Err(Error::OtherDevice),
            Err(payload) => resume_unwind(payload),
        }
    }

    /// Whether it is so in any process.
    pub(crate) fn any(&self, here: bool) -> bool {
        match &self.0 {
            Some(all) => all.gather(&[here.into()]).iter().any(|part| part == &[1]),
            None => here,
        }
    }

    /// What each process says, by rank.
    pub(crate) fn numbers(&self, number: u64) -> Vec<u64> {
        match &self.0 {
            Some(all) => (all.gather(&number.to_le_bytes()).iter())
                .map(|part| part.as_slice().try_into().map_or(0, u64::from_le_bytes))
                .collect(),
            None => vec![number],
        }
    }

    /// Replaces figures by their means over the processes that have a figure of that name.
    pub(crate) fn mean(&self, figures: &mut [(&'static str, f64)]) {
        let Some(all) = &self.0 else {
            return;
        };
        let own: Vec<u8> = (figures.iter())
            .flat_map(|(name, value)| {
                let mut entry = value.to_le_bytes().to_vec();
                entry.push(name.len() as u8);
                entry.extend(name.as_bytes());
                entry
            })
            .collect();
        let gathered = all.gather(&own);
        let parts: Vec<Vec<(&[u8], f64)>> = gathered.iter().map(|part| entries(part)).collect();
        for (name, value) in figures {
            let found: Vec<f64> = (parts.iter().flatten())
                .filter(|(other, _)| *other == name.as_bytes())
                .map(|&(_, value)| value)
                .collect();
            // A figure that all share, such as the rate, must not be rounded.
            if found.iter().any(|other| other != value) {
                *value = found.iter().sum::<f64>() / found.len() as f64;
            }
        }
    }

    /// Lets process 0 do what must be done once, while the others wait. Says everywhere what `work` said there: whether it is done,
    /// rather than stopped by the observer.
    pub(crate) fn first_does(
        &self,
        work: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let done = self.is_first() && work()?;
        self.wait();
        Ok(self.any(done))
    }

    /// Returns when all processes have called it.
    pub(crate) fn wait(&self) {
        if let Some(all) = &self.0 {
            all.wait();
        }
    }

    /// `here`, unless a number has become infinite or NaN in another process: then an error that says so, so that all do the same about
    /// it. Any other error is this process's own and comes back at once; the others wait for [`abort`](Self::abort).
    pub(crate) fn agree<T>(&self, here: Result<T, Error>) -> Result<T, Error> {
        let Some(all) = &self.0 else {
            return here;
        };
        let own = match &here {
            Ok(_) => Vec::new(),
            Err(Error::NotFinite { value, step, .. }) => {
                [value.to_le_bytes(), step.to_le_bytes()].concat()
            }
            Err(_) => return here,
        };
        let parts = all.gather(&own);
        let elsewhere = parts.iter().find(|part| part.len() == 16);
        match (here, elsewhere) {
            (Ok(_), Some(part)) => {
                let word = |at: usize| -> [u8; 8] { std::array::from_fn(|i| part[at + i]) };
                Err(Error::NotFinite {
                    name: "loss of another process or device",
                    value: f64::from_le_bytes(word(0)),
                    step: u64::from_le_bytes(word(8)),
                    culprit: Culprit::Unknown,
                })
            }
            (here, _) => here,
        }
    }
}

/// Reads what [`Workers::mean`] sends: value, length of the name, name.
fn entries(mut bytes: &[u8]) -> Vec<(&[u8], f64)> {
    let mut entries = Vec::new();
    while let Some((value, rest)) = bytes.split_first_chunk::<8>() {
        let Some((&length, rest)) = rest.split_first() else {
            break;
        };
        let (name, rest) = rest.split_at(rest.len().min(length.into()));
        entries.push((name, f64::from_le_bytes(*value)));
        bytes = rest;
    }
    entries
}
