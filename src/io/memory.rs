//! Gives memory that a burst has left behind back to the system.

/// Asks the allocator to return what it holds free, where it can be asked.
///
/// glibc keeps freed memory in its arenas; after thousands of flows that is most of the
/// process. It takes milliseconds: call it when a burst is over, not in the middle of one.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
