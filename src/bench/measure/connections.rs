//! Connections per second: connect, one byte there and back, close; by one at a time, or by several.

use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use super::{Course, MeasureError};
use crate::bench::origin::ECHO;
use crate::io::clock;

/// What a measure of connections has found.
#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    /// How many were made at once.
    pub at_once: usize,
    /// How many were done a second.
    pub per_second: f64,
    /// How many failed.
    pub failed: u64,
    /// Why the first of them did.
    pub first_failure: Option<String>,
}

/// What one of those at once has done.
#[derive(Debug, Default)]
struct Share {
    done: u64,
    failed: u64,
    first_failure: Option<String>,
}

/// Measures connections.
pub(super) async fn measure(course: &Arc<Course>, at_once: usize) -> Connections {
    let began = clock::now();
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let course = course.clone();
        tasks.spawn(async move {
            let mut share = Share::default();
            while clock::now() < began + course.time {
                match timeout(PATIENCE, connection(&course)).await {
                    Ok(Ok(())) => share.done += 1,
                    failed => {
                        let cause = failed.map_or(MeasureError::StandsStill, |failed| {
                            failed.err().unwrap_or(MeasureError::Broken)
                        });
                        share.failed += 1;
                        share.first_failure.get_or_insert(cause.to_string());
                    }
                }
            }
            share
        });
    }
    let mut sum = Share::default();
    while let Some(joined) = tasks.join_next().await {
        let share = joined.unwrap_or_default();
        sum.done += share.done;
        sum.failed += share.failed;
        sum.first_failure = sum.first_failure.or(share.first_failure);
    }
    Connections {
        at_once,
        per_second: sum.done as f64 / (clock::now() - began).as_secs_f64(),
        failed: sum.failed,
        first_failure: sum.first_failure,
    }
}

async fn connection(course: &Course) -> Result<(), MeasureError> {
    let mut stream = course.way.connect(&course.origin).await?;
    stream.write_all(&[ECHO, 0]).await?;
    stream.read_u8().await?;
    Ok(())
}

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(15);
