//! Memory for results, which isn't zeroed first: the thread that asks for it would do that alone, while the others wait.

/// `len` elements that `fill` has written.
///
/// # Safety
/// `fill` must write every element, and read none that it hasn't written.
pub(super) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut buffer = Vec::<f32>::with_capacity(len);
    // SAFETY: the memory is the vector's, which nothing else borrows; by the caller's promise, what isn't initialised isn't read.
    fill(unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), len) });
    // SAFETY: all elements are within the capacity, and written.
    unsafe { buffer.set_len(len) };
    buffer
}
