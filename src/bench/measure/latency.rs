//! How long one byte takes to the origin and back, on a connection that stands, alone or beside a download.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Duration, MissedTickBehavior, interval, timeout};

use super::throughput::{Direction, Flows, warm_up};
use super::{Course, MeasureError};
use crate::bench::origin::ECHO;
use crate::bench::samples::{Quantiles, Samples};
use crate::io::clock;

/// Measures round trips with nothing beside them.
///
/// # Errors
/// The origin is not reached, or does not answer.
pub(super) async fn alone(course: &Course) -> Result<Quantiles, MeasureError> {
    let mut stream = course.way.connect(&course.origin).await?;
    stream.write_all(&[ECHO]).await?;
    let mut samples = Samples::new();
    let mut ticks = interval(EVERY);
    // An answer that comes late is not followed by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = clock::now();
    while clock::now() < began + course.time {
        ticks.tick().await;
        let sent = clock::now();
        let echo = async {
            stream.write_all(&[0]).await?;
            stream.read_u8().await
        };
        timeout(PATIENCE, echo)
            .await
            .map_err(|_| MeasureError::StandsStill)??;
        samples.add(clock::now() - sent);
    }
    Ok(samples.quantiles())
}

/// Measures round trips beside a download of one flow.
///
/// # Errors
/// As [`alone`], and what may end a download.
pub(super) async fn beside_a_download(course: &Course) -> Result<Quantiles, MeasureError> {
    let mut download = Flows::start(course, Direction::Down, 1).await?;
    download.go_on(warm_up(course.time)).await?;
    tokio::select! {
        measured = alone(course) => measured,
        ended = download.go_on(Duration::MAX) => match ended {
            Err(error) => Err(error),
            Ok(()) => Err(MeasureError::Broken),
        },
    }
}

/// How far apart echoes are at least: as keys are pressed by somebody in a great hurry.
const EVERY: Duration = Duration::from_millis(5);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
