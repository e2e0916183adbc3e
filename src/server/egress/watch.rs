//! Keeps the interface of the egress `tun` as it was set up, for as long as the server runs.
//!
//! Somebody may switch it off, or take its addresses: it is mended at once, as whoever did that by mistake wants it, or its
//! clients' packets would go nowhere and nobody would be told. Where somebody has *deleted* it, the server ends with an
//! error: rules and routes of others that named the interface are gone with it, so whoever restarts servers has to see it.
//! The device of the next start is a new one.
//!
//! Where somebody else's program wants it otherwise, each mends what the other has done, for ever. That is told with how often,
//! at first at once and then ever less often.
//!
//! A host may have its IPv6 switched off altogether, which takes the interface's addresses, too: that is not for us to undo.
//! It is told, IPv4 is looked after as before, and IPv6 is set up again once the host has it.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::super::run::RunError;
use crate::io::clock;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::network::NetworkWatch;
use crate::io::sysctl;
use crate::io::tun::{TunSettings, calm_interface};

/// Looks at the interface whenever something of the host's network changes; ends when it is gone.
pub async fn keep(settings: &TunSettings) -> RunError {
    let mut network = NetworkWatch::new();
    let mut index = None;
    let mut told = String::new();
    let (mut mended, mut trouble) = (Quarrel::default(), Quarrel::default());
    loop {
        // First, too: something may have changed since it was set up.
        match look(settings, &mut index).await {
            Ok(Seen::AsItWas) => told.clear(),
            Ok(Seen::Mended) => {
                if let Some(times) = mended.begin(clock::now()) {
                    let interface = &settings.name;
                    warn!(%interface, times, "{}", mended_words(times));
                }
            }
            Ok(Seen::WithoutIpv6) => {
                tell(clock::now(), &mut told, NO_IPV6.to_owned(), &mut trouble);
            }
            Err(Trouble::Gone) => return deleted(settings),
            Err(Trouble::Netlink(error)) => {
                let text = format!("the interface of this server cannot be looked after: {error}");
                tell(clock::now(), &mut told, text, &mut trouble);
            }
        }
        network.changed().await;
    }
}

/// Tells what is wrong once, as long as it stays so: a host of containers changes its network all the time. What is not to be
/// told yet is told when it is still so later; returns whether it was told now.
fn tell(now: Instant, told: &mut String, text: String, trouble: &mut Quarrel) -> bool {
    let is_told = text != *told && trouble.begin(now).is_some();
    if is_told {
        warn!("{text}");
        *told = text;
    }
    is_told
}

/// What is said of an interface that was put right so many times since it was said last.
fn mended_words(times: u64) -> &'static str {
    match times {
        0 | 1 => "somebody has changed the interface of this server: it is as it was again",
        _ => {
            "somebody changes the interface of this server again and again, and each time it is put back: find out who (a \
             network manager, most often) and have it leave this interface alone"
        }
    }
}

/// Something that may happen again and again, since two programs do not agree: how often it is told.
///
/// The first time is told at once, the next a minute later at the earliest, and each time the pause doubles, up to an hour. After
/// an hour without any it begins anew.
#[derive(Clone, Copy, Debug, Default)]
struct Quarrel {
    /// How often it was since it was told last.
    untold: u64,
    /// When it was last, when it may be told next, and the pause behind that.
    since: Option<(Instant, Instant, Duration)>,
}

impl Quarrel {
    /// It has happened; returns how often since that was told last, where it is to be told now.
    fn begin(&mut self, now: Instant) -> Option<u64> {
        let (tell_at, pause) = match self.since {
            Some((last, tell_at, pause)) if now < last + LONGEST_PAUSE => (tell_at, pause),
            Some(_) | None => (now, FIRST_PAUSE),
        };
        self.untold += 1;
        if now < tell_at {
            self.since = Some((now, tell_at, pause));
            return None;
        }
        self.since = Some((now, now + pause, LONGEST_PAUSE.min(2 * pause)));
        Some(std::mem::take(&mut self.untold))
    }
}

/// Says why reading the device has failed.
pub async fn reason(settings: &TunSettings, error: std::io::Error) -> RunError {
    match look(settings, &mut None).await {
        Err(Trouble::Gone) => deleted(settings),
        Ok(_) | Err(Trouble::Netlink(_)) => RunError::Tun(error),
    }
}

