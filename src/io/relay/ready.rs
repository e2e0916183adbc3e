//! Which flows' sockets have become ready: wakers that name what they wake.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;

/// The keys whose wakers have fired since the driver last looked.
///
/// Bounded by the number of keys: each key is in the queue at most once.
#[derive(Debug, Default)]
pub struct ReadySet {
    keys: Mutex<VecDeque<usize>>,
    driver: AtomicWaker,
}

impl ReadySet {
    /// Makes an empty set.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Registers the task to be woken when a key is added.
    pub fn register(&self, cx: &Context<'_>) {
        self.driver.register(cx.waker());
    }

    fn push(&self, key: usize) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(key);
    }

    /// Takes the oldest key.
    pub fn pop(&self) -> Option<usize> {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Returns whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

/// A waker that names what it wakes: it adds one key to a [`ReadySet`].
#[derive(Debug)]
pub struct Notice {
    set: Arc<ReadySet>,
    key: usize,
    queued: AtomicBool,
}

impl Notice {
    /// Makes a notice for `key`, not queued.
    pub fn new(set: Arc<ReadySet>, key: usize) -> Self {
        Self {
            set,
            key,
            queued: AtomicBool::new(false),
        }
    }

    /// Allows the next wake-up to queue the key again; called when the key was taken.
    pub fn taken(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Queues the key without a wake-up; returns whether it was not queued already.
    pub fn queue(&self) -> bool {
        let first = !self.queued.swap(true, Ordering::AcqRel);
        if first {
            self.set.push(self.key);
        }
        first
    }
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queue() {
            self.set.driver.wake();
        }
    }
}

#[cfg(test)]
impl ReadySet {
    /// How many keys wait.
    pub(super) fn len(&self) -> usize {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn registered(set: &ReadySet) -> Arc<Woken> {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        set.register(&Context::from_waker(&waker));
        woken
    }

    #[test]
    fn wake_up_names_its_key_once_until_it_is_taken() {
        let set = ReadySet::new();
        let woken = registered(&set);
        let notice = Arc::new(Notice::new(set.clone(), 7));
        let waker = Waker::from(notice.clone());
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!((set.pop(), set.pop()), (Some(7), None));
        waker.wake_by_ref();
        assert_eq!(set.pop(), None, "not taken yet");
        notice.taken();
        waker.wake_by_ref();
        assert_eq!(set.pop(), Some(7));
    }

    #[test]
    fn keys_are_served_in_the_order_in_which_they_became_ready() {
        let set = ReadySet::new();
        for key in [3, 1, 2] {
            Waker::from(Arc::new(Notice::new(set.clone(), key))).wake();
        }
        assert!(!set.is_empty());
        assert_eq!(
            [set.pop(), set.pop(), set.pop()],
            [Some(3), Some(1), Some(2)]
        );
    }
}
