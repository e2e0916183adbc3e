//! Every counter of the program, and of which kind it is: the one place that knows them all.
//!
//! Each list takes its struct apart without `..`, so a counter that is new does not compile before it is listed here. Of
//! the netstack's, which may grow without us, a test counts them.

use super::counters::{Counted, Counter, Kind, Number};
use crate::client::associate::AssociationStats;
use crate::client::direct::DirectStats;
use crate::client::dns::DnsStats as ClientDnsStats;
use crate::client::enclosure::{EnclosureStats, EndStats, SpeakerStats};
use crate::client::inside::InsideStats;
use crate::client::proxy::{Counter as ProxyCounter, ProxyStats};
use crate::io::carrier::CarrierStats;
use crate::io::control::ControlStats;
use crate::io::listen::ListenStats;
use crate::io::pool::{ClassStats, PoolStats};
use crate::io::relay::RelayStats;
use crate::io::udp::UdpStats;
use crate::proto::datapath::{DatapathDrops, DatapathStats};
use crate::proto::relayed::RelayedStats;
use crate::proto::repair::{IncomingStats, OutgoingStats};
use crate::proto::spread::SpreadStats;
use crate::proto::{Drops, HoldStats, QueueDrops, QueueStats, Stats};
use crate::server::accept::AcceptStats;
use crate::server::datagrams::DatagramStats;
use crate::server::dns::DnsStats as ServerDnsStats;
use crate::server::egress::echo::EchoStats;
use crate::server::egress::tun::TunStats;
use crate::server::egress::udp::MappingStats;
use crate::server::local::LocalStats;
use crate::server::session::UplinkStats;
use crate::server::shared::{GuestStats, ServerStats};

impl Number for ProxyCounter {
    fn number(&self) -> u64 {
        self.value()
    }
}

fn counter(kind: Kind, part: &'static str, name: &'static str, number: &impl Number) -> Counter {
    let value = number.number();
    Counter {
        kind,
        part,
        name,
        value,
    }
}

macro_rules! counted {
    ($type:path {
        drops: $($drop:ident)*;
        events: $($event:ident)*;
        levels: $($level:ident)*;
        $(parts: $($inner:ident as $part:literal)*;)?
        $(own: $($own:ident)*;)?
    } $(, $rest:tt)?) => {
        impl Counted for $type {
            fn each(&self, part: &'static str, tell: &mut dyn FnMut(Counter)) {
                let $type { $($drop,)* $($event,)* $($level,)* $($($inner,)*)? $($($own,)*)? $($rest)? } = self;
                $(tell(counter(Kind::Drop, part, stringify!($drop), $drop));)*
                $(tell(counter(Kind::Event, part, stringify!($event), $event));)*
                $(tell(counter(Kind::Level, part, stringify!($level), $level));)*
                let _ = part;
                $($($inner.each($part, tell);)*)?
                $($($own.each(part, tell);)*)?
            }
        }
    };
}

// ---- the session -----------------------------------------------------------------------

counted!(Stats {
    drops: ;
    events: packets_sealed packet_bytes_sealed packets_opened packet_bytes_opened flow_frames_sealed flow_bytes_sealed
        flow_frames_opened flow_bytes_opened control_sealed control_opened rekeys rekey_retries lanes_joined lanes_dead
        control_resent lanes_silent lanes_moved;
    levels: ;
    parts: drops as "session";
});

counted!(Drops {
    drops: malformed_frames unknown_lane unknown_epoch replayed_counter failed_opens malformed_packets
        stale_packets skipped_frames unknown_frames bad_control stray_rekeys stray_answers after_close refused_joins
        control_overflow control_without_lane control_without_key lost_pieces unfetched_packets event_overflow;
    // What repair is for: a packet that came twice was sent twice.
    events: duplicate_packets;
    levels: ;
});

counted!(DatapathStats {
    drops: ;
    events: asked;
    levels: missing;
    parts: queue as "queue" outgoing as "repair_sent" incoming as "repair_received" hold as "hold" drops as "datapath";
});

counted!(DatapathDrops {
    drops: unsealed too_long halves malformed_reports malformed_repairs untracked unanswered;
    events: ;
    levels: ;
});

counted!(QueueStats {
    drops: ;
    events: enqueued own sent sent_bytes marked shared;
    levels: ;
    parts: drops as "queue";
});

counted!(QueueDrops {
    drops: codel overflow malformed too_long;
    events: ;
    levels: ;
});

counted!(OutgoingStats {
    drops: resends_too_late resends_refused resends_overflow repairs_too_long unheld;
    events: resent copied repairs;
    levels: ;
});

counted!(IncomingStats {
    drops: repairs_malformed malformed;
    events: repaired repairs_useful repairs_wasted;
    levels: ;
});

counted!(HoldStats {
    drops: ;
    events: offered held repaired cleared expired overflowed evicted;
    levels: most_bytes;
});

counted!(CarrierStats {
    drops: unsealed control_lost surplus_handshakes copies_refused parts_given_up stray_datagrams refused_datagrams;
    events: lanes_lost starved joined super_packets;
    levels: ;
});

