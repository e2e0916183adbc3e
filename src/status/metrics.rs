//! A report as metrics, in Prometheus' text format 0.0.4.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>; names and units follow
//! <https://prometheus.io/docs/practices/naming/>.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::counters::Kind;
use super::process::ProcessReport;
use super::report::{Carried, Inner, Numbers, Report, Transport};

/// A family of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: FamilyKind,
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// It only grows.
    Counter,
    /// It is what is there now.
    Gauge,
}

impl fmt::Display for FamilyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    let kind = FamilyKind::Counter;
    Family { name, kind, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    let kind = FamilyKind::Gauge;
    Family { name, kind, help }
}

/// Writes `report` as metrics.
pub fn render(report: &Report) -> String {
    let mut out = Exposition::default();
    let program = match report.kind {
        super::Program::Server => "server",
        super::Program::Client => "client",
    };
    let version = [("program", program), ("version", report.version)];
    out.sample(&BUILD_INFO, &version, 1.0);
    out.sample(&READY, &[], flag(report.ready));
    out.sample(
        &SESSIONS,
        &[],
        float(report.sessions.len() + report.sessions_left_out),
    );
    out.sample(&LEFT_OUT, &[], float(report.sessions_left_out));
    out.sample(
        &RELOADS,
        &[("result", "applied")],
        real(report.reloads.applied),
    );
    out.sample(
        &RELOADS,
        &[("result", "failed")],
        real(report.reloads.failed),
    );
    out.sample(&LAST_RELOAD, &[], flag(report.reloads.last_applied));
    lanes(&mut out, report);
    match &report.clients {
        Some(clients) => {
            out.sample(&CLIENTS, &[("state", "listed")], float(clients.listed));
            out.sample(
                &CLIENTS,
                &[("state", "connected")],
                float(clients.connected),
            );
            of_clients(&mut out, report);
        }
        None => {
            let rtt = best_rtt(report.sessions.iter().map(|it| it.rtt_seconds));
            numbers(&mut out, &[], &report.total);
            if let Some(rtt) = rtt {
                out.sample(&RTT, &[], rtt);
            }
        }
    }
    if let Some(forwards) = &report.forwards {
        out.sample(
            &FORWARDS,
            &[("state", "configured")],
            float(forwards.forwards),
        );
        out.sample(
            &FORWARDS,
            &[("state", "listening")],
            float(forwards.listening),
        );
        out.sample(&FORWARDED, &[], real(forwards.open));
    }
    for counter in report.counters.iter() {
        let part = ("part", counter.part);
        let value = real(counter.value);
        match counter.kind {
            Kind::Drop => out.sample(&DROPS, &[part, ("reason", counter.name)], value),
            Kind::Event => out.sample(&EVENTS, &[part, ("event", counter.name)], value),
            Kind::Level => out.sample(&LEVEL, &[part, ("of", counter.name)], value),
        }
    }
    process(&mut out, &report.process);
    out.finish()
}

/// How many lanes there are of each transport.
fn lanes(out: &mut Exposition, report: &Report) {
    let mut counts: BTreeMap<Transport, usize> = BTreeMap::new();
    for lane in report.sessions.iter().flat_map(|it| &it.lanes) {
        *counts.entry(lane.transport).or_default() += 1;
    }
    for transport in TRANSPORTS {
        let count = counts.get(&transport).copied().unwrap_or_default();
        out.sample(&LANES, &[("transport", transport.as_str())], float(count));
    }
}

/// The clients of a server: by name as far as names are labels, the others in one.
fn of_clients(out: &mut Exposition, report: &Report) {
    let known = report.clients.iter().flat_map(|clients| &clients.known);
    let mut others = report.total;
    for client in known.clone().filter(|client| client.labelled) {
        let label = [("client", client.name.as_str())];
        out.sample(&CLIENT_SESSIONS, &label, float(client.sessions));
        if let Some(rtt) = client.rtt_seconds {
            out.sample(&RTT, &label, rtt);
        }
        numbers(out, &label, &client.total);
        others.subtract(&client.total);
    }
    // Also those of clients that are listed no more: sums over all labels never go down.
    let sessions = known.filter(|client| !client.labelled);
    let sessions: usize = sessions.map(|client| client.sessions).sum();
    let label = [("client", "")];
    out.sample(&CLIENT_SESSIONS, &label, float(sessions));
    numbers(out, &label, &others);
}

