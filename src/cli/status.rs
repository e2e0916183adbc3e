//! `adit status`: how a running program is, as a table or as JSON, once or again and again.

use std::io::{IsTerminal as _, stdout};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value, json};

use super::running::Which;
use super::{Failure, print_on};
use crate::config::parse_duration;
use crate::io::control::{Caller, Request};

/// The arguments of `adit status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Of the lanes, the one that takes packets has a star. Lost out: datagrams that did not arrive, of those sent; lost in: packets that did not come, of those that were to; repaired: how many of these parity or a resend has brought. They are known of udp lanes alone."
)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// Print everything as JSON; with --watch one object a line
    #[arg(long)]
    json: bool,
    /// Show it again and again, each 2s or as often as is said, with what was carried meanwhile
    #[arg(
        short,
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "2s",
        require_equals = true
    )]
    watch: Option<String>,
}

/// Runs `adit status`.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let each = match &args.watch {
        Some(text) => {
            let each = parse_duration(text, SHORTEST, LONGEST);
            Some(each.map_err(|error| Failure::Usage(format!("--watch: {error}")))?)
        }
        None => None,
    };
    let mut caller = args.which.find_any()?;
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let status = ask(&mut caller)?;
        let now = Instant::now();
        let since = before.as_ref().map(|(at, former)| Since {
            seconds: now.duration_since(*at).as_secs_f64(),
            former,
        });
        let text = if args.json {
            json(&status, since.as_ref(), each.is_some())
        } else {
            let text = table(&status, since.as_ref());
            if each.is_some() && stdout().is_terminal() {
                // Home, and clear what is below.
                format!("\x1b[H\x1b[J{text}")
            } else {
                text
            }
        };
        let is_read = print_on(&text)?;
        let Some(each) = each.filter(|_| is_read) else {
            return Ok(());
        };
        before = Some((now, status));
        thread::sleep(each);
    }
}

fn ask(caller: &mut Caller) -> Result<Value, Failure> {
    let answer = caller.call(&Request::new("status", Map::new()), None, PATIENCE);
    answer.map_err(|error| Failure::Run(error.into()))
}

/// What was said before, and how long ago.
struct Since<'a> {
    seconds: f64,
    former: &'a Value,
}

impl Since<'_> {
    /// What was said of the same session.
    fn session(&self, session: &Value) -> Option<&Value> {
        let sessions = self.former.get("sessions")?.as_array()?;
        let same = |other: &&Value| {
            other.get("client") == session.get("client")
                && other.get("carries") == session.get("carries")
                && other.get("addresses") == session.get("addresses")
        };
        sessions.iter().find(same)
    }

    /// How much a number grows in a second.
    fn rate(&self, now: &Value, before: &Value, key: &str) -> f64 {
        let grown = number(now, key).saturating_sub(number(before, key));
        grown as f64 / self.seconds.max(0.001)
    }
}

fn json(status: &Value, since: Option<&Since<'_>>, a_line: bool) -> String {
    if !a_line {
        return format!("{status:#}");
    }
    let mut status = status.clone();
    if let (Some(since), Some(sessions)) = (since, status.get_mut("sessions")) {
        for session in sessions.as_array_mut().into_iter().flatten() {
            let Some(former) = since.session(session) else {
                continue;
            };
            let [now, before] = [session.get("total"), former.get("total")];
            let (Some(now), Some(before)) = (now, before) else {
                continue;
            };
            let rates = json!({
                "inner_sent_bytes_per_second": since.rate(now, before, "inner_sent_bytes"),
                "inner_received_bytes_per_second": since.rate(now, before, "inner_received_bytes"),
            });
            if let Some(session) = session.as_object_mut() {
                session.insert("rates".to_owned(), rates);
            }
        }
    }
    status.to_string()
}

/// Writes the status for people.
fn table(status: &Value, since: Option<&Since<'_>>) -> String {
    let is_server = text(status, "kind") == "server";
    let mut lines = vec![headline(status)];
    let sessions = status.get("sessions").and_then(Value::as_array);
    let sessions = sessions.map(Vec::as_slice).unwrap_or_default();
    if !sessions.is_empty() {
        // Whose session it is: of a server's clients, or of what shares a host with a proxy.
        let owner = match sessions.iter().any(|it| it.get("carries").is_some()) {
            true => Some(("CARRIES", "carries")),
            false => is_server.then_some(("CLIENT", "client")),
        };
        let mut rows = vec![head(owner, since.is_some())];
        rows.extend(sessions.iter().map(|session| row(session, owner, since)));
        lines.extend(aligned(&rows));
    }
    lines.extend(failure(status));
    let left_out = number(status, "sessions_left_out");
    if left_out > 0 {
        lines.push(format!(
            "{left_out} sessions are not shown: too many, or busy"
        ));
    }
    lines.extend(drops(sessions));
    lines.join("\n")
}

