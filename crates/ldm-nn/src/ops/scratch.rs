//! Working memory that outlives a call: zeroing and mapping fresh pages would cost more than some kernels.

use std::cell::RefCell;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Elements of a cache line, which a buffer begins with.
const LINE: usize = 16;

/// Runs `work` with a buffer of `len` elements of unspecified value, which the next call on this thread reuses.
pub(super) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + LINE {
        // Dropped first: growing would copy what nobody wants.
        drop(buffer);
        buffer = vec![0.0; len + LINE];
    }
    let line = buffer
        .as_ptr()
        .align_offset(LINE * size_of::<f32>())
        .min(LINE);
    let result = work(&mut buffer[line..line + len]);
    BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}