fn numbers(out: &mut Exposition, labels: &[(&str, &str)], numbers: &Numbers) {
    let Numbers { inner, carried } = numbers;
    let Inner {
        inner_sent_bytes,
        inner_received_bytes,
        inner_sent,
        inner_received,
    } = *inner;
    let Carried {
        sent_bytes,
        received_bytes,
        sent,
        received,
        sent_packets,
        received_packets,
        lost,
        lost_late,
        resent,
        copied,
        parity_sent,
        repaired,
        unrepaired,
        unrepaired_late,
        wasted,
        failed_opens,
    } = *carried;
    for (family, value) in [
        (&INNER_SENT_BYTES, inner_sent_bytes),
        (&INNER_RECEIVED_BYTES, inner_received_bytes),
        (&INNER_SENT, inner_sent),
        (&INNER_RECEIVED, inner_received),
        (&SENT_BYTES, sent_bytes),
        (&RECEIVED_BYTES, received_bytes),
        (&SENT, sent),
        (&RECEIVED, received),
        (&SENT_PACKETS, sent_packets),
        (&RECEIVED_PACKETS, received_packets),
        (&LOST, lost),
        (&LOST_LATE, lost_late),
        (&RESENT, resent),
        (&COPIED, copied),
        (&PARITY, parity_sent),
        (&REPAIRED, repaired),
        (&UNREPAIRED, unrepaired),
        (&UNREPAIRED_LATE, unrepaired_late),
        (&WASTED, wasted),
        (&FAILED_OPENS, failed_opens),
    ] {
        out.sample(family, labels, real(value));
    }
}

fn process(out: &mut Exposition, process: &ProcessReport) {
    let ProcessReport {
        pid: _,
        start_seconds,
        cpu_seconds,
        resident_bytes,
        virtual_bytes,
        threads,
        open_fds,
        max_fds,
    } = *process;
    out.sample(&PROCESS_START, &[], start_seconds);
    out.sample(&PROCESS_CPU, &[], cpu_seconds);
    out.sample(&PROCESS_RESIDENT, &[], real(resident_bytes));
    out.sample(&PROCESS_VIRTUAL, &[], real(virtual_bytes));
    out.sample(&PROCESS_THREADS, &[], real(threads));
    out.sample(&PROCESS_FDS, &[], real(open_fds));
    out.sample(&PROCESS_MAX_FDS, &[], real(max_fds));
}

fn best_rtt(each: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    each.flatten().min_by(f64::total_cmp)
}

/// Numbers of the format are doubles: exact up to 2^53.
fn real(value: u64) -> f64 {
    value as f64
}

fn float(count: usize) -> f64 {
    count as f64
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

/// Samples by family, so that each family stands together whatever the order they come in.
#[derive(Debug, Default)]
struct Exposition {
    families: BTreeMap<&'static str, (FamilyKind, &'static str, String)>,
}

impl Exposition {
    fn sample(&mut self, family: &Family, labels: &[(&str, &str)], value: f64) {
        let Family { name, kind, help } = *family;
        let (_, _, lines) = (self.families.entry(name)).or_insert((kind, help, String::new()));
        lines.push_str(name);
        let mut before = '{';
        for (label, text) in labels {
            lines.push(before);
            lines.push_str(label);
            lines.push_str("=\"");
            escape(lines, text);
            lines.push('"');
            before = ',';
        }
        if !labels.is_empty() {
            lines.push('}');
        }
        // Writing to a text does not fail.
        let _ = writeln!(lines, " {value}");
    }

