//! What the host of a server gives it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::finding::{Check, Finding};
use crate::io::listen::BindError;
use crate::io::sysctl::Switch;
use crate::io::tun::OpenError;
use crate::server::egress::echo::PING_REMEDY;

/// What is asked of the host, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// A server of the configuration runs.
    pub running: bool,
    /// This user may change interfaces, routes and firewall rules.
    pub administers: bool,
}

/// Judges whether an address can be listened on.
pub fn port(at: &str, free: Result<(), BindError>, situation: Situation) -> Finding {
    match free {
        Ok(()) if situation.running => Finding::warning(
            Check::Port,
            "nobody listens there, though a server of this configuration runs",
            "restart it: where it listens is read at the start only",
        ),
        Ok(()) => Finding::ok(Check::Port, "free"),
        Err(BindError::InUse { .. } | BindError::InUseByDatagrams { .. }) if situation.running => {
            Finding::ok(Check::Port, "held, by the server that runs as it seems")
        }
        Err(error @ (BindError::InUse { .. } | BindError::InUseByDatagrams { .. })) => {
            Finding::failed(
                Check::Port,
                error.to_string(),
                "stop what has it (ss -ltunp shows it), or choose another in `listen`",
            )
        }
        Err(error) => Finding::failed(
            Check::Port,
            error.to_string(),
            "choose another in `listen`; a port below 1024 needs a right of its own (CAP_NET_BIND_SERVICE)",
        ),
    }
    .about(at)
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

/// Judges whether there is a TUN device to be had.
pub fn tun(name: &str, node: Result<(), OpenError>, situation: Situation) -> Finding {
    if situation.running {
        return Finding::ok(Check::Tun, format!("the server that runs has {name}"));
    }
    match node {
        Err(error) => {
            // What to do is among its words.
            Finding::failed(
                Check::Tun,
                error.to_string(),
                "do as it says, or look as the user whom the server runs as",
            )
        }
        Ok(()) if !situation.administers => {
            let missing = OpenError::Privilege {
                name: name.to_owned(),
            };
            Finding::failed(
                Check::Tun,
                missing.to_string(),
                "do as it says, or look as the user whom the server runs as",
            )
        }
        Ok(()) => Finding::ok(Check::Tun, format!("{name} can be made")),
    }
}

/// Judges the switches that make the host a router.
pub fn forwarding(switch: &Switch, situation: Situation) -> Finding {
    let Switch { name, on, writable } = *switch;
    let by_hand = format!("sysctl -w {name}=1 (for a container: docker run --sysctl {name}=1)");
    match on {
        None => Finding::failed(
            Check::Forwarding,
            "this kernel has no such switch",
            "turn the family off by `network: off` or `network6: off`",
        ),
        Some(true) => Finding::ok(Check::Forwarding, "on"),
        Some(false) if situation.running => {
            let words = "off, though the server runs: nothing is forwarded for clients";
            Finding::failed(Check::Forwarding, words, by_hand)
        }
        Some(false) if writable && situation.administers => Finding::ok(
            Check::Forwarding,
            "off; the server turns it on when it starts, and off again at its end",
        ),
        Some(false) => Finding::failed(
            Check::Forwarding,
            "off, and this user cannot turn it on",
            by_hand,
        ),
    }
    .about(name)
}

/// What the packet filter is like.
#[derive(Debug)]
pub struct Filter {
    /// Whether the server's own table is loaded.
    pub own: bool,
    /// Foreign chains that would drop what is forwarded, in words.
    pub obstacles: Vec<String>,
}

/// Judges the packet filter.
pub fn nftables(filter: io::Result<Filter>, situation: Situation) -> Vec<Finding> {
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) if !situation.administers => {
            let why = format!("rules are shown to those only who have CAP_NET_ADMIN ({error})");
            return vec![Finding::skipped(Check::Nftables, why)];
        }
        Err(error) => {
            let words = format!("the kernel's rules cannot be listed: {error}");
            let next = "load its modules nf_tables, nft_ct, nft_masq and nft_chain_nat; Linux 5.2 is needed";
            return vec![Finding::failed(Check::Nftables, words, next)];
        }
    };
    let own = match (situation.running, filter.own) {
        (true, false) => Finding::failed(
            Check::Nftables,
            "a server of this configuration runs, and its own rules are gone",
            "restart it; see what flushes the rules (nft flush ruleset, a firewall's restart)",
        ),
        (true, true) => Finding::ok(Check::Nftables, "the server's own rules are loaded"),
        (false, _) => Finding::ok(
            Check::Nftables,
            "usable; the server loads its own rules when it starts",
        ),
    };
    let foreign = filter.obstacles.into_iter().map(|words| {
        Finding::warning(
            Check::Nftables,
            words,
            "run the command that it names, or let its firewall know the tunnel",
        )
    });
    std::iter::once(own).chain(foreign).collect()
}

