//! Processes that are connected by MPI.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use mpi::{
    Threading,
    collective::SystemOperation,
    datatype::PartitionMut,
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator as _, CommunicatorCollectives as _},
};

use super::{Communicator, Workers};
use crate::error::Error;

/// Values that are reduced in one call: a few MiB, so that the second buffer stays small.
const CHUNK: usize = 1 << 20;
/// How often a process that waits long looks whether the others have come.
const PAUSE: Duration = Duration::from_millis(2);

/// Connects to the processes that were started with this one.
pub(super) fn connect() -> Result<Workers, Error> {
    let (universe, threading) =
        mpi::initialize_with_threading(Threading::Serialized).ok_or(Error::Processes {
            problem: "MPI is already in use in this process".into(),
            help: "connect only once",
        })?;
    if threading < Threading::Serialized {
        return Err(Error::Processes {
            problem: format!("this MPI library supports threads only to the level {threading:?}"),
            help: "use one that was built with MPI_THREAD_SERIALIZED or better, as Open MPI is by default",
        });
    }
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    Ok(Workers::new(Arc::new(Mpi {
        rank,
        size,
        universe: Mutex::new(Some(universe)),
    })))
}

/// All processes of an MPI job.
struct Mpi {
    rank: usize,
    size: usize,
    /// Held during every call, since the library is told that there is one at a time. `None` when all is over.
    universe: Mutex<Option<Universe>>,
}

impl Mpi {
    fn with_world<T>(&self, call: impl FnOnce(&SimpleCommunicator) -> T) -> T {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        let universe = universe.as_ref().expect("no call after the last");
        call(&universe.world())
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f32]) {
        self.with_world(|world| {
            let mut sums = vec![0.0; values.len().min(CHUNK)];
            for chunk in values.chunks_mut(CHUNK) {
                let sums = &mut sums[..chunk.len()];
                world.all_reduce_into(&*chunk, sums, SystemOperation::sum());
                chunk.copy_from_slice(sums);
            }
        });
    }

    fn gather(&self, part: &[u8]) -> Vec<Vec<u8>> {
        // Never empty: Rust's address of nothing is 1, which Open MPI takes for MPI_IN_PLACE.
        let part = [&[0], part].concat();
        self.with_world(|world| {
            let mut counts = vec![0i32; self.size];
            let count = i32::try_from(part.len()).expect("only small things are gathered");
            world.all_gather_into(&count, &mut counts[..]);
            let starts: Vec<i32> = (counts.iter())
                .scan(0, |end, count| {
                    let start = *end;
                    *end += count;
                    Some(start)
                })
                .collect();
            let total: i32 = counts.iter().sum();
            let mut bytes = vec![0u8; total as usize];
            let mut parts = PartitionMut::new(&mut bytes[..], &counts[..], &starts[..]);
            world.all_gather_varcount_into(&part[..], &mut parts);
            (starts.iter().zip(&counts))
                .map(|(&start, &count)| {
                    bytes[start as usize + 1..(start + count) as usize].to_vec()
                })
                .collect()
        })
    }

    fn wait(&self) {
        self.with_world(|world| {
            // A plain barrier would keep a core busy, which the process that works may want.
            let mut request = world.immediate_barrier();
            while let Err(pending) = request.test() {
                request = pending;
                thread::sleep(PAUSE);
            }
        });
    }

    fn abort(&self) -> ! {
        self.with_world(|world| world.abort(1))
    }

    fn finish(&self) {
        let mut universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        drop(universe.take());
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Dropped before the end, on the way out of a failure: leaving in good order would wait for the others.
        let universe = self
            .universe
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(universe.take());
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {} of MPI", self.rank, self.size)
    }
}
