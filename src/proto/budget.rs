//! How much memory flows may hold: all of a process, and those of each session.
//!
//! # Theory of operation
//!
//! A [`Budget`] is the process's, a [`Share`] of it is one session's. Whoever keeps bytes asks its share before, and says
//! how much memory it took and gave back; nothing is ever summed up.
//!
//! ```text
//!  0 ──────────── soft ─────────────── hard = 2 × soft
//!  │ allowance falls │ floors only; no     │ bytes that come
//!  │ with what is    │ new flows           │ are not kept
//!  │ left            │                     │
//! ```
//!
//! What one flow may keep is half of what its session has left, and what a session may keep is at most what the process
//! has left (dynamic queue length thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). So
//! few flows have all they can use, many have equal parts, and some is always left for whoever comes next: neither a flow
//! nor a session can take it all, whether it was first or not.
//!
//! # Limits
//!
//! Sessions count at once and without a lock, so that together they may go beyond the hard bound by what each takes in one
//! step.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all sessions of a process hold, and may hold.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    most: usize,
}

impl Budget {
    /// Makes one of `most` bytes, the soft bound.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            most,
        })
    }

    /// Returns the bytes that all sessions hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one session holds of a [`Budget`], and may hold.
#[derive(Debug)]
pub struct Share {
    all: Arc<Budget>,
    held: usize,
    most: usize,
}

impl Share {
    /// Makes a share of at most `most` bytes, the soft bound.
    #[must_use]
    pub const fn new(all: Arc<Budget>, most: usize) -> Self {
        Self { all, held: 0, most }
    }

    /// Takes note that `len` more bytes are held.
    pub fn add(&mut self, len: usize) {
        self.held += len;
        self.all.held.fetch_add(len, Ordering::Relaxed);
    }

    /// Takes note that `len` bytes are no longer held.
    pub fn sub(&mut self, len: usize) {
        self.held -= len;
        self.all.held.fetch_sub(len, Ordering::Relaxed);
    }

    /// Returns the bytes that the session holds.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns how much one flow may hold beyond its floor.
    #[must_use]
    pub fn allowance(&self) -> usize {
        self.left(1) / 2
    }

    /// Returns whether the soft bound is reached: no more than floors, and nothing for new flows.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.left(1) == 0
    }

    /// Returns whether so little is held that some may be kept for later use: half of what there is.
    #[must_use]
    pub fn is_ample(&self) -> bool {
        self.held <= self.most / 2 && self.all.held() <= self.all.most / 2
    }

    /// Returns whether `len` more bytes stay below the hard bound.
    #[must_use]
    pub fn admits(&self, len: usize) -> bool {
        len <= self.left(HARD)
    }

    /// What is left below `times` the soft bounds.
    fn left(&self, times: usize) -> usize {
        let all = (self.all.most * times).saturating_sub(self.all.held());
        (self.most * times).min(all).saturating_sub(self.held)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.sub(self.held);
    }
}

/// The hard bound in soft ones: what the far end was promised before memory ran short may still come, and most of it is
/// taken at once.
const HARD: usize = 2;

/// The soft bound of a process: four sessions that use all they may, of which each then has less. The hard bound, twice
/// that, is what a host of 1 GiB can spare.
pub const PROCESS: usize = 256 << 20;

/// The soft bound of a session: 64 flows with a full queue of 1 MiB, as many as bulk transfers at once may be, or the
/// floor of 16,384.
pub const SESSION: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `step` bytes for each of `flows` in turn until none is allowed more; returns what each has.
    fn fill(share: &mut Share, flows: usize, step: usize) -> Vec<usize> {
        let mut held = vec![0; flows];
        loop {
            let mut any = false;
            for flow in &mut held {
                if *flow + step <= share.allowance() {
                    share.add(step);
                    *flow += step;
                    any = true;
                }
            }
            if !any {
                return held;
            }
        }
    }

    #[test]
    fn flows_have_equal_parts_and_some_is_left() {
        for flows in [1, 2, 10, 100] {
            let mut share = Share::new(Budget::new(1 << 30), 1 << 20);
            let held = fill(&mut share, flows, 16);
            let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
            assert!(most - least <= 16, "{least} to {most}");
            assert!(!share.is_short() && share.held() < 1 << 20);
            assert!(share.allowance().abs_diff(*most) <= 16 * flows);
        }
    }

    #[test]
    fn session_that_holds_all_it_may_leaves_as_much_to_the_next() {
        let all = Budget::new(3000);
        let mut greedy = [Share::new(all.clone(), 2000), Share::new(all.clone(), 2000)];
        for share in &mut greedy {
            while !share.is_short() {
                share.add(1);
            }
        }
        assert_eq!((greedy[0].held(), greedy[1].held()), (1500, 750));
        let next = Share::new(all.clone(), 2000);
        assert_eq!(next.allowance(), 375);
        drop(greedy);
        assert_eq!(all.held(), 0, "who goes gives back");
        assert_eq!(next.allowance(), 1000);
    }

    #[test]
    fn beyond_the_soft_bound_bytes_are_admitted_up_to_twice() {
        let mut share = Share::new(Budget::new(1000), 100);
        share.add(100);
        assert!(share.is_short() && !share.is_ample());
        assert!(share.admits(100) && !share.admits(101));
        share.add(100);
        assert!(!share.admits(1) && share.admits(0));
        share.sub(150);
        assert!(share.is_ample() && !share.is_short());
    }
}
