//! `adit status`, `adit health`, metrics, and `adit reload` under load, against what was really transferred.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, ClientConfig, Pair, User, free_port, path},
    exposition::{get, parse_metrics, sample},
    meters::{descriptors, wait_for},
    namespaces::Place,
    origin::Origin,
    process::Finished,
    socks,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(30);

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Runs `adit` about the program of this configuration.
fn order(pair: &Pair, command: &str, config: &std::path::Path, more: &[&str]) -> Finished {
    (pair.workdir).run(&[&[command, "-c", path(config)], more].concat())
}

fn status(pair: &Pair, config: &std::path::Path) -> Value {
    let shown = order(pair, "status", config, &["--json"]);
    assert!(shown.status.success(), "{}", shown.text());
    serde_json::from_str(&shown.stdout).expect("JSON")
}

fn server_status(pair: &Pair) -> Value {
    status(pair, &pair.server_config)
}

fn client_status(pair: &Pair) -> Value {
    status(pair, &pair.client_config)
}

fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("{pointer} of {value:#}"))
}

/// What the server says of the session of one client.
fn session<'v>(status: &'v Value, client: &str) -> &'v Value {
    let sessions = status["sessions"].as_array().expect("a list");
    let found = sessions.iter().find(|it| it["client"] == client);
    found.unwrap_or_else(|| panic!("no session of {client} in {status:#}"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Sends `length` bytes to an echo through a proxy, and reads them back.
async fn echo(proxy: SocketAddr, origin: SocketAddr, length: usize) {
    let stream = socks::connect(proxy, origin).await.expect("a connection");
    let (mut from, mut to) = stream.into_split();
    let sending = async move {
        to.write_all(&vec![7; length]).await.expect("sends");
        to.shutdown().await.expect("ends");
    };
    let reading = async move {
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.expect("reads");
        got
    };
    let ((), got) = tokio::join!(sending, reading);
    assert!(got == vec![7; length], "the echo is what was sent");
}

#[test]
fn client_that_was_killed_has_its_address_again_at_once_and_leaves_no_session_behind() {
    for scheme in ["udp", "tcp"] {
        let mut pair = Pair::start(scheme);
        let before = session(&server_status(&pair), "laptop")["addresses"].clone();
        assert!(before[0].is_string(), "{before}");
        pair.client.kill();
        let here = Place::here();
        let mut client = (pair.workdir).start_client(&here, User::Same, &pair.client_config);
        let now = server_status(&pair);
        assert_eq!(session(&now, "laptop")["addresses"], before, "{scheme}");
        assert_eq!(now["sessions"].as_array().map(Vec::len), Some(1));
        // One that ends in order leaves nothing of that on the disk.
        client.stop();
        let run = fs::read_dir(pair.workdir.path().join("run/adit")).expect("its folder");
        let left: Vec<_> = run
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name.to_string_lossy().starts_with("client-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A pair whose ends both have an admin address.
fn pair_with_admin(scheme: &str) -> (Pair, SocketAddr, SocketAddr) {
    let [server, client] = [free_port(), free_port()].map(loopback);
    let pair = Pair::start_with(
        scheme,
        &format!("admin: \"{server}\""),
        &format!("admin: \"{client}\""),
    );
    (pair, server, client)
}

#[test]
fn status_and_metrics_of_both_ends_agree_with_what_two_clients_have_transferred() {
    const ONE: u64 = 1_000_000;
    const OTHER: u64 = 3_000_000;
    for scheme in ["tcp", "udp"] {
        let origin = Origin::echo(&Place::here(), loopback(0));
        let (pair, admin, client_admin) = pair_with_admin(scheme);
        let (mut other, other_proxy) = pair.other(scheme, pair.port);
        other.expect_ready();
        runtime().block_on(async {
            tokio::join!(
                echo(pair.proxy, origin.address(), ONE as usize),
                echo(other_proxy, origin.address(), OTHER as usize),
            )
        });
        // What the client's goodbye to the flows brings still moves.
        let quiet = wait_for(SOON, || {
            let (before, client) = (server_status(&pair), client_status(&pair));
            let after = server_status(&pair);
            let same = before["total"] == after["total"];
            same.then_some((before, client))
        });
        let (server, client) = quiet.expect("it becomes quiet");
        for (name, length) in [("laptop", ONE), ("other", OTHER)] {
            let session = session(&server, name);
            for direction in ["inner_sent_bytes", "inner_received_bytes"] {
                let bytes = number(session, &format!("/total/{direction}"));
                if scheme == "tcp" {
                    assert_eq!(
                        bytes, length,
                        "relayed bytes are counted as they are: {session:#}"
                    );
                } else {
                    // packets, with their headers and what was sent again
                    assert!((length..length * 6 / 5).contains(&bytes), "{session:#}");
                }
            }
            assert_eq!(session["lanes"].as_array().map(Vec::len), Some(1));
            assert_eq!(session["lanes"][0]["transport"], scheme);
            assert_eq!(session["lanes"][0]["in_use"], true);
            let of_client = server["clients"]["known"].as_array().expect("a list");
            let of_client = of_client.iter().find(|it| it["name"] == name);
            assert_eq!(of_client.expect("it is known")["total"], session["total"]);
        }
        let own = &client["sessions"][0];
        let at_server = session(&server, "laptop");
        let crossed = |from: &Value, to: &Value| {
            let sent = number(from, "/total/inner_sent_bytes");
            let received = number(to, "/total/inner_received_bytes");
            let repeated = number(to, "/total/wasted");
            assert!(
                sent == received || scheme == "udp" && repeated > 0,
                "{sent} {received}"
            );
        };
        crossed(own, at_server);
        crossed(at_server, own);
        assert_eq!(own["addresses"], at_server["addresses"]);
        assert_eq!(server["clients"]["listed"], 2);
        assert_eq!(server["clients"]["connected"], 2);

        // The same in the metrics.
        let (code, text) = get(admin, "/metrics");
        assert_eq!(code, 200);
        let (types, samples) = parse_metrics(&text);
        assert_eq!(types["adit_ready"], "gauge");
        for name in ["laptop", "other"] {
            let metric = sample(&samples, "adit_inner_sent_bytes_total", &[("client", name)]);
            let said = number(session(&server, name), "/total/inner_sent_bytes");
            assert_eq!(metric, said as f64, "{name}");
            assert_eq!(
                sample(&samples, "adit_client_sessions", &[("client", name)]),
                1.0
            );
        }
        assert_eq!(
            sample(&samples, "adit_clients", &[("state", "connected")]),
            2.0
        );
        assert_eq!(
            sample(&samples, "adit_lanes", &[("transport", scheme)]),
            2.0
        );
        let (code, text) = get(client_admin, "/metrics");
        assert_eq!(code, 200);
        let (_, of_client) = parse_metrics(&text);
        let metric = sample(&of_client, "adit_inner_sent_bytes_total", &[]);
        assert_eq!(metric, number(own, "/total/inner_sent_bytes") as f64);
        // No destination and no address of anybody's, in either.
        for text in [&text, &get(admin, "/metrics").1] {
            assert!(
                !text.contains("127.0.0.1") && !text.contains("10.86."),
                "{text}"
            );
        }

        // What a client has carried stays when its session is over.
        other.stop();
        let ended = wait_for(SOON, || {
            let status = server_status(&pair);
            (status["clients"]["connected"] == 1).then_some(status)
        });
        let ended = ended.expect("its session ends");
        let known = ended["clients"]["known"].as_array().expect("a list");
        let gone = known
            .iter()
            .find(|it| it["name"] == "other")
            .expect("known");
        assert_eq!((&gone["sessions"], &gone["ended"]), (&0.into(), &1.into()));
        let before = number(session(&server, "other"), "/total/inner_sent_bytes");
        assert!(number(gone, "/total/inner_sent_bytes") >= before);
        assert!(
            number(&ended, "/total/inner_sent_bytes") >= number(&server, "/total/inner_sent_bytes")
        );
        for (mut adit, name) in [(pair.server, "server"), (pair.client, "client")] {
            assert!(adit.panics().is_empty(), "{name}: {:?}", adit.panics());
            adit.stop();
        }
    }
}

#[test]
fn table_and_watch_show_the_session() {
    let pair = Pair::start("tcp");
    let shown = order(&pair, "status", &pair.server_config, &[]);
    assert!(shown.status.success(), "{}", shown.text());
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(
        lines[0].contains("listening") && lines[0].contains("1 of 2 clients connected"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("CLIENT") && lines[2].starts_with("laptop"),
        "{lines:?}"
    );
    assert!(
        lines[2].contains("tcp*") && lines[2].contains("10.86.0.2"),
        "{lines:?}"
    );
    let shown = order(&pair, "status", &pair.client_config, &[]);
    assert!(
        shown.stdout.contains("connected") && shown.stdout.contains("tcp*"),
        "{}",
        shown.text()
    );
    // Watched, it ends when nobody reads.
    let mut command = pair.workdir.command(&Place::here(), User::Same);
    command.args([
        "status",
        "--json",
        "--watch=100ms",
        "-c",
        path(&pair.client_config),
    ]);
    command.stdout(std::process::Stdio::piped());
    let mut watching = command.spawn().expect("starts");
    let mut out = std::io::BufReader::new(watching.stdout.take().expect("a pipe"));
    let mut line = String::new();
    for number in 0..3 {
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
        let status: Value = serde_json::from_str(&line).expect("an object a line");
        assert_eq!(status["kind"], "client");
        assert_eq!(
            status["sessions"][0].get("rates").is_some(),
            number > 0,
            "{status:#}"
        );
    }
    drop(out);
    let ended = wait_for(SOON, || watching.try_wait().expect("a child"));
    assert!(ended.expect("it ends").success());
}

#[test]
fn health_follows_the_server_and_tells_why() {
    let (mut pair, admin, client_admin) = pair_with_admin("tcp");
    let healthy = |pair: &Pair, config: &std::path::Path| order(pair, "health", config, &[]);
    let up = healthy(&pair, &pair.server_config);
    assert_eq!(
        (up.status.code(), up.stdout.trim()),
        (Some(0), "listening"),
        "{}",
        up.text()
    );
    let up = healthy(&pair, &pair.client_config);
    assert_eq!(
        (up.status.code(), up.stdout.trim()),
        (Some(0), "connected"),
        "{}",
        up.text()
    );
    let shown = admin.to_string();
    let by_admin = pair.workdir.run(&["health", "--admin", &shown]);
    assert_eq!(by_admin.status.code(), Some(0), "{}", by_admin.text());
    assert_eq!(get(client_admin, "/readyz").0, 200);

    pair.server.kill();
    let down = healthy(&pair, &pair.server_config);
    assert_eq!(down.status.code(), Some(1), "{}", down.text());
    assert!(down.stderr.contains("no server runs"), "{}", down.stderr);
    let by_admin = pair.workdir.run(&["health", "--admin", &shown]);
    assert_eq!(by_admin.status.code(), Some(1), "{}", by_admin.text());
    let down = wait_for(SOON, || {
        let down = healthy(&pair, &pair.client_config);
        (down.status.code() == Some(1)).then_some(down)
    });
    let down = down.expect("the client notices");
    assert!(down.stderr.contains("connecting"), "{}", down.stderr);
    assert_eq!(get(client_admin, "/readyz").0, 503);
    assert_eq!(get(client_admin, "/healthz").0, 200, "it runs all the same");
    let by_admin = pair
        .workdir
        .run(&["health", "--admin", &client_admin.to_string()]);
    assert_eq!(by_admin.status.code(), Some(1));
    assert!(
        by_admin.stderr.contains("connecting"),
        "{}",
        by_admin.stderr
    );

    pair.server = (pair.workdir).start_server(&Place::here(), User::Same, &pair.server_config);
    let up = wait_for(SOON, || {
        let up = healthy(&pair, &pair.client_config);
        up.status.success().then_some(())
    });
    up.expect("the client is back");
}

/// Writes a configuration with something replaced.
fn rewrite(config: &std::path::Path, from: &str, to: &str) {
    let text = fs::read_to_string(config).expect("it is there");
    assert!(text.contains(from), "{from} in {text}");
    fs::write(config, text.replace(from, to)).expect("it can be written");
}

#[test]
fn configuration_with_a_mistake_changes_nothing_and_the_mistake_is_told() {
    let pair = Pair::start("tcp");
    for config in [&pair.server_config, &pair.client_config] {
        let good = fs::read_to_string(config).expect("it is there");
        let lines = good.lines().count();
        fs::write(config, format!("{good}\nthreats: 4\n")).expect("writes");
        let name = config.file_name().expect("a name").to_string_lossy();
        let place = format!("{name}:{}:1: threats", lines + 2);
        // Whoever finds the program by the file leaves the rest of it to the program.
        let refused = order(&pair, "reload", config, &[]);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.text());
        assert!(
            refused.stderr.contains(&place),
            "{place}: {}",
            refused.stderr
        );
        let sockets: Vec<_> = fs::read_dir(pair.workdir.path().join("run/adit"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let kind = if config == &pair.server_config {
            "server-"
        } else {
            "client-"
        };
        // Beside a client's stands its instance.
        let of_kind = |path: &&std::path::PathBuf| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with(kind) && name.ends_with(".sock")
            })
        };
        let socket = sockets.iter().find(of_kind).expect("its socket");
        let refused = pair.workdir.run(&["reload", "--control", path(socket)]);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.text());
        assert!(
            refused.stderr.contains(&place),
            "{place}: {}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("did you mean"),
            "{}",
            refused.stderr
        );
        fs::write(config, good).expect("writes");
        let taken = order(&pair, "reload", config, &[]);
        assert_eq!(taken.status.code(), Some(0), "{}", taken.text());
        assert_eq!(taken.stdout.trim(), "nothing has changed");
        let said = status(&pair, config);
        assert_eq!(
            (
                number(&said, "/reloads/failed"),
                number(&said, "/reloads/applied")
            ),
            (2, 1)
        );
        if config == &pair.client_config {
            // What the file names is not needed to find who runs.
            let good = fs::read_to_string(config).expect("it is there");
            fs::write(config, format!("{good}\ndns: {{block: [gone.txt]}}\n")).expect("writes");
            assert_eq!(status(&pair, config)["ready"], true);
            let refused = order(&pair, "reload", config, &[]);
            assert!(refused.stderr.contains("gone.txt"), "{}", refused.text());
            fs::write(config, good).expect("writes");
        }
    }
    // What waits for a restart is named.
    rewrite(
        &pair.server_config,
        "egress: user",
        "egress: user\nmtu: 1300\nmax_clients: 77",
    );
    let taken = order(&pair, "reload", &pair.server_config, &[]);
    assert!(
        taken.stdout.contains("waits for a restart: mtu"),
        "{}",
        taken.text()
    );
    assert!(
        taken.stdout.contains("in force: max_clients"),
        "{}",
        taken.text()
    );
}

#[test]
fn client_that_is_removed_is_cut_off_at_once_and_may_come_back_when_it_is_listed() {
    let taken = Arc::new(AtomicU64::new(0));
    let origin = Origin::sink(&Place::here(), loopback(0), Arc::clone(&taken));
    let pair = Pair::start("tcp");
    let (mut other, other_proxy) = pair.other("tcp", pair.port);
    other.expect_ready();
    let runtime = runtime();
    let entry = format!(
        "\n  - {{name: other, public_key: \"{}\"}}",
        pair.other_key.public
    );
    // A flow of each client in the middle of an upload.
    let (mut cut, mut kept) = runtime.block_on(async {
        let cut = socks::connect(other_proxy, origin.address())
            .await
            .expect("a flow");
        let kept = socks::connect(pair.proxy, origin.address())
            .await
            .expect("a flow");
        (cut, kept)
    });
    runtime
        .block_on(async { cut.write_all(&[1; 100_000]).await })
        .expect("writes");
    wait_for(SOON, || {
        (taken.load(Ordering::SeqCst) >= 100_000).then_some(())
    })
    .expect("it arrives");
    rewrite(&pair.server_config, &entry, "");
    let began = Instant::now();
    let reload = order(&pair, "reload", &pair.server_config, &[]);
    assert!(
        reload
            .stdout
            .contains("in force: clients: other removed, 1 of its sessions ended"),
        "{}",
        reload.text()
    );
    // Whatever it sends from now on arrives nowhere.
    let status = server_status(&pair);
    assert_eq!(
        status["sessions"].as_array().map(Vec::len),
        Some(1),
        "{status:#}"
    );
    let at_cut = taken.load(Ordering::SeqCst);
    let broken = runtime.block_on(async {
        let sending = async { while cut.write_all(&[2; 10_000]).await.is_ok() {} };
        tokio::time::timeout(SOON, sending).await
    });
    broken.expect("the application is told");
    println!("cut off {:?} after the order was given", began.elapsed());
    assert_eq!(
        taken.load(Ordering::SeqCst),
        at_cut,
        "nothing of it has arrived since"
    );
    runtime
        .block_on(async { kept.write_all(&[3; 50_000]).await })
        .expect("writes");
    wait_for(SOON, || {
        (taken.load(Ordering::SeqCst) == at_cut + 50_000).then_some(())
    })
    .expect("the other goes on");
    // And back.
    let text = fs::read_to_string(&pair.server_config).expect("it is there");
    fs::write(&pair.server_config, format!("{}{entry}\n", text.trim_end())).expect("writes");
    let reload = order(&pair, "reload", &pair.server_config, &[]);
    assert!(
        reload.stdout.contains("in force: clients: other added"),
        "{}",
        reload.text()
    );
    wait_for(SOON, || {
        (server_status(&pair)["clients"]["connected"] == 2).then_some(())
    })
    .expect("it comes back");
}

/// Exchanges with an echo again and again until told to stop; returns how often, or how the flow broke.
async fn busy(
    proxy: SocketAddr,
    origin: SocketAddr,
    seed: u8,
    stop: Arc<AtomicBool>,
) -> Result<u64, std::io::Error> {
    let mut stream = socks::connect(proxy, origin).await.expect("a connection");
    let mut rounds = 0;
    while !stop.load(Ordering::SeqCst) {
        let sent = [seed ^ rounds as u8; 700];
        stream.write_all(&sent).await?;
        let mut got = [0; 700];
        stream.read_exact(&mut got).await?;
        assert_eq!(got, sent);
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(rounds)
}

#[test]
fn hundred_reloads_under_200_flows_break_none_and_leave_nothing_behind() {
    const FLOWS: u8 = 200;
    const RELOADS: usize = 100;
    const WARM_UP: usize = 60;
    let origin = Origin::echo(&Place::here(), loopback(0));
    let forwarded = free_port();
    let mut pair = Pair::start("tcp");
    let (mut other, _) = pair.other("tcp", pair.port);
    other.expect_ready();
    let others_entry = format!(
        "\n  - {{name: other, public_key: \"{}\"}}",
        pair.other_key.public
    );
    let guests: Vec<String> = (0..4)
        .map(|number| {
            pair.workdir
                .key(&format!("guest-{number}.key"), User::Same)
                .public
        })
        .collect();
    let (server_good, client_good) = (
        fs::read_to_string(&pair.server_config).expect("it is there"),
        fs::read_to_string(&pair.client_config).expect("it is there"),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let (proxy, at) = (pair.proxy, origin.address());
    let flows = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            runtime().block_on(async {
                let flows =
                    (0..FLOWS).map(|seed| tokio::spawn(busy(proxy, at, seed, Arc::clone(&stop))));
                let flows: Vec<_> = flows.collect();
                let mut ends = Vec::new();
                for flow in flows {
                    ends.push(flow.await.expect("it does not panic"));
                }
                ends
            })
        })
    };
    let standing = wait_for(SOON, || {
        let status = client_status(&pair);
        (number(&status, "/sessions/0/flows") == u64::from(FLOWS)).then_some(())
    });
    standing.expect("all flows stand");
    let reload = |pair: &Pair, number: usize, more: bool| {
        let guests: String = guests
            .iter()
            .enumerate()
            .filter(|(at, _)| more && at % 2 == number / 2 % 2)
            .map(|(at, public)| {
                format!(
                    "\n  - {{name: guest-{at}, public_key: \"{public}\", address: 10.86.0.{}}}",
                    100 + at
                )
            })
            .collect();
        let server = server_good.trim_end().replace(
            "allow: [",
            if more {
                "allow: [\"10.1.0.0/16\", "
            } else {
                "allow: ["
            },
        );
        // One that has a session goes and comes, too.
        let server = if number % 20 == 11 {
            server.replace(&others_entry, "")
        } else {
            server
        };
        fs::write(&pair.server_config, format!("{server}{guests}\n")).expect("writes");
        let forward = if more {
            format!(
                "local_forwards: [\"{forwarded}:localhost:{}\"]\n",
                at.port()
            )
        } else {
            String::new()
        };
        fs::write(&pair.client_config, format!("{client_good}{forward}")).expect("writes");
        for config in [&pair.server_config, &pair.client_config] {
            let done = order(pair, "reload", config, &[]);
            assert_eq!(done.status.code(), Some(0), "{number}: {}", done.text());
            assert!(!done.stdout.contains("restart"), "{}", done.text());
        }
        done_forward(more, forwarded);
    };
    // Memory that is made once is made by then.
    for number in 0..WARM_UP {
        reload(&pair, number, number % 2 == 0);
    }
    let levels = |pair: &mut Pair| {
        let mut all = BTreeMap::new();
        for (who, config) in [
            ("server", &pair.server_config),
            ("client", &pair.client_config),
        ] {
            let status = status(pair, config);
            let counters = status["counters"].as_object().expect("a map");
            for name in ["runtime.tasks_now", "leases.now", "netstack.flows_now"] {
                if let Some(value) = counters.get(name) {
                    all.insert(format!("{who} {name}"), value.clone());
                }
            }
            all.insert(
                format!("{who} sessions"),
                status["sessions"].as_array().map(Vec::len).into(),
            );
            let flows = status["sessions"].as_array().into_iter().flatten();
            let flows: u64 = flows.map(|session| number(session, "/flows")).sum();
            all.insert(format!("{who} flows"), flows.into());
            all.insert(format!("{who} listed"), status["clients"]["listed"].clone());
            all.insert(
                format!("{who} known"),
                status["clients"]["known"].as_array().map(Vec::len).into(),
            );
            all.insert(
                format!("{who} forwards"),
                status["forwards"]["forwards"].clone(),
            );
        }
        for (who, adit) in [("server", &mut pair.server), ("client", &mut pair.client)] {
            all.insert(format!("{who} descriptors"), descriptors_of(adit).into());
        }
        all
    };
    let both_connected = |pair: &Pair| {
        let connected = || (server_status(pair)["clients"]["connected"] == 2).then_some(());
        wait_for(2 * SOON, connected).expect("both clients are connected");
    };
    both_connected(&pair);
    let before = levels(&mut pair);
    assert_eq!(before["client flows"], u64::from(FLOWS));
    println!("{before:?}");
    let memory_before = [pair.server.meters(), pair.client.meters()];
    let began = Instant::now();
    for number in 0..RELOADS {
        reload(&pair, number, number % 2 == 0);
    }
    let took = began.elapsed();
    both_connected(&pair);
    // What has just been closed is given back in a moment.
    let mut after = levels(&mut pair);
    wait_for(SOON, || {
        after = levels(&mut pair);
        (after == before).then_some(())
    });
    let memory_after = [pair.server.meters(), pair.client.meters()];
    assert_eq!(after, before, "nothing is left behind");
    for (now, then) in memory_after.iter().zip(&memory_before) {
        println!("{then} before, {now} after {RELOADS} reloads");
        // What flows hold comes and goes; what reloads alone leave is the next test's.
        assert!(now.memory_is_back_at(then), "{then} before, {now} after");
    }
    stop.store(true, Ordering::SeqCst);
    let ends = flows.join().expect("no flow panics");
    let rounds: Vec<u64> = ends
        .into_iter()
        .map(|end| end.expect("no flow breaks"))
        .collect();
    let least = rounds.iter().min().copied().unwrap_or_default();
    println!(
        "{FLOWS} flows, {} exchanges, at least {least} of each, over {RELOADS} reloads of both ends in {took:?}",
        rounds.iter().sum::<u64>()
    );
    assert!(least > 0);
    let said = server_status(&pair);
    assert_eq!(
        number(&said, "/reloads/applied"),
        (WARM_UP + RELOADS) as u64
    );
    assert_eq!(number(&said, "/reloads/failed"), 0);
    for adit in [&pair.server, &pair.client] {
        assert!(adit.panics().is_empty(), "{:?}", adit.panics());
    }
}

/// Whether the forward of a reload is there, or gone, as it should be.
fn done_forward(is_there: bool, port: u16) {
    assert_eq!(TcpStream::connect(loopback(port)).is_ok(), is_there);
}

fn descriptors_of(adit: &mut Adit) -> usize {
    let pid = adit.process().pid();
    descriptors(pid).len()
}

/// What memory may grow by over a hundred reloads of nothing but what changes: three pages of 4 KiB for each, which an
/// allocator keeps back; a configuration that stayed would be more.
const MEMORY_BOUND: u64 = 100 * 3 * 4096;

#[test]
fn reloads_alone_leave_no_memory_behind() {
    let mut pair = Pair::start("tcp");
    let (server, client) = (
        fs::read_to_string(&pair.server_config).expect("it is there"),
        fs::read_to_string(&pair.client_config).expect("it is there"),
    );
    let guest = pair.workdir.key("guest.key", User::Same).public;
    let guest = format!("\n  - {{name: guest, public_key: \"{guest}\", address: 10.86.0.100}}");
    let rules = format!("rules: [{}]\n", "\"block *.example\", ".repeat(200));
    let reloads = |pair: &Pair, count: usize| {
        for number in 0..count {
            let more = number % 2 == 0;
            let [guest, rules] = if more { [&*guest, &*rules] } else { [""; 2] };
            fs::write(
                &pair.server_config,
                format!("{}{guest}\n", server.trim_end()),
            )
            .expect("writes");
            fs::write(&pair.client_config, format!("{client}{rules}")).expect("writes");
            for config in [&pair.server_config, &pair.client_config] {
                let done = order(pair, "reload", config, &[]);
                assert!(done.stdout.contains("in force"), "{}", done.text());
            }
        }
    };
    reloads(&pair, 40);
    let before = [pair.server.meters(), pair.client.meters()];
    reloads(&pair, 100);
    let after = [pair.server.meters(), pair.client.meters()];
    for (now, then) in after.iter().zip(&before) {
        println!("{then} before, {now} after 100 reloads alone");
        let grown = now.resident.saturating_sub(then.resident);
        assert!(grown <= MEMORY_BOUND, "{grown} bytes more");
    }
    // The connection that brought the last order is closed a moment after it was answered.
    for (adit, then) in [&mut pair.server, &mut pair.client]
        .into_iter()
        .zip(&before)
    {
        wait_for(SOON, || {
            (descriptors_of(adit) <= then.descriptors).then_some(())
        })
        .expect("no descriptor more than before");
    }
}

#[test]
fn configurations_of_the_admin_address_that_would_be_open_to_others_are_refused() {
    let pair = Pair::start("tcp");
    for (address, right) in [
        ("0.0.0.0:9090", "can be reached from other hosts"),
        ("9090", "is not an address"),
    ] {
        let config = pair.workdir.client(
            "bad.yaml",
            &pair.client_key,
            &ClientConfig {
                server: vec!["tcp://127.0.0.1:1".into()],
                server_key: pair.server_key.public.clone(),
                proxy: loopback(free_port()),
                more: format!("admin: \"{address}\""),
            },
        );
        let refused = pair.workdir.run(&["check", path(&config)]);
        assert_eq!(refused.status.code(), Some(2), "{}", refused.text());
        assert!(
            refused.stderr.contains("admin:") && refused.stderr.contains(right),
            "{}",
            refused.stderr
        );
    }
}
