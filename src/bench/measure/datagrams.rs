//! UDP echoes per second, with a number of datagrams under way.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::{interval, timeout};

use super::Course;
use crate::bench::origin::{ANSWER, REQUEST};
use crate::bench::samples::{Quantiles, Samples};
use crate::bench::way::{Datagrams, WayError};
use crate::io::clock;

/// What a measure of datagrams has found.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Echoes {
    /// They are carried.
    Carried {
        /// Bytes in each.
        bytes: usize,
        /// How many were under way at once.
        under_way: usize,
        /// How many came back a second.
        per_second: f64,
        /// How many did not within a second.
        lost: u64,
        /// How long they took.
        round_trip: Quantiles,
    },
    /// They are not.
    NotCarried {
        /// Why.
        not_carried: String,
    },
}

/// Measures datagrams; that a proxy does not carry them is a finding.
pub(super) async fn measure(course: &Course) -> Echoes {
    let not_carried = |why: String| Echoes::NotCarried { not_carried: why };
    let way = match course.way.datagrams(&course.origin).await {
        Ok(way) => way,
        Err(error) => return not_carried(error.to_string()),
    };
    match echoes(course, &way).await {
        Ok(Some(echoes)) => echoes,
        Ok(None) => not_carried(WayError::Silent.to_string()),
        Err(error) => not_carried(error.to_string()),
    }
}

/// `None` where not one comes back.
async fn echoes(course: &Course, way: &Datagrams) -> std::io::Result<Option<Echoes>> {
    let mut window = Window::new();
    if !window.knock(way).await? {
        return Ok(None);
    }
    let began = clock::now();
    let over = began + course.time;
    for place in 0..UNDER_WAY {
        window.send(way, place).await?;
    }
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut ticks = interval(LOOK_EVERY);
    let mut samples = Samples::new();
    while clock::now() < over {
        tokio::select! {
            received = way.receive(&mut buffer) => {
                let now = clock::now();
                // What the network says of one that was lost; it counts as that in a second.
                let Ok(payload) = received else { continue };
                if let Some(place) = window.place_of(payload) {
                    samples.add(now - window.sent[place].1);
                    window.send(way, place).await?;
                }
            }
            _ = ticks.tick() => window.replace_lost(way).await?,
        }
    }
    let took = (clock::now() - began).as_secs_f64();
    Ok(Some(Echoes::Carried {
        bytes: BYTES,
        under_way: UNDER_WAY,
        per_second: samples.count() as f64 / took,
        lost: window.lost,
        round_trip: samples.quantiles(),
    }))
}

/// The datagrams under way, each in a place of its own.
struct Window {
    /// The number in each place, and when it was sent.
    sent: Vec<(u64, Instant)>,
    next: u64,
    lost: u64,
    scratch: Vec<u8>,
}

impl Window {
    fn new() -> Self {
        Self {
            sent: vec![(0, clock::now()); UNDER_WAY],
            next: 1,
            lost: 0,
            scratch: Vec::new(),
        }
    }

    /// Sends until one comes back; returns whether one has.
    async fn knock(&mut self, way: &Datagrams) -> std::io::Result<bool> {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        for _ in 0..KNOCKS {
            self.send(way, 0).await?;
            let answer = async {
                loop {
                    let payload = way.receive(&mut buffer).await?;
                    if self.place_of(payload).is_some() {
                        return Ok::<(), std::io::Error>(());
                    }
                }
            };
            // Nobody may be there yet, which the network then says.
            if let Ok(Ok(())) = timeout(LOST_AFTER, answer).await {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a new datagram in a place.
    async fn send(&mut self, way: &Datagrams, place: usize) -> std::io::Result<()> {
        let number = self.next;
        self.next += 1;
        self.sent[place] = (number, clock::now());
        let sent = way.send(&mut self.scratch, |datagram| {
            let begin = datagram.len();
            datagram.extend(REQUEST);
            datagram.extend((place as u64).to_be_bytes());
            datagram.extend(number.to_be_bytes());
            datagram.resize(begin + BYTES, 0);
        });
        match sent.await {
            // About one that was sent before.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            sent => sent,
        }
    }

    /// Returns the place of the datagram that `payload` answers, if it is under way still.
    fn place_of(&self, payload: &[u8]) -> Option<usize> {
        let rest = payload.strip_prefix(ANSWER)?;
        let (place, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let place = usize::try_from(u64::from_be_bytes(*place)).ok()?;
        let (under_way, _) = self.sent.get(place)?;
        (*under_way == u64::from_be_bytes(*number)).then_some(place)
    }

    async fn replace_lost(&mut self, way: &Datagrams) -> std::io::Result<()> {
        for place in 0..UNDER_WAY {
            if clock::now() >= self.sent[place].1 + LOST_AFTER {
                self.lost += 1;
                self.send(way, place).await?;
            }
        }
        Ok(())
    }
}

/// Bytes in a datagram: a packet of a call.
const BYTES: usize = 200;

/// How many are under way at once: what a queue on the way takes without loss.
const UNDER_WAY: usize = 64;

/// When one counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked whether one is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often the first is sent until it comes back.
const KNOCKS: usize = 4;
