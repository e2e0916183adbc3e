//! What is under way for flows that are not open yet, and is given up with them.
//!
//! Whoever asks for a flow may take that back, as often as it likes: then the connection that was to be made for it must
//! not go on, or it would hold a socket that no limit of flows knows of.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;

/// Attempts by the flows that they are for; one for each.
pub struct Attempts<K, T> {
    under_way: FuturesUnordered<Abortable<Attempt<K, T>>>,
    handles: HashMap<K, AbortHandle>,
}

type Attempt<K, T> = Pin<Box<dyn Future<Output = (K, T)> + Send>>;

impl<K: Copy + Eq + Hash + Send + 'static, T> Attempts<K, T> {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self {
            under_way: FuturesUnordered::new(),
            handles: HashMap::new(),
        }
    }

    /// Begins an attempt for `flow`; a former one is given up.
    pub fn begin(&mut self, flow: K, attempt: impl Future<Output = T> + Send + 'static) {
        let attempt: Attempt<K, T> = Box::pin(async move { (flow, attempt.await) });
        let (handle, registration) = AbortHandle::new_pair();
        if let Some(former) = self.handles.insert(flow, handle) {
            former.abort();
        }
        self.under_way.push(Abortable::new(attempt, registration));
    }

    /// Gives the attempt for `flow` up, if there is one; what it holds is dropped at the next poll.
    pub fn give_up(&mut self, flow: K) {
        if let Some(handle) = self.handles.remove(&flow) {
            handle.abort();
        }
    }

    /// Gives what has come of an attempt that was not given up; pending where there is none, too.
    pub fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(K, T)> {
        while let Poll::Ready(Some(outcome)) = self.under_way.poll_next_unpin(cx) {
            // One that was given up has none.
            if let Ok((flow, outcome)) = outcome {
                self.handles.remove(&flow);
                return Poll::Ready((flow, outcome));
            }
        }
        Poll::Pending
    }

    /// Returns how many are under way, those among them that were given up since the last poll.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Returns whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

impl<K: Copy + Eq + Hash + Send + 'static, T> Default for Attempts<K, T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::Waker;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn attempt_for_a_flow_that_has_one_takes_its_place() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut attempts = Attempts::new();
        attempts.begin(1, ready("former"));
        attempts.begin(1, ready("later"));
        assert_eq!(attempts.poll_outcome(&mut cx), Poll::Ready((1, "later")));
        assert!(attempts.poll_outcome(&mut cx).is_pending());
        assert!(attempts.is_empty() && attempts.handles.is_empty());
    }

    #[test]
    fn attempt_that_is_given_up_has_no_outcome_and_holds_nothing() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut attempts = Attempts::new();
        let (held, mut let_go) = oneshot::channel::<()>();
        attempts.begin(1, async move {
            let _held = held;
            pending().await
        });
        attempts.begin(2, ready("made"));
        assert_eq!(attempts.poll_outcome(&mut cx), Poll::Ready((2, "made")));
        assert!(attempts.poll_outcome(&mut cx).is_pending());
        attempts.give_up(2);
        attempts.give_up(1);
        assert!(attempts.poll_outcome(&mut cx).is_pending());
        assert!(attempts.is_empty() && attempts.handles.is_empty());
        assert_eq!(let_go.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