/// Says in one line what runs, and how it is.
pub(super) fn headline(status: &Value) -> String {
    let mut line = format!(
        "{} {}: {}, up {}",
        text(status, "kind"),
        text(status, "version"),
        text(status, "state"),
        span(real(status, "uptime_seconds"))
    );
    if let Some(clients) = status.get("clients") {
        line += &format!(
            "; {} of {} clients connected",
            number(clients, "connected"),
            number(clients, "listed")
        );
    }
    if let Some(forwards) = status
        .get("forwards")
        .filter(|it| number(it, "forwards") > 0)
    {
        line += &format!(
            "; {} of {} forwards listen, {} connections",
            number(forwards, "listening"),
            number(forwards, "forwards"),
            number(forwards, "open")
        );
    }
    let commands = status.pointer("/counters/commands.now");
    if let Some(commands @ 1..) = commands.and_then(Value::as_u64) {
        let who = if commands == 1 {
            "command shares it"
        } else {
            "commands share it"
        };
        line += &format!("; {commands} {who}");
    }
    if let Some(process) = status.get("process") {
        line += &format!(
            "; {} memory, {} descriptors",
            bytes(number(process, "resident_bytes") as f64),
            number(process, "open_fds")
        );
    }
    if status.get("reloads").and_then(|it| it.get("last_applied")) == Some(&Value::Bool(false)) {
        line += "\nthe configuration that was read last is wrong, and not in force";
    }
    line
}

fn head(owner: Option<(&str, &str)>, rates: bool) -> Vec<String> {
    let client = owner.map(|(title, _)| title);
    let carried = if rates {
        ["OUT/S", "IN/S"]
    } else {
        ["OUT", "IN"]
    };
    let rest = ["LOST OUT", "LOST IN", "REPAIRED", "FLOWS", "AGE"];
    let columns = (client.into_iter())
        .chain(["ADDRESS", "LANES", "RTT"])
        .chain(carried)
        .chain(rest);
    columns.map(str::to_owned).collect()
}

fn row(session: &Value, owner: Option<(&str, &str)>, since: Option<&Since<'_>>) -> Vec<String> {
    let nothing = Value::Null;
    let total = session.get("total").unwrap_or(&nothing);
    let former = since.and_then(|since| since.session(session)?.get("total"));
    let carried = |key: &str| match (since, former) {
        (Some(since), Some(former)) => bits(since.rate(total, former, key) * 8.0),
        (Some(_), None) => "-".to_owned(),
        (None, _) => bytes(number(total, key) as f64),
    };
    // While it is watched, what was lost meanwhile.
    let counted = |key: &str| {
        let before = former.map_or(0, |former| number(former, key));
        number(total, key).saturating_sub(before)
    };
    let lost_out = counted("lost").saturating_sub(counted("lost_late"));
    let repaired = counted("repaired");
    let missing = (repaired + counted("unrepaired")).saturating_sub(counted("unrepaired_late"));
    let rtt = session.get("rtt_seconds").and_then(Value::as_f64);
    let client = owner.map(|(_, key)| text(session, key).to_owned());
    let addresses = session.get("addresses").and_then(Value::as_array);
    let address = addresses
        .and_then(|all| all.first()?.as_str())
        .unwrap_or("-");
    client
        .into_iter()
        .chain([
            address.to_owned(),
            lanes(session),
            rtt.map_or("-".to_owned(), |rtt| format!("{:.1} ms", rtt * 1e3)),
            carried("inner_sent_bytes"),
            carried("inner_received_bytes"),
            share(lost_out, counted("sent")),
            share(missing, missing + counted("received_packets")),
            share(repaired, missing),
            number(session, "flows").to_string(),
            span(real(session, "age_seconds")),
        ])
        .collect()
}

/// What the last attempt at a server came to, of a client that has no tunnel.
fn failure(status: &Value) -> Option<String> {
    let failure = status.pointer("/down/last_failure")?.as_str()?;
    Some(format!("the last attempt: {failure}"))
}

/// The lanes, each by how it is carried.
fn lanes(session: &Value) -> String {
    let lanes = session.get("lanes").and_then(Value::as_array);
    let shown: Vec<String> = (lanes.into_iter().flatten())
        .map(|lane| {
            let in_use = lane.get("in_use") == Some(&Value::Bool(true));
            format!(
                "{}{}",
                text(lane, "transport"),
                if in_use { "*" } else { "" }
            )
        })
        .collect();
    if shown.is_empty() {
        "none".to_owned()
    } else {
        shown.join(" ")
    }
}

