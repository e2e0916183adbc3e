//! `adit bench`: every figure is there, and every client of a swarm is served.

use std::{fs, net::SocketAddr, time::Duration};

use adit_integration::{
    adit::{ClientConfig, Pair, User, Workdir, free_port, path},
    meters::wait_for,
    namespaces::Place,
    process::{self, Finished, Signal},
};
use serde_json::Value;

/// The hang guard: a busy machine may take long for what is short.
const SOON: Duration = Duration::from_secs(120);

fn bench(workdir: &Workdir, arguments: &[&str]) -> Finished {
    let mut command = workdir.command(&Place::here(), User::Same);
    command.arg("bench").args(arguments);
    process::run(command, SOON)
}

/// Runs a bench that succeeds and prints one JSON object.
fn figures(workdir: &Workdir, arguments: &[&str]) -> Value {
    let finished = bench(workdir, arguments);
    assert!(
        finished.status.success(),
        "{arguments:?}: {}",
        finished.text()
    );
    serde_json::from_str(&finished.stdout).expect("one JSON object")
}

/// A child of the first thread of a process.
fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Whether a process has ended, though nobody may have taken its status yet.
fn is_gone(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).map_or(true, |stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

fn assert_quantiles(value: &Value) {
    for figure in ["samples", "p50_ms", "p99_ms", "max_ms"] {
        assert!(is_positive(&value[figure]), "no {figure} in {value}");
    }
}

/// Checks that every figure of a path is there, for one and for `flows` flows.
fn assert_measured(report: &Value, flows: u64, processes: &[&str]) {
    let throughput = report["throughput"].as_array().expect("a list");
    let measured: Vec<_> = throughput
        .iter()
        .map(|one| (one["direction"].as_str(), one["flows"].as_u64()))
        .collect();
    let expected = [1, flows].map(|flows| ["down", "up"].map(|way| (Some(way), Some(flows))));
    assert_eq!(measured, expected.concat());
    for one in throughput {
        assert!(is_positive(&one["megabits_per_second"]), "{one}");
        assert!(one["slowest_of_mean"].is_f64(), "{one}");
        for process in processes {
            assert!(
                one["cpu_seconds_per_gb"][process].is_f64(),
                "{process} in {one}"
            );
        }
    }
    assert_quantiles(&report["latency"]["alone"]);
    assert_quantiles(&report["latency"]["beside_a_download"]);
    let connections = report["connections"].as_array().expect("a list");
    assert_eq!(connections.len(), 2);
    for one in connections {
        assert!(is_positive(&one["per_second"]), "{one}");
        assert_eq!(one["failed"], 0, "{one}");
    }
    assert!(
        is_positive(&report["udp"]["per_second"]),
        "{}",
        report["udp"]
    );
    assert_quantiles(&report["udp"]["round_trip"]);
}

#[test]
fn path_of_its_own_has_every_figure_on_every_lane() {
    let workdir = Workdir::new();
    for lane in ["tcp", "tls", "udp"] {
        let arguments = ["--time", "0.3", "--flows", "3", "--json", "--lane", lane];
        let report = figures(&workdir, &arguments);
        assert_eq!(report["lane"], lane);
        assert_measured(&report, 3, &["the client", "the server", "load and origin"]);
    }
}

#[test]
fn path_through_a_proxy_to_an_origin_has_every_figure() {
    let mut pair = Pair::start("tcp");
    let origin = SocketAddr::from(([127, 0, 0, 1], free_port())).to_string();
    let arguments = ["bench", "origin", "--listen", &origin];
    let mut far = (pair.workdir).start(&Place::here(), User::Same, "origin", &arguments);
    assert_eq!(far.ready(SOON), Some(format!("ready: origin on {origin}")));
    let proxy = format!("socks5://{}", pair.proxy);
    let pid = pair.client.process().pid().to_string();
    let report = figures(
        &pair.workdir,
        &[
            "--proxy", &proxy, "--origin", &origin, "--time", "0.3", "--flows", "2", "--pid", &pid,
            "--json",
        ],
    );
    assert_eq!(report["way"], proxy);
    assert!(report["lane"].is_null());
    assert_measured(&report, 2, &[&format!("process {pid}")]);
    // and straight, for comparison
    let straight = [
        "--origin", &origin, "--time", "0.5", "--flows", "2", "--json",
    ];
    assert_measured(&figures(&pair.workdir, &straight), 2, &[]);
    far.process().signal(Signal::Interrupt);
    assert!(
        far.process()
            .wait(SOON)
            .is_some_and(|status| status.success())
    );
    let gone = bench(&pair.workdir, &["--proxy", &proxy, "--origin", &origin]);
    assert_eq!(gone.status.code(), Some(1), "{}", gone.text());
    assert!(gone.stderr.contains("adit bench origin"), "{}", gone.text());
}

#[test]
fn swarm_of_fifty_is_served_on_every_lane() {
    let workdir = Workdir::new();
    for lane in ["tcp", "tls", "udp"] {
        let arguments = [
            "swarm",
            "--clients",
            "50",
            "--time",
            "0.3",
            "--every",
            "0.5",
            "--idle",
            "0.5",
            "--json",
            "--lane",
            lane,
        ];
        let report = figures(&workdir, &arguments);
        assert_eq!(report["lane"], lane);
        for figure in ["clients", "connected", "served"] {
            assert_eq!(report[figure], 50, "{figure} in {report}");
        }
        assert_eq!(report["sessions_lost"], 0, "{report}");
        assert!(is_positive(&report["handshakes_per_second"]), "{report}");
        assert_quantiles(&report["handshake"]);
        assert!(report["echo"]["sent"].as_u64() >= Some(50), "{report}");
        assert!(report["echo"]["lost"].is_u64(), "{report}");
        assert_quantiles(&report["echo"]["round_trip"]);
        for figure in [
            "cpu_ms_per_handshake",
            "handshakes_per_cpu_second",
            "resident_bytes_at_start",
            "resident_bytes_connected",
            "resident_bytes_idle",
            "idle_bytes_per_client",
        ] {
            assert!(
                is_positive(&report["server"][figure]),
                "{figure} in {report}"
            );
        }
    }
}

#[test]
fn swarm_goes_to_a_server_that_is_there() {
    let pair = Pair::start("tcp");
    let config = path(&pair.client_config);
    let (key, other) = (path(&pair.client_key.file), path(&pair.other_key.file));
    let short = ["--time", "0.3", "--every", "0.5", "--idle", "0.1", "--json"];
    let swarm = |more: &[&str]| {
        let arguments = [&["swarm", "-c", config][..], more, &short].concat();
        bench(&pair.workdir, &arguments)
    };
    // the client that runs is one of the eight instances of its key
    let finished = swarm(&["--clients", "15", "--key-file", other, "--key-file", key]);
    assert!(finished.status.success(), "{}", finished.text());
    let report: Value = serde_json::from_str(&finished.stdout).expect("one JSON object");
    assert_eq!(report["served"], 15, "{report}");
    assert!(report["server"].is_null(), "its processes are not ours");

    let finished = swarm(&["--clients", "9"]);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.text());
    let said = "9 clients need 2 keys, and there are 1";
    assert!(finished.stderr.contains(said), "{}", finished.text());

    let stranger = pair.workdir.key("stranger.key", User::Same);
    let strange = ClientConfig {
        server: vec![format!("tcp://127.0.0.1:{}", pair.port)],
        server_key: pair.server_key.public.clone(),
        proxy: pair.proxy,
        more: "connect_timeout: 1s".into(),
    };
    let strange = pair.workdir.client("stranger.yaml", &stranger, &strange);
    let finished = bench(
        &pair.workdir,
        &["swarm", "-c", path(&strange), "--clients", "1"],
    );
    assert_eq!(finished.status.code(), Some(1), "{}", finished.text());
    let said = "0 of 1 clients were served";
    assert!(finished.stderr.contains(said), "{}", finished.text());
    assert!(
        finished.stdout.contains("no answer to the handshake"),
        "{}",
        finished.text()
    );
}

#[test]
fn children_end_with_the_bench_that_started_them() {
    let workdir = Workdir::new();
    for signal in [Signal::Interrupt, Signal::Kill] {
        let arguments = ["bench", "swarm", "--clients", "2", "--time", "3600"];
        let mut bench = workdir.start(&Place::here(), User::Same, "bench", &arguments);
        let own = bench.process().pid();
        let server = wait_for(SOON, || child_of(own)).expect("it starts a server");
        bench.process().signal(signal);
        assert!(bench.process().wait(SOON).is_some(), "it ends");
        let gone = wait_for(SOON, || is_gone(server).then_some(()));
        assert!(gone.is_some(), "process {server} goes on");
    }
}
