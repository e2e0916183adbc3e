//! Bytes per second, of one flow or several, down or up, and the CPU time that they cost.
//!
//! Each flow is a task that adds up what has arrived: its own reads when it downloads, what the origin says when it
//! uploads, so that what waits in buffers on the way does not count. The window of the measure begins when every flow has
//! moved, and some time has passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Course, MeasureError};
use crate::bench::meters;
use crate::bench::origin::{BLOCK, DOWNLOAD, UPLOAD, block};
use crate::io::clock;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the origin.
    Down,
    /// To the origin.
    Up,
}

/// What a measure of throughput has found.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// Which way.
    pub direction: Direction,
    /// How many flows at once.
    pub flows: usize,
    /// All together, in 10^6 bits a second.
    pub megabits_per_second: f64,
    /// How much the slowest flow had, of the mean.
    pub slowest_of_mean: f64,
    /// CPU seconds of each process for 10^9 bytes.
    pub cpu_seconds_per_gb: BTreeMap<String, f64>,
}

/// Flows under way.
pub(super) struct Flows {
    tasks: JoinSet<MeasureError>,
    moved: Vec<Arc<AtomicU64>>,
}

impl Flows {
    /// Starts flows and waits until each of them moves.
    pub(super) async fn start(
        course: &Course,
        direction: Direction,
        flows: usize,
    ) -> Result<Self, MeasureError> {
        let mut started = Self {
            tasks: JoinSet::new(),
            moved: Vec::new(),
        };
        for _ in 0..flows {
            let kind = match direction {
                Direction::Down => DOWNLOAD,
                Direction::Up => UPLOAD,
            };
            let mut stream = course.way.connect(&course.origin).await?;
            stream.write_all(&[kind]).await?;
            let moved = Arc::new(AtomicU64::new(0));
            started.moved.push(moved.clone());
            started.tasks.spawn(async move {
                let failed = match direction {
                    Direction::Down => download(stream, &moved).await,
                    Direction::Up => upload(stream, &moved).await,
                };
                MeasureError::from(failed)
            });
        }
        let moving = async {
            while started.moved.iter().any(|moved| moved.load(Relaxed) == 0) {
                started.go_on(LOOK_EVERY).await?;
            }
            Ok(started)
        };
        timeout(PATIENCE, moving)
            .await
            .map_err(|_| MeasureError::StandsStill)?
    }

    /// Lets them move for `time`.
    ///
    /// # Errors
    /// One of them has ended.
    pub(super) async fn go_on(&mut self, time: Duration) -> Result<(), MeasureError> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            Some(ended) = self.tasks.join_next() => Err(ended.unwrap_or(MeasureError::Broken)),
        }
    }

    fn moved(&self) -> Vec<u64> {
        self.moved.iter().map(|moved| moved.load(Relaxed)).collect()
    }
}

/// Measures the throughput of `flows` at once.
///
/// # Errors
/// The origin is not reached, or a flow ends or stands still.
pub(super) async fn measure(
    course: &Course,
    direction: Direction,
    flows: usize,
) -> Result<Throughput, MeasureError> {
    let mut under_way = Flows::start(course, direction, flows).await?;
    under_way.go_on(warm_up(course.time)).await?;
    let (before, began, used) = (under_way.moved(), clock::now(), cpu(course));
    under_way.go_on(course.time).await?;
    let (after, took) = (under_way.moved(), clock::now() - began);
    let moved: Vec<u64> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before)
        .collect();
    let sum: u64 = moved.iter().sum();
    if sum == 0 {
        return Err(MeasureError::StandsStill);
    }
    let gigabytes = sum as f64 / 1e9;
    let per_gb = |(name, after): (String, Duration)| {
        let before = used.get(&name)?;
        Some((
            name,
            after.saturating_sub(*before).as_secs_f64() / gigabytes,
        ))
    };
    let slowest = moved.iter().copied().min().unwrap_or(0);
    Ok(Throughput {
        direction,
        flows,
        megabits_per_second: sum as f64 * 8.0 / 1e6 / took.as_secs_f64(),
        slowest_of_mean: slowest as f64 * flows as f64 / sum as f64,
        cpu_seconds_per_gb: cpu(course).into_iter().filter_map(per_gb).collect(),
    })
}

/// How long flows run before they are measured: as long as their windows grow, and no longer than the measure.
pub(super) fn warm_up(time: Duration) -> Duration {
    time.min(WARM_UP)
}

/// The CPU time of each process so far; one that is gone has none.
fn cpu(course: &Course) -> BTreeMap<String, Duration> {
    let processes = course.processes.iter();
    processes
        .filter_map(|(name, process)| Some((name.clone(), meters::cpu(*process).ok()?)))
        .collect()
}

/// Reads as fast as it goes; returns only why it ends.
async fn download(mut stream: TcpStream, moved: &AtomicU64) -> std::io::Error {
    let mut buffer = vec![0; 4 * BLOCK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return std::io::ErrorKind::UnexpectedEof.into(),
            Ok(len) => moved.fetch_add(len as u64, Relaxed),
            Err(error) => return error,
        };
    }
}

/// Writes as fast as it goes; returns only why it ends.
async fn upload(stream: TcpStream, moved: &AtomicU64) -> std::io::Error {
    let (mut reader, mut writer) = stream.into_split();
    let block = block();
    let writing = async {
        loop {
            if let Err(error) = writer.write_all(&block).await {
                return error;
            }
        }
    };
    let reading = async {
        loop {
            match reader.read_u64().await {
                Ok(arrived) => moved.store(arrived, Relaxed),
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        error = writing => error,
        error = reading => error,
    }
}

/// How often flows are looked at that are to begin.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long a window takes to open on a path of some 100 ms.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long a flow may stand still at its beginning.
const PATIENCE: Duration = Duration::from_secs(15);
