//! What a way is like: how long it takes, what it loses, how long a datagram it carries, what it does under load.

use std::net::IpAddr;
use std::time::Duration;

use super::finding::{Check, Finding};
use super::way::millis;
use crate::config::{FixedRepair, LaneAddr, Repair};
use crate::proto::datapath::Spending;
use crate::proto::repair::RepairScope;
use crate::wire::{BASE_DATAGRAM, DATAGRAM_PACKET_OVERHEAD};

/// Echoes of one stretch of time: how long those took that were answered.
#[derive(Clone, Debug, Default)]
pub struct Echoes {
    /// Sent.
    pub sent: u64,
    /// How long each took that was answered, in no order.
    pub answered: Vec<Duration>,
}

impl Echoes {
    /// The time within which this share of those was answered that were at all, 0 to 1.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.answered.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * share).round() as usize).copied()
    }

    fn median(&self) -> Option<Duration> {
        self.quantile(0.5)
    }
}

/// Which way datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From here to the server.
    Uplink,
    /// From the server to here.
    Downlink,
}

/// What became of datagrams in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Those whose fate is known.
    pub decided: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Runs of consecutive losses.
    pub runs: u64,
}

/// How long a datagram a way carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carries {
    /// Bytes of the longest datagram that passed.
    pub datagram: usize,
    /// Whether the search was over.
    pub settled: bool,
    /// Where it goes.
    pub remote: IpAddr,
    /// The longest packet inside.
    pub inner_mtu: u16,
}

/// A while of as much as the way carries.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Bytes of packets sent.
    pub sent_bytes: u64,
    /// Bytes of packets that came back.
    pub returned_bytes: u64,
    /// How long it was until the last of them came back.
    pub took: Duration,
    /// By what it ended.
    pub ended: Ended,
    /// Short echoes beside it.
    pub echoes: Echoes,
}

/// What ends a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// All bytes were sent that may be.
    Bytes,
    /// The time was over.
    #[default]
    Time,
}

/// Judges the round trips of a way on which nothing else was sent.
pub fn round_trip(server: &LaneAddr, echoes: &Echoes) -> Finding {
    let [least, median, most] = [0.0, 0.5, 0.95].map(|share| echoes.quantile(share).map(millis));
    let (Some(least), Some(median), Some(most)) = (least, median, most) else {
        let words = format!(
            "none of {} echoes was answered, though the session stands",
            echoes.sent
        );
        return Finding::failed(Check::RoundTrip, words, "look at the server's log").about(server);
    };
    let words = format!(
        "{median} ms, at least {least} ms, 95 of 100 within {most} ms; {} of {} echoes were answered",
        echoes.answered.len(),
        echoes.sent
    );
    Finding::ok(Check::RoundTrip, words)
        .about(server)
        .figure("median_ms", median)
        .figure("least_ms", least)
        .figure("p95_ms", most)
        .figure("sent", echoes.sent)
        .figure("answered", echoes.answered.len())
}

/// Judges what is lost in one direction of a way by datagrams.
pub fn loss(direction: Direction, losses: &Losses, repair: Repair) -> Finding {
    let about = match direction {
        Direction::Uplink => "to the server",
        Direction::Downlink => "from the server",
    };
    let Losses {
        decided,
        lost,
        runs,
    } = *losses;
    if decided < FEW {
        let why = format!("only {decided} datagrams went that way, too few to tell");
        return Finding::skipped(Check::Loss, why).about(about);
    }
    let percent = (lost as f64 / decided as f64 * 1e3).round() / 10.0;
    let burst = if runs == 0 {
        0.0
    } else {
        (lost as f64 / runs as f64).max(1.0)
    };
    let words = match lost {
        0 => format!("none of {decided} datagrams"),
        _ => format!(
            "{percent} % of {decided} datagrams: {lost} in {runs} bursts, {burst:.1} in a row on average"
        ),
    };
    let finding = if percent < MUCH_LOSS {
        Finding::ok(Check::Loss, words)
    } else {
        Finding::warning(Check::Loss, words, about_loss(repair))
    };
    finding
        .about(about)
        .figure("datagrams", decided)
        .figure("lost", lost)
        .figure("bursts", runs)
        .figure("percent", percent)
}

fn about_loss(repair: Repair) -> &'static str {
    match repair {
        Repair::Off => {
            "`repair: off` leaves that to the flows inside: set it to auto; then look at Wi-Fi, cabling or the provider"
        }
        Repair::Auto | Repair::Fixed(_) => {
            "repair makes up for it at the price of some more datagrams; look at Wi-Fi, cabling or the provider for the cause"
        }
    }
}

