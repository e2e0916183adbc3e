//! Many TCP, UDP and ICMP flows over smoltcp, sans-IO: packets in, packets out, streams in between.
//!
//! A [`Stack`] is a virtual host. It speaks IP on one side and byte streams and datagrams on the other, and does
//! neither input nor output, nor reads a clock: whoever drives it hands it packets and the time.
//!
//! ```text
//!                  handle_packet ┌───────────────────────────────────────────────┐  poll_event
//!  tunnel ── packet ────────────▶│ parse ─▶ check offload ─▶ checksum ─▶ address │ ───────────▶ driver
//!                                │    │            │             │               │  Delivery
//!                                │ fragments   5-tuple ─▶ flow  udp, echo, icmp  │ ───────────▶
//!                                │                        │                      │  recv, send
//!                                │    replies ◀───────────┤  smoltcp + rings ◀──▶│ ◀──────────▶
//!                  poll_transmit │       │                │                      │
//!  tunnel ◀─ PacketSink ─────────│◀──────┴──── dirty flows take turns            │
//!                                └───────────────────────────────────────────────┘
//! ```
//!
//! # The order of calls
//!
//! **One mutation, then a complete drain.** After any call that changes the stack ([`Stack::handle_packet`],
//! [`Stack::handle_timeout`], [`Stack::recv`], [`Stack::send`], …), the driver fetches [`Stack::poll_event`] until
//! there is none, then calls [`Stack::poll_transmit`], then sleeps until [`Stack::poll_timeout`], a packet, or room in
//! the sink if [`Stack::wants_transmit`] says that something waits for it. Several packets may be handed in before
//! one drain; acknowledgements are then merged.
//!
//! A flow that the driver knows, by [`Stack::connect`] or by [`Event::Incoming`], is the driver's until
//! [`Stack::release`] or [`Stack::reject`]; this holds after [`Event::Closed`] too. From then on its [`FlowId`] is
//! stale, and stale ids do nothing.
//!
//! ```text
//!  connect ──▶ SYN sent ──▶ Established ──▶ Progress … ──▶ Finished / finish ──▶ release ──▶ closing ──▶ freed
//!                 │              ▲                              │                (background, timed)
//!                 └─▶ Closed     │ accept                       └─▶ Closed {Reset, TimedOut, …}
//!  SYN arrives ─▶ Incoming ──────┤
//!                 (nothing is    └ reject: reset, ICMP error or silence
//!                  answered yet)
//! ```
//!
//! # A smoltcp interface per flow
//!
//! One smoltcp socket set for all flows costs time in proportion to the flows for every packet. Here each flow has an
//! interface and a set of one socket, found by a hash of its 5-tuple under a random seed. An interface is 272 bytes
//! of limits and addresses, a socket 1,000. The interface has the flow's local address for its own, so that a stack
//! under [`Accept::Any`] can be every host of the Internet at once.
//!
//! An incoming SYN makes no socket: it is kept as it came, about a hundred bytes, until the driver accepts it. So the
//! peer is answered only when the outer connection stands, and a flood of SYNs costs little.
//!
//! A flow that has something to send stands once in a queue and sends one packet when its turn comes. Deadlines stand
//! once per flow in an indexed heap and are moved there only when they come earlier. Neither depends on how many
//! flows are idle.
//!
//! TIME-WAIT is an entry of a few words in a bounded table and not a socket; its addresses are not used again by
//! `connect` while it lasts, nor are those of other flows that have ended.
//!
//! # What smoltcp does not do
//!
//! - It does not tell ICMP errors to TCP: an unreachable that quotes our SYN ends `connect` with
//!   [`Cause::Unreachable`]. Later ones are ignored and counted, and "too big" always is (RFC 5927): the inner MTU is
//!   a constant.
//! - Its time-out strikes idle flows too, so it is not used. The stack has its own for handshakes, unanswered data,
//!   dead peers found by keepalive probes, and closing.
//! - It drops IPv6 super-packets (it compares them with the MTU) and does not mark them. So a flow with super-packets
//!   has an interface with an MTU of 65,535; the stack writes the real segment size into the SYN, lowers that of the
//!   peer before smoltcp reads it, and marks super-packets itself.
//! - Its congestion window grows by a segment per acknowledgement, and a receiver of super-packets sends one for 45
//!   segments. While the window is what holds a flow back, an acknowledgement is shown to smoltcp as the many it
//!   stands for.
//! - Its congestion window starts with 2 KiB. A flow's first flight goes without one and is bounded to ten segments
//!   (RFC 6928) by what [`Stack::send`] takes; CUBIC begins with its first acknowledgement.
//! - It tells the peer that all of a ring is free. The window that leaves is the stack's: it begins with 64 KiB and grows
//!   as the application reads.
//! - It knows no marks of congestion. The stack offers them in a first SYN and echoes them (RFC 3168), so that queues need
//!   not drop from what comes. What leaves cannot be marked.
//! - It drops a segment with nothing new as a whole, and sends acknowledgements from where it began to send again. What
//!   such a segment acknowledges is shown to it by itself, or two ends that send again at once would not hear each other.
//! - It leaves TIME-WAIT by clearing the receive ring, read or not; it is not called then.
//! - It trusts the window of its own SYN to be scaled and asserts that what it accepts fits its ring: segments beyond
//!   the true window are dropped before it, and answered. Should it panic all the same, the flow ends with [`Cause::Internal`] and
//!   [`Stats::internal_failures`] counts it.
//!
//! What it does and a wide-area sender should do better: it ignores incoming SACK, and waits a second at least before
//! it sends again.
//!
//! # Memory
//!
//! A flow's rings are one anonymous mapping, 1 MiB each way by default, of which the kernel supplies what is touched. What
//! that is, is counted by pages and told to the owner's [`Memory`], if it has [set](Stack::set_memory) one, which may be
//! shared by many stacks and by what else keeps bytes. What it says is left bounds what the peer is told that it may send
//! and what [`Stack::send`] takes; at a soft bound new flows are refused, and beyond a hard one what comes is dropped and
//! sent again by TCP.
//!
//! Rings that are empty and idle for 10 s are given back, some flows per second; when memory is short, at once, and of a
//! ring that is in use what holds nothing. Those of ended flows wait in a bounded list for the next.
//! Everything else is bounded, too: flows, half-open flows, replies (1,024 packets, 256 KiB),
//! fragments (64 datagrams, 1 MiB, 15 s), TIME-WAIT (16,384). Nothing is allocated per packet once warm, but for
//! fragments and echo replies above the MTU.
//!
//! # Super-packets
//!
//! [`Offload`] travels with a packet and says that it is to be cut, and that its checksum is owed. A peer's word is
//! checked against the packet by [`Packet::check_offload`]; what a kernel is told is rebuilt from the packet by
//! [`virtio_fields`].
//!
//! Where a path carries no super-packets, [`Cut`] makes wire packets of them, one at a time into lent memory, and
//! [`Join`] makes super-packets of what arrives, by the rules of Linux's GRO.
//!
//! # Measurements
//!
//! `cargo bench -p adit-netstack` on two shared cores (other builds were running): one flow between two stacks on one
//! thread, four copies included, moves 2.2 to 4.1 GiB/s in super-packets and 1.8 GiB/s in packets of 1,400 bytes; an
//! echo of 64 bytes, that is two packets out and two in with all calls, takes 1.3 µs with one flow open, 1.3 µs with
//! 100, 1.8 µs with 10,000 open of which 64 are active, and 5 µs when all 10,000 are active in turn and nothing is in
//! the processor's caches. Against
//! Linux through a TUN with offload, one flow makes 15 to 29 Gbit/s to the kernel and 8 to 10 from it on the same cores
//! under load, and an echo takes 4.4 µs.

