//! What the proxy counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub(in crate::client) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads the number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The proxy's counters, shared by all its connections.
#[derive(Debug, Default)]
pub struct ProxyStats {
    /// Connections accepted.
    pub accepted: Counter,
    /// Accepting failed for lack of descriptors or memory, and was paused.
    pub accept_paused: Counter,
    /// Connections refused because `max_connections` or `max_handshakes` was reached.
    pub refused_full: Counter,
    /// Connections closed because they did not say in time what they want.
    pub handshake_timed_out: Counter,
    /// Connections whose client went away, or failed, before a flow was up.
    pub client_gone: Counter,
    /// SOCKS negotiations refused as malformed or not supported.
    pub socks_refused: Counter,
    /// Wrong or missing passwords, SOCKS and HTTP together.
    pub unauthorized: Counter,
    /// HTTP requests refused as malformed or not supported.
    pub http_refused: Counter,
    /// HTTP connections ended by bytes that are not HTTP, or by a failure of either side
    /// within a message.
    pub http_broken: Counter,
    /// Flows attached for SOCKS CONNECT.
    pub socks_connects: Counter,
    /// UDP relays opened.
    pub socks_associates: Counter,
    /// Flows attached for HTTP CONNECT.
    pub http_connects: Counter,
    /// Plain HTTP requests forwarded.
    pub http_forwards: Counter,
    /// Plain HTTP connections switched to another protocol (WebSocket).
    pub http_upgrades: Counter,
    /// Flows of any of these kinds that went directly, by the rules.
    pub direct: Counter,
    /// Requests that the rules refused.
    pub blocked: Counter,
    /// Plain HTTP connections to origins that other rules ended.
    pub overruled: Counter,
    /// Requests that failed because the origin could not be reached.
    pub origin_failed: Counter,
    /// Connections whose task panicked.
    pub panicked: Counter,
}
