//! One flow and its socket, and how bytes move between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use adit_netstack::{RecvError, SendError};

use super::endpoint::Endpoint;
use super::flows::Flows;
use super::ready::Notice;
use super::ties::{FlowWatch, Terms};

/// A flow that has a socket.
#[derive(Debug)]
pub(super) struct Link<Id> {
    pub(super) flow: Id,
    pub(super) endpoint: Endpoint,
    pub(super) waker: Waker,
    pub(super) notice: Arc<Notice>,
    /// Bytes the application sent before the flow was up; sent first.
    pub(super) early: VecDeque<u8>,
    /// What must hold for the flow to go on.
    pub(super) terms: Option<Box<dyn Terms>>,
    pub(super) up: Half,
    pub(super) down: Half,
    pub(super) watch: Option<FlowWatch>,
}

impl<Id: Copy> Link<Id> {
    /// Flow to socket.
    pub(super) fn pump_down<F: Flows<Id = Id>>(
        &mut self,
        now: Instant,
        flows: &mut F,
    ) -> Result<Moved, End> {
        let mut cx = Context::from_waker(&self.waker);
        let endpoint = &mut self.endpoint;
        let mut moved = Moved::default();
        while self.down == Half::Open {
            if moved.bytes >= PUMP_BYTES {
                moved.more = true;
                break;
            }
            let step = flows.recv(now, self.flow, |ring| {
                match endpoint.poll_write(&mut cx, ring) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => (0, Step::Broken),
                    Poll::Ready(Ok(n)) => (n, Step::Moved(n)),
                    Poll::Pending => (0, Step::Blocked),
                }
            });
            match step {
                Ok(Step::Moved(n)) => moved.bytes += n,
                Ok(Step::Blocked) | Err(RecvError::Empty) => break,
                Ok(Step::Ended | Step::Broken) => return Err(End::Broken),
                Err(RecvError::Finished) => self.down = Half::Closing,
                Err(_) => return Err(End::Reset),
            }
        }
        if self.down == Half::Closing {
            match self.endpoint.poll_shutdown(&mut cx) {
                Poll::Ready(Ok(())) => self.down = Half::Finished,
                // The application is gone already: nothing is left to tell it.
                Poll::Ready(Err(_)) => self.down = Half::Finished,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Socket to flow.
    pub(super) fn pump_up<F: Flows<Id = Id>>(
        &mut self,
        now: Instant,
        flows: &mut F,
    ) -> Result<Moved, End> {
        let mut cx = Context::from_waker(&self.waker);
        let (endpoint, early) = (&mut self.endpoint, &mut self.early);
        let mut moved = Moved::default();
        while self.up == Half::Open {
            if moved.bytes >= PUMP_BYTES {
                moved.more = true;
                break;
            }
            let step = flows.send(now, self.flow, |ring| {
                if !early.is_empty() {
                    let (front, _) = early.as_slices();
                    let n = front.len().min(ring.len());
                    ring[..n].copy_from_slice(&front[..n]);
                    early.drain(..n);
                    return (n, Step::Moved(n));
                }
                match endpoint.poll_read(&mut cx, ring) {
                    Poll::Ready(Ok(0)) => (0, Step::Ended),
                    Poll::Ready(Ok(n)) => (n, Step::Moved(n)),
                    Poll::Ready(Err(_)) => (0, Step::Broken),
                    Poll::Pending => (0, Step::Blocked),
                }
            });
            match step {
                Ok(Step::Moved(n)) => moved.bytes += n,
                Ok(Step::Blocked) | Err(SendError::Full) => break,
                Ok(Step::Ended) => {
                    flows.finish(now, self.flow);
                    self.up = Half::Finished;
                }
                Ok(Step::Broken) => return Err(End::Broken),
                // The far end will read no more (it has reset or fully closed).
                Err(_) => return Err(End::Reset),
            }
        }
        Ok(moved)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Open,
    Closing,
    Finished,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Moved(usize),
    Blocked,
    Ended,
    Broken,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// Both halves closed in order.
    Clean,
    /// The socket failed: the flow is aborted.
    Broken,
    /// The flow failed: the socket is reset.
    Reset,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) bytes: usize,
    pub(super) more: bool,
}

/// The most one pump moves in one direction: a full receive ring, so that one wake-up can
/// empty it, and no more, so that 64 such flows still take turns.
pub const PUMP_BYTES: usize = 1 << 20;
