//! TCP as Linux speaks it, with real segments and without sockets.
//!
//! | part | after |
//! |---|---|
//! | `connection` | the handshake, sequence numbers, timestamps (RFC 9293, RFC 7323) |
//! | `sender` | phases, undo (RFC 3522, RFC 3708), tail loss probes (RFC 8985) |
//! | `scoreboard` | what was sent and what arrived (RFC 2018, RFC 6675) |
//! | `rack` | what is lost (RFC 8985) |
//! | `rtt` | the retransmission timeout (RFC 6298), 200 ms at least beside the round trip |
//! | `prr` | the window while a loss is repaired (RFC 6937) |
//! | `cubic`, `hystart` | RFC 9438 and RFC 9406 |
//! | `bbr`, `rate` | BBR version 1 and its samples of the delivery rate |
//! | `receiver` | delayed and quick acknowledgements, SACK with duplicates (RFC 2883), the window |
//!
//! What is left out: closing, urgent data, zero windows (the application reads at once), ECN, the restart of slow start
//! after idling, F-RTO (undo by timestamps finds the same), compressed acknowledgements, and pacing for CUBIC, which
//! Linux does only below an `fq` queue.

mod bbr;
mod connection;
mod control;
mod cubic;
mod hystart;
mod prr;
mod rack;
mod rate;
mod receiver;
mod rtt;
mod scoreboard;
mod sender;

pub(super) use connection::Connection;
pub use connection::TcpSettings;
pub use control::{ControlKind, ControlNameError};
pub use sender::TcpCounters;
