//! What the resolver counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted since the start, for the proxy and the local resolver together.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Questions.
    pub queries: AtomicU64,
    /// Those answered from records of the configuration or the server, or as their top label demands.
    pub local: AtomicU64,
    /// Those whose name is blocked.
    pub blocked: AtomicU64,
    /// Those answered from the cache.
    pub cached: AtomicU64,
    /// Those that waited for the answer to the same question.
    pub joined: AtomicU64,
    /// Those asked of an upstream, prefetches among them.
    pub asked: AtomicU64,
    /// Those of them that a `split` entry sent elsewhere.
    pub split: AtomicU64,
    /// Those asked because an answer in use was about to end.
    pub prefetched: AtomicU64,
    /// Prefetches left out since too many waited.
    pub prefetch_dropped: AtomicU64,
    /// Those answered with SERVFAIL, since no upstream answered.
    pub failed: AtomicU64,
    /// Messages that were no question we answer: malformed, responses, or of another kind.
    pub refused: AtomicU64,
    /// Datagrams dropped since too many questions were under way.
    pub dropped_busy: AtomicU64,
    /// Datagrams dropped since their sender had too many questions under way.
    pub dropped_sender: AtomicU64,
    /// Answers that could not be sent or written.
    pub unsent: AtomicU64,
    /// Connections refused since there were too many.
    pub streams_refused: AtomicU64,
    /// Connections closed since the peer broke the framing or was idle for too long.
    pub streams_closed: AtomicU64,
    /// Lists fetched.
    pub lists_fetched: AtomicU64,
    /// Attempts to fetch a list that failed.
    pub lists_failed: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