    fn finish(self) -> String {
        let mut text = String::new();
        for (name, (kind, help, lines)) in self.families {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            text.push_str(&lines);
        }
        text
    }
}

/// Writes a label's value.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// The type of the answer that [`render`] is the body of.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const TRANSPORTS: [Transport; 5] = [
    Transport::Udp,
    Transport::Tcp,
    Transport::Tls,
    Transport::Ws,
    Transport::Wss,
];

macro_rules! families {
    ($($name:ident = $family:expr;)*) => {
        $(const $name: Family = $family;)*

        /// Every family there is, of either program.
        pub const FAMILIES: &[Family] = &[$($name),*];
    };
}

families! {
    BUILD_INFO = gauge("adit_build_info", "Always 1; which program this is, and its version.");
    READY = gauge("adit_ready", "Whether the program does its work: a server that listens, a client whose session has a lane.");
    SESSIONS = gauge("adit_sessions", "Sessions there are.");
    LEFT_OUT = gauge("adit_sessions_left_out", "Sessions that the other metrics lack, because they did not answer in time or were too many.");
    RELOADS = counter("adit_reloads_total", "Times that the configuration was read again, and put into force or found wrong.");
    LAST_RELOAD = gauge("adit_last_reload_applied", "Whether the configuration that was read last is in force.");
    LANES = gauge("adit_lanes", "Lanes there are, by how they are carried.");
    CLIENTS = gauge("adit_clients", "Clients that may connect, and of them those that have a session.");
    CLIENT_SESSIONS = gauge("adit_client_sessions", "Sessions of each client.");
    FORWARDS = gauge("adit_forwards", "Forwards of the client, and of them those that listen.");
    FORWARDED = gauge("adit_forwarded_connections", "Connections and UDP peers of forwards there are.");
    RTT = gauge("adit_rtt_seconds", "Round-trip time of the lane that takes packets, the best of a client's sessions.");
    INNER_SENT_BYTES = counter("adit_inner_sent_bytes_total", "Bytes of packets and relayed flows sealed for the far end.");
    INNER_RECEIVED_BYTES = counter("adit_inner_received_bytes_total", "Bytes of packets and relayed flows of the far end that were opened.");
    INNER_SENT = counter("adit_inner_sent_total", "Packets and frames of relayed flows sealed for the far end.");
    INNER_RECEIVED = counter("adit_inner_received_total", "Packets and frames of relayed flows of the far end that were opened.");
    SENT_BYTES = counter("adit_sent_bytes_total", "Bytes that lanes took, with headers, parity and all that was sent again.");
    RECEIVED_BYTES = counter("adit_received_bytes_total", "Bytes that lanes brought, with headers, parity and all that came twice.");
    SENT = counter("adit_sent_frames_total", "Frames and datagrams that lanes took.");
    RECEIVED = counter("adit_received_frames_total", "Frames and datagrams that lanes brought.");
    SENT_PACKETS = counter("adit_sent_packets_total", "Packets that left for the first time.");
    RECEIVED_PACKETS = counter("adit_received_packets_total", "Packets that came for the first time.");
    LOST = counter("adit_lost_datagrams_total", "Datagrams sent that were called lost.");
    LOST_LATE = counter("adit_late_datagrams_total", "Datagrams that were called lost and arrived after all.");
    RESENT = counter("adit_resent_packets_total", "Packets sent again because they were asked for or lost.");
    COPIED = counter("adit_copied_packets_total", "Packets sent twice because they could not wait for that.");
    PARITY = counter("adit_parity_sent_total", "Datagrams of parity sent.");
    REPAIRED = counter("adit_repaired_packets_total", "Packets missing that parity brought back.");
    UNREPAIRED = counter("adit_unrepaired_packets_total", "Packets missing that were given up.");
    UNREPAIRED_LATE = counter("adit_unrepaired_late_packets_total", "Packets that came after they were given up.");
    WASTED = counter("adit_wasted_packets_total", "Packets that had come before, and parity that said nothing new.");
    FAILED_OPENS = counter("adit_failed_opens_total", "Frames and datagrams that did not open: forged, or of former keys.");
    DROPS = counter("adit_drops_total", "What was dropped or refused, by the part of the program and the reason.");
    EVENTS = counter("adit_events_total", "What else was counted, by the part of the program.");
    LEVEL = gauge("adit_level", "What there is now, by the part of the program: flows, sockets, listeners, commands that share a client, buffers, packets missing.");
    PROCESS_START = gauge("process_start_time_seconds", "When the process began, in seconds since 1970.");
    PROCESS_CPU = counter("process_cpu_seconds_total", "Processor time that the process has used.");
    PROCESS_RESIDENT = gauge("process_resident_memory_bytes", "Memory that the process holds.");
    PROCESS_VIRTUAL = gauge("process_virtual_memory_bytes", "Address space that the process has.");
    PROCESS_THREADS = gauge("process_threads", "Threads of the process.");
    PROCESS_FDS = gauge("process_open_fds", "Descriptors that the process has open.");
    PROCESS_MAX_FDS = gauge("process_max_fds", "Descriptors that the process may have open.");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::status::{ClientReport, Clients, Counters, Program, Reloads};

    fn report(clients: Vec<ClientReport>, total: Numbers) -> Report {
        let mut counters = Counters::default();
        counters.drops("queue", "codel", 5);
        counters.level("stack", "flows_now", 2);
        Report {
            kind: Program::Server,
            version: "1.2.3",
            ready: true,
            state: "listening".to_owned(),
            down: None,
            uptime_seconds: 1.5,
            uses: crate::status::Uses::default(),
            reloads: Reloads::default(),
            clients: Some(Clients {
                listed: 9,
                connected: 1,
                known: clients,
            }),
            forwards: None,
            sessions: Vec::new(),
            sessions_left_out: 0,
            total,
            counters,
            process: ProcessReport::default(),
        }
    }

    fn sent(bytes: u64) -> Numbers {
        Numbers {
            inner: Inner {
                inner_sent_bytes: bytes,
                ..Inner::default()
            },
            ..Numbers::default()
        }
    }

    fn client(name: &str, labelled: bool, bytes: u64) -> ClientReport {
        ClientReport {
            name: name.to_owned(),
            labelled,
            sessions: 1,
            ended: 0,
            rtt_seconds: Some(0.25),
            total: sent(bytes),
        }
    }

    #[test]
    fn families_have_one_name_each_that_tells_their_type() {
        let names: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for Family { name, kind, help } in FAMILIES {
            assert_eq!(
                *kind == FamilyKind::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            assert!(
                help.ends_with('.') && !help.contains(['\n', '\\']),
                "{name}"
            );
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(plain), "{name}");
        }
    }

    #[test]
    fn clients_beyond_the_bound_and_those_that_are_gone_are_summed_up() {
        let known = vec![client("a\"b\\c", true, 10), client("other", false, 20)];
        // 3 bytes are of a client that is listed no more.
        let text = render(&report(known, sent(33)));
        let lines: Vec<&str> = (text.lines())
            .filter(|line| line.starts_with("adit_inner_sent_bytes_total"))
            .collect();
        assert_eq!(
            lines,
            [
                r#"adit_inner_sent_bytes_total{client="a\"b\\c"} 10"#,
                r#"adit_inner_sent_bytes_total{client=""} 23"#,
            ]
        );
        assert!(
            text.contains("adit_client_sessions{client=\"\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("adit_drops_total{part=\"queue\",reason=\"codel\"} 5\n"));
        assert!(text.contains("adit_level{part=\"stack\",of=\"flows_now\"} 2\n"));
        assert!(text.contains("# TYPE adit_rtt_seconds gauge\nadit_rtt_seconds{client="));
    }

    #[test]
    fn every_sample_is_of_a_family_that_is_declared() {
        let text = render(&report(vec![client("a", true, 1)], sent(1)));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert!(FAMILIES.iter().any(|family| family.name == name), "{line}");
        }
    }
}
