//! Writes on which the end of a run depends.

use std::{
    ops::ControlFlow,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Event, Observer,
    run_loop::{warn, with_causes},
};
use crate::{config::TrainingConfig, error::Error};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Repeats a write of `what` until it succeeds or `training.write_patience` is over: what days of training have led to must not be lost
/// because the disk is full at that moment. An observer that breaks ends the waiting, if it is `interruptible`.
///
/// # Errors
/// That of the last attempt.
pub(super) fn persist<T>(
    what: &str,
    training: &TrainingConfig,
    interruptible: bool,
    observer: &mut Observer,
    mut write: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let patience = Duration::from_secs(training.write_patience);
    let began = Instant::now();
    let mut warned = false;
    loop {
        let error = match write() {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        let waited = began.elapsed();
        if waited >= patience {
            return Err(error);
        }
        if !std::mem::replace(&mut warned, true) {
            let text = format!(
                "the {what} can't be written: {}; trying again for {} s",
                with_causes(&error),
                patience.as_secs()
            );
            warn(observer, &text);
        }
        let flow = observer(Event::Work {
            what: "waiting for the disk",
            done: waited.as_secs() as usize,
            total: patience.as_secs() as usize,
        });
        if interruptible && flow == ControlFlow::Break(()) {
            return Err(error);
        }
        sleep(PAUSE.min(patience - waited));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::RunConfig, quickstart::PRESET};

    fn training(patience: u64) -> TrainingConfig {
        let config = RunConfig::parse(PRESET, "preset", &[]).unwrap();
        TrainingConfig {
            write_patience: patience,
            ..config.stage1.training
        }
    }

    fn failing_until(success: u32) -> impl FnMut() -> Result<u32, Error> {
        let mut attempts = 0;
        move || {
            attempts += 1;
            match attempts >= success {
                true => Ok(attempts),
                false => Err(Error::Request("the disk is full".into())),
            }
        }
    }

    #[test]
    fn a_write_is_repeated_and_complained_of_once() {
        let mut warnings = 0;
        let mut observer = |event: Event| {
            warnings += u32::from(matches!(event, Event::Warning(_)));
            ControlFlow::Continue(())
        };
        let result = persist(
            "model",
            &training(60),
            true,
            &mut observer,
            failing_until(3),
        );
        assert_eq!(result.unwrap(), 3);
        assert_eq!(warnings, 1);
    }

    #[test]
    fn patience_ends_and_so_does_the_users() {
        let mut keep = |_: Event| ControlFlow::Continue(());
        assert!(persist("model", &training(0), true, &mut keep, failing_until(2)).is_err());
        let mut leave = |_: Event| ControlFlow::Break(());
        let began = Instant::now();
        assert!(persist("model", &training(60), true, &mut leave, failing_until(9)).is_err());
        assert!(began.elapsed() < Duration::from_secs(30));
        let stubborn = persist("model", &training(60), false, &mut leave, failing_until(2));
        assert_eq!(stubborn.unwrap(), 2);
    }
}