/// Judges how long a datagram passes.
pub fn path_mtu(server: &LaneAddr, carries: &Carries) -> Finding {
    let Carries {
        datagram,
        settled,
        remote,
        inner_mtu,
    } = *carries;
    // RFC 791 and RFC 8200 without options, and RFC 768.
    let headers = match remote.to_canonical() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    };
    let packet = datagram + headers;
    let whole = datagram.saturating_sub(DATAGRAM_PACKET_OVERHEAD);
    let finding = if !settled {
        let why = format!(
            "the search was not over in time; packets of {packet} bytes pass, perhaps longer ones"
        );
        Finding::skipped(Check::PathMtu, why)
    } else if whole >= usize::from(inner_mtu) {
        let words = format!(
            "packets of {packet} bytes pass, and each packet of {inner_mtu} bytes inside goes whole"
        );
        Finding::ok(Check::PathMtu, words)
    } else {
        let only = if datagram <= BASE_DATAGRAM {
            "no longer ones than every way carries: "
        } else {
            ""
        };
        let words = format!(
            "{only}packets of {packet} bytes pass; those of {inner_mtu} bytes inside are cut in two"
        );
        // 1280 is what IPv6 needs inside.
        let next = if whole >= 1280 {
            format!(
                "it works; `mtu: {whole}` at the server would spare all its clients the cutting"
            )
        } else {
            "it works; if more was expected, look for a tunnel or a PPP link on the way (its MTU)"
                .to_owned()
        };
        Finding::warning(Check::PathMtu, words, next)
    };
    finding
        .about(server)
        .figure("packet_bytes", packet)
        .figure("datagram_bytes", datagram)
        .figure("inner_mtu", inner_mtu)
        .figure("settled", settled)
}

/// Judges how much longer a round trip is while the way carries all that it can.
///
/// How fast a way is, is not what is measured: what came back has passed both directions, a bounded window at a time, and on
/// a fast way its bytes are spent before a queue is full.
pub fn bufferbloat(server: &LaneAddr, idle: &Echoes, load: &Load) -> Finding {
    let seconds = load.took.as_secs_f64();
    let megabytes = (load.sent_bytes as f64 / 1e5).round() / 10.0;
    let rate = (load.returned_bytes as f64 * 8.0 / seconds.max(1e-3) / 1e5).round() / 10.0;
    let (Some(idle), Some(loaded)) = (idle.median(), load.echoes.median()) else {
        let why = "no echo was answered beside the load";
        return Finding::skipped(Check::Bufferbloat, why).about(server);
    };
    let more = loaded.saturating_sub(idle);
    let (was, is, ms) = (millis(idle), millis(loaded), millis(more));
    let bound = match load.ended {
        Ended::Bytes => {
            "the way carries at least that much, and may queue more under a longer load"
        }
        Ended::Time => "the way carries at least that much in its slower direction",
    };
    let words = format!(
        "a round trip takes {ms} ms more under load ({was} ms idle, {is} ms loaded), by {megabytes} MB each way in \
         {seconds:.1} s, {rate} Mbit/s: {bound}"
    );
    let finding = if more < BLOAT {
        Finding::ok(Check::Bufferbloat, words)
    } else {
        Finding::warning(
            Check::Bufferbloat,
            words,
            "something on the way queues too much: turn on SQM (fq_codel or CAKE) at the router, a little below the \
             line's rate",
        )
    };
    finding
        .about(server)
        .figure("idle_ms", was)
        .figure("loaded_ms", is)
        .figure("more_ms", ms)
        .figure("bytes", load.sent_bytes)
        .figure("seconds", (seconds * 1e3).round() / 1e3)
        .figure("least_megabits_per_second", rate)
        .figure("all_bytes_sent", load.ended == Ended::Bytes)
}

/// What a session of this client would choose.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The way that carries it.
    pub best: &'a LaneAddr,
    /// The others that answer, in the order of the list.
    pub others: &'a [LaneAddr],
    /// How many streams stand side by side.
    pub lanes: usize,
    /// What the configuration says of repair.
    pub repair: Repair,
    /// What a session by datagrams spent on repair when it was asked last.
    pub spending: Option<Spending>,
}

