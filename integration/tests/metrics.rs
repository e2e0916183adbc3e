//! Metrics of what is there for a while: sockets, listeners, guests, commands that share a client; and the dashboard of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use adit_integration::{
    adit::{Pair, User, free_port, path},
    exposition::{Samples, get, parse_metrics, sample},
    meters::wait_for,
    namespaces::{Place, runtime},
    origin::Origin,
    process::Process,
    skip::{Need, can_run},
    socks,
};
use serde_json::Value;

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(30);

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A pair, and the admin addresses of server and client.
struct Scene {
    pair: Pair,
    server: SocketAddr,
    client: SocketAddr,
}

impl Scene {
    fn new(scheme: &str, more_client: &str) -> Self {
        let [server, client] = [free_port(), free_port()].map(loopback);
        let pair = Pair::start_with(
            scheme,
            &format!("admin: \"{server}\""),
            &format!("admin: \"{client}\"\n{more_client}"),
        );
        Self {
            pair,
            server,
            client,
        }
    }

    fn samples(&self, of: SocketAddr) -> Samples {
        parse_metrics(&get(of, "/metrics").1).1
    }
}

/// How much there is of something.
fn level(samples: &Samples, part: &str, of: &str) -> f64 {
    sample(samples, "adit_level", &[("part", part), ("of", of)])
}

fn drops(samples: &Samples, part: &str, reason: &str) -> f64 {
    let labels = [("part", part), ("reason", reason)];
    sample(samples, "adit_drops_total", &labels)
}

fn events(samples: &Samples, part: &str, event: &str) -> f64 {
    let labels = [("part", part), ("event", event)];
    sample(samples, "adit_events_total", &labels)
}

#[test]
fn sockets_and_listeners_are_counted_for_as_long_as_they_are_there() {
    for scheme in ["tcp", "udp"] {
        let (tcp, udp) = (
            Origin::echo(&Place::here(), loopback(0)),
            Origin::udp_echo(&Place::here(), loopback(0)),
        );
        let [near, names] = [free_port(), free_port()];
        let scene = Scene::new(
            scheme,
            &format!(
                "rules: [\"direct udp {}/32 port {}\"]\ndns: 127.0.0.1:{names}\n\
                 local_forwards: [\"{near}:a.example:80\", \"{near}:a.example:53/udp\"]\n",
                loopback(0).ip(),
                udp.address().port(),
            ),
        );
        let runtime = runtime();
        let (flows, associations) = runtime.block_on(async {
            let (mut flows, mut associations) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                let flow = socks::connect(scene.pair.proxy, tcp.address()).await;
                flows.push(flow.expect("a flow"));
            }
            for _ in 0..2 {
                let association = socks::associate(scene.pair.proxy).await;
                associations.push(association.expect("an association"));
            }
            // one goes through the tunnel, to whoever does not answer, the other beside it
            let silent = loopback(free_port());
            let sent = associations[0].send_to(b"through", silent).await;
            sent.expect("it is sent");
            let sent = associations[1].send_to(b"beside", udp.address()).await;
            sent.expect("it is sent");
            associations[1].recv_from().await.expect("the echo");
            (flows, associations)
        });
        let server = wait_for(SOON, || {
            let samples = scene.samples(scene.server);
            (level(&samples, "udp", "sockets_now") == 1.0).then_some(samples)
        });
        let server = server.expect("the datagram arrives");
        assert_eq!(level(&server, "egress", "tcp_sockets_now"), 3.0);
        assert_eq!(level(&server, "udp", "mappings_now"), 1.0);
        assert_eq!(level(&server, "echo", "sockets_now"), 0.0);
        // lanes, the admin address, the control socket
        let lanes = if scheme == "tcp" {
            [2.0, 0.0]
        } else {
            [1.0, 1.0]
        };
        let listens = ["tcp_now", "udp_now"].map(|of| level(&server, "listen", of));
        assert_eq!(listens, lanes);
        assert_eq!(level(&server, "listen", "unix_now"), 1.0);
        if scheme == "tcp" {
            assert_eq!(events(&server, "listen", "accepted"), 1.0);
        } else {
            let received = events(&server, "datagram_sockets", "datagrams_received");
            assert!(received > 2.0, "{received}");
        }
        let client = scene.samples(scene.client);
        assert_eq!(level(&client, "associations", "now"), 2.0);
        assert_eq!(level(&client, "associations", "direct_sockets_now"), 1.0);
        assert_eq!(level(&client, "direct", "flows_now"), 0.0);
        // proxy, resolver, forward, admin address; resolver and forward; the control socket
        let listens = ["tcp_now", "udp_now", "unix_now"].map(|of| level(&client, "listen", of));
        assert_eq!(listens, [4.0, 2.0, 1.0]);

        let removed = (scene.pair.workdir).run(&[
            "forward",
            "rm",
            "-c",
            path(&scene.pair.client_config),
            "1",
        ]);
        assert!(removed.status.success(), "{}", removed.text());
        drop((flows, associations));
        let gone = wait_for(SOON, || {
            let (server, client) = (scene.samples(scene.server), scene.samples(scene.client));
            let now = [
                level(&server, "egress", "tcp_sockets_now"),
                level(&client, "associations", "now"),
                level(&client, "associations", "direct_sockets_now"),
                level(&client, "listen", "tcp_now"),
            ];
            (now == [0.0, 0.0, 0.0, 3.0]).then_some(())
        });
        assert!(gone.is_some(), "{:?}", scene.samples(scene.server));
    }
}

