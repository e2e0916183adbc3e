//! Whether this host's clock may be in the way.

use std::time::{Duration, SystemTime};

use super::finding::{Check, Finding};

/// What is known of the clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it says.
    pub now: SystemTime,
    /// Whether the kernel knows it to be kept in step; `None` where it does not tell.
    pub in_step: Option<bool>,
    /// What the far end thinks of it.
    pub far: FarEnd,
    /// Whether certificates are checked, which have an end.
    pub certificates: bool,
}

/// What the far end lets be known of its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// It is a server's clock that is looked at: there is no one far end.
    None,
    /// No server was asked by a stream.
    Unasked,
    /// A server took a handshake for one of before its own start.
    Doubts,
    /// A server did not.
    Takes,
}

/// Judges it.
///
/// No message of a server's tells its time. What it tells without words: a handshake from before its own start is answered
/// by a challenge.
pub fn judge(clock: &Clock) -> Finding {
    let at = time::OffsetDateTime::from(clock.now);
    let shown = format!(
        "{} {:02}:{:02}:{:02} UTC",
        at.date(),
        at.hour(),
        at.minute(),
        at.second()
    );
    let step = match clock.in_step {
        Some(true) => ", kept in step with a time server",
        Some(false) => ", not kept in step with a time server, as the kernel says",
        None => "",
    };
    let matters = if clock.certificates {
        "the dates of certificates, which this configuration checks, and of invitations depend on it"
    } else {
        "only the dates of invitations depend on it"
    };
    let finding = if clock.now < SystemTime::UNIX_EPOCH + EARLIEST {
        Finding::failed(
            Check::Clock,
            format!("{shown}: that was before this program was made"),
            "set the clock; timedatectl set-ntp true keeps it in step",
        )
    } else if clock.far == FarEnd::Doubts {
        Finding::warning(
            Check::Clock,
            format!(
                "{shown}{step}: the server began later by its own clock, so one of the two is wrong"
            ),
            "compare both clocks (date -u); a session needs one more round trip to begin until then",
        )
    } else {
        let far = match clock.far {
            FarEnd::None => "",
            FarEnd::Unasked => "; the server's clock cannot be known",
            FarEnd::Doubts | FarEnd::Takes => {
                "; it is not behind the server's start; more of the server's clock cannot be known"
            }
        };
        Finding::ok(Check::Clock, format!("{shown}{step}; {matters}{far}"))
    };
    let unix = clock.now.duration_since(SystemTime::UNIX_EPOCH);
    finding.figure("unix_seconds", unix.unwrap_or_default().as_secs())
}

/// 2026-01-01: no clock that is right says less.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn clock_is_doubted_by_what_a_server_said_and_by_its_own_date() {
        let today = EARLIEST + Duration::from_secs(100 * 24 * 60 * 60);
        for (since, far, verdict, words) in [
            (
                Duration::ZERO,
                FarEnd::None,
                Verdict::Failed,
                "1970-01-01 00:00:00 UTC",
            ),
            (
                today,
                FarEnd::Doubts,
                Verdict::Warning,
                "one of the two is wrong",
            ),
            (
                today,
                FarEnd::Takes,
                Verdict::Ok,
                "not behind the server's start",
            ),
            (today, FarEnd::Unasked, Verdict::Ok, "cannot be known"),
        ] {
            let clock = Clock {
                now: SystemTime::UNIX_EPOCH + since,
                in_step: None,
                far,
                certificates: false,
            };
            let finding = judge(&clock);
            assert_eq!(finding.verdict, verdict, "{clock:?}");
            assert!(finding.words.contains(words), "{}", finding.words);
        }
    }

    #[test]
    fn what_the_kernel_knows_of_the_clock_is_told_and_fails_nothing() {
        let told = |in_step| {
            judge(&Clock {
                now: SystemTime::UNIX_EPOCH + EARLIEST,
                in_step,
                far: FarEnd::None,
                certificates: true,
            })
        };
        for in_step in [None, Some(true), Some(false)] {
            assert_eq!(told(in_step).verdict, Verdict::Ok);
        }
        assert!(told(Some(false)).words.contains("not kept in step"));
        assert!(told(None).words.contains("certificates"));
    }
}
