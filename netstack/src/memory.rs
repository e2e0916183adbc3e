//! How much memory flows' rings may hold: what the stack asks of its owner's account, and tells it.
//!
//! # Theory of operation
//!
//! A ring is address space; what counts is the part of it that was written to since it was last given back
//! ([`Extent`](crate::extent::Extent)). The stack tells every change of that to a [`Memory`], which may be shared with
//! other stacks and with whatever else keeps bytes, and which says in return how much is left.
//!
//! ```text
//!  0 ──────────────── soft bound ─────────────── hard bound
//!  │ windows and send rings    │ floors only; what   │ bytes that come are dropped,
//!  │ follow the allowance      │ is unused is given  │ and none are taken
//!  │                           │ back; no new flows  │
//! ```
//!
//! - **What comes.** A window that was told may not be taken back (RFC 9293 §3.8.6), so little is told at first and more as
//!   the application reads ([`Window`](crate::conn::Window)); never more than the allowance, or the floor.
//! - **What leaves.** [`Stack::send`](crate::Stack::send) takes no more than the allowance, or the floor.
//! - **What is unused.** A ring is written from end to end, so that even one that is read at once holds all of its memory
//!   in the end. A flow that holds more than its allowance gives back what holds no bytes: when half of it does not,
//!   at once; otherwise with the next sweep.
//! - **What was promised before memory ran short** may come all the same. Beyond the hard bound it is dropped, as TCP
//!   permits, and its sender sends it again ([`Dropped::Memory`](crate::Dropped::Memory)).
//! - **New flows** are refused at the soft bound: [`ConnectError::NoMemory`](crate::ConnectError::NoMemory), or a reset.
//!
//! # Limits
//!
//! The hard bound holds for rings but for the floor of each flow's receive ring, two pages, without which two stacks full
//! of what they have to send could wait for each other. Beside its rings a flow costs about three KiB. What one stack is
//! allowed to hold is checked before each step, so several on one account may go beyond it together by what each takes in
//! one.

use std::fmt;

/// An account of memory, which the stack's owner keeps.
pub trait Memory: fmt::Debug + Send {
    /// Takes note that `len` more bytes are held.
    fn add(&mut self, len: usize);

    /// Takes note that `len` bytes are no longer held.
    fn sub(&mut self, len: usize);

    /// Says how much one flow may hold beyond its floor; it falls as memory fills, to nothing at the soft bound.
    fn allowance(&self) -> usize;

    /// Says whether the soft bound is reached.
    fn is_short(&self) -> bool;

    /// Says whether so little is held that some may be kept for later use.
    fn is_ample(&self) -> bool;

    /// Says whether `len` more bytes stay below the hard bound.
    fn admits(&self, len: usize) -> bool;
}

/// A memory without bounds.
#[derive(Debug)]
struct Boundless;

impl Memory for Boundless {
    fn add(&mut self, _: usize) {}

    fn sub(&mut self, _: usize) {}

    fn allowance(&self) -> usize {
        usize::MAX
    }

    fn is_short(&self) -> bool {
        false
    }

    fn is_ample(&self) -> bool {
        true
    }

    fn admits(&self, _: usize) -> bool {
        true
    }
}

/// One stack's part of the account.
#[derive(Debug)]
pub(crate) struct Account {
    memory: Box<dyn Memory>,
    held: usize,
}

impl Default for Account {
    fn default() -> Account {
        Account::new(Box::new(Boundless))
    }
}

impl Account {
    pub(crate) fn new(memory: Box<dyn Memory>) -> Account {
        Account { memory, held: 0 }
    }

    /// Moves to another memory, with all that is held.
    pub(crate) fn set(&mut self, memory: Box<dyn Memory>) {
        self.memory.sub(self.held);
        self.memory = memory;
        self.memory.add(self.held);
    }

    pub(crate) fn add(&mut self, len: usize) {
        self.held += len;
        self.memory.add(len);
    }

    pub(crate) fn sub(&mut self, len: usize) {
        self.held -= len;
        self.memory.sub(len);
    }

    /// Says what all rings hold.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Says how much one ring may hold beyond its floor: half of what a flow may.
    pub(crate) fn allowance(&self) -> usize {
        self.memory.allowance() / 2
    }

    pub(crate) fn is_short(&self) -> bool {
        self.memory.is_short()
    }

    pub(crate) fn is_ample(&self) -> bool {
        self.memory.is_ample()
    }

    pub(crate) fn admits(&self, len: usize) -> bool {
        self.memory.admits(len)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.memory.sub(self.held);
    }
}
