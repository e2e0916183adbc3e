//! What lets clients' packets out: the TUN device, forwarding, the packet filter and its table of connections; pings.

use std::io;

use super::super::finding::{Check, Finding};
use super::super::running::Held;
use crate::io::sysctl::Switch;
use crate::io::tun::OpenError;
use crate::server::egress::echo::PING_REMEDY;

/// What is asked of the host, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// A server of the configuration runs, and has the device that is written.
    pub running: bool,
    /// This user may change interfaces, routes and firewall rules.
    pub administers: bool,
}

/// What is found of a TUN device.
#[derive(Debug)]
pub struct Device<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether devices can be made.
    pub node: Result<(), OpenError>,
    /// Whether there is an interface of that name.
    pub there: bool,
    /// Who has it.
    pub held: Held,
}

/// Judges whether there is a TUN device to be had.
pub fn tun(device: Device<'_>, administers: bool) -> Finding {
    let Device {
        name,
        node,
        there,
        held,
    } = device;
    let other = "stop what has it, or write another `tun.name`";
    match (held, node) {
        (Held::Own, _) => Finding::ok(Check::Tun, format!("the server that runs has {name}")),
        (Held::Other(who), _) => Finding::failed(Check::Tun, format!("{who} has {name}"), other),
        (Held::Free, Err(error)) => {
            // What to do is among its words.
            Finding::failed(Check::Tun, error.to_string(), LOOK_AS_SERVER)
        }
        (Held::Free, Ok(())) if !administers => {
            let missing = OpenError::Privilege {
                name: name.to_owned(),
            };
            Finding::failed(Check::Tun, missing.to_string(), LOOK_AS_SERVER)
        }
        (Held::Free, Ok(())) if there => {
            let words = format!(
                "there is an interface {name}, of a program that cannot be asked: of another user, or none of Adit"
            );
            Finding::failed(Check::Tun, words, other)
        }
        (Held::Free, Ok(())) => Finding::ok(Check::Tun, format!("{name} can be made")),
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

/// Judges whether clients can ping through the egress `user`.
pub fn ping(permitted: io::Result<()>) -> Finding {
    match permitted {
        Ok(()) => Finding::ok(Check::Ping, "this system gives this user ping sockets"),
        Err(error) => Finding::warning(
            Check::Ping,
            format!(
                "this system gives this user no ping sockets ({error}): clients' pings are refused, all else works"
            ),
            PING_REMEDY,
        ),
    }
}

/// What to do about a right that is missing.
const LOOK_AS_SERVER: &str = "do as it says, or look as the user whom the server runs as";

/// A household's router has more.
const LEAST_CONNECTIONS: u64 = 16_384;

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
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
    fn device_is_judged_by_who_has_it_and_who_asks() {
        let other = || Held::Other("the client (process 7)".to_owned());
        for (held, there, administers, verdict) in [
            (Held::Free, false, true, Verdict::Ok),
            (Held::Free, false, false, Verdict::Failed),
            (Held::Free, true, true, Verdict::Failed),
            (Held::Own, true, true, Verdict::Ok),
            (Held::Own, true, false, Verdict::Ok),
            (other(), true, true, Verdict::Failed),
        ] {
            let shown = format!("{held:?} {there} {administers}");
            let device = Device {
                name: "adit0",
                node: Ok(()),
                there,
                held,
            };
            assert_eq!(tun(device, administers).verdict, verdict, "{shown}");
        }
    }
}
