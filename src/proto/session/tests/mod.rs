//! Two sessions over an in-memory pipe, with virtual time.

mod beside;
mod datagrams;
mod enrol;
mod hostile;
mod joins;
mod lanes;
mod model;
mod rekey;
mod relayed;
mod roaming;
mod traffic;
mod vectors;

use std::time::{Duration, Instant};

use super::state::Session;
use crate::wire::{LaneId, SEALED_HEADER_LEN, TAG_LEN};

/// Seals bytes of any kind, as a peer that has the keys and no manners could.
fn seal_raw(session: &mut Session, now: Instant, lane: LaneId, inside: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; SEALED_HEADER_LEN];
    frame.extend_from_slice(inside);
    frame.resize(frame.len() + TAG_LEN, 0);
    let index = session.lane_index(lane).unwrap();
    session.seal(now, index, &mut frame).unwrap();
    frame
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
