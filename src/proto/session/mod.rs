//! The session: what a client and a server do with each other from handshake to close.
//!
//! Its parts have files of their own beside this folder (lanes, epochs, rekey, liveness, replay,
//! schedule, timers), each a machine that can be tested alone. What is here joins them:
//!
//! | file | what it joins |
//! |---|---|
//! | `state` | what a session holds, its timers, what can be asked of it |
//! | `seal` | policy, lane counters and epoch keys into frames |
//! | `open` | frames into packets, through epoch, counter, seal and source number |
//! | `control` | control frames to whom they concern; configuration; close |
//! | `lanes` | join, challenge, echo, ping, death |
//! | `datagram` | seal and open where the pipe loses, delays and copies |
//! | `paths` | datagram lanes: join, path validation, path MTU |
//! | `retries` | control frames that are said again until they are answered |
//! | `rekeying` | the rekey handshake and the change of epochs |
//! | `event`, `error` | what the driver is told |

mod beside;
mod control;
mod datagram;
mod enrol;
mod error;
mod event;
mod lanes;
mod open;
mod paths;
mod rekeying;
mod retries;
mod seal;
mod state;
#[cfg(test)]
mod tests;

pub use error::{OpenError, Scope, SealError};
pub use event::SessionEvent;
pub use open::Opened;
pub(super) use state::{Agreement, FirstLane};
pub use state::{MAX_LANES, Session, Settings};
