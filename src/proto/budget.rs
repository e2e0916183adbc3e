//! How much memory flows may hold, relayed or of a netstack: all of a process, and those of each session.
//!
//! # Theory of operation
//!
//! A [`Budget`] is the process's, a [`Share`] of it is one session's, of which whoever keeps bytes has a
//! [part](Share::part): the table of [relayed flows](crate::proto::relayed) for its queues, the netstack for its rings, as
//! its [`Memory`]. Each asks its part before, and says how much memory it took and gave back; nothing is ever summed up.
//!
//! ```text
//!  0 ──────────── soft ─────────────── hard = 2 × soft
//!  │ allowance falls │ floors only; no     │ bytes that come
//!  │ with what is    │ new flows           │ are not kept
//!  │ left            │                     │
//! ```
//!
//! The hard bound is what `limits:` of the configuration names, the soft one is half of it.
//!
//! What one flow may keep is half of what its session has left, and what a session may keep is at most what the process
//! has left (dynamic queue length thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). So
//! few flows have all they can use, many have equal parts, and some is always left for whoever comes next: neither a flow
//! nor a session can take it all, whether it was first or not.
//!
//! # Limits
//!
//! Sessions count at once and without a lock, so that together they may go beyond the hard bound by what each takes in one
//! step. What a flow has for a floor goes beyond the soft bound: a chunk of 4 KiB to send of a relayed one, as much each
//! way of the netstack's, whose receive rings have it beyond the hard bound, too, since two ends full of what they have to
//! send could wait for each other. So 16,384 flows, that nobody reads, of a session that has used up the rest hold 64 MiB
//! more each way at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use adit_netstack::Memory;

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

/// What one session holds of a [`Budget`], and may hold, or a part of that.
#[derive(Debug)]
pub struct Share {
    all: Arc<Budget>,
    session: Arc<Session>,
    held: usize,
}

/// What all parts of a session's share hold, and may hold.
#[derive(Debug)]
struct Session {
    held: AtomicUsize,
    most: usize,
}

impl Share {
    /// Makes a share of at most `most` bytes, the soft bound.
    #[must_use]
    pub fn new(all: Arc<Budget>, most: usize) -> Self {
        let held = AtomicUsize::new(0);
        Self {
            all,
            session: Arc::new(Session { held, most }),
            held: 0,
        }
    }

    /// Makes the share of the only session of a process: all of at most `most` bytes, the soft bound.
    #[must_use]
    pub fn alone(most: usize) -> Self {
        Self::new(Budget::new(most.saturating_mul(2)), most)
    }

    /// Makes another part of the same session's share, for something else that keeps bytes of it.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            all: self.all.clone(),
            session: self.session.clone(),
            held: 0,
        }
    }

    /// Takes note that `len` more bytes are held.
    pub fn add(&mut self, len: usize) {
        self.held += len;
        self.session.held.fetch_add(len, Ordering::Relaxed);
        self.all.held.fetch_add(len, Ordering::Relaxed);
    }

    /// Takes note that `len` bytes are no longer held.
    pub fn sub(&mut self, len: usize) {
        self.held -= len;
        self.session.held.fetch_sub(len, Ordering::Relaxed);
        self.all.held.fetch_sub(len, Ordering::Relaxed);
    }

    /// Returns the bytes that this part of the session's share holds.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns the bytes that the flows of all sessions hold.
    #[must_use]
    pub fn held_by_all(&self) -> usize {
        self.all.held()
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
        self.session.held() <= self.session.most / 2 && self.all.held() <= self.all.most / 2
    }

    /// Returns whether `len` more bytes stay below the hard bound.
    #[must_use]
    pub fn admits(&self, len: usize) -> bool {
        len <= self.left(HARD)
    }

    /// What is left below `times` the soft bounds.
    fn left(&self, times: usize) -> usize {
        let all = (self.all.most * times).saturating_sub(self.all.held());
        (self.session.most * times)
            .min(all)
            .saturating_sub(self.session.held())
    }
}

impl Session {
    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Memory for Share {
    fn add(&mut self, len: usize) {
        Share::add(self, len);
    }

    fn sub(&mut self, len: usize) {
        Share::sub(self, len);
    }

    fn allowance(&self) -> usize {
        Share::allowance(self)
    }

    fn is_short(&self) -> bool {
        Share::is_short(self)
    }

    fn is_ample(&self) -> bool {
        Share::is_ample(self)
    }

    fn admits(&self, len: usize) -> bool {
        Share::admits(self, len)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.sub(self.held);
    }
}

/// The hard bound in soft ones: what the far end was promised before memory ran short may still come, and most of it is
/// taken at once.
pub const HARD: usize = 2;

/// The hard bound of a server's process, if none is said: four sessions that use all they may, of which each then has
/// less; what a host of 1 GiB can spare.
pub const PROCESS: usize = 512 << 20;

/// The hard bound of a session, if none is said: at the soft one 64 relayed flows have a full queue of 1 MiB, as many as
/// bulk transfers at once may be, or 16,384 the floor.
pub const SESSION: usize = 128 << 20;

/// The hard bound of a client's process, if none is said: at the soft one 64 flows of the netstack have touched both of
/// their rings, 1 MiB each.
pub const CLIENT: usize = 256 << 20;

/// The least hard bound: a few flows have what they can use.
pub const LEAST: usize = 4 << 20;

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
    fn parts_of_a_share_hold_together() {
        let mut relayed = Share::alone(1000);
        let mut rings = relayed.part();
        relayed.add(400);
        assert_eq!((rings.held(), rings.allowance()), (0, 300));
        rings.add(600);
        assert!(relayed.is_short() && rings.is_short());
        assert!(relayed.admits(1000) && !relayed.admits(1001));
        drop(rings);
        assert_eq!(relayed.allowance(), 300, "who goes gives back");
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