#[test]
fn guests_are_counted_by_what_became_of_them() {
    let scene = Scene::new("tcp", "");
    let (workdir, config) = (&scene.pair.workdir, path(&scene.pair.server_config));
    let before = scene.samples(scene.server);
    assert_eq!(events(&before, "guests", "enrolled"), 0.0);
    let invited = workdir.run(&["invite", "phone", "-c", config]);
    assert!(invited.status.success(), "{}", invited.text());
    let link = invited.stdout.trim();
    for (name, enrols) in [("one", true), ("two", false)] {
        let file = workdir.path().join(format!("{name}.yaml"));
        let joined = workdir.run(&["join", link, "-c", path(&file), "--no-start"]);
        assert_eq!(joined.status.success(), enrols, "{}", joined.text());
    }
    let after = scene.samples(scene.server);
    assert_eq!(events(&after, "guests", "enrolled"), 1.0);
    assert_eq!(drops(&after, "guests", "refused"), 1.0);
    assert_eq!(drops(&after, "guests", "crowded_out"), 0.0);
    assert_eq!(level(&after, "guests", "now"), 0.0);
}

#[test]
fn commands_that_share_a_client_are_counted_while_they_run_and_after() {
    if !can_run(&[Need::Root, Need::Tun, Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new("tcp", "");
    let (workdir, config) = (&scene.pair.workdir, path(&scene.pair.client_config));
    let status = || {
        let shown = workdir.run(&["status", "-c", config]);
        assert!(shown.status.success(), "{}", shown.text());
        shown.stdout
    };
    assert!(!status().contains("share"), "{}", status());
    let mut command = workdir.command(&Place::here(), User::Same);
    // the server lets nobody go there
    let script = "curl --silent --connect-timeout 20 http://10.1.2.3/ || echo refused; sleep 1000";
    command.args(["run", "--share", "-c", config, "--", "sh", "-c", script]);
    let mut command = Process::spawn("adit run --share", command);
    let refused = command.wait_for_line(SOON, |line| line == "refused");
    assert!(refused.is_some(), "{}", command.text());
    let during = scene.samples(scene.client);
    assert_eq!(level(&during, "commands", "now"), 1.0);
    assert_eq!(events(&during, "commands", "joined"), 1.0);
    assert_eq!(drops(&during, "commands", "refused"), 1.0);
    let outgoing = events(&during, "commands_device", "outgoing");
    assert!(outgoing >= 1.0, "{outgoing}");
    assert!(status().contains("; 1 command shares it"), "{}", status());
    command.kill();
    let ended = wait_for(SOON, || {
        let samples = scene.samples(scene.client);
        (level(&samples, "commands", "now") == 0.0).then_some(samples)
    });
    let ended = ended.expect("its end is noticed");
    assert_eq!(
        drops(&ended, "commands", "refused"),
        1.0,
        "nothing is forgotten"
    );
    assert_eq!(events(&ended, "commands", "joined"), 1.0);
    assert!(events(&ended, "commands_device", "outgoing") >= outgoing);
}

/// One selector of an expression: the metric, and the labels that it names.
#[derive(Debug)]
struct Selector {
    metric: String,
    /// The values of which any will do.
    labels: BTreeMap<String, Vec<String>>,
}

/// Finds the metrics in an expression of PromQL, with those labels that the program gives them.
fn selectors(expression: &str) -> Vec<Selector> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(['a', 'p']) {
        rest = &rest[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        rest = &rest[end..];
        if !word.starts_with("adit_") && !word.starts_with("process_") {
            continue;
        }
        let inside = rest.strip_prefix('{').and_then(|it| it.split_once('}'));
        let matchers = inside.map_or("", |(inside, _)| inside);
        let matchers = matchers.split("\",").filter(|it| !it.is_empty());
        let mut labels = BTreeMap::new();
        for matcher in matchers {
            let (label, value) = matcher.split_once("=").expect("a matcher");
            if label.ends_with('!') || label == "instance" {
                continue;
            }
            let value = value.trim_start_matches('~').trim_matches('"');
            let values = value.split('|').map(str::to_owned).collect();
            labels.insert(label.to_owned(), values);
        }
        found.push(Selector {
            metric: word.to_owned(),
            labels,
        });
    }
    found
}

impl Selector {
    /// Each value of each label must be one that the program gives that metric.
    fn check(&self, samples: &[Samples]) {
        let all = samples.iter().flat_map(BTreeMap::keys);
        let own: Vec<_> = all.filter(|(name, _)| *name == self.metric).collect();
        assert!(!own.is_empty(), "{} is no metric", self.metric);
        for (label, values) in &self.labels {
            let known: BTreeSet<_> = own.iter().filter_map(|(_, all)| all.get(label)).collect();
            for value in values {
                assert!(
                    known.contains(value),
                    "{label}={value} of {}: {known:?}",
                    self.metric
                );
            }
        }
        let fits = |(_, all): &&&(String, BTreeMap<String, String>)| {
            let mut wanted = self.labels.iter();
            wanted.all(|(label, values)| all.get(label).is_some_and(|it| values.contains(it)))
        };
        assert!(own.iter().any(|it| fits(&it)), "{self:?} selects nothing");
    }
}

#[test]
fn every_metric_of_the_dashboard_exists_with_the_labels_it_is_asked_for() {
    let dashboard = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/grafana/adit.json");
    let text = fs::read_to_string(dashboard).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let scene = Scene::new("tcp", "");
    let samples = [scene.server, scene.client].map(|of| scene.samples(of));
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut named = BTreeSet::new();
    for target in targets {
        let expression = target["expr"].as_str().expect("an expression");
        let selectors = selectors(expression);
        assert!(!selectors.is_empty(), "{expression}");
        for selector in selectors {
            selector.check(&samples);
            named.insert(selector.metric);
        }
    }
    assert!(named.len() >= 15, "{named:?}");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].to_string()).collect();
    assert_eq!(
        ids.len(),
        panels.len(),
        "each panel has a number of its own"
    );
}
