//! Where threads exchange what they have.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A place where the members of a group leave a part each and go on with the parts of all, time after time.
#[derive(Debug)]
pub(super) struct Meeting<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// What was left since the last meeting, by member.
    parts: Vec<Option<T>>,
    /// Meetings that took place.
    held: u64,
    /// What was left for the last of them.
    result: Arc<Vec<T>>,
    over: bool,
}

/// A member has gone, so that no meeting can take place any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over;

impl<T> Meeting<T> {
    /// For `size` members.
    pub(super) fn new(size: usize) -> Self {
        Self {
            state: Mutex::new(State {
                parts: (0..size).map(|_| None).collect(),
                held: 0,
                result: Arc::new(Vec::new()),
                over: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Leaves the part of `member` and waits for the others'. What all left, by member.
    ///
    /// # Errors
    /// [`Over`] if a member has gone without having left a part. Those who met before that get what was left.
    pub(super) fn meet(&self, member: usize, part: T) -> Result<Arc<Vec<T>>, Over> {
        let mut state = self.lock();
        if state.over {
            return Err(Over);
        }
        let number = state.held;
        state.parts[member] = Some(part);
        if state.parts.iter().all(Option::is_some) {
            let parts = state.parts.iter_mut().filter_map(Option::take).collect();
            state.result = Arc::new(parts);
            state.held += 1;
            self.changed.notify_all();
        }
        // The next meeting needs this member, so that the result stays until it has been taken.
        while state.held == number {
            if state.over {
                return Err(Over);
            }
            state = (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.result.clone())
    }

    /// Says that a member has gone.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
