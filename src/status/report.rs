//! What a running program says of itself: the types, from which the table, the JSON and the metrics are made.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::counters::{Counters, Kind};
use super::process::ProcessReport;
use super::uses::Uses;
use crate::proto::LaneStats;

/// Everything that `adit status` and the metrics say, of one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which program it is of.
    pub kind: Program,
    /// Its version.
    pub version: &'static str,
    /// Whether it does its work: a server that listens, a client whose session has a lane.
    pub ready: bool,
    /// The same in words, for people.
    pub state: String,
    /// Why nothing goes through a client's tunnel now, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<Outage>,
    /// Seconds since it began.
    pub uptime_seconds: f64,
    /// What it has of its host.
    pub uses: Uses,
    /// How often its configuration was read again.
    pub reloads: Reloads,
    /// The clients of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<Clients>,
    /// The forwards of a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwards: Option<Forwarding>,
    /// The sessions there are.
    pub sessions: Vec<SessionReport>,
    /// Sessions that are left out: those beyond [`MAX_SESSIONS`], and those that did not answer in time.
    pub sessions_left_out: usize,
    /// What all sessions there were have carried.
    pub total: Numbers,
    /// Every counter, but for those that [`Report::total`] has.
    pub counters: Counters,
    /// What the system says of the process.
    pub process: ProcessReport,
}

/// One of the programs that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// `adit server`.
    Server,
    /// `adit client`.
    Client,
}

/// Why nothing goes through a client's tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// One word: `connecting`, `handshake_refused`, `silent`, `lost`, `revoked`, `refused`, `ended`.
    pub why: &'static str,
    /// What the last attempt at a server came to, in words, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// How often a configuration was read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloads {
    /// Times that it was put into force.
    pub applied: u64,
    /// Times that it was wrong, and nothing changed.
    pub failed: u64,
    /// Whether the last one was put into force; true before the first.
    pub last_applied: bool,
}

/// The clients of a server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Clients {
    /// How many may connect.
    pub listed: usize,
    /// How many of them have a session.
    pub connected: usize,
    /// Those that have had a session since the start and may still connect.
    pub known: Vec<ClientReport>,
}

/// One client of a server.
#[derive(Clone, Debug, Serialize)]
pub struct ClientReport {
    /// Its name.
    pub name: String,
    /// Whether its name is a label of metrics.
    #[serde(skip)]
    pub labelled: bool,
    /// Its sessions there are.
    pub sessions: usize,
    /// Sessions of it that have ended.
    pub ended: u64,
    /// The best round-trip time of its sessions, in seconds.
    pub rtt_seconds: Option<f64>,
    /// What all its sessions have carried.
    pub total: Numbers,
}

/// The forwards of a client.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Forwarding {
    /// How many there are.
    pub forwards: usize,
    /// Of them, those that listen.
    pub listening: usize,
    /// Connections and UDP peers there are.
    pub open: u64,
    /// Connections and UDP peers refused, and datagrams dropped, of those forwards there are.
    pub refused: u64,
}

/// One session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    /// The client's name, at a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Which of its sessions it is, at a client through which the whole host goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carries: Option<Carries>,
    /// The inner addresses.
    pub addresses: Vec<IpAddr>,
    /// Seconds since it stands.
    pub age_seconds: f64,
    /// TCP flows it has open.
    pub flows: usize,
    /// The round-trip time of the lane that takes packets, in seconds.
    pub rtt_seconds: Option<f64>,
    /// Its lanes.
    pub lanes: Vec<LaneReport>,
    /// What it has carried.
    pub total: Numbers,
    /// What it has dropped, by reason.
    pub drops: Counters,
}

/// What a session of a client carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Carries {
    /// The packets of the whole host.
    Host,
    /// What the proxy, the forwards and the local resolver open.
    Proxy,
}

/// One lane.
#[derive(Clone, Debug, Serialize)]
pub struct LaneReport {
    /// Its number in the session.
    pub lane: u32,
    /// How it is carried.
    pub transport: Transport,
    /// Whether it takes packets now; of several lanes at once more than this one do.
    pub in_use: bool,
    /// Its round-trip time in seconds; none is known before the first answer.
    pub rtt_seconds: Option<f64>,
    /// What it has carried.
    #[serde(flatten)]
    pub carried: Carried,
}

/// How a lane is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A TCP connection.
    Tcp,
    /// TLS.
    Tls,
    /// A WebSocket on a TCP connection.
    Ws,
    /// A WebSocket on TLS.
    Wss,
}

/// What sessions or lanes have carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// Inside: what was sealed and opened.
    #[serde(flatten)]
    pub inner: Inner,
    /// Outside: what the lanes took and brought.
    #[serde(flatten)]
    pub carried: Carried,
}