/// Judges the table of connections that masquerading needs; the kernel has none before the first rule.
pub fn conntrack(count: Option<u64>, max: Option<u64>) -> Finding {
    let (Some(count), Some(max)) = (count, max) else {
        let why = "the kernel follows no connections yet; it begins with the server's rules";
        return Finding::skipped(Check::Conntrack, why);
    };
    let words = format!("{count} of {max} connections are in use");
    let next = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        max.saturating_mul(4)
    );
    let finding = if count >= max / 10 * 9 {
        Finding::failed(
            Check::Conntrack,
            format!("{words}: new ones are about to be dropped"),
            next,
        )
    } else if count >= max / 2 || max < LEAST_CONNECTIONS {
        Finding::warning(Check::Conntrack, words, next)
    } else {
        Finding::ok(Check::Conntrack, words)
    };
    finding.figure("count", count).figure("max", max)
}

/// Descriptors, of a server that runs or of whatever is started from here.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// How many are open, of a server that runs.
    pub open: Option<u64>,
    /// How many may be; `None`: any number.
    pub most: Option<u64>,
    /// How many are needed where every client has a session.
    pub sessions: u64,
    /// Whether each flow of theirs needs one, too.
    pub flows: bool,
}

/// Judges whether there are enough.
pub fn descriptors(descriptors: Descriptors) -> Finding {
    let Descriptors {
        open,
        most,
        sessions,
        flows,
    } = descriptors;
    let Some(most) = most else {
        return Finding::ok(Check::Descriptors, "any number may be open");
    };
    // A lane by a stream has one each; the program itself a few.
    let wanted = sessions.saturating_add(OWN);
    let wanted = if flows {
        wanted.saturating_add(sessions.saturating_mul(FLOWS))
    } else {
        wanted
    };
    let whose = match open {
        Some(open) => format!("{open} of {most} are open at the server"),
        None => format!("{most} may be open"),
    };
    let next = "LimitNOFILE= in its unit, ulimit -n in a shell, --ulimit nofile= of docker run; or a smaller `max_clients`";
    let finding = if open.is_some_and(|open| open >= most / 10 * 9) {
        Finding::failed(
            Check::Descriptors,
            format!("{whose}: connections are about to be refused"),
            next,
        )
    } else if most < wanted {
        let each = if flows {
            format!(" with {FLOWS} flows each")
        } else {
            String::new()
        };
        let words =
            format!("{whose}; {sessions} sessions (`max_clients`){each} would need {wanted}");
        Finding::warning(Check::Descriptors, words, next)
    } else {
        Finding::ok(Check::Descriptors, whose)
    };
    finding.figure("most", most).figure("wanted", wanted)
}

/// Judges how much of a burst the kernel keeps for a socket of datagrams; `wanted` is what is asked for.
pub fn buffers(name: &str, most: Option<u64>, wanted: u64) -> Finding {
    let Some(most) = most else {
        return Finding::skipped(
            Check::Buffers,
            "the kernel does not tell (a container's /proc may hide it)",
        )
        .about(name);
    };
    let finding = if most >= wanted {
        Finding::ok(Check::Buffers, format!("{most} bytes"))
    } else {
        Finding::warning(
            Check::Buffers,
            format!(
                "{most} bytes, and sockets of datagrams ask for {wanted}: fast bursts are lost at this host"
            ),
            format!("sysctl -w {name}={wanted} on the host"),
        )
    };
    finding
        .about(name)
        .figure("bytes", most)
        .figure("wanted", wanted)
}

/// Judges whether clients can ping through the egress `user`.
pub fn ping(permitted: io::Result<()>) -> Finding {
    match permitted {
        Ok(()) => Finding::ok(Check::Ping, "this system gives this user ping sockets"),
        Err(error) => Finding::warning(
            Check::Ping,
            format!(
                "this system gives this user no ping sockets ({error}): clients' pings are lost, all else works"
            ),
            PING_REMEDY,
        ),
    }
}

