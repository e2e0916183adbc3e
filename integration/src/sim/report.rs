//! What a run has measured, and its table.

use std::{fmt, time::Duration};

use super::{
    measure::Percentiles,
    packet::Side,
    scenario::{FlowSpec, Via},
    tcp::TcpCounters,
};
use crate::link::Counters;

/// What a run has measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// In the order of the scenario.
    pub flows: Vec<FlowReport>,
    /// What the emulators of the uplink and of the downlink did, from the beginning on.
    pub links: [Counters; 2],
    /// Bytes on the wire of what the tunnel sent while it was measured: uplink and downlink, Ethernet's header
    /// included, lost ones too.
    pub wire: [u64; 2],
    /// How long it was measured.
    pub measured: Duration,
    /// Packets that were sent on the link, both ways, from the beginning on.
    pub packets: u64,
    /// Packets that came out as no endpoint writes them; there should be none.
    pub corrupt: u64,
}

/// What one flow has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowReport {
    /// Which flow.
    pub spec: FlowSpec,
    /// Bytes that applications read while it was measured: at the client, at the server.
    pub delivered: [u64; 2],
    /// Bits a second of [`FlowReport::delivered`] at the end that reads most.
    pub goodput: f64,
    /// How long a transfer of known length took.
    pub completed: Option<Duration>,
    /// One-way delay of packets: uplink and downlink.
    pub delay: [Percentiles; 2],
    /// The time within which 99 % of the packets that went in came out, if so many did: uplink and downlink.
    pub p99_of_sent: [Option<Duration>; 2],
    /// What went in and did not come out: uplink and downlink.
    pub residual: [Residual; 2],
    /// Round trips of messages.
    pub echo: Percentiles,
    /// Messages asked while it was measured.
    pub messages: u64,
    /// Of these, without an answer.
    pub unanswered: u64,
    /// What the TCP of the client and of the server did, from the beginning on.
    pub tcp: [Option<TcpCounters>; 2],
}

/// What a transport sees of losses: packets between the inner endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residual {
    /// Packets that went in.
    pub sent: u64,
    /// That never came out.
    pub lost: u64,
    /// That came out after one that went in later.
    pub reordered: u64,
    /// That came out more than once.
    pub repeated: u64,
}

impl Residual {
    /// The share lost, from 0 to 1.
    pub fn rate(&self) -> f64 {
        if self.sent == 0 {
            0.0
        } else {
            self.lost as f64 / self.sent as f64
        }
    }
}

impl Report {
    /// Bytes on the wire in the direction from `from` for each byte that flows through the tunnel delivered there.
    pub fn overhead(&self, from: Side) -> f64 {
        let reader = from.other().index();
        let delivered: u64 = self
            .flows
            .iter()
            .filter(|flow| flow.spec.via == Via::Tunnel)
            .map(|flow| flow.delivered[reader])
            .sum();
        self.wire[from.index()] as f64 / (delivered.max(1)) as f64
    }

    /// Bits a second of all flows through the tunnel.
    pub fn goodput(&self) -> f64 {
        self.flows
            .iter()
            .filter(|flow| flow.spec.via == Via::Tunnel)
            .map(|flow| flow.goodput)
            .sum()
    }
}

/// A table with a line for each flow: percentiles are the median, the 99th and the greatest, in milliseconds; delays
/// and residual losses are those of the direction in which most bytes go.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>8} {:>20} {:>20} {:>9} {:>9} {:>8} {:>6} {:>5}",
            "flow", "Mbit/s", "delay ms", "echo ms", "lost", "reordered", "resent", "cuts", "RTOs"
        )?;
        for flow in &self.flows {
            let from = flow.spec.traffic.from().index();
            let residual = flow.residual[from];
            let beside = match flow.spec.via {
                Via::Tunnel => "",
                Via::Beside => "| ",
            };
            let tcp = flow.tcp[from].unwrap_or_default();
            writeln!(
                f,
                "{:<24} {:>8.2} {:>20} {:>20} {:>9.1e} {:>9} {:>8} {:>6} {:>5}",
                format!("{beside}{}", flow.spec.traffic),
                flow.goodput / 1e6,
                flow.delay[from].to_string(),
                flow.echo.to_string(),
                residual.rate(),
                residual.reordered,
                tcp.retransmitted,
                tcp.recoveries,
                tcp.timeouts,
            )?;
        }
        write!(
            f,
            "wire/delivered: up {:.2}, down {:.2}; link: {} packets, {} lost, {} dropped by full queues",
            self.overhead(Side::Client),
            self.overhead(Side::Server),
            self.packets,
            self.links.iter().map(|link| link.lost).sum::<u64>(),
            self.links.iter().map(|link| link.full).sum::<u64>(),
        )
    }
}
