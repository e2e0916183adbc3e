//! A link as a short text: `loss=5,burst=4,delay=25,rate=50,limit=100ms`.

use std::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

use super::path::{Limit, Link, LinkError, Loss, Path};

/// Prints the shortest text that gives the same link again; settings that differ by direction begin with `up.` or
/// `down.`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (up, down) = (settings(&self.up), settings(&self.down));
        let mut parts = Vec::new();
        for key in KEYS {
            let find = |list: &[(&'static str, String)]| {
                list.iter()
                    .find(|(name, _)| name == key)
                    .map(|(_, value)| value.clone())
            };
            match (find(&up), find(&down)) {
                (None, None) => {}
                (Some(up), Some(down)) if up == down => parts.push(format!("{key}={up}")),
                (up, down) => {
                    parts.extend(up.map(|value| format!("up.{key}={value}")));
                    parts.extend(down.map(|value| format!("down.{key}={value}")));
                }
            }
        }
        f.write_str(&parts.join(","))
    }
}

/// Reads settings separated by commas, in any order; the empty text is a perfect link. What is not said is as in
/// [`Path::default`].
///
/// | setting | meaning |
/// |---|---|
/// | `loss=5` | percent lost, independently, or in runs with |
/// | `burst=4` | the mean length of a run |
/// | `gemodel=1/25/100/0` | p, r, 1-h and 1-k of netem, in percent, instead of these two |
/// | `after=1` | losses happen behind the bottleneck |
/// | `delay=25`, `jitter=5` | milliseconds one way |
/// | `overtaking=1` | jitter may reorder |
/// | `reorder=1`, `gap=5` | percent of packets that skip the delay, each fifth being a candidate |
/// | `duplicate=1` | percent |
/// | `rate=50` | Mbit/s |
/// | `overhead=14` | bytes a packet takes beside its own |
/// | `mtu=1400` | bytes of the longest packet that passes, without that overhead |
/// | `limit=100ms`, `1000p`, `64000b` | queue |
/// | `ecn=5` | marks what waits longer than so many milliseconds |
///
/// `up.` or `down.` before a setting applies it to that direction alone.
impl FromStr for Link {
    type Err = LinkTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut link = Self::default();
        // runs are a property of the loss beside them, wherever in the text that stands
        let mut bursts = [None, None];
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (key, value) = part.split_once('=').ok_or(LinkTextError::NoValue {
                setting: part.to_owned(),
            })?;
            let (key, value) = (key.trim(), value.trim());
            let (up, down, key) = match key.split_once('.') {
                Some(("up", key)) => (true, false, key),
                Some(("down", key)) => (false, true, key),
                Some(_) | None => (true, true, key),
            };
            let [burst_up, burst_down] = &mut bursts;
            if up {
                set(&mut link.up, burst_up, key, value)?;
            }
            if down {
                set(&mut link.down, burst_down, key, value)?;
            }
        }
        for (path, burst) in [&mut link.up, &mut link.down].into_iter().zip(bursts) {
            path.loss = match (path.loss, burst) {
                (Loss::Random { percent }, Some(mean)) => Loss::Burst { percent, mean },
                (loss, None) => loss,
                (Loss::None | Loss::Burst { .. } | Loss::Gilbert { .. }, Some(_)) => {
                    return Err(LinkTextError::BurstOfNothing);
                }
            };
        }
        link.check()?;
        Ok(link)
    }
}

