//! Several devices of one process, each driven by a thread of its own.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

#[cfg(feature = "cuda")]
use burn::backend::{CubeDevice, DispatchDevice};
use burn::tensor::Device;

use super::{
    Communicator, Workers,
    meeting::{Meeting, Over},
};
use crate::error::Error;

/// How long the others may take to come to their end after one has failed. Most end where they wait for it next; this is enough to complete a
/// checkpoint before. One that waits for ever, such as for the failed one's half of a reduction on the devices, isn't waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Does `work` on several devices at once, each in a thread of its own, and connects the threads as processes are connected. What the
/// first of them came to.
///
/// A thread that fails or panics ends them all: the others end when they next need it, with what they have written complete.
///
/// # Errors
/// The first failure. If a thread doesn't end within two minutes of it, it is left behind, and ends with the process.
pub fn on_devices<T: Send + 'static>(
    devices: Vec<Device>,
    work: impl Fn(Workers, &Device) -> Result<T, Error> + Send + Sync + 'static,
) -> Result<T, Error> {
    let group = Arc::new(Group::new(devices));
    let work = Arc::new(work);
    let (report, endings) = mpsc::channel();
    let mut threads = Vec::new();
    for rank in 0..group.devices.len() {
        let (group, work, report) = (group.clone(), work.clone(), report.clone());
        let run = move || {
            let device = group.devices[rank].clone();
            let workers = Workers::new(Arc::new(Member {
                rank,
                group: group.clone(),
            }));
            let result = catch_unwind(AssertUnwindSafe(|| work(workers, &device)));
            // Told before the others end as well, so that the first that is heard of is the cause.
            let _ = report.send((rank, Ending::of(rank, result)));
            group.end();
        };
        let builder = thread::Builder::new().name(format!("device {rank}"));
        threads.push(builder.spawn(run).map_err(|error| Error::Processes {
            problem: format!("can't start a thread for device {rank}: {error}"),
            help: "name fewer devices",
        })?);
    }
    drop(report);
    let result = await_endings(&endings, PATIENCE);
    if result.is_ok() {
        for thread in threads {
            let _ = thread.join();
        }
    }
    result
}

/// What a thread came to.
enum Ending<T> {
    Done(T),
    Failed(Error),
    /// It couldn't go on without one that had ended before.
    WithOthers,
}

impl<T> Ending<T> {
    fn of(rank: usize, result: thread::Result<Result<T, Error>>) -> Self {
        match result {
            Ok(Ok(value)) => Self::Done(value),
            Ok(Err(Error::OtherDevice)) => Self::WithOthers,
            Ok(Err(error)) => Self::Failed(error),
            Err(payload) if payload.is::<Over>() => Self::WithOthers,
            Err(payload) => Self::Failed(Error::Processes {
                problem: format!("device {rank} has failed: {}", message(payload.as_ref())),
                help: "go on from the last checkpoint with --resume, perhaps without this device or with a smaller batch_size",
            }),
        }
    }
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> &str {
    (payload.downcast_ref::<String>().map(String::as_str))
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

/// Waits until all threads have ended, or for `patience` after a failure.
fn await_endings<T>(
    endings: &mpsc::Receiver<(usize, Ending<T>)>,
    patience: Duration,
) -> Result<T, Error> {
    let mut of_first = None;
    let mut failure: Option<(Error, Instant)> = None;
    loop {
        let ending = match &failure {
            None => endings.recv().ok(),
            Some((_, when)) => {
                let left = patience.saturating_sub(when.elapsed());
                endings.recv_timeout(left).ok()
            }
        };
        match ending {
            Some((0, Ending::Done(value))) => of_first = Some(value),
            Some((_, Ending::Failed(error))) if failure.is_none() => {
                failure = Some((error, Instant::now()));
            }
            Some(_) => {}
            None => break,
        }
    }
    match (failure, of_first) {
        (Some((error, _)), _) => Err(error),
        (None, Some(value)) => Ok(value),
        (None, None) => Err(Error::OtherDevice),
    }
}

/// The threads of [`on_devices`].
struct Group {
    devices: Vec<Device>,
    bytes: Meeting<Vec<u8>>,
    floats: Meeting<Vec<f32>>,
    reduce: OnceLock<bool>,
}

impl Group {
    fn new(devices: Vec<Device>) -> Self {
        let size = devices.len();
        Self {
            devices,
            bytes: Meeting::new(size),
            floats: Meeting::new(size),
            reduce: OnceLock::new(),
        }
    }

    /// Says that one has gone: nobody will wait for it.
    fn end(&self) {
        self.bytes.end();
        self.floats.end();
    }
}

/// One of the threads.
struct Member {
    rank: usize,
    group: Arc<Group>,
}

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.devices.len()
    }

