//! Threads in place of processes, for tests.

use std::sync::{Arc, Barrier, Mutex};

use super::{Communicator, Workers};

#[derive(Debug)]
struct Thread {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: Mutex<Vec<Vec<u8>>>,
    barrier: Barrier,
}

/// Runs `work` in `count` threads that are connected; what each returned, by rank.
pub(crate) fn connected<T: Send>(count: usize, work: impl Fn(Workers) -> T + Sync) -> Vec<T> {
    let shared = Arc::new(Shared {
        parts: Mutex::new(vec![Vec::new(); count]),
        barrier: Barrier::new(count),
    });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|rank| {
                let shared = shared.clone();
                let work = &work;
                scope.spawn(move || work(Workers::new(Arc::new(Thread { rank, shared }))))
            })
            .collect();
        (threads.into_iter())
            .map(|thread| thread.join().expect("the work succeeds"))
            .collect()
    })
}

impl Communicator for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.parts.lock().unwrap().len()
    }

    fn sum(&self, values: &mut [f32]) {
        let own: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let parts = self.gather(&own);
        for (index, value) in values.iter_mut().enumerate() {
            *value = (parts.iter())
                .map(|part| f32::from_le_bytes(part[4 * index..4 * index + 4].try_into().unwrap()))
                .sum();
        }
    }

    fn gather(&self, part: &[u8]) -> Vec<Vec<u8>> {
        self.shared.parts.lock().unwrap()[self.rank] = part.to_vec();
        self.wait();
        let parts = self.shared.parts.lock().unwrap().clone();
        self.wait();
        parts
    }

    fn wait(&self) {
        self.shared.barrier.wait();
    }

    fn abort(&self) -> ! {
        std::process::abort()
    }

    fn finish(&self) {}
}