/// A text that is no link.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LinkTextError {
    /// A setting without a value.
    #[error("{setting:?} has no value: write name=value")]
    NoValue {
        /// What stands there.
        setting: String,
    },
    /// A setting that does not exist.
    #[error("there is no setting {name:?}")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A value that does not fit its setting.
    #[error("{name} is {value:?}, and should be {expected}")]
    Value {
        /// The setting.
        name: String,
        /// What stands there.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// `burst` without `loss`.
    #[error("burst says how losses come together, and needs loss beside it")]
    BurstOfNothing,
    /// A knob out of its range.
    #[error(transparent)]
    Range(#[from] LinkError),
}

fn set(
    path: &mut Path,
    burst: &mut Option<f64>,
    key: &str,
    value: &str,
) -> Result<(), LinkTextError> {
    let wrong = |expected| LinkTextError::Value {
        name: key.to_owned(),
        value: value.to_owned(),
        expected,
    };
    let number = || {
        let parsed: Result<f64, _> = value.parse();
        parsed
            .ok()
            .filter(|number| number.is_finite() && *number >= 0.0)
            .ok_or_else(|| wrong("a number that is not negative"))
    };
    let whole = || value.parse().map_err(|_| wrong("a whole number"));
    let flag = || match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(wrong("0 or 1")),
    };
    let duration = || Ok::<_, LinkTextError>(milliseconds(number()?));
    match key {
        "loss" => path.loss = Loss::Random { percent: number()? },
        "burst" => *burst = Some(number()?),
        "gemodel" => {
            let parts: Vec<f64> = value
                .split('/')
                .map(|part| part.parse().map_err(|_| wrong("p/r/1-h/1-k in percent")))
                .collect::<Result<_, _>>()?;
            let &[p, r, bad, good] = parts.as_slice() else {
                return Err(wrong("p/r/1-h/1-k in percent"));
            };
            path.loss = Loss::Gilbert { p, r, bad, good };
        }
        "after" => path.after = flag()?,
        "delay" => path.delay = duration()?,
        "jitter" => path.jitter = duration()?,
        "overtaking" => path.overtaking = flag()?,
        "reorder" => path.reorder = number()?,
        "gap" => path.gap = whole()?,
        "duplicate" => path.duplicate = number()?,
        "rate" => path.rate = (number()? * 1e6).round() as u64,
        "overhead" => path.overhead = whole()?,
        "mtu" => path.mtu = whole()?,
        "limit" => {
            path.limit = limit(value).ok_or_else(|| wrong("such as 100ms, 1000p or 64000b"))?
        }
        "ecn" => path.ecn = Some(duration()?),
        _ => {
            return Err(LinkTextError::Unknown {
                name: key.to_owned(),
            });
        }
    }
    Ok(())
}

fn limit(value: &str) -> Option<Limit> {
    if let Some(time) = value.strip_suffix("ms") {
        let time: f64 = time.parse().ok()?;
        return (0.0..1e9)
            .contains(&time)
            .then(|| Limit::Time(milliseconds(time)));
    }
    if let Some(packets) = value.strip_suffix('p') {
        return packets.parse().ok().map(Limit::Packets);
    }
    value.strip_suffix('b')?.parse().ok().map(Limit::Bytes)
}

/// What differs from the default, in the order of [`KEYS`].
fn settings(path: &Path) -> Vec<(&'static str, String)> {
    let plain = Path::default();
    let mut list = Vec::new();
    match path.loss {
        Loss::None => {}
        Loss::Random { percent } => list.push(("loss", percent.to_string())),
        Loss::Burst { percent, mean } => {
            list.push(("loss", percent.to_string()));
            list.push(("burst", mean.to_string()));
        }
        Loss::Gilbert { p, r, bad, good } => {
            list.push(("gemodel", format!("{p}/{r}/{bad}/{good}")));
        }
    }
    let mut push = |differs: bool, key, value: String| {
        if differs {
            list.push((key, value));
        }
    };
    push(path.after, "after", "1".to_owned());
    push(!path.delay.is_zero(), "delay", in_milliseconds(path.delay));
    push(
        !path.jitter.is_zero(),
        "jitter",
        in_milliseconds(path.jitter),
    );
    push(path.overtaking, "overtaking", "1".to_owned());
    push(path.reorder > 0.0, "reorder", path.reorder.to_string());
    push(path.gap != plain.gap, "gap", path.gap.to_string());
    push(
        path.duplicate > 0.0,
        "duplicate",
        path.duplicate.to_string(),
    );
    push(path.rate > 0, "rate", (path.rate as f64 / 1e6).to_string());
    push(
        path.overhead != plain.overhead,
        "overhead",
        path.overhead.to_string(),
    );
    push(path.mtu > 0, "mtu", path.mtu.to_string());
    let limit = match path.limit {
        Limit::Bytes(bytes) => format!("{bytes}b"),
        Limit::Packets(packets) => format!("{packets}p"),
        Limit::Time(time) => format!("{}ms", in_milliseconds(time)),
    };
    push(path.limit != plain.limit, "limit", limit);
    if let Some(threshold) = path.ecn {
        list.push(("ecn", in_milliseconds(threshold)));
    }
    list
}

fn in_milliseconds(time: Duration) -> String {
    (time.as_nanos() as f64 / 1e6).to_string()
}

/// To the nanosecond, so that a printed delay is read back as it was.
fn milliseconds(value: f64) -> Duration {
    Duration::from_nanos((value * 1e6).round() as u64)
}

