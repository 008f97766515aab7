//! A buffer that several threads fill, each its own elements, in an order that slices cannot express.

use std::marker::PhantomData;

/// A mutable slice whose elements are written through a shared reference.
pub(super) struct SharedSlice<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose callers keep threads to elements of their own.
unsafe impl Sync for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self {
            data: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// The place of the elements from `start` on, of which there have to be `len`.
    ///
    /// # Safety
    /// No other thread may write what is written here while the slice is shared.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn place(&self, start: usize, len: usize) -> *mut f32 {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the assertion.
        unsafe { self.data.add(start) }
    }

    /// Copies `values` to the elements from `start` on.
    ///
    /// # Safety
    /// No other thread may write these elements while the slice is shared.
    #[inline(always)]
    pub(super) unsafe fn write(&self, start: usize, values: &[f32]) {
        assert!(start <= self.len && values.len() <= self.len - start);
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise; `values` cannot overlap a slice that
        // is borrowed mutably.
        unsafe {
            self.data
                .add(start)
                .copy_from_nonoverlapping(values.as_ptr(), values.len())
        }
    }
}