counted!(SpreadStats {
    drops: uncopied;
    events: thin copies copy_bytes bulk moved;
    levels: ;
});

// ---- flows -----------------------------------------------------------------------------

counted!(RelayedStats {
    drops: refused refused_for_memory ended_for_memory violations unknown duplicates gaps resets_dropped;
    events: opened finished reset timed_out lane_changes chunks_made;
    levels: ;
});

counted!(RelayStats {
    drops: broken_sockets unfit;
    events: attached finished reset_flows bytes_down bytes_up;
    levels: ;
});

counted!(adit_netstack::Stats {
    drops: ring_failures refused_for_memory internal_failures icmp_errors_limited replies_dropped sink_failures
        waits_evicted reassembly_dropped;
    events: packets_in bytes_in packets_out bytes_out super_packets_in super_packets_out connects incoming established
        resets_received resets_sent timed_out rings_given_back icmp_errors_sent reassembled;
    levels: flows_now half_open_now waits_now;
    own: dropped;
}, ..);

counted!(adit_netstack::Drops {
    drops: malformed not_ours not_unicast protocol transport no_flow flows_full half_open_full incoming_refused no_port
        icmp_unmatched icmp_ignored fragment memory;
    events: ;
    levels: ;
}, ..);

// ---- the server ------------------------------------------------------------------------

counted!(UplinkStats {
    drops: foreign_source denied to_client_denied to_nobody to_client_full unreadable early;
    events: passed flow_frames;
    levels: ;
});

counted!(LocalStats {
    drops: too_many connect_failed queries_dropped gateway_refused echoes_ignored udp_failed no_room;
    events: connected queries;
    levels: ;
});

counted!(MappingStats {
    drops: evicted no_socket send_failed receive_failed no_room;
    events: made expired;
    levels: ;
});

counted!(EchoStats {
    drops: no_socket too_many send_failed receive_failed no_room;
    events: requests replies;
    levels: ;
});

counted!(TunStats {
    drops: write_failed illegal_offload unreadable;
    events: uplink downlink;
    levels: ;
});

counted!(DatagramStats {
    drops: no_session garbage handshakes_full handshakes_refused handshakes_dropped malformed wrong_mac limited silent
        unconfirmed_full unconfirmed_of_client_full;
    events: handshakes cookies challenges;
    levels: ;
});

counted!(AcceptStats {
    drops: joins_refused handshakes_refused garbage unknown tls_failed;
    events: accepted handshakes joins challenges;
    levels: ;
});

counted!(ServerDnsStats {
    drops: failed refused dropped_busy streams_closed;
    events: queries;
    levels: ;
});

counted!(GuestStats {
    drops: refused crowded_out;
    events: enrolled;
    levels: ;
});

counted!(ServerStats {
    drops: refused;
    events: ended;
    levels: ;
});

// ---- the client ------------------------------------------------------------------------

counted!(ClientDnsStats {
    drops: prefetch_dropped failed refused dropped_busy dropped_sender unsent streams_refused streams_closed lists_failed;
    events: queries local blocked cached joined asked split prefetched lists_fetched;
    levels: ;
});

counted!(ProxyStats {
    drops: accept_paused refused_full handshake_timed_out client_gone socks_refused unauthorized http_refused http_broken
        blocked overruled origin_failed panicked;
    events: accepted socks_connects socks_associates http_connects http_forwards http_upgrades direct;
    levels: ;
});

counted!(DirectStats {
    drops: failed too_many broken overruled;
    events: connected finished;
    levels: ;
});

counted!(InsideStats {
    drops: udp_not_sent udp_queue_full incoming_refused incoming_full;
    events: ;
    levels: ;
});

counted!(AssociationStats {
    drops: blocked not_direct foreign_sender bad_header unresolved no_room receive_failed not_taken no_receiver;
    events: sent direct received;
    levels: ;
});

counted!(EnclosureStats {
    drops: refused queries_dropped gateway_refused unsent;
    events: opened;
    levels: ;
});

counted!(EndStats {
    drops: unreadable write_failed;
    events: outgoing incoming;
    levels: ;
});

counted!(SpeakerStats {
    drops: blocked pings_direct queue_full panicked;
    events: ;
    levels: ;
});

// ---- both ------------------------------------------------------------------------------

counted!(ListenStats {
    drops: aborted;
    events: accepted pauses full;
    levels: ;
});

counted!(UdpStats {
    drops: no_buffers too_big unreachable failed;
    events: receives datagrams_received bytes_received sends datagrams_sent bytes_sent blocked;
    levels: ;
});

counted!(ControlStats {
    drops: refused bad_lines foreign full;
    events: orders;
    levels: ;
});

counted!(PoolStats {
    drops: ;
    events: ;
    levels: ;
    parts: small as "buffers_small" medium as "buffers_medium" large as "buffers_large";
});

counted!(ClassStats {
    drops: ;
    events: hits misses;
    levels: outstanding free;
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_netstack_is_listed() {
        let stats = adit_netstack::Stats::default();
        let mut listed = 0;
        stats.each("netstack", &mut |_| listed += 1);
        let shown = format!("{stats:?}");
        assert_eq!(shown.matches(": 0").count(), listed, "{shown}");
    }
}