/// Says which lanes and which repair a client chooses.
pub fn choice(choice: &Choice<'_>) -> Finding {
    let Choice {
        best,
        others,
        lanes,
        repair,
        spending,
    } = *choice;
    let others: Vec<String> = others.iter().map(LaneAddr::to_string).collect();
    let fallback = match others.as_slice() {
        [] => "nothing to fall back to answers".to_owned(),
        some => format!("falls back to {}", some.join(", ")),
    };
    let side_by_side = match (best.scheme.is_stream(), lanes) {
        (true, 2..) => format!(", {lanes} lanes of it side by side"),
        (true, _) | (false, _) => String::new(),
    };
    let repaired = if best.scheme.is_stream() {
        "TCP repairs its own losses".to_owned()
    } else {
        told_repair(repair, spending)
    };
    Finding::ok(
        Check::Choice,
        format!("carried by {best}{side_by_side}; {fallback}; {repaired}"),
    )
    .figure("lane", best.to_string())
    .figure("others", others)
    .figure(
        "parity",
        spending.map_or(0.0, |spending| (spending.parity * 1e4).round() / 1e4),
    )
}

fn told_repair(repair: Repair, spending: Option<Spending>) -> String {
    match (repair, spending) {
        (Repair::Off, _) => "nothing is repaired (`repair: off`)".to_owned(),
        (Repair::Fixed(FixedRepair { overhead_percent }), _) => {
            format!("always {overhead_percent} parity for 100 packets (`repair: fixed`)")
        }
        (Repair::Auto, None) => "repair follows the losses".to_owned(),
        (Repair::Auto, Some(spending)) => match spending.scope {
            RepairScope::Copies => {
                "losses are left to the flows inside, beside others that fill the queue".to_owned()
            }
            RepairScope::Resends => "what is lost is sent again, without parity".to_owned(),
            RepairScope::All if spending.parity > 0.0 => format!(
                "{:.0} parity for 100 packets, since {:.1} % are lost",
                spending.parity * 100.0,
                spending.loss * 100.0
            ),
            RepairScope::All => {
                "no parity, since too little is lost; what is lost is sent again".to_owned()
            }
        },
    }
}

/// Fewer datagrams tell nothing of a loss of some percent.
const FEW: u64 = 50;

/// Percent from which on a loss is felt, repair or not.
const MUCH_LOSS: f64 = 2.0;

