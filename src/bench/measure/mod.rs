//! What is measured on a path to an origin, one after the other.
//!
//! | measure | file |
//! |---|---|
//! | bytes per second down and up, by one flow and by several, and their CPU time | `throughput` |
//! | round trip of one byte, alone and beside a download | `latency` |
//! | connections per second, by one and by several at once | `connections` |
//! | UDP echoes per second, where they are carried | `datagrams` |
//!
//! Each takes the time it is given, and throughput as much again, a second at most, to begin.

mod connections;
mod datagrams;
mod latency;
mod report;
mod throughput;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tracing::info;

pub use connections::Connections;
pub use datagrams::Echoes;
pub use report::{Latency, MeasureReport};
pub use throughput::{Direction, Throughput};

use super::meters;
use super::way::{Spot, Way, WayError};

/// What all measures have in common.
#[derive(Clone, Debug)]
pub struct Course {
    /// How the origin is reached.
    pub way: Way,
    /// The origin: an [`Origin`](super::Origin).
    pub origin: Spot,
    /// How long each measure takes.
    pub time: Duration,
    /// How many flows, or connections at once, several are.
    pub flows: usize,
    /// Processes whose CPU time is counted: what they are, and their numbers.
    pub processes: Vec<(String, u32)>,
}

/// Why there is no measure.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The origin is not reached.
    #[error(transparent)]
    Way(#[from] WayError),
    /// A connection has failed.
    #[error("a connection to the origin has failed: {0}; is there an origin (adit bench origin)?")]
    Io(#[from] io::Error),
    /// Nothing comes through.
    #[error("nothing comes through: is there an origin (adit bench origin)?")]
    StandsStill,
    /// A process whose time is to be counted is not there.
    #[error("cannot read the CPU time of {name}: {error}")]
    Process {
        /// What it is.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// A fault of this program.
    #[error("a part of the measure has failed; the log says more")]
    Broken,
}

/// Measures everything, one after the other.
///
/// # Errors
/// The origin is not reached, or a measure fails. That a proxy carries no UDP is a finding.
pub async fn measure(course: Course) -> Result<MeasureReport, MeasureError> {
    for (name, process) in &course.processes {
        meters::cpu(*process).map_err(|error| MeasureError::Process {
            name: name.clone(),
            error,
        })?;
    }
    let course = Arc::new(course);
    let counts = if course.flows > 1 {
        vec![1, course.flows]
    } else {
        vec![1]
    };
    let mut throughputs = Vec::new();
    for &flows in &counts {
        for direction in [Direction::Down, Direction::Up] {
            info!(?direction, flows, "measuring throughput");
            throughputs.push(throughput::measure(&course, direction, flows).await?);
        }
    }
    info!("measuring latency");
    let latency = Latency {
        alone: latency::alone(&course).await?,
        beside_a_download: latency::beside_a_download(&course).await?,
    };
    let mut rates = Vec::new();
    for &at_once in &counts {
        info!(at_once, "measuring connections");
        rates.push(connections::measure(&course, at_once).await);
    }
    info!("measuring datagrams");
    Ok(MeasureReport {
        way: course.way.to_string(),
        lane: None,
        seconds: course.time.as_secs_f64(),
        throughput: throughputs,
        latency,
        connections: rates,
        udp: datagrams::measure(&course).await,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bench::origin::Origin;

    #[test]
    fn straight_way_to_an_origin_has_every_figure() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let origin = Origin::bind((Ipv4Addr::LOCALHOST, 0).into()).await;
            let origin = origin.expect("loopback");
            let course = Course {
                way: Way::Straight,
                origin: origin.address().into(),
                time: Duration::from_millis(100),
                flows: 3,
                processes: vec![("load".to_owned(), std::process::id())],
            };
            tokio::spawn(origin.serve(CancellationToken::new()));
            let report = measure(course).await.expect("the origin is there");
            assert_eq!(report.throughput.len(), 4);
            for throughput in &report.throughput {
                assert!(throughput.megabits_per_second > 0.0, "{throughput:?}");
                assert!(throughput.cpu_seconds_per_gb.contains_key("load"));
            }
            assert!(report.latency.alone.samples > 0);
            assert!(report.latency.beside_a_download.samples > 0);
            for connections in &report.connections {
                assert!(connections.per_second > 0.0, "{connections:?}");
                assert_eq!(connections.first_failure, None);
            }
            match &report.udp {
                Echoes::Carried { round_trip, .. } => assert!(round_trip.samples > 0),
                Echoes::NotCarried { not_carried } => panic!("{not_carried}"),
            }
            let text = report.to_string();
            assert!(text.contains("down, 3 flows"), "{text}");
        });
    }

    #[test]
    fn origin_that_is_not_there_is_said() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let origin = Origin::bind((Ipv4Addr::LOCALHOST, 0).into()).await;
            let address = origin.expect("loopback").address();
            let error = measure(Course {
                way: Way::Straight,
                origin: address.into(),
                time: Duration::from_millis(100),
                flows: 1,
                processes: Vec::new(),
            })
            .await
            .expect_err("nobody listens there");
            let text = error.to_string();
            let begin = format!("cannot connect to {address}: ");
            assert!(text.starts_with(&begin), "{text}");
        });
    }

    #[test]
    fn process_that_is_not_there_is_said() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let error = runtime.block_on(measure(Course {
            way: Way::Straight,
            origin: "127.0.0.1:1".parse().expect("an address"),
            time: Duration::from_millis(100),
            flows: 1,
            processes: vec![("process 4294967295".to_owned(), u32::MAX)],
        }));
        let text = error.expect_err("there is no such number").to_string();
        let begin = "cannot read the CPU time of process 4294967295: ";
        assert!(text.starts_with(begin), "{text}");
    }
}
