//! What a swarm has found, for programs (JSON) and for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::bench::samples::Quantiles;
use crate::bench::table::{Row, bytes, count, millis, rate, write_table};

/// What became of a swarm.
#[derive(Clone, Debug, Serialize)]
pub struct SwarmReport {
    /// What carried the sessions: the scheme of an address.
    pub lane: &'static str,
    /// How many clients there were to be.
    pub clients: usize,
    /// How many of them were given their addresses.
    pub connected: usize,
    /// How many of them had an echo answered.
    pub served: usize,
    /// Sessions that ended before the end.
    pub sessions_lost: usize,
    /// Attempts to connect that came to nothing.
    pub attempts_failed: u64,
    /// Why, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Connected clients a second, from the first attempt to the last one that connected.
    pub handshakes_per_second: Option<f64>,
    /// How long each took, from dialling to the addresses.
    pub handshake: Quantiles,
    /// The light traffic.
    pub echo: EchoReport,
    /// What the server used, where it was started for the swarm.
    pub server: Option<ServerReport>,
}

/// What became of the echoes of all clients.
#[derive(Clone, Debug, Serialize)]
pub struct EchoReport {
    /// How many were sent.
    pub sent: u64,
    /// How many of them were not answered in three seconds.
    pub lost: u64,
    /// How many could not be sent, since the lane was full.
    pub held_back: u64,
    /// How long the answers took.
    pub round_trip: Quantiles,
}

/// What the server's process used.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    /// CPU time of each client that connected.
    pub cpu_ms_per_handshake: f64,
    /// The reverse: clients for each second of one core.
    pub handshakes_per_cpu_second: Option<f64>,
    /// How much of one core the echoes took.
    pub cpu_share_of_traffic: Option<f64>,
    /// How much of one core quiet clients took.
    pub cpu_share_when_idle: Option<f64>,
    /// Resident memory before the first client.
    pub resident_bytes_at_start: u64,
    /// Resident memory when all had connected.
    pub resident_bytes_connected: u64,
    /// Resident memory when they had been quiet for a while.
    pub resident_bytes_idle: u64,
    /// The difference of the last and the first, of each client.
    pub idle_bytes_per_client: f64,
}

impl SwarmReport {
    /// Returns whether every client was there, had an answer, and stayed.
    #[must_use]
    pub fn all_served(&self) -> bool {
        self.served == self.clients && self.sessions_lost == 0
    }
}

impl fmt::Display for SwarmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |part: usize| format!("{part} of {}", self.clients);
        let mut rows = vec![
            Row::new(
                format!("clients connected, {} lanes", self.lane),
                of(self.connected),
            ),
            Row::new("clients served", of(self.served)),
            Row::new("sessions lost", count(self.sessions_lost as u64)),
            Row::new("attempts failed", count(self.attempts_failed)),
            Row::new("handshakes per second", rate(self.handshakes_per_second)),
        ];
        rows.extend(Row::quantiles("a handshake takes", &self.handshake));
        rows.extend([
            Row::new("echoes sent", count(self.echo.sent)),
            Row::new("echoes lost", count(self.echo.lost)),
            Row::new("echoes held back", count(self.echo.held_back)),
        ]);
        rows.extend(Row::quantiles("an echo takes", &self.echo.round_trip));
        if let Some(server) = &self.server {
            let percent = |share: Option<f64>| {
                share.map_or_else(
                    || "none".to_owned(),
                    |share| format!("{:.1} % of a core", share * 100.0),
                )
            };
            rows.extend([
                Row::new(
                    "server: CPU of a handshake",
                    millis(Some(server.cpu_ms_per_handshake)),
                ),
                Row::new(
                    "server: handshakes per second of a core",
                    rate(server.handshakes_per_cpu_second),
                ),
                Row::new(
                    "server: CPU of the echoes",
                    percent(server.cpu_share_of_traffic),
                ),
                Row::new("server: CPU when idle", percent(server.cpu_share_when_idle)),
                Row::new(
                    "server: memory at the start",
                    bytes(server.resident_bytes_at_start as f64),
                ),
                Row::new(
                    "server: memory with all clients",
                    bytes(server.resident_bytes_connected as f64),
                ),
                Row::new(
                    "server: memory when idle",
                    bytes(server.resident_bytes_idle as f64),
                ),
                Row::new(
                    "server: memory of an idle client",
                    bytes(server.idle_bytes_per_client),
                ),
            ]);
        }
        write_table(f, &rows)?;
        for (cause, times) in &self.failures {
            writeln!(f, "{times} times: {cause}")?;
        }
        Ok(())
    }
}
