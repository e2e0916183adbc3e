//! The deadlines of a session, one for each thing that waits.

use std::time::Instant;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Timer {
    /// Some lane may be due for a ping, or dead.
    Liveness,
    /// The current epoch is old enough to be replaced, or to ask for it.
    Rekey,
    /// A rekey under way got no answer.
    RekeyRetry,
    /// The former epoch no longer opens.
    FormerEpoch,
    /// Something said on a lane that loses is to be said again.
    Retry,
    /// A path or a path MTU is to be probed.
    Probe,
}

impl Timer {
    pub(super) const ALL: [Self; 6] = [
        Self::Liveness,
        Self::Rekey,
        Self::RekeyRetry,
        Self::FormerEpoch,
        Self::Retry,
        Self::Probe,
    ];
}

/// The table. Setting a deadline replaces the one before.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers([Option<Instant>; Timer::ALL.len()]);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, deadline: Instant) {
        self.0[timer as usize] = Some(deadline);
    }

    /// Sets a deadline unless an earlier one stands.
    pub(super) fn set_earlier(&mut self, timer: Timer, deadline: Instant) {
        let slot = &mut self.0[timer as usize];
        *slot = Some(slot.map_or(deadline, |stands| stands.min(deadline)));
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn stop_all(&mut self) {
        self.0 = Default::default();
    }

    /// Takes a timer that has expired; ask until there is none.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Timer> {
        let timer = Timer::ALL
            .into_iter()
            .find(|t| self.0[*t as usize].is_some_and(|at| at <= now))?;
        self.stop(timer);
        Some(timer)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_timer_expires_once_at_its_deadline() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut timers = Timers::default();
        for (index, timer) in Timer::ALL.into_iter().enumerate() {
            timers.set(timer, at(index as u64 + 1));
        }
        timers.set_earlier(Timer::FormerEpoch, at(9));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.expired(start), None);
        for (index, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timers.expired(at(index as u64 + 1)), Some(timer));
            assert_eq!(timers.expired(at(index as u64 + 1)), None);
        }
        assert_eq!(timers.next(), None);
    }
}