    fn sum(&self, values: &mut [f32]) {
        let parts = or_unwind(self.group.floats.meet(self.rank, values.to_vec()));
        // In the order of the devices, so that all come to the same bits.
        values.copy_from_slice(&parts[0]);
        for part in &parts[1..] {
            for (sum, value) in values.iter_mut().zip(part) {
                *sum += value;
            }
        }
    }

    fn gather(&self, part: &[u8]) -> Vec<Vec<u8>> {
        or_unwind(self.group.bytes.meet(self.rank, part.to_vec())).to_vec()
    }

    fn wait(&self) {
        self.gather(&[]);
    }

    fn devices(&self) -> Option<&[Device]> {
        let devices = &self.group.devices;
        (self.group.reduce)
            .get_or_init(|| devices.iter().all(reduces))
            .then_some(devices)
    }

    fn abort(&self) -> ! {
        self.group.end();
        resume_unwind(Box::new(Over))
    }

    fn finish(&self) {}
}

/// Leaves the thread's work if another has ended: there is nothing that it could go on with.
fn or_unwind<T>(result: Result<T, Over>) -> T {
    result.unwrap_or_else(|over| resume_unwind(Box::new(over)))
}

/// Whether the backend of `device` sums tensors over several devices: CUDA does, where NCCL is installed.
fn reduces(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cuda")]
        DispatchDevice::Cube(device @ CubeDevice::Cuda(_)) => {
            device.client().has_device_transport()
        }
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} of {}", self.rank, self.size())
    }
}

/// What `work` returned in each of `count` connected threads, by rank.
#[cfg(test)]
pub(crate) fn connected<T: Send + 'static>(
    count: usize,
    work: impl Fn(Workers) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let results: Vec<_> = (0..count).map(|_| std::sync::Mutex::new(None)).collect();
    let results = Arc::new(results);
    let shared = results.clone();
    on_devices(vec![Device::flex(); count], move |workers, _| {
        let rank = workers.rank();
        *shared[rank].lock().unwrap() = Some(work(workers));
        Ok(())
    })
    .expect("the work succeeds");
    (results.iter())
        .map(|result| result.lock().unwrap().take().expect("it came to its end"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn failure(text: &str) -> Error {
        Error::Request(text.into())
    }

    /// Runs three threads, of which `last` is the end of the last while the others wait for it in every way.
    fn with_last(
        last: impl Fn() -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let result = on_devices(vec![Device::flex(); 3], move |workers, _| {
            let mut ones = [1.0; 5];
            workers.sum(&mut ones);
            assert_eq!(ones, [3.0; 5]);
            match workers.rank() {
                0 => workers.sum(&mut ones),
                1 => workers.wait(),
                _ => last()?,
            }
            Ok(())
        });
        assert!(began.elapsed() < Duration::from_secs(30));
        result
    }

    #[test]
    fn an_error_in_one_thread_ends_all_and_comes_back() {
        let error = with_last(|| Err(failure("the third fails"))).unwrap_err();
        assert_eq!(error.to_string(), "the third fails");
    }

    #[test]
    fn a_panic_in_one_thread_ends_all_and_names_the_device() {
        let error = with_last(|| panic!("out of memory at {}", 7)).unwrap_err();
        assert_eq!(error.to_string(), "device 2 has failed: out of memory at 7");
        assert!(error.help().unwrap().contains("--resume"));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_done() {
        assert!(matches!(with_last(|| Ok(())), Err(Error::OtherDevice)));
    }

    #[test]
    fn one_that_ends_after_a_meeting_takes_nothing_from_the_others() {
        for _ in 0..200 {
            let sums = connected(4, |workers| {
                let mut sum = [workers.rank() as f32];
                workers.sum(&mut sum);
                sum[0]
            });
            assert_eq!(sums, [6.0; 4]);
        }
    }

    #[test]
    fn a_step_that_waits_for_one_that_failed_is_an_error_rather_than_the_end() {
        let (said, heard) = channel();
        let error = on_devices(vec![Device::flex(); 2], move |workers, _| {
            if workers.rank() == 1 {
                return Err(failure("no data"));
            }
            let step = workers.guarded(|| {
                workers.wait();
                Ok(())
            });
            said.send(matches!(step, Err(Error::OtherDevice))).unwrap();
            step
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "no data");
        assert!(heard.recv().unwrap());
    }

    #[test]
    fn one_that_never_ends_is_left_behind() {
        let (report, endings) = channel::<(usize, Ending<()>)>();
        report
            .send((1, Ending::Failed(failure("the cause"))))
            .unwrap();
        report
            .send((2, Ending::Failed(failure("a consequence"))))
            .unwrap();
        // The sender is still there, as it is while a thread runs.
        let error = await_endings(&endings, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "the cause");
        drop(report);
    }
}