/// From here on calls and games suffer.
const BLOAT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn server() -> LaneAddr {
        "udp://h:7443".parse().unwrap()
    }

    fn echoes(milliseconds: &[u64]) -> Echoes {
        Echoes {
            sent: 100,
            answered: milliseconds
                .iter()
                .copied()
                .map(Duration::from_millis)
                .collect(),
        }
    }

    #[test]
    fn loss_is_told_from_fifty_datagrams_on_and_is_much_from_two_percent_on() {
        for (decided, lost, runs, verdict, words) in [
            (0, 0, 0, Verdict::Skipped, "too few"),
            (49, 49, 1, Verdict::Skipped, "too few"),
            (400, 0, 0, Verdict::Ok, "none of 400"),
            (
                1000,
                19,
                19,
                Verdict::Ok,
                "1.9 % of 1000 datagrams: 19 in 19 bursts, 1.0 in a row",
            ),
            (
                1000,
                20,
                10,
                Verdict::Warning,
                "2 % of 1000 datagrams: 20 in 10 bursts, 2.0 in a row",
            ),
            // What came late has taken from the losses, and not from the bursts.
            (1000, 30, 60, Verdict::Warning, "1.0 in a row"),
        ] {
            let losses = Losses {
                decided,
                lost,
                runs,
            };
            let finding = loss(Direction::Downlink, &losses, Repair::Auto);
            assert_eq!(finding.verdict, verdict, "{losses:?}");
            assert!(finding.words.contains(words), "{}", finding.words);
        }
    }

    #[test]
    fn repair_that_is_off_is_the_first_thing_to_do_about_losses() {
        let losses = Losses {
            decided: 1000,
            lost: 50,
            runs: 50,
        };
        let next = |repair| loss(Direction::Uplink, &losses, repair).next.unwrap();
        assert!(next(Repair::Off).contains("set it to auto"));
        assert!(next(Repair::Auto).contains("repair makes up for it"));
    }

    #[test]
    fn path_mtu_is_enough_where_a_packet_inside_goes_whole() {
        let whole = 1400 + DATAGRAM_PACKET_OVERHEAD;
        for (datagram, settled, remote, verdict, packet) in [
            (whole, true, "192.0.2.1", Verdict::Ok, whole + 28),
            (whole, true, "2001:db8::1", Verdict::Ok, whole + 48),
            (whole, true, "::ffff:192.0.2.1", Verdict::Ok, whole + 28),
            (whole - 1, true, "192.0.2.1", Verdict::Warning, whole + 27),
            (
                BASE_DATAGRAM,
                true,
                "192.0.2.1",
                Verdict::Warning,
                BASE_DATAGRAM + 28,
            ),
            (whole - 1, false, "192.0.2.1", Verdict::Skipped, whole + 27),
        ] {
            let carries = Carries {
                datagram,
                settled,
                remote: remote.parse().unwrap(),
                inner_mtu: 1400,
            };
            let finding = path_mtu(&server(), &carries);
            assert_eq!(finding.verdict, verdict, "{carries:?}");
            assert_eq!(finding.figures["packet_bytes"], packet, "{carries:?}");
        }
    }

    #[test]
    fn bloat_is_what_a_load_adds_to_a_round_trip() {
        for (idle, loaded, verdict) in [
            (&[10, 11, 300][..], &[12, 13, 14][..], Verdict::Ok),
            (&[10], &[109], Verdict::Ok),
            (&[10], &[110], Verdict::Warning),
            (&[300], &[10], Verdict::Ok),
            (&[], &[10], Verdict::Skipped),
            (&[10], &[], Verdict::Skipped),
        ] {
            let load = Load {
                sent_bytes: 1 << 20,
                returned_bytes: 1 << 20,
                took: Duration::from_secs(1),
                ended: Ended::Time,
                echoes: echoes(loaded),
            };
            let finding = bufferbloat(&server(), &echoes(idle), &load);
            assert_eq!(finding.verdict, verdict, "{idle:?} {loaded:?}");
        }
    }

    #[test]
    fn rate_of_a_load_is_told_as_the_least_that_the_way_carries() {
        let told = |took, ended| {
            let load = Load {
                sent_bytes: 8_000_000,
                returned_bytes: 8_000_000,
                took: Duration::from_millis(took),
                ended,
                echoes: echoes(&[2]),
            };
            bufferbloat(&server(), &echoes(&[1]), &load)
        };
        let fast = told(64, Ended::Bytes);
        assert_eq!(fast.figures["least_megabits_per_second"], 1000.0);
        assert_eq!(fast.figures["all_bytes_sent"], true);
        assert!(
            fast.words
                .contains("at least that much, and may queue more")
        );
        let slow = told(3000, Ended::Time);
        assert_eq!(slow.figures["least_megabits_per_second"], 21.3);
        assert_eq!(slow.figures["all_bytes_sent"], false);
        assert!(slow.words.contains("in its slower direction"));
    }

    #[test]
    fn session_whose_echoes_are_not_answered_does_not_work() {
        assert_eq!(round_trip(&server(), &echoes(&[])).verdict, Verdict::Failed);
        let finding = round_trip(&server(), &echoes(&[30, 10, 20]));
        assert_eq!(finding.verdict, Verdict::Ok);
        assert_eq!(finding.figures["median_ms"], 20.0);
        assert_eq!(finding.figures["least_ms"], 10.0);
    }

    #[test]
    fn choice_names_the_lane_what_it_falls_back_to_and_the_repair_in_force() {
        let (udp, tls) = (server(), "tls://h:8443".parse().unwrap());
        let told = |best, others: &[LaneAddr], lanes, repair, spending| {
            choice(&Choice {
                best,
                others,
                lanes,
                repair,
                spending,
            })
            .words
        };
        let spending = |parity| {
            Some(Spending {
                scope: RepairScope::All,
                loss: 0.05,
                parity,
            })
        };
        let others = std::slice::from_ref(&tls);
        let words = told(&udp, others, 1, Repair::Auto, spending(0.25));
        assert!(
            words.contains("carried by udp://h:7443; falls back to tls://h:8443"),
            "{words}"
        );
        assert!(
            words.contains("25 parity for 100 packets, since 5.0 % are lost"),
            "{words}"
        );
        let words = told(&udp, &[], 1, Repair::Auto, spending(0.0));
        assert!(
            words.contains("nothing to fall back to") && words.contains("no parity"),
            "{words}"
        );
        let words = told(&udp, &[], 1, Repair::Off, spending(0.25));
        assert!(words.contains("nothing is repaired"), "{words}");
        let words = told(&tls, &[], 3, Repair::Auto, None);
        assert!(
            words.contains("3 lanes of it side by side") && words.contains("TCP repairs"),
            "{words}"
        );
    }
}
