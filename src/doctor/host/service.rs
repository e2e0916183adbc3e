//! What a start would refuse: where it listens, its certificate, its state folder; and who may connect.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::super::finding::{Check, Finding};
use super::super::running::Held;
use crate::io::listen::BindError;

/// Judges whether an address can be listened on, of which `held` says what running programs say; `own_runs`: the program that
/// is looked at does.
pub fn port(free: Result<(), BindError>, held: Held, own_runs: bool) -> Finding {
    let taken = matches!(
        &free,
        Err(BindError::InUse { .. } | BindError::InUseByDatagrams { .. })
    );
    match (held, free) {
        (Held::Own, Err(_)) => Finding::ok(Check::Port, "the program that runs listens there"),
        (Held::Other(who), _) => {
            let next = "stop that, or write another address to one of the two";
            Finding::failed(Check::Port, format!("{who} listens there"), next)
        }
        (Held::Own, Ok(())) | (Held::Free, Ok(())) if own_runs => Finding::warning(
            Check::Port,
            "nobody listens there: the program that runs was told otherwise when it was started",
            "restart it: where it listens is read at the start only",
        ),
        (Held::Own | Held::Free, Ok(())) => Finding::ok(Check::Port, "free"),
        (Held::Free, Err(error)) if taken => Finding::failed(
            Check::Port,
            error.to_string(),
            "stop what has it (ss -ltunp shows it, to root of every user), or choose another",
        ),
        (Held::Free, Err(error)) => Finding::failed(
            Check::Port,
            error.to_string(),
            "choose another; a port below 1024 needs a right of its own (CAP_NET_BIND_SERVICE)",
        ),
    }
}

/// Judges a certificate by its dates.
pub fn certificate(
    file: &Path,
    (from, until): (SystemTime, SystemTime),
    now: SystemTime,
) -> Finding {
    let day = |at: SystemTime| time::OffsetDateTime::from(at).date().to_string();
    let renew = "renew it, then adit reload; clients that do not check certificates do not mind";
    let finding = if now < from {
        let words = format!("it is valid from {} on only", day(from));
        Finding::failed(
            Check::Certificate,
            words,
            "set the clock, or renew the certificate",
        )
    } else if now > until {
        Finding::failed(
            Check::Certificate,
            format!("it has expired on {}", day(until)),
            renew,
        )
    } else if now + SOON > until {
        Finding::warning(
            Check::Certificate,
            format!("it expires on {}", day(until)),
            renew,
        )
    } else {
        Finding::ok(Check::Certificate, format!("valid until {}", day(until)))
    };
    finding.about(file.display())
}

/// Judges who may connect.
pub fn clients(listed: usize, enrolled: io::Result<Option<usize>>) -> Finding {
    let enrolled = match enrolled {
        Ok(enrolled) => enrolled.unwrap_or(0),
        Err(error) => {
            let words = format!(
                "{listed} in the configuration; who has enrolled beside them cannot be read: {error}"
            );
            return if error.kind() == io::ErrorKind::PermissionDenied {
                Finding::skipped(Check::Clients, words)
            } else {
                let next = "move clients.json of the state folder aside only if all who joined by invitations may join anew";
                Finding::failed(Check::Clients, words, next)
            };
        }
    };
    let words = format!("{listed} in the configuration, {enrolled} enrolled by invitations");
    let finding = if listed + enrolled == 0 {
        Finding::warning(
            Check::Clients,
            format!("{words}: nobody can connect yet"),
            "adit invite NAME makes a link for one",
        )
    } else {
        Finding::ok(Check::Clients, words)
    };
    finding
        .figure("listed", listed)
        .figure("enrolled", enrolled)
}

/// Judges the folder of what outlives the program: whether it is there, can be written to or made, and who has it.
pub fn state(folder: &Path, there: bool, writable: bool, held: Held) -> Finding {
    match (held, there, writable) {
        (Held::Own, _, _) => Finding::ok(Check::State, "the program that runs has it"),
        (Held::Other(who), _, _) => Finding::failed(
            Check::State,
            format!("{who} has it"),
            "stop that, or give one of the two another `state_dir`",
        ),
        (Held::Free, true, true) => Finding::ok(Check::State, "can be written to"),
        (Held::Free, false, true) => {
            Finding::ok(Check::State, "is not there yet; the first start makes it")
        }
        (Held::Free, _, false) => Finding::failed(
            Check::State,
            "this user may not write to it",
            "look as the user whom the program runs as, give the folder to that user, or set another `state_dir`",
        ),
    }
    .about(folder.display())
}

/// Who renews by hand needs some days.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::*;

    #[test]
    fn certificate_is_told_to_be_renewed_two_weeks_before_its_end() {
        let day = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(day * 24 * 60 * 60);
        for (now, verdict) in [
            (99, Verdict::Failed),
            (100, Verdict::Ok),
            (186, Verdict::Ok),
            (187, Verdict::Warning),
            (201, Verdict::Failed),
        ] {
            let finding = certificate(Path::new("tls.crt"), (day(100), day(200)), day(now));
            assert_eq!(finding.verdict, verdict, "day {now}");
        }
    }

    #[test]
    fn server_that_nobody_may_use_is_told_so_and_a_list_that_makes_no_sense_fails() {
        let broken = || Err(io::Error::other("line 3"));
        for (listed, enrolled, verdict) in [
            (0, Ok(None), Verdict::Warning),
            (0, Ok(Some(1)), Verdict::Ok),
            (1, Ok(None), Verdict::Ok),
            (
                1,
                Err(io::ErrorKind::PermissionDenied.into()),
                Verdict::Skipped,
            ),
            (1, broken(), Verdict::Failed),
        ] {
            assert_eq!(clients(listed, enrolled).verdict, verdict);
        }
    }

    fn other() -> Held {
        Held::Other("the server (process 7)".to_owned())
    }

    #[test]
    fn folder_is_judged_by_who_has_it_and_whether_it_can_be_written_to() {
        let folder = Path::new("/var/lib/adit");
        for (there, writable, held, verdict) in [
            (true, true, Held::Free, Verdict::Ok),
            (false, true, Held::Free, Verdict::Ok),
            (true, false, Held::Free, Verdict::Failed),
            (false, false, Held::Free, Verdict::Failed),
            (true, false, Held::Own, Verdict::Ok),
            (true, true, other(), Verdict::Failed),
        ] {
            let shown = format!("{there} {writable} {held:?}");
            assert_eq!(
                state(folder, there, writable, held).verdict,
                verdict,
                "{shown}"
            );
        }
    }

    #[test]
    fn address_is_judged_by_who_listens_there() {
        for (held, own_runs, verdict) in [
            (Held::Free, false, Verdict::Ok),
            (Held::Free, true, Verdict::Warning),
            (Held::Own, true, Verdict::Warning),
            (other(), false, Verdict::Failed),
        ] {
            let shown = format!("{held:?} {own_runs}");
            assert_eq!(port(Ok(()), held, own_runs).verdict, verdict, "{shown}");
        }
        for (held, verdict) in [
            (Held::Free, Verdict::Failed),
            (Held::Own, Verdict::Ok),
            (other(), Verdict::Failed),
        ] {
            let taken = Err(BindError::InUse {
                address: "127.0.0.1:7443".parse().unwrap(),
            });
            assert_eq!(port(taken, held, true).verdict, verdict);
        }
    }
}
