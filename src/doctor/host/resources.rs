//! How much there is of what the kernel counts: descriptors, and buffers of sockets.

use super::super::finding::{Check, Finding};

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

/// Judges how many packets the kernel has dropped since it started because they waited for a processor that was behind: `stat` is
/// /proc/net/softnet_stat, a line each processor, hexadecimal, packets first and dropped ones second; `most` may wait for each.
pub fn backlog(stat: Option<&str>, most: Option<u64>) -> Finding {
    let name = "net.core.netdev_max_backlog";
    let sum = |column| -> Option<u64> {
        let mut lines = stat?.lines();
        lines.try_fold(0_u64, |sum, line| {
            let field = line.split_ascii_whitespace().nth(column)?;
            Some(sum.saturating_add(u64::from_str_radix(field, 16).ok()?))
        })
    };
    let (Some(packets), Some(dropped), Some(most)) = (sum(0), sum(1), most) else {
        return Finding::skipped(
            Check::Buffers,
            "the kernel does not tell (a container's /proc may hide it)",
        )
        .about(name);
    };
    let words = format!(
        "{most} packets may wait for a processor; {dropped} of {packets} were dropped since this host started"
    );
    let finding = if dropped > packets / DROPPED_AMONG {
        let next = format!("sysctl -w {name}={} on the host", most.saturating_mul(4));
        Finding::warning(Check::Buffers, words, next)
    } else {
        Finding::ok(Check::Buffers, words)
    };
    finding
        .about(name)
        .figure("packets", packets)
        .figure("dropped", dropped)
        .figure("most", most)
}

/// One packet dropped among so many is what downloads begin to feel on a long path; fewer are a burst long ago.
const DROPPED_AMONG: u64 = 10_000;

/// Descriptors of the program itself.
const OWN: u64 = 64;

/// Flows that a client has open on average, those among them that rest.
const FLOWS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::super::super::finding::Verdict;
    use super::*;

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
    fn packets_dropped_before_a_processor_are_summed_up_over_all_of_them() {
        let stat = "000f4240 00000000 00000001 00000000\n000f4240 000000c9 00000000 00000000\n";
        let found = backlog(Some(stat), Some(1000));
        assert_eq!(found.verdict, Verdict::Warning, "201 of two millions");
        assert_eq!(found.figures["dropped"], 201);
        assert!(found.words.contains("201 of 2000000"), "{}", found.words);
        let fewer = stat.replace("c9", "c8");
        assert_eq!(backlog(Some(&fewer), Some(1000)).verdict, Verdict::Ok);
        for (stat, most) in [
            (None, Some(1000)),
            (Some("no"), Some(1)),
            (Some(stat), None),
        ] {
            assert_eq!(backlog(stat, most).verdict, Verdict::Skipped);
        }
    }

    #[test]
    fn buffers_are_judged_by_what_sockets_ask_for() {
        for (most, verdict) in [
            (None, Verdict::Skipped),
            (Some(212_992), Verdict::Warning),
            (Some(4 << 20), Verdict::Ok),
        ] {
            assert_eq!(buffers("net.core.rmem_max", most, 4 << 20).verdict, verdict);
        }
    }
}
