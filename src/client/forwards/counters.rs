//! What a forward counts, and whether it listens.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use crate::io::relay::FlowWatch;

/// The counters of one forward, shared by its tasks.
#[derive(Debug)]
pub(super) struct Counters {
    open: Arc<AtomicU64>,
    total: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
    state: watch::Sender<State>,
}

/// Whether a forward listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There is no session yet, which it needs for its inner port.
    Waiting,
    /// It does.
    Listening,
    /// It cannot, for this reason; it tries again.
    Failed(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for the tunnel"),
            Self::Listening => f.write_str("listening"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What one forward has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections, or UDP peers, there are.
    pub open: u64,
    /// Connections, or UDP peers, there were since it was added.
    pub total: u64,
    /// Connections refused, and datagrams dropped, by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Counters {
    pub(super) fn new(state: State) -> Self {
        Self {
            open: Arc::default(),
            total: AtomicU64::new(0),
            refused: Mutex::default(),
            state: watch::Sender::new(state),
        }
    }

    /// Counts a connection or peer that stands, for as long as what is returned lives.
    pub(super) fn open(&self) -> FlowWatch {
        self.total.fetch_add(1, Ordering::Relaxed);
        FlowWatch::new(Arc::clone(&self.open))
    }

    /// Counts something that was refused or dropped.
    pub(super) fn refuse(&self, reason: impl fmt::Display) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reason = reason.to_string();
        if refused.len() >= MAX_REASONS && !refused.contains_key(&reason) {
            reason = "other".to_owned();
        }
        *refused.entry(reason).or_default() += 1;
    }

    pub(super) fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn counts(&self) -> Counts {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        Counts {
            open: self.open.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            refused: refused.clone(),
        }
    }
}

/// Reasons told apart: those that there are, and some that the system makes up.
const MAX_REASONS: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_counts_what_lives_and_total_what_has_lived() {
        let counters = Counters::new(State::Listening);
        let (one, two) = (counters.open(), counters.open());
        assert_eq!((counters.counts().open, counters.counts().total), (2, 2));
        drop(one);
        assert_eq!((counters.counts().open, counters.counts().total), (1, 2));
        drop(two);
        assert_eq!(counters.counts().open, 0);
    }

    #[test]
    fn reasons_are_counted_apart_up_to_their_bound() {
        let counters = Counters::new(State::Listening);
        for number in 0..100 {
            counters.refuse(format!("reason {number}"));
            counters.refuse("reason 0");
        }
        let refused = counters.counts().refused;
        assert_eq!(refused["reason 0"], 101);
        assert_eq!(refused.len(), MAX_REASONS + 1);
        assert_eq!(refused["other"], 100 - MAX_REASONS as u64);
    }
}
