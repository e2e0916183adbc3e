//! The clock: the one place that reads the time.
//!
//! State machines are given `now`; only drivers ask for it, here. [`SuspendWatch`] notices that
//! the machine slept, which `Instant` does not show: on Linux it stands still during suspend,
//! so no timer of ours runs late and a connection that died meanwhile looks fresh.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Returns the monotonic time that deadlines are made of.
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the wall-clock time, for handshakes and what is kept on disk.
pub fn unix() -> SystemTime {
    SystemTime::now()
}

/// Returns whether the kernel knows its clock to be kept in step with others (adjtimex(2)); `None` where it does not tell.
pub fn in_step() -> Option<bool> {
    // SAFETY: all zeroes is a valid `timex`, of plain numbers.
    let mut told: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex`; with no modes set the kernel only writes to it.
    let state = unsafe { libc::adjtimex(&raw mut told) };
    (state >= 0).then_some(state != libc::TIME_ERROR && told.status & libc::STA_UNSYNC == 0)
}

/// Notices when the machine has been suspended.
///
/// The boot-time clock goes on during suspend and the monotonic clock does not, so the distance
/// between them grows by exactly the time slept.
#[derive(Debug)]
pub struct SuspendWatch {
    slept_before: Duration,
}

impl SuspendWatch {
    /// Starts watching from now.
    pub fn new() -> SuspendWatch {
        SuspendWatch {
            slept_before: total_suspended(),
        }
    }

    /// Returns how long the machine slept since the last call, if it did.
    pub fn slept(&mut self) -> Option<Duration> {
        self.observe(total_suspended())
    }

    fn observe(&mut self, total: Duration) -> Option<Duration> {
        let slept = total.saturating_sub(self.slept_before);
        if slept < NOTICEABLE {
            return None;
        }
        self.slept_before = total;
        Some(slept)
    }
}

impl Default for SuspendWatch {
    fn default() -> Self {
        SuspendWatch::new()
    }
}

/// The time the machine has been suspended since it booted.
fn total_suspended() -> Duration {
    // Monotonic first: a delay between the two reads then only ever looks like sleep, and
    // `NOTICEABLE` covers it.
    let monotonic = clock_gettime(ClockId::Monotonic);
    let boot = clock_gettime(ClockId::Boottime);
    as_duration(boot).saturating_sub(as_duration(monotonic))
}

fn as_duration(time: Timespec) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

/// Shorter sleeps are not reported: no connection dies of them, and a thread that is scheduled
/// away between two reads of a clock must not look like one.
const NOTICEABLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waking_machine_reports_its_sleep_once() {
        let mut watch = SuspendWatch {
            slept_before: Duration::from_secs(100),
        };
        assert_eq!(watch.observe(Duration::from_secs(100)), None);
        assert_eq!(
            watch.observe(Duration::from_secs(130)),
            Some(Duration::from_secs(30))
        );
        assert_eq!(watch.observe(Duration::from_secs(130)), None);
    }

    #[test]
    fn scheduling_noise_is_no_sleep_and_is_not_forgotten() {
        let mut watch = SuspendWatch {
            slept_before: Duration::ZERO,
        };
        assert_eq!(watch.observe(Duration::from_millis(600)), None);
        assert_eq!(
            watch.observe(Duration::from_millis(1200)),
            Some(Duration::from_millis(1200))
        );
    }

    #[test]
    fn machine_that_stays_awake_reports_nothing() {
        assert_eq!(SuspendWatch::new().slept(), None);
    }
}
