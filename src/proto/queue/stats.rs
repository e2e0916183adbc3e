//! What a fair queue counts.

/// Counters of a queue since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Packets taken in, each super-packet one.
    pub enqueued: u64,
    /// Of them, those of our own stack.
    pub own: u64,
    /// Wire packets given to lanes, and super-packets taken whole.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Of them, those that were marked instead of dropped.
    pub marked: u64,
    /// Packets of flows that had to share another flow's queue.
    pub shared: u64,
    /// What was dropped, by reason.
    pub drops: QueueDrops,
}

/// What was dropped, by reason; a wire packet counts one, and so does each segment of a super-packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDrops {
    /// Dropped by CoDel, to tell the sender that its queue stands.
    pub codel: u64,
    /// Dropped from the fattest flow because the queue was full.
    pub overflow: u64,
    /// Packets that were none.
    pub malformed: u64,
    /// Wire packets longer than the memory that was lent for them.
    pub too_long: u64,
}
