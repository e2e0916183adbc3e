//! What a session counts, as plain numbers; one place elsewhere exports them.

/// Counters of a session since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets sealed.
    pub packets_sealed: u64,
    /// Bytes of IP packets sealed.
    pub packet_bytes_sealed: u64,
    /// Packets opened and delivered.
    pub packets_opened: u64,
    /// Bytes of IP packets opened and delivered.
    pub packet_bytes_opened: u64,
    /// Control frames sealed.
    pub control_sealed: u64,
    /// Control frames opened.
    pub control_opened: u64,
    /// Epochs begun after the first.
    pub rekeys: u64,
    /// Rekeys begun again for want of an answer.
    pub rekey_retries: u64,
    /// Lanes joined.
    pub lanes_joined: u64,
    /// Lanes given up for want of an answer.
    pub lanes_dead: u64,
    /// Control frames sent again on lanes that lose.
    pub control_resent: u64,
    /// Times a lane fell silent.
    pub lanes_silent: u64,
    /// Times a lane moved to another address.
    pub lanes_moved: u64,
    /// What was dropped, by reason.
    pub drops: Drops,
}

/// What was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Frames that are none: header, length or type wrong.
    pub malformed_frames: u64,
    /// Frames on a lane that does not exist or is dead.
    pub unknown_lane: u64,
    /// Frames of an epoch that is not, or no longer, open.
    pub unknown_epoch: u64,
    /// Frames whose counter did not increase.
    pub replayed_counter: u64,
    /// Frames that did not open.
    pub failed_opens: u64,
    /// Packets whose header inside the seal is malformed, or that are empty.
    pub malformed_packets: u64,
    /// Packets whose source number came before.
    pub duplicate_packets: u64,
    /// Packets whose source number is older than the window.
    pub stale_packets: u64,
    /// Frames of unknown type that may be skipped.
    pub skipped_frames: u64,
    /// Frames of unknown type that may not; each ended its session.
    pub unknown_frames: u64,
    /// Control frames that were malformed or out of place; each ended its session.
    pub bad_control: u64,
    /// Rekey messages that did not fit: late, or for another epoch.
    pub stray_rekeys: u64,
    /// Pongs nobody asked for, and echoes of the wrong challenge.
    pub stray_answers: u64,
    /// Frames after the session was closed.
    pub after_close: u64,
    /// Join frames refused.
    pub refused_joins: u64,
    /// Control frames not sent because their queue was full.
    pub control_overflow: u64,
    /// Control frames not sent because their lane went away.
    pub control_without_lane: u64,
    /// Control frames not sent because the epoch has sealed all it may.
    pub control_without_key: u64,
    /// Halves of packets whose other half did not come in time.
    pub lost_pieces: u64,
    /// Packets put together from halves that nobody fetched before too many others were.
    pub unfetched_packets: u64,
    /// Events not reported because nobody took them.
    pub event_overflow: u64,
}

/// Counters of one lane since it was joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Frames sealed for it.
    pub frames_sealed: u64,
    /// Their bytes, headers and tags included.
    pub bytes_sealed: u64,
    /// Frames opened from it.
    pub frames_opened: u64,
    /// Their bytes, headers and tags included.
    pub bytes_opened: u64,
    /// Packets sealed for it whose number another lane, or this one, had carried before.
    pub copies_sealed: u64,
    /// Packets opened from it that had come before.
    pub duplicates_opened: u64,
    /// Frames from it that did not open.
    pub failed_opens: u64,
}
