//! What was measured on a path, for programs (JSON) and for people.

use std::fmt;

use serde::Serialize;

use super::connections::Connections;
use super::datagrams::Echoes;
use super::throughput::{Direction, Throughput};
use crate::bench::samples::Quantiles;
use crate::bench::table::{Row, count, rate, write_table};

/// The figures of a path.
#[derive(Clone, Debug, Serialize)]
pub struct MeasureReport {
    /// How the origin was reached.
    pub way: String,
    /// What carried the session, where both ends were started for the measure.
    pub lane: Option<&'static str>,
    /// How long each measure took.
    pub seconds: f64,
    /// Down and up, by one flow and by several.
    pub throughput: Vec<Throughput>,
    /// Round trips of one byte.
    pub latency: Latency,
    /// Connections a second, by one and by several at once.
    pub connections: Vec<Connections>,
    /// UDP echoes.
    pub udp: Echoes,
}

/// Round trips of one byte on a connection that stands.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// With nothing beside it.
    pub alone: Quantiles,
    /// While another connection downloads.
    pub beside_a_download: Quantiles,
}

impl fmt::Display for MeasureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lane {
            Some(lane) => writeln!(f, "both ends on this host, {lane} lane")?,
            None => writeln!(f, "{}", self.way)?,
        }
        let mut rows = Vec::new();
        for throughput in &self.throughput {
            rows.extend(of_throughput(throughput));
        }
        rows.extend(Row::quantiles("echo alone", &self.latency.alone));
        rows.extend(Row::quantiles(
            "echo beside a download",
            &self.latency.beside_a_download,
        ));
        for connections in &self.connections {
            let what = format!("connections, {} at once", connections.at_once);
            rows.push(Row::new(what, rate(Some(connections.per_second))));
            if connections.failed > 0 {
                rows.push(Row::new("  failed", count(connections.failed)));
            }
        }
        match &self.udp {
            Echoes::Carried {
                bytes,
                under_way,
                per_second,
                lost,
                round_trip,
            } => {
                let what = format!("UDP echoes of {bytes} bytes, {under_way} under way");
                rows.push(Row::new(what, rate(Some(*per_second))));
                rows.push(Row::new("  lost", count(*lost)));
                rows.extend(Row::quantiles("UDP echo", round_trip));
            }
            Echoes::NotCarried { .. } => rows.push(Row::new("UDP echoes", "not carried")),
        }
        write_table(f, &rows)?;
        if let Echoes::NotCarried { not_carried } = &self.udp {
            writeln!(f, "UDP is not carried: {not_carried}")?;
        }
        let failures = self.connections.iter();
        for failure in failures.filter_map(|connections| connections.first_failure.as_ref()) {
            writeln!(f, "a connection failed: {failure}")?;
        }
        Ok(())
    }
}

fn of_throughput(throughput: &Throughput) -> Vec<Row> {
    let direction = match throughput.direction {
        Direction::Down => "down",
        Direction::Up => "up",
    };
    let flows = match throughput.flows {
        1 => "1 flow".to_owned(),
        flows => format!("{flows} flows"),
    };
    let figure = format!("{:.0} Mbit/s", throughput.megabits_per_second);
    let mut rows = vec![Row::new(format!("{direction}, {flows}"), figure)];
    if throughput.flows > 1 {
        let figure = format!("{:.2} of the mean", throughput.slowest_of_mean);
        rows.push(Row::new("  the slowest flow", figure));
    }
    for (process, seconds) in &throughput.cpu_seconds_per_gb {
        let what = format!("  CPU of {process}");
        rows.push(Row::new(what, format!("{seconds:.2} s/GB")));
    }
    rows
}
