//! What a flow has to do with others than its two ends: terms on which it goes on, and those who count and watch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

/// What a flow has to do with others than its two ends.
#[derive(Debug, Default)]
pub struct Ties {
    /// What must hold for it to go on: looked at by [`Relay::end_unfit`](super::Relay::end_unfit).
    pub terms: Option<Box<dyn Terms>>,
    /// Who wants to know how many flows are open, or how this one ends.
    pub watch: Option<FlowWatch>,
}

/// What must be true for a flow to go on, where that may change while it is open.
pub trait Terms: Send + std::fmt::Debug {
    /// Whether it is true now.
    fn hold(&self) -> bool;
}

/// Counts a flow as open for as long as it lives, and tells how the flow has ended.
///
/// It goes along with the socket that the flow is for, from before there is a flow until both are gone.
#[derive(Debug)]
pub struct FlowWatch {
    open: Arc<AtomicU64>,
    fate: Option<oneshot::Sender<Fate>>,
}

/// How a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both directions have ended in order.
    Finished,
    /// It was cut off: reset by either side, timed out, or lost with the tunnel.
    Cut,
}

impl FlowWatch {
    /// Counts one more in `open`.
    pub fn new(open: Arc<AtomicU64>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self { open, fate: None }
    }

    /// Gives the end of a flow to whoever waits for it; a receiver that finds no sender takes it as [`Fate::Cut`].
    pub fn fate(&mut self) -> oneshot::Receiver<Fate> {
        let (sender, receiver) = oneshot::channel();
        self.fate = Some(sender);
        receiver
    }

    pub(super) fn finish(&mut self) {
        if let Some(fate) = self.fate.take() {
            // Nobody may want to know any more.
            let _gone = fate.send(Fate::Finished);
        }
    }
}

impl Drop for FlowWatch {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
