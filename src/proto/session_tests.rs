//! Two sessions over a pipe, with virtual time.

use super::pair::Pair;
use super::session::{SessionEvent, Settings};
use crate::wire::LaneId;

#[test]
fn packets_pass_both_ways_after_the_handshake() {
    let mut pair = Pair::confirmed(Settings::default());
    assert_eq!(
        pair.client_events,
        [SessionEvent::LaneConfirmed(LaneId::FIRST)]
    );
    assert_eq!(
        pair.server_events,
        [
            SessionEvent::Confirmed,
            SessionEvent::LaneConfirmed(LaneId::FIRST)
        ]
    );
    pair.client_sends(LaneId::FIRST, b"uplink");
    pair.server_sends(LaneId::FIRST, b"downlink");
    pair.run();
    assert_eq!(pair.at_server, [b"uplink"]);
    assert_eq!(pair.at_client, [b"downlink"]);
    assert_eq!(pair.errors, []);
}
