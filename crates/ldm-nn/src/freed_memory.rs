//! Keeps the C library from returning freed memory to the system.

/// Tells glibc to reuse freed memory of any size.
///
/// By default it maps every block of more than 128 KiB afresh, and every fresh page costs a fault and a wipe. Training
/// frees and allocates the same large tensors at each step; with this it runs about twice as fast. To be called first in `main`: what
/// was allocated before stays as it is. Does nothing where the C library is another one.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: `mallopt` may be called at any time, takes the allocator's lock, and refuses values that it doesn't like.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}