/// What all sessions have dropped most, by reason.
fn drops(sessions: &[Value]) -> Option<String> {
    let mut sums: Vec<(String, u64)> = Vec::new();
    let each = sessions
        .iter()
        .filter_map(|it| it.get("drops")?.as_object());
    for (reason, count) in each.flatten() {
        let count = count.as_u64().unwrap_or_default();
        match sums.iter_mut().find(|(known, _)| known == reason) {
            Some((_, sum)) => *sum += count,
            None => sums.push((reason.clone(), count)),
        }
    }
    sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let most: Vec<String> = (sums.iter().take(MOST_DROPS))
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    (!most.is_empty()).then(|| format!("dropped: {}", most.join(", ")))
}

/// Puts columns below one another: words to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let first_number = columns.saturating_sub(NUMBERS);
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells: Vec<String> = cells
                .map(|(at, (cell, width))| {
                    if at < first_number {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        "-".to_owned()
    } else {
        format!("{:.2} %", 100.0 * part as f64 / whole as f64)
    }
}

fn bytes(count: f64) -> String {
    scaled(count, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"])
}

fn bits(per_second: f64) -> String {
    let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    scaled(per_second, 1000.0, units)
}

fn scaled(mut value: f64, step: f64, units: [&str; 5]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", units[unit])
}

fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (_, _, _) => format!("{days}d {}h", hours % 24),
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn real(value: &Value, key: &str) -> f64 {
    value.get(key).and_then(Value::as_f64).unwrap_or_default()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// How long a program may take to answer: it asks its sessions, which do not wait.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it can be shown, at most and at least: a report costs a server of thousands of sessions some milliseconds.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

/// Reasons for drops that the table names.
const MOST_DROPS: usize = 6;

/// Columns at the end of the table that are numbers.
const NUMBERS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn status(sent: u64, lost: u64) -> Value {
        json!({
            "kind": "server", "version": "1.2.3", "state": "listening", "uptime_seconds": 3700.0,
            "clients": {"connected": 1, "listed": 3},
            "sessions": [{
                "client": "laptop", "addresses": ["10.86.0.2"], "age_seconds": 61.0, "flows": 2,
                "rtt_seconds": 0.0123,
                "lanes": [{"transport": "udp", "in_use": true}, {"transport": "tls", "in_use": false}],
                "total": {
                    "inner_sent_bytes": sent, "inner_received_bytes": 2048,
                    "sent": 1000, "lost": lost, "lost_late": 0,
                    "received_packets": 990, "repaired": 9, "unrepaired": 1, "unrepaired_late": 0,
                },
                "drops": {"queue.codel": 4, "uplink.denied": 7},
            }],
        })
    }

    #[test]
    fn table_has_a_row_for_each_session_and_names_what_was_dropped() {
        let shown = table(&status(3 << 20, 20), None);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "server 1.2.3: listening, up 1h 1m; 1 of 3 clients connected",
                "CLIENT  ADDRESS    LANES         RTT      OUT       IN  LOST OUT  LOST IN  REPAIRED  FLOWS    AGE",
                "laptop  10.86.0.2  udp* tls  12.3 ms  3.0 MiB  2.0 KiB    2.00 %   1.00 %   90.00 %      2  1m 1s",
                "dropped: uplink.denied 7, queue.codel 4",
            ],
            "{shown}"
        );
    }

    #[test]
    fn table_of_a_client_without_a_tunnel_says_why_and_of_a_whole_host_shows_both_sessions() {
        let mut shown = status(3 << 20, 20);
        shown["kind"] = json!("client");
        shown["state"] = json!("revoked: …");
        shown["down"] = json!({"why": "revoked", "last_failure": "udp://a:1: no answer"});
        let mut host = shown["sessions"][0].clone();
        host["carries"] = json!("host");
        shown["sessions"][0]["carries"] = json!("proxy");
        shown["sessions"].as_array_mut().unwrap().insert(0, host);
        let shown = table(&shown, None);
        assert!(shown.contains("client 1.2.3: revoked: …"), "{shown}");
        assert!(shown.contains("\nCARRIES  ADDRESS "), "{shown}");
        assert!(shown.contains("\nhost     10.86.0.2  udp*"), "{shown}");
        assert!(shown.contains("\nproxy    10.86.0.2  udp*"), "{shown}");
        assert!(
            shown.contains("\nthe last attempt: udp://a:1: no answer"),
            "{shown}"
        );
    }

    #[test]
    fn watched_table_shows_what_was_carried_meanwhile() {
        let former = status(1 << 20, 20);
        let since = Since {
            seconds: 2.0,
            former: &former,
        };
        let shown = table(&status((1 << 20) + 250_000, 20), Some(&since));
        assert!(shown.contains("1.0 Mbit/s"), "{shown}");
        assert!(shown.contains("OUT/S"), "{shown}");
        // Nothing was sent that could be lost.
        assert!(!shown.contains('%'), "{shown}");
    }

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bits(123_456_789.0), "123 Mbit/s");
        assert_eq!(span(59.9), "59s");
        assert_eq!(span(90_000.0), "1d 1h");
        assert_eq!(share(0, 0), "-");
    }
}
