//! Many TCP, UDP and ICMP flows over smoltcp, sans-IO: packets in, packets out, streams in between.

mod checksum;
mod clock;
mod config;
mod conn;
mod device;
mod event;
mod flow;
mod fragments;
mod header;
mod icmp;
mod limiter;
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
pub use event::{
    Cause, ConnectError, Delivery, Event, FlowId, RecvError, Rejection, SendError, SendUdpError,
};
pub use icmp::{Unreachable, too_big, unreachable};
pub use offload::{Checksum, Gso, MAX_SEGMENTS, MIN_SEGMENT, Offload, VirtioFields, virtio_fields};
pub use packet::{Fragment, Packet, PacketError, protocol};
pub use sink::PacketSink;
pub use stack::Stack;
pub use stats::{Dropped, Drops, Stats};
