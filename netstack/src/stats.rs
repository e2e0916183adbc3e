//! What the stack counts: plain numbers, every drop under its reason.

use crate::packet::PacketError;

/// Counts since the stack was made; the fields named `*_now` are gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Packets handed in.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets written to a sink.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Super-packets among those handed in.
    pub super_packets_in: u64,
    /// Super-packets among those written.
    pub super_packets_out: u64,
    /// Flows that exist, half-open ones included.
    pub flows_now: u64,
    /// Flows that wait to be accepted or rejected.
    pub half_open_now: u64,
    /// TIME-WAIT entries and quiet addresses.
    pub waits_now: u64,
    /// Flows begun by `connect`.
    pub connects: u64,
    /// Flows begun by a peer.
    pub incoming: u64,
    /// Flows that reached ESTABLISHED.
    pub established: u64,
    /// Flows that ended by a reset from the peer.
    pub resets_received: u64,
    /// Resets sent because no flow matched.
    pub resets_sent: u64,
    /// Flows that ended by one of the time-outs.
    pub timed_out: u64,
    /// Flows refused because no memory could be mapped.
    pub ring_failures: u64,
    /// Flows refused because the soft bound of memory was reached.
    pub refused_for_memory: u64,
    /// Rings of which memory was given back to the kernel.
    pub rings_given_back: u64,
    /// Flows ended because smoltcp failed in them.
    pub internal_failures: u64,
    /// ICMP errors sent.
    pub icmp_errors_sent: u64,
    /// ICMP errors not sent for the rate limit.
    pub icmp_errors_limited: u64,
    /// Replies dropped because their queue was full.
    pub replies_dropped: u64,
    /// Packets lost between reserve and commit: a sink that lent room and then had none.
    pub sink_failures: u64,
    /// TIME-WAIT entries that gave way to newer ones.
    pub waits_evicted: u64,
    /// Datagrams put together from fragments.
    pub reassembled: u64,
    /// Unfinished datagrams dropped for time or room.
    pub reassembly_dropped: u64,
    /// Incoming packets dropped, by reason.
    pub dropped: Drops,
}

/// Says why an incoming packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Dropped {
    /// It is not a packet this stack can read, or more was claimed of it than is true.
    #[error("malformed packet: {0}")]
    Malformed(#[from] PacketError),
    /// It is for an address that is not ours.
    #[error("destination is not an address of this stack")]
    NotOurs,
    /// One of its addresses cannot be the end of a flow.
    #[error("source or destination is not unicast")]
    NotUnicast,
    /// Its transport protocol is none of TCP, UDP and ICMP.
    #[error("protocol {0} is not spoken here")]
    Protocol(u8),
    /// A TCP segment or ICMP message that does not parse.
    #[error("transport header is malformed")]
    Transport,
    /// A TCP segment that belongs to no flow.
    #[error("no flow for this segment")]
    NoFlow,
    /// A SYN above the limit of flows.
    #[error("too many flows")]
    FlowsFull,
    /// A SYN above the limit of half-open flows.
    #[error("too many half-open flows")]
    HalfOpenFull,
    /// A SYN where incoming flows are not wanted.
    #[error("incoming flows are not wanted")]
    IncomingRefused,
    /// A datagram for a port that is not bound.
    #[error("no datagram port is bound here")]
    NoPort,
    /// An ICMP error that matches nothing we sent.
    #[error("icmp error matches nothing that was sent")]
    IcmpUnmatched,
    /// An ICMP message without meaning to this stack.
    #[error("icmp message is not acted on")]
    IcmpIgnored,
    /// A fragment that overlaps, or above the bound.
    #[error("fragment overlaps or is above the bound")]
    Fragment,
    /// A SYN at the soft bound of memory, or bytes that would be held beyond the hard bound.
    #[error("out of memory for flows")]
    Memory,
}

/// Counts of incoming packets dropped, one field for each [`Dropped`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each field is the variant of the same name")]
pub struct Drops {
    pub malformed: u64,
    pub not_ours: u64,
    pub not_unicast: u64,
    pub protocol: u64,
    pub transport: u64,
    pub no_flow: u64,
    pub flows_full: u64,
    pub half_open_full: u64,
    pub incoming_refused: u64,
    pub no_port: u64,
    pub icmp_unmatched: u64,
    pub icmp_ignored: u64,
    pub fragment: u64,
    pub memory: u64,
}

impl Drops {
    pub(crate) fn count(&mut self, reason: Dropped) {
        let field = match reason {
            Dropped::Malformed(_) => &mut self.malformed,
            Dropped::NotOurs => &mut self.not_ours,
            Dropped::NotUnicast => &mut self.not_unicast,
            Dropped::Protocol(_) => &mut self.protocol,
            Dropped::Transport => &mut self.transport,
            Dropped::NoFlow => &mut self.no_flow,
            Dropped::FlowsFull => &mut self.flows_full,
            Dropped::HalfOpenFull => &mut self.half_open_full,
            Dropped::IncomingRefused => &mut self.incoming_refused,
            Dropped::NoPort => &mut self.no_port,
            Dropped::IcmpUnmatched => &mut self.icmp_unmatched,
            Dropped::IcmpIgnored => &mut self.icmp_ignored,
            Dropped::Fragment => &mut self.fragment,
            Dropped::Memory => &mut self.memory,
        };
        *field += 1;
    }

    /// Adds all reasons up.
    pub fn total(&self) -> u64 {
        self.malformed
            + self.not_ours
            + self.not_unicast
            + self.protocol
            + self.transport
            + self.no_flow
            + self.flows_full
            + self.half_open_full
            + self.incoming_refused
            + self.no_port
            + self.icmp_unmatched
            + self.icmp_ignored
            + self.fragment
            + self.memory
    }
}
