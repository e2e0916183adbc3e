//! What an asker holds of what it was granted, and its last words.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use super::ConnectError;
use super::command::{Attachment, Command};
use crate::client::down::Down;
use crate::client::rules::Judged;

/// Names a flow, a UDP port or an association between the asker and the driver.
///
/// Never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(u64);

#[cfg(test)]
impl HandleId {
    /// Makes an id for a test that plays the asker.
    pub(in crate::client) const fn numbered(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a [`Handle`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flow,
    UdpPort,
    Association,
    Listener,
}

/// Says its last words when it is dropped while armed.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) id: HandleId,
    pub(super) kind: Kind,
    pub(super) last_words: Arc<LastWords>,
    pub(super) armed: bool,
}

impl Handle {
    pub(super) fn new(kind: Kind, last_words: &Arc<LastWords>) -> Self {
        Self {
            id: HandleId(last_words.next_id.fetch_add(1, Ordering::Relaxed)),
            kind,
            last_words: Arc::clone(last_words),
            armed: true,
        }
    }

    /// Says `Attach` instead of `Abort`; false when the driver has gone.
    pub(super) fn attach(
        mut self,
        attachment: Attachment,
        early: Vec<u8>,
        judged: Option<Box<Judged>>,
    ) -> bool {
        self.armed = false;
        self.last_words.say(Command::Attach {
            flow: self.id,
            attachment,
            early,
            judged,
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let id = self.id;
        self.last_words.say(match self.kind {
            Kind::Flow => Command::Abort { flow: id },
            Kind::UdpPort => Command::UnbindUdp { port: id },
            Kind::Association => Command::Dissociate { association: id },
            Kind::Listener => Command::Unlisten { listener: id },
        });
    }
}

/// A request that waits for its answer.
///
/// The fields are dropped in this order: the reply channel is closed before the last
/// words are said, so a driver that takes the words first will skip the request.
pub(super) struct Asked {
    pub(super) answer: oneshot::Receiver<Result<(), ConnectError>>,
    pub(super) handle: Handle,
}

impl Asked {
    pub(super) async fn outcome(mut self) -> Result<Handle, ConnectError> {
        let outcome = (&mut self.answer).await;
        match outcome {
            Ok(Ok(())) => Ok(self.handle),
            Ok(Err(error)) => {
                // The driver has nothing under this id.
                self.handle.armed = false;
                Err(error)
            }
            Err(_dropped) => Err(ConnectError::TunnelDown(Down::Ended)),
        }
    }
}

/// The list of last words: never full, never blocking.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    next_id: AtomicU64,
    words: Mutex<Words>,
    pub(super) waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Words {
    queue: VecDeque<Command>,
    closed: bool,
}

impl LastWords {
    pub(super) fn say(&self, command: Command) -> bool {
        {
            let mut words = lock(&self.words);
            if words.closed {
                return false;
            }
            words.queue.push_back(command);
        }
        self.waker.wake();
        true
    }

    pub(super) fn take(&self) -> Option<Command> {
        lock(&self.words).queue.pop_front()
    }

    pub(super) fn close(&self) {
        let dropped = {
            let mut words = lock(&self.words);
            words.closed = true;
            std::mem::take(&mut words.queue)
        };
        // Outside the lock: what is dropped here may say words of its own.
        drop(dropped);
    }
}

/// Locks a mutex whose data stays whole even if a holder panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