/// What was sealed and opened: packets and the bytes of relayed flows, without what carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inner {
    /// Bytes sealed for the far end; of relayed flows those that were sent again, too.
    pub inner_sent_bytes: u64,
    /// Bytes of the far end that were opened.
    pub inner_received_bytes: u64,
    /// Packets and frames of flows sealed.
    pub inner_sent: u64,
    /// Packets and frames of flows opened.
    pub inner_received: u64,
}

/// What lanes carried; [`LaneStats`] says it at length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "each field is one of LaneStats")]
pub struct Carried {
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent: u64,
    pub received: u64,
    /// Packets sent for the first time, and received for the first time.
    pub sent_packets: u64,
    pub received_packets: u64,
    pub lost: u64,
    pub lost_late: u64,
    pub resent: u64,
    pub copied: u64,
    pub parity_sent: u64,
    pub repaired: u64,
    pub unrepaired: u64,
    pub unrepaired_late: u64,
    pub wasted: u64,
    pub failed_opens: u64,
}

/// What a session has carried and counted, as it can be added up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What it has carried.
    pub numbers: Numbers,
    /// What its parts have counted.
    pub counters: Counters,
}

impl Carried {
    /// Every number, in a fixed order.
    fn each(&self) -> [u64; 16] {
        let mut copy = *self;
        copy.each_mut().map(|number| *number)
    }

    fn each_mut(&mut self) -> [&mut u64; 16] {
        let Self {
            sent_bytes,
            received_bytes,
            sent,
            received,
            sent_packets,
            received_packets,
            lost,
            lost_late,
            resent,
            copied,
            parity_sent,
            repaired,
            unrepaired,
            unrepaired_late,
            wasted,
            failed_opens,
        } = self;
        [
            sent_bytes,
            received_bytes,
            sent,
            received,
            sent_packets,
            received_packets,
            lost,
            lost_late,
            resent,
            copied,
            parity_sent,
            repaired,
            unrepaired,
            unrepaired_late,
            wasted,
            failed_opens,
        ]
    }
}

impl From<LaneStats> for Carried {
    fn from(stats: LaneStats) -> Self {
        let LaneStats { outgoing, incoming } = stats;
        Self {
            sent_bytes: outgoing.sent_bytes,
            received_bytes: incoming.received_bytes,
            sent: outgoing.sent,
            received: incoming.received,
            sent_packets: outgoing.packets,
            received_packets: incoming.packets,
            lost: outgoing.lost,
            lost_late: outgoing.late,
            resent: outgoing.resent,
            copied: outgoing.copied,
            parity_sent: outgoing.repairs,
            repaired: incoming.repaired,
            unrepaired: incoming.residual,
            unrepaired_late: incoming.late,
            wasted: incoming.wasted,
            failed_opens: incoming.failed_opens,
        }
    }
}

impl Numbers {
    /// Adds what others have carried.
    pub fn add(&mut self, other: &Self) {
        let Inner {
            inner_sent_bytes,
            inner_received_bytes,
            inner_sent,
            inner_received,
        } = other.inner;
        self.inner.inner_sent_bytes += inner_sent_bytes;
        self.inner.inner_received_bytes += inner_received_bytes;
        self.inner.inner_sent += inner_sent;
        self.inner.inner_received += inner_received;
        for (a, b) in self
            .carried
            .each_mut()
            .into_iter()
            .zip(other.carried.each())
        {
            *a += b;
        }
    }
}

impl Numbers {
    /// Takes away what some of these have carried.
    pub fn subtract(&mut self, other: &Self) {
        let (a, b) = (&mut self.inner, &other.inner);
        for (a, b) in [
            (&mut a.inner_sent_bytes, b.inner_sent_bytes),
            (&mut a.inner_received_bytes, b.inner_received_bytes),
            (&mut a.inner_sent, b.inner_sent),
            (&mut a.inner_received, b.inner_received),
        ] {
            *a = a.saturating_sub(b);
        }
        for (a, b) in self
            .carried
            .each_mut()
            .into_iter()
            .zip(other.carried.each())
        {
            *a = a.saturating_sub(b);
        }
    }
}

impl Tally {
    /// Adds what there is of another session.
    pub fn add(&mut self, other: &Self) {
        self.numbers.add(&other.numbers);
        self.counters.merge(&other.counters);
    }

    /// Adds what outlives a session that has ended.
    pub fn add_ended(&mut self, other: &Self) {
        self.numbers.add(&other.numbers);
        self.counters.merge_ended(&other.counters);
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> Counters {
        self.counters.nonzero(Kind::Drop)
    }
}

impl Transport {
    /// The word that configurations have for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

/// The most sessions that a report lists one by one; the sums have all.
pub const MAX_SESSIONS: usize = 4096;
