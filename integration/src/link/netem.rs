//! The same link for the kernel: arguments of `tc qdisc … netem`.

use std::time::Duration;

use super::path::{Limit, Link, Loss, Path};

/// What follows `tc qdisc add dev DEVICE root`, for one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetemArguments {
    /// The words, beginning with `netem`.
    pub words: Vec<String>,
    /// Knobs of the path that netem does not have, or has with another meaning, and that were left out.
    pub left_out: Vec<&'static str>,
}

impl Link {
    /// The arguments for the device whose egress is the uplink and for the one whose egress is the downlink.
    pub fn netem_arguments(&self) -> (NetemArguments, NetemArguments) {
        (self.up.netem_arguments(), self.down.netem_arguments())
    }
}

impl Path {
    /// The arguments for the device whose egress is this path.
    ///
    /// Netem has one limit, in packets, for what waits for the rate and what is under way together. It is computed
    /// for packets of 1,514 bytes, and holds fewer bytes of small ones.
    pub fn netem_arguments(&self) -> NetemArguments {
        let mut words = vec![
            "netem".to_owned(),
            "limit".to_owned(),
            self.netem_limit().to_string(),
        ];
        let mut left_out = Vec::new();
        let mut push = |list: &[String]| words.extend_from_slice(list);
        if !self.delay.is_zero() || !self.jitter.is_zero() {
            push(&["delay".to_owned(), microseconds(self.delay)]);
        }
        if !self.jitter.is_zero() {
            push(&[microseconds(self.jitter)]);
            if !self.overtaking {
                left_out.push("jitter that keeps the order");
            }
        }
        let percent = |value: f64| format!("{value:.6}%");
        match self.loss {
            Loss::None => {}
            Loss::Random { percent: loss } => {
                push(&["loss".to_owned(), "random".to_owned(), percent(loss)])
            }
            Loss::Burst { .. } | Loss::Gilbert { .. } => {
                if let Some((p, r, bad, good)) = self.loss.chain() {
                    push(&["loss".to_owned(), "gemodel".to_owned()]);
                    push(&[percent(p), percent(r), percent(bad), percent(good)]);
                }
            }
        }
        if self.after && self.loss != Loss::None {
            left_out.push("losses behind the bottleneck");
        }
        if self.duplicate > 0.0 {
            push(&["duplicate".to_owned(), percent(self.duplicate)]);
        }
        if self.reorder > 0.0 {
            push(&[
                "reorder".to_owned(),
                percent(self.reorder),
                "gap".to_owned(),
                self.gap.to_string(),
            ]);
        }
        if self.rate > 0 {
            push(&["rate".to_owned(), format!("{}bit", self.rate)]);
            // the kernel counts the header of Ethernet as part of the packet
            let beyond = i64::from(self.overhead) - i64::from(ETHERNET);
            if beyond != 0 {
                push(&[beyond.to_string()]);
            }
        }
        if self.mtu > 0 {
            // a property of the device: `ip link set DEVICE mtu`
            left_out.push("mtu");
        }
        if self.ecn.is_some() {
            // netem's own ecn marks what it would lose
            left_out.push("ecn");
        }
        NetemArguments { words, left_out }
    }

    fn netem_limit(&self) -> u64 {
        let per_packet = u64::from(ETHERNET + INNER);
        let packets_in = |time: Duration| {
            let bytes = time.as_secs_f64() * self.rate as f64 / 8.0;
            (bytes / per_packet as f64).ceil() as u64
        };
        if self.rate == 0 {
            return UNLIMITED;
        }
        let queue = match self.limit {
            Limit::Bytes(bytes) => bytes.div_ceil(per_packet),
            Limit::Packets(packets) => packets,
            Limit::Time(time) => packets_in(time),
        };
        queue
            .saturating_add(packets_in(self.delay + self.jitter))
            .clamp(1, UNLIMITED)
    }
}

impl std::fmt::Display for NetemArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

fn microseconds(time: Duration) -> String {
    format!("{}us", time.as_micros())
}

/// The header of Ethernet.
const ETHERNET: u32 = 14;
/// The packet in it.
const INNER: u32 = 1500;
/// More than a kernel of 64 MiB would ever hold.
const UNLIMITED: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let link: Link = text.parse().unwrap();
        link.netem_arguments().0.to_string()
    }

    #[test]
    fn link_of_the_lossy_suite_becomes_one_netem() {
        assert_eq!(
            words("loss=5,delay=25,rate=50,limit=100ms"),
            // 125 ms of 50 Mbit/s in packets of 1,514 bytes
            "netem limit 517 delay 25000us loss random 5.000000% rate 50000000bit"
        );
    }

    #[test]
    fn bursts_become_a_gemodel_of_the_same_rate_and_length() {
        assert_eq!(
            words("loss=5,burst=4,delay=25"),
            "netem limit 1000000 delay 25000us loss gemodel 1.315789% 25.000000% 100.000000% 0.000000%"
        );
    }

    #[test]
    fn every_knob_that_netem_has_is_passed_on() {
        assert_eq!(
            words(
                "delay=10,jitter=2,overtaking=1,duplicate=1,reorder=5,gap=3,rate=10,overhead=18,limit=50p"
            ),
            "netem limit 60 delay 10000us 2000us duplicate 1.000000% reorder 5.000000% gap 3 rate 10000000bit 4"
        );
    }

    #[test]
    fn what_netem_cannot_do_is_named() {
        let link: Link = "loss=1,after=1,jitter=2,ecn=5,rate=10".parse().unwrap();
        assert_eq!(
            link.up.netem_arguments().left_out,
            [
                "jitter that keeps the order",
                "losses behind the bottleneck",
                "ecn"
            ]
        );
    }
}
