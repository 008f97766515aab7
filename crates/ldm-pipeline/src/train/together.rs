//! What processes that train together have to agree on before their first step.

use super::{Event, Observer};
use crate::{checkpoint::Checkpoint, config::TrainingConfig, error::Error, parallel::Workers};

/// Images in a step of all processes together.
pub(super) fn images_per_step(training: &TrainingConfig, workers: &Workers) -> usize {
    training.batch_size * training.accumulation * workers.size()
}

/// The step to go on from, the same in all processes. A step that has become larger or smaller than before is told to the observer.
pub(super) fn common_start(
    workers: &Workers,
    newest: Option<&Checkpoint>,
    training: &TrainingConfig,
    observer: &mut Observer,
) -> Result<u64, Error> {
    let start = newest.map_or(0, |checkpoint| checkpoint.state().step);
    let starts = workers.numbers(start);
    if let Some(rank) = starts.iter().position(|&other| other != starts[0]) {
        return Err(Error::Processes {
            problem: format!(
                "process 0 would go on from step {}, but process {rank} from step {}",
                starts[0], starts[rank]
            ),
            help: "the run's folder must be one that all processes see, such as on a network file system",
        });
    }
    if let Some(state) = newest.map(Checkpoint::state).filter(|_| start > 0) {
        let now = images_per_step(training, workers) as u64;
        if state.samples_seen != start * now {
            let before = state.samples_seen as f64 / start as f64;
            let _ = observer(Event::Note(&format!(
                "a step has {now} images now, and had {before} before (batch size x accumulation x processes)"
            )));
        }
    }
    Ok(start)
}