// Unit tests share the simulated link of the tests outside.
#[cfg(test)]
extern crate self as adit_netstack;

mod checksum;
mod clock;
mod config;
mod conn;
#[cfg(test)]
mod craft;
mod cut;
mod device;
mod ecn;
mod event;
mod extent;
mod flow;
mod fragments;
mod header;
mod icmp;
mod join;
mod limiter;
mod memory;
mod offload;
mod packet;
mod replies;
mod rings;
mod segment;
mod sink;
mod stack;
mod stats;
mod timers;
mod waits;

pub use checksum::{complete_checksum, verify_checksum};
pub use config::{Accept, Config};
pub use cut::Cut;
pub use ecn::{is_ecn_capable, mark_congestion};
pub use event::{
    Cause, ConnectError, Delivery, Event, FlowId, RecvError, Rejection, SendError, SendUdpError,
};
pub use icmp::{Unreachable, too_big, unreachable};
pub use join::{Join, JoinStats, MAX_JOINED};
pub use memory::Memory;
pub use offload::{Checksum, Gso, MAX_SEGMENTS, MIN_SEGMENT, Offload, VirtioFields, virtio_fields};
pub use packet::{Fragment, Packet, PacketError, protocol};
pub use sink::PacketSink;
pub use stack::Stack;
pub use stats::{Dropped, Drops, Stats};
