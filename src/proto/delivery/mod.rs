//! What becomes of datagrams: reports, loss, round-trip time and delivery rate of one lane.
//!
//! # Theory of operation
//!
//! A datagram lane has two directions, each with a sender and a receiver of its own. This module
//! is about one of each:
//!
//! ```text
//!   sender                                                    receiver
//!  Flight ── permit ── handle_sent ════ datagrams ════════▶ Received::handle_datagram
//!   │ Sent        what flies, what was lost                      │ runs of numbers
//!   │ Congestion  how much may fly, how fast                     ▼
//!   │ Pacer       when the next may leave             Received::poll_report
//!   ▲                                                            │
//!   └─ handle_report ◀═══════ Report, in a datagram ═════════════┘
//! ```
//!
//! **Numbers.** The caller numbers datagrams `epoch << 32 | counter`, so both ends know a
//! datagram's number from its clear header, and the low half that a report carries suffices. What a
//! datagram carried is the caller's (`T`), and comes back with its [`Fate`]. Repair and resends
//! never speak of datagram numbers, only of source numbers.
//!
//! **Reports** ([`Received`]) are made each eighth of a round trip, at least 5 ms apart; sooner after 256
//! datagrams, and when a gap opened, as far as that costs below 1 % of what arrives; and at the
//! latest 25 ms after a datagram that wants one, so the last of what was sent is reported too. Each datagram is told in eight reports, so
//! that their loss does no harm. A datagram that holds only a report wants none itself
//! ([`Class::Report`]), else two idle ends would never fall silent; once in a while one asks
//! ([`Class::Asking`]).
//!
//! **Loss** ([`Sent`]) is what three later datagrams overtook, or what is older than 9/8 round trips while a
//! later one arrived (RFC 9002, section 6.1). Where datagrams called lost come after all, both
//! thresholds grow (RFC 8985). When reports stay away for a probe timeout, a probe is asked for, at
//! doubling intervals. When a lane is silent its session says
//! ([`Session::is_silent`](super::Session::is_silent)).
//!
//! **Delay.** The round trip is measured without the report's age. The queue is measured one way, by the
//! receiver's clock against the least of the last minute.
//!
//! # Order of calls
//!
//! [`Flight::permit`] until it says no, and [`Flight::handle_sent`] for each datagram; [`Flight::handle_report`]
//! for each report; [`Flight::handle_application_limited`] when there was permission and nothing to send;
//! [`Flight::poll_timeout`] and [`Flight::handle_timeout`].
//!
//! # Limits
//!
//! [`MAX_TRACKED`] datagrams in flight, and [`MAX_UNPERMITTED`] that the window has not let go; 64 runs of
//! numbers received, of which a report tells 32.

mod flight;
mod loss;
mod numbering;
mod received;
mod reordering;
mod rtt;
mod sample;
mod sent;

pub use flight::{Flight, Permit};
pub use loss::LossCounts;
pub use received::{MAX_REPORT_DELAY, Missed, Received};
pub use sample::{Class, Fate, Sample};
pub use sent::{Due, MAX_TRACKED, MAX_UNPERMITTED, Sent, SentCounts, SentError};