const KEYS: &[&str] = &[
    "loss",
    "burst",
    "gemodel",
    "after",
    "delay",
    "jitter",
    "overtaking",
    "reorder",
    "gap",
    "duplicate",
    "rate",
    "overhead",
    "mtu",
    "limit",
    "ecn",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path() -> impl Strategy<Value = Path> {
        let loss = prop_oneof![
            Just(Loss::None),
            (0.0..100.0f64).prop_map(|percent| Loss::Random { percent }),
            (0.0..49.0f64, 1.0..20.0f64).prop_map(|(percent, mean)| Loss::Burst { percent, mean }),
            (0.0..100.0f64, 0.0..100.0f64, 0.0..100.0f64, 0.0..100.0f64)
                .prop_map(|(p, r, bad, good)| Loss::Gilbert { p, r, bad, good }),
        ];
        let limit = prop_oneof![
            any::<u64>().prop_map(Limit::Bytes),
            any::<u64>().prop_map(Limit::Packets),
            (0u64..60_000_000_000).prop_map(|ns| Limit::Time(Duration::from_nanos(ns))),
        ];
        let times = (0u64..60_000_000_000, 0u64..60_000_000_000);
        let shares = (0.0..100.0f64, 1u32..100, 0.0..100.0f64);
        let rates = (0u64..100_000_000_000, 0u32..100, 0u32..9000, limit);
        let flags = (
            any::<bool>(),
            any::<bool>(),
            proptest::option::of(0u64..1_000_000_000),
        );
        (loss, times, shares, rates, flags).prop_map(|(loss, times, shares, rates, flags)| Path {
            loss,
            after: flags.0,
            delay: Duration::from_nanos(times.0),
            jitter: Duration::from_nanos(times.1),
            overtaking: flags.1,
            reorder: shares.0,
            gap: shares.1,
            duplicate: shares.2,
            rate: rates.0,
            overhead: rates.1,
            mtu: rates.2,
            limit: rates.3,
            ecn: flags.2.map(Duration::from_nanos),
        })
    }

    proptest! {
        #[test]
        fn printed_link_is_read_back_as_it_was(up in path(), down in path()) {
            for link in [Link { up, down }, Link::symmetric(up)] {
                prop_assert_eq!(link.to_string().parse(), Ok(link), "{}", link);
            }
        }

        #[test]
        fn no_text_panics(text in "[a-z.=0-9,/]{0,40}") {
            if let Ok(link) = text.parse::<Link>() {
                prop_assert_eq!(link.to_string().parse(), Ok(link));
            }
        }
    }

    #[test]
    fn text_of_the_lossy_suite_says_what_it_means() {
        let link: Link = "loss=5,burst=4,delay=25,rate=50,limit=100ms"
            .parse()
            .unwrap();
        let path = Path {
            loss: Loss::Burst {
                percent: 5.0,
                mean: 4.0,
            },
            delay: Duration::from_millis(25),
            rate: 50_000_000,
            limit: Limit::Time(Duration::from_millis(100)),
            ..Path::default()
        };
        assert_eq!(link, Link::symmetric(path));
        assert_eq!(
            link.to_string(),
            "loss=5,burst=4,delay=25,rate=50,limit=100ms"
        );
    }

    #[test]
    fn one_direction_may_differ() {
        let link: Link = "delay=25,down.loss=1,up.rate=5,down.rate=50"
            .parse()
            .unwrap();
        assert_eq!((link.up.loss_rate(), link.down.loss_rate()), (0.0, 0.01));
        assert_eq!((link.up.rate, link.down.rate), (5_000_000, 50_000_000));
        assert_eq!(
            link.to_string(),
            "down.loss=1,delay=25,up.rate=5,down.rate=50"
        );
    }

    #[test]
    fn wrong_texts_say_what_would_be_right() {
        for (text, message) in [
            ("loss", "\"loss\" has no value: write name=value"),
            ("lost=5", "there is no setting \"lost\""),
            ("side.loss=5", "there is no setting \"side.loss\""),
            (
                "delay=fast",
                "delay is \"fast\", and should be a number that is not negative",
            ),
            (
                "limit=100",
                "limit is \"100\", and should be such as 100ms, 1000p or 64000b",
            ),
            (
                "gemodel=1/2",
                "gemodel is \"1/2\", and should be p/r/1-h/1-k in percent",
            ),
            (
                "burst=4",
                "burst says how losses come together, and needs loss beside it",
            ),
            ("loss=120", "loss is 120 %, and lies between 0 and 100"),
            (
                "loss=60,burst=1",
                "losses of 60 % do not come in runs of 1 on average: at least one packet lies between two runs",
            ),
        ] {
            assert_eq!(text.parse::<Link>().unwrap_err().to_string(), message);
        }
    }
}
