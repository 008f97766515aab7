//! What processes that train together have to agree on before their first step.

use crate::{config::TrainingConfig, error::Error, parallel::Workers};

/// Images in a step of all processes together.
pub(super) fn images_per_step(training: &TrainingConfig, workers: &Workers) -> usize {
    training.batch_size * training.accumulation * workers.size()
}

/// Finds out whether all processes go on from the same step.
///
/// # Errors
/// If they don't.
pub(super) fn check_start(workers: &Workers, start: u64) -> Result<(), Error> {
    let starts = workers.numbers(start);
    match starts.iter().position(|&other| other != starts[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Processes {
            problem: format!(
                "process 0 would go on from step {}, but process {rank} from step {}",
                starts[0], starts[rank]
            ),
            help: "the run's folder must be one that all processes see, such as on a network file system",
        }),
    }
}