fn deleted(settings: &TunSettings) -> RunError {
    RunError::Deleted {
        interface: settings.name.clone(),
    }
}

/// How the interface was found.
enum Seen {
    AsItWas,
    /// It is as it was now.
    Mended,
    /// As it was, but for IPv6, which the host has no more.
    WithoutIpv6,
}

/// Why the interface is not as it was.
enum Trouble {
    Gone,
    Netlink(NetlinkError),
}

impl From<NetlinkError> for Trouble {
    fn from(error: NetlinkError) -> Self {
        if matches!(error, NetlinkError::Missing { .. }) {
            Self::Gone
        } else {
            Self::Netlink(error)
        }
    }
}

/// Mends the interface where that is needed; `index` is the one it had at the first look.
async fn look(settings: &TunSettings, index: &mut Option<u32>) -> Result<Seen, Trouble> {
    let TunSettings {
        name,
        mtu,
        gateway4,
        gateway6,
        masquerade: _,
    } = settings;
    let netlink = Netlink::open()?;
    let now = netlink.link(name).await?.index;
    if *index.get_or_insert(now) != now {
        // Another one of that name.
        return Err(Trouble::Gone);
    }
    let ipv6 = gateway6.filter(|_| sysctl::has_ipv6());
    match netlink.check(name, *mtu, *gateway4, ipv6).await {
        Ok(()) if ipv6 == *gateway6 => return Ok(Seen::AsItWas),
        Ok(()) => return Ok(Seen::WithoutIpv6),
        Err(NetlinkError::Mismatch { what, .. }) => debug!(what, "changed by somebody"),
        Err(error) => return Err(error.into()),
    }
    if ipv6.is_some() {
        // It may be switched off for this interface alone, or have begun anew with what the host has by default.
        calm_interface(name, true);
    }
    netlink.configure(name, *mtu, *gateway4, ipv6).await?;
    Ok(Seen::Mended)
}

const NO_IPV6: &str = "IPv6 has been switched off on this host: that of clients leads nowhere, until net.ipv6.conf.all.disable_ipv6 is 0 again";

/// Between the first two times that the same is told: who changes a network by hand does it several times in a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// The longest pause, so that whoever reads the log of an hour finds it.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_and_again_is_told_ever_less_often_with_its_number() {
        let (mut quarrel, start) = (Quarrel::default(), Instant::now());
        let mut told = Vec::new();
        // Twice a second for ten hours.
        for half in 0..2 * 36_000_u32 {
            let after = Duration::from_millis(500) * half;
            if let Some(times) = quarrel.begin(start + after) {
                told.push((after.as_secs() / 60, times));
            }
        }
        let minutes: Vec<u64> = told.iter().map(|(minute, _)| *minute).collect();
        let hourly = (0..).map(|hour| 123 + 60 * hour).take_while(|at| *at < 600);
        let expected: Vec<u64> = [0, 1, 3, 7, 15, 31, 63].into_iter().chain(hourly).collect();
        assert_eq!(minutes, expected);
        assert_eq!(told[..3], [(0, 1), (1, 120), (3, 240)]);
        assert_eq!(told.last().unwrap().1, 7_200, "an hour's");
    }

    #[test]
    fn trouble_that_is_not_told_yet_is_told_later_if_it_lasts() {
        let (mut told, mut trouble) = (String::new(), Quarrel::default());
        let start = Instant::now();
        let mut tell = |seconds, text: &str| {
            let now = start + Duration::from_secs(seconds);
            tell(now, &mut told, text.to_owned(), &mut trouble)
        };
        assert!(tell(0, "one") && !tell(1, "one"));
        assert!(!tell(20, "another"), "a moment after the first");
        assert!(tell(61, "another") && !tell(300, "another"));
    }

    #[test]
    fn after_a_quiet_hour_the_next_time_is_told_at_once() {
        let (mut quarrel, start) = (Quarrel::default(), Instant::now());
        assert_eq!(quarrel.begin(start), Some(1));
        assert_eq!(quarrel.begin(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(1) + LONGEST_PAUSE;
        assert_eq!(quarrel.begin(later), Some(2), "the one untold with it");
        assert_eq!(quarrel.begin(later + Duration::from_secs(59)), None);
        let minute = later + FIRST_PAUSE;
        assert_eq!(quarrel.begin(minute), Some(2), "the pause is short again");
    }
}
