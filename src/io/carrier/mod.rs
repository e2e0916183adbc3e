//! One session and the lanes that carry it: frames in, packets out, and back.
//!
//! # Theory of operation
//!
//! Both drivers, the client's and the server's, own a [`Carrier`] and call it in turn:
//!
//! 1. [`Carrier::poll_receive`] reads each lane once, opens every whole frame in place and
//!    hands the packets to the driver; control frames end in the session.
//! 2. [`Carrier::sink`] lends the driver's netstack room in the lane's write buffer and
//!    seals each packet there, in place; [`Carrier::push`] takes a packet that already
//!    stands in a buffer of its own. On a datagram lane both stage the packet, which is cut to
//!    what the lane carries and sealed straight into a batch of datagrams.
//! 3. [`Carrier::poll_send`] lets the session add its control frames and flushes each lane
//!    with one vectored write, or with segmented sends. Now and then it tells the log what busy lanes carry.
//! 4. [`Carrier::poll_event`] tells what became of the session and its lanes.
//!
//! Frames of [relayed flows](crate::proto::relayed) are sealed by [`Carrier::poll_flows`] from where their bytes stand
//! straight into the write buffer of the stream lane that takes packets.
//!
//! A **stream lane** owns its connection. **Datagram lanes** share sockets: where the datagrams of
//! a lane go is the session's to say, by a path whose socket is one of the carrier's ports. The
//! client's port is read by the carrier itself; the server's is read by a task of its own, which
//! leaves what belongs to this session in the carrier's inbox. There a Join that opens makes a
//! lane, whatever the session's other lanes are.
//!
//! Where stream lanes stand **side by side** ([`Session::beside`](crate::proto::Session::beside)), each packet is given to
//! the lane, or for thin ones to the lanes, that [`Spread`](crate::proto::spread::Spread) chooses: written where the first
//! has room, and copied from there before it is sealed. A lane that is full is passed over.
//!
//! A lane that fails in any way is removed and reported; the session lives on without it.
//! No room in the lane means back-pressure for our own stack: the sink answers `None`. Packets of others wait in a
//! [fair queue](crate::proto::FairQueue), in front of stream lanes as of datagram lanes, and each flow has its turn.
//!
//! A session that has closed says its last word, ends its streams and reads on until the far end
//! has closed them too, for `LAST_WORD` at most: a connection that is closed while something
//! stands unread in it is reset, and what was said last may be lost with it.
//!
//! # Limits
//!
//! One call of `poll_receive` reads each lane at most once, and takes a bounded number of messages
//! from the inbox. At most [`MAX_LANES`] lanes. What waits for lanes is bounded by the
//! [queue](crate::proto::QueueLimits) in front of them. What arrived as datagrams and is being put together
//! again is handed on at the end of the same call, and holds at most eight super-packets meanwhile.

mod carrying;
mod datagram;
mod deliver;
mod event;
mod look;
mod several;
mod sink;
mod stream;
#[cfg(test)]
mod tests;
mod waiting;
#[cfg(test)]
pub(crate) mod wire;

pub use carrying::{Carrier, MAX_LANES};
pub use deliver::Deliver;
pub use event::{CarrierEvent, CarrierStats, LaneLoss};
pub use sink::{LaneSink, has_room};
pub use waiting::Waiting;
