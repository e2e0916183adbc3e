//! The epochs of a session: which keys seal, which still open, and which do not open yet.
//!
//! ```text
//!             reply (initiator) /            first frame opened         2 × largest lane delay,
//!             first frame in it (responder)  in the newer one           at most 30 s, later
//!   next ───────────────────────▶ current ─────────────▶ former ───────────────────▶ erased
//! ```
//!
//! `next` exists at the responder only: it has answered a rekey and seals nothing with the new keys
//! before a frame sealed with them has opened.

use std::time::{Duration, Instant};

use super::keys::EpochKeys;

/// The keys of one number, and what was done with them.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) keys: EpochKeys,
    pub(super) since: Instant,
    pub(super) usage: Usage,
}

/// What was done with the keys of an epoch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) failed_opens: u64,
}

impl Usage {
    pub(super) fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

impl Epoch {
    pub(super) fn new(now: Instant, number: u64, keys: EpochKeys) -> Self {
        Self {
            number,
            keys,
            since: now,
            usage: Usage::default(),
        }
    }

    /// The byte on the wire. At most three epochs in a row live at once, so it is unambiguous.
    pub(super) const fn low_byte(&self) -> u8 {
        self.number as u8
    }
}

/// The epochs that live.
#[derive(Debug)]
pub(super) struct Epochs {
    current: Epoch,
    former: Option<Epoch>,
    next: Option<Epoch>,
}

impl Epochs {
    pub(super) fn new(first: Epoch) -> Self {
        Self {
            current: first,
            former: None,
            next: None,
        }
    }

    pub(super) fn current(&mut self) -> &mut Epoch {
        &mut self.current
    }

    pub(super) const fn current_ref(&self) -> &Epoch {
        &self.current
    }

    /// Finds the epoch a frame names.
    pub(super) fn find(&mut self, low_byte: u8) -> Option<(&mut Epoch, Which)> {
        if self.current.low_byte() == low_byte {
            return Some((&mut self.current, Which::Current));
        }
        if let Some(next) = self
            .next
            .as_mut()
            .filter(|epoch| epoch.low_byte() == low_byte)
        {
            return Some((next, Which::Next));
        }
        let former = self
            .former
            .as_mut()
            .filter(|epoch| epoch.low_byte() == low_byte)?;
        Some((former, Which::Former))
    }

    /// Number of the epoch a rekey begins.
    pub(super) const fn next_number(&self) -> u64 {
        self.current.number + 1
    }

    /// Responder: keeps keys that were agreed and are not confirmed, in place of earlier such.
    pub(super) fn propose(&mut self, now: Instant, keys: EpochKeys) {
        self.next = Some(Epoch::new(now, self.next_number(), keys));
    }

    /// Initiator: seals with new keys from now.
    pub(super) fn advance(&mut self, now: Instant, keys: EpochKeys) {
        let epoch = Epoch::new(now, self.next_number(), keys);
        self.former = Some(std::mem::replace(&mut self.current, epoch));
    }

    /// Responder: a frame of `next` opened, so it is the current one. `false` if there is none.
    pub(super) fn confirm_next(&mut self, now: Instant) -> bool {
        let Some(mut next) = self.next.take() else {
            return false;
        };
        next.since = now;
        self.former = Some(std::mem::replace(&mut self.current, next));
        true
    }

    /// Erases the former keys.
    pub(super) fn erase_former(&mut self) {
        self.former = None;
    }

    pub(super) const fn has_former(&self) -> bool {
        self.former.is_some()
    }
}

/// Where a frame's epoch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Former,
    Current,
    Next,
}

/// How long the former epoch still opens once the newer one is known to be in use.
pub(super) fn overlap(largest_delay: Option<Duration>) -> Duration {
    // A lane nobody has measured may be as slow as any.
    largest_delay.map_or(MAX_OVERLAP, |delay| {
        (delay * 2).clamp(MIN_OVERLAP, MAX_OVERLAP)
    })
}

/// Longest life of a former epoch: what is under way for longer is lost, and secrets are to go.
const MAX_OVERLAP: Duration = Duration::from_secs(30);

/// Shortest: a round-trip time is an average, and queues fill.
const MIN_OVERLAP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::proto::aead::AeadKind;
    use crate::proto::keys::{HandshakeSecrets, Role};

    fn keys() -> EpochKeys {
        let (split, kem) = (Zeroizing::new([1; 64]), Zeroizing::new([2; 32]));
        HandshakeSecrets {
            hash: [0; 32],
            split,
            kem,
        }
        .derive(AeadKind::ChaCha20Poly1305, Role::Initiator)
    }

    fn which(epochs: &mut Epochs, low: u8) -> Option<Which> {
        epochs.find(low).map(|(_, which)| which)
    }

    #[test]
    fn a_proposed_epoch_opens_but_does_not_seal_until_confirmed() {
        let now = Instant::now();
        let mut epochs = Epochs::new(Epoch::new(now, 0, keys()));
        assert!(!epochs.confirm_next(now));
        epochs.propose(now, keys());
        assert_eq!(epochs.current().number, 0);
        assert_eq!(which(&mut epochs, 1), Some(Which::Next));
        assert!(epochs.confirm_next(now));
        assert_eq!(epochs.current().number, 1);
        assert_eq!(which(&mut epochs, 0), Some(Which::Former));
        epochs.erase_former();
        assert_eq!(which(&mut epochs, 0), None);
    }

    #[test]
    fn numbers_go_on_beyond_255() {
        let now = Instant::now();
        let mut epochs = Epochs::new(Epoch::new(now, 255, keys()));
        epochs.advance(now, keys());
        assert_eq!(epochs.current().number, 256);
        assert_eq!(which(&mut epochs, 0), Some(Which::Current));
        assert_eq!(which(&mut epochs, 255), Some(Which::Former));
        assert_eq!(which(&mut epochs, 1), None);
    }

    #[test]
    fn the_overlap_is_twice_the_delay_between_1_s_and_30_s() {
        assert_eq!(overlap(None), Duration::from_secs(30));
        assert_eq!(
            overlap(Some(Duration::from_millis(20))),
            Duration::from_secs(1)
        );
        assert_eq!(
            overlap(Some(Duration::from_secs(3))),
            Duration::from_secs(6)
        );
        assert_eq!(
            overlap(Some(Duration::from_secs(40))),
            Duration::from_secs(30)
        );
    }
}