/// Judges who may connect.
pub fn clients(listed: usize, enrolled: io::Result<Option<usize>>) -> Finding {
    let enrolled = match enrolled {
        Ok(enrolled) => enrolled.unwrap_or(0),
        Err(error) => {
            let words = format!(
                "{listed} are listed; who has enrolled beside them cannot be read: {error}"
            );
            return if error.kind() == io::ErrorKind::PermissionDenied {
                Finding::skipped(Check::Clients, words)
            } else {
                let next = "move clients.json of the state folder aside only if all who joined by invitations may join anew";
                Finding::failed(Check::Clients, words, next)
            };
        }
    };
    let words = format!("{listed} are listed, {enrolled} have enrolled by invitations");
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

/// Judges the folder of what outlives the server: whether it is there, and can be written to or made.
pub fn state(folder: &Path, there: bool, writable: bool, situation: Situation) -> Finding {
    match (there, writable) {
        _ if situation.running => Finding::ok(Check::State, "the server that runs has it"),
        (true, true) => Finding::ok(Check::State, "can be written to"),
        (false, true) => Finding::ok(Check::State, "is not there yet; the first start makes it"),
        (_, false) => Finding::failed(
            Check::State,
            "this user may not write to it",
            "look as the user whom the server runs as, give the folder to that user, or set another `state_dir`",
        ),
    }
    .about(folder.display())
}

/// Who renews by hand needs some days.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A household's router has more.
const LEAST_CONNECTIONS: u64 = 16_384;

/// Descriptors of the program itself.
const OWN: u64 = 64;

/// Flows that a client has open on average, those among them that rest.
const FLOWS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const IDLE: Situation = Situation {
        running: false,
        administers: true,
    };
    const RUNS: Situation = Situation {
        running: true,
        administers: true,
    };
    const ORDINARY: Situation = Situation {
        running: false,
        administers: false,
    };

    #[test]
    fn forwarding_that_is_off_is_the_servers_business_only_where_it_can_turn_it_on() {
        for (on, writable, situation, verdict) in [
            (Some(true), false, ORDINARY, Verdict::Ok),
            (Some(true), true, RUNS, Verdict::Ok),
            (Some(false), true, IDLE, Verdict::Ok),
            (Some(false), false, IDLE, Verdict::Failed),
            (Some(false), false, ORDINARY, Verdict::Failed),
            (Some(false), true, RUNS, Verdict::Failed),
            (None, true, IDLE, Verdict::Failed),
        ] {
            let switch = Switch {
                name: "net.ipv4.ip_forward",
                on,
                writable,
            };
            let finding = forwarding(&switch, situation);
            assert_eq!(finding.verdict, verdict, "{switch:?} {situation:?}");
        }
    }

    #[test]
    fn rules_that_are_gone_under_a_server_fail_and_foreign_ones_that_drop_warn() {
        let filter = |own, obstacles: &[&str]| {
            Ok(Filter {
                own,
                obstacles: obstacles.iter().map(ToString::to_string).collect(),
            })
        };
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        for (filter, situation, verdicts) in [
            (filter(true, &[]), RUNS, &[Verdict::Ok][..]),
            (filter(false, &[]), RUNS, &[Verdict::Failed]),
            (filter(false, &[]), IDLE, &[Verdict::Ok]),
            (
                filter(false, &["ufw drops"]),
                IDLE,
                &[Verdict::Ok, Verdict::Warning],
            ),
            (denied(), ORDINARY, &[Verdict::Skipped]),
            (denied(), IDLE, &[Verdict::Failed]),
        ] {
            let found: Vec<_> = nftables(filter, situation)
                .iter()
                .map(|one| one.verdict)
                .collect();
            assert_eq!(found, verdicts);
        }
    }

    #[test]
    fn conntrack_warns_when_half_full_or_small_and_fails_when_full() {
        for (count, max, verdict) in [
            (None, Some(65_536), Verdict::Skipped),
            (Some(10), None, Verdict::Skipped),
            (Some(10), Some(65_536), Verdict::Ok),
            (Some(10), Some(8192), Verdict::Warning),
            (Some(32_768), Some(65_536), Verdict::Warning),
            (Some(60_000), Some(65_536), Verdict::Failed),
        ] {
            assert_eq!(
                conntrack(count, max).verdict,
                verdict,
                "{count:?} of {max:?}"
            );
        }
    }

    #[test]
    fn descriptors_are_too_few_where_all_clients_at_once_would_need_more() {
        for (open, most, sessions, flows, verdict) in [
            (None, None, 1 << 20, true, Verdict::Ok),
            (None, Some(1024), 1000, false, Verdict::Warning),
            (None, Some(4096), 1000, false, Verdict::Ok),
            (None, Some(4096), 1000, true, Verdict::Warning),
            (None, Some(1 << 20), 1000, true, Verdict::Ok),
            (Some(100), Some(4096), 1000, false, Verdict::Ok),
            (Some(4000), Some(4096), 1000, false, Verdict::Failed),
        ] {
            let asked = Descriptors {
                open,
                most,
                sessions,
                flows,
            };
            assert_eq!(descriptors(asked).verdict, verdict, "{asked:?}");
        }
    }

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

    #[test]
    fn device_folder_and_buffers_are_judged_by_who_asks_and_what_is_wanted() {
        assert_eq!(tun("adit0", Ok(()), IDLE).verdict, Verdict::Ok);
        assert_eq!(tun("adit0", Ok(()), ORDINARY).verdict, Verdict::Failed);
        assert_eq!(tun("adit0", Ok(()), RUNS).verdict, Verdict::Ok);
        let folder = Path::new("/var/lib/adit");
        for (there, writable, situation, verdict) in [
            (true, true, IDLE, Verdict::Ok),
            (false, true, IDLE, Verdict::Ok),
            (true, false, IDLE, Verdict::Failed),
            (false, false, ORDINARY, Verdict::Failed),
            (true, false, RUNS, Verdict::Ok),
        ] {
            assert_eq!(state(folder, there, writable, situation).verdict, verdict);
        }
        for (most, verdict) in [
            (None, Verdict::Skipped),
            (Some(212_992), Verdict::Warning),
            (Some(4 << 20), Verdict::Ok),
        ] {
            assert_eq!(buffers("net.core.rmem_max", most, 4 << 20).verdict, verdict);
        }
    }
}
