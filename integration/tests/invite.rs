//! Invitations: from a link to a client, once, in time, unchanged, by one of several; and clients that are let in no more.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use adit::config::Link;
use adit::proto::{Initiator, SecretKey, invitation_id};
use adit::wire::Token;
use adit_integration::{
    adit::{Adit, Key, ServerConfig, User, Workdir, free_port, path},
    curl::{self, Via},
    namespaces::{Place, runtime},
    origin::Origin,
    process::{Finished, Process},
    skip::{Need, can_run},
    socks,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(30);
/// Guests that a server has at once.
const GUESTS: usize = 64;

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A server that lists nobody.
struct Host {
    server: Adit,
    config: PathBuf,
    state: PathBuf,
    workdir: Workdir,
}

impl Host {
    fn start(schemes: &[&str]) -> Self {
        Self::with(schemes, |_| Vec::new())
    }

    fn with(schemes: &[&str], clients: impl FnOnce(&Workdir) -> Vec<(String, Key)>) -> Self {
        let workdir = Workdir::new();
        let port = free_port();
        let clients = clients(&workdir);
        let key = workdir.key("server.key", User::Same);
        let lane = |scheme: &&str| format!("{scheme}://127.0.0.1:{port}");
        let config = ServerConfig {
            listen: schemes.iter().map(lane).collect(),
            clients: (clients.into_iter())
                .map(|(name, key)| (name, key.public))
                .collect(),
            ..ServerConfig::user_egress()
        };
        let config = workdir.server("server.yaml", &key, User::Same, &config);
        let server = workdir.start_server(&Place::here(), User::Same, &config);
        let state = workdir.path().join("server.yaml.state");
        Self {
            server,
            config,
            state,
            workdir,
        }
    }

    /// Kills the server and starts it again.
    fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.server.kill();
        meanwhile(&self.state);
        self.server = (self.workdir).start_server(&Place::here(), User::Same, &self.config);
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let config = ["-c", path(&self.config)];
        self.workdir.run(&[arguments, &config].concat())
    }

    fn ok(&self, arguments: &[&str]) -> Finished {
        let finished = self.run(arguments);
        assert!(
            finished.status.success(),
            "{arguments:?}: {}",
            finished.text()
        );
        finished
    }

    /// Makes a link, which is all that stands on standard output.
    fn invite(&self, name: &str) -> String {
        let finished = self.ok(&["invite", name]);
        let link = finished.stdout.trim_end().to_owned();
        assert!(
            link.starts_with("adit://") && !link.contains('\n'),
            "{link}"
        );
        assert!(finished.stderr.contains(name), "{}", finished.stderr);
        link
    }

    fn clients(&self) -> Vec<Value> {
        let list = self.ok(&["clients", "list", "--json"]).stdout;
        serde_json::from_str(&list).expect("a JSON list")
    }

    fn names(&self) -> Vec<String> {
        let name = |it: &Value| it["name"].as_str().expect("a name").to_owned();
        self.clients().iter().map(name).collect()
    }

    /// Where a client keeps its configuration, and its key beside it.
    fn files(&self, client: &str) -> (PathBuf, PathBuf) {
        let file = self.workdir.path().join(format!("{client}.yaml"));
        (file.clone(), file.with_extension("key"))
    }

    fn join(&self, client: &str, link: &str) -> Finished {
        join(&self.workdir, client, link)
    }

    /// Runs what `adit join` has left, with a proxy that is returned.
    fn client(&self, client: &str) -> (Adit, SocketAddr) {
        let proxy = loopback(free_port());
        let (file, _) = self.files(client);
        let shown = proxy.to_string();
        let arguments = ["client", "-c", path(&file), "--proxy", &shown];
        let mut adit = (self.workdir).start(&Place::here(), User::Same, client, &arguments);
        adit.expect_ready();
        (adit, proxy)
    }

    fn refused(&self, client: &str, link: &str, why: &str) {
        let finished = self.join(client, link);
        assert_eq!(finished.status.code(), Some(1), "{}", finished.text());
        assert!(finished.stderr.contains(why), "{}", finished.text());
        let (file, _) = self.files(client);
        assert!(!file.exists(), "a configuration for nothing");
    }
}

fn join(workdir: &Workdir, client: &str, link: &str) -> Finished {
    let file = workdir.path().join(format!("{client}.yaml"));
    workdir.run(&["join", link, "-c", path(&file), "--no-start"])
}

fn fetches(proxy: SocketAddr, origin: &Origin) {
    let fetched = curl::get(
        &Place::here(),
        Via::Socks5h(proxy),
        &origin.url("/bytes/5000?seed=1"),
        &[],
    );
    assert_eq!(fetched.status.code(), Some(0), "{}", fetched.stderr);
}

#[test]
fn link_leads_to_a_running_client_by_either_kind_of_lane_and_works_once() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let origin = Origin::http(&Place::here(), loopback(0));
    for schemes in [&["udp"][..], &["tcp"], &["tls"], &["wss"], &["udp", "tcp"]] {
        let mut host = Host::start(schemes);
        let link = host.invite("laptop");
        let (file, key_file) = host.files("first");
        let proxy = loopback(free_port());
        let shown = proxy.to_string();
        let arguments = ["join", &link, "-c", path(&file), "--proxy", &shown];
        let mut client = (host.workdir).start(&Place::here(), User::Same, "joins", &arguments);
        client.expect_ready();
        fetches(proxy, &origin);
        let clients = host.clients();
        assert_eq!(clients.len(), 1);
        assert_eq!(
            (&clients[0]["name"], &clients[0]["from"]),
            (&"laptop".into(), &"invitation".into())
        );
        assert_eq!(clients[0]["sessions"], 1);

        // What there is of it: a key for its owner alone, and no secret of either end at the other.
        let mode = fs::metadata(&key_file).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let public = host.workdir.run(&["pubkey", path(&key_file)]).stdout;
        assert_eq!(clients[0]["public_key"], public.trim());
        let kept = fs::read_to_string(host.state.join("clients.json")).expect("a file");
        let token = link.parse::<Link>().expect("a link").token;
        let secret = base64_of(&token);
        let private = fs::read_to_string(&key_file).expect("a key");
        let log = host.server.process().text();
        for place in [&kept, &log] {
            assert!(
                !place.contains(&secret)
                    && !place.contains(&link)
                    && !place.contains(private.trim())
            );
        }

        host.refused("second", &link, "used already");
        assert!(!host.files("second").1.exists(), "a key for nothing");
        let again = host.join("first", &link);
        assert_eq!(again.status.code(), Some(2), "{}", again.text());
        assert!(again.stderr.contains("--force"), "{}", again.text());
    }
}

fn base64_of(token: &Token) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(token.as_bytes())
}

#[test]
fn what_was_joined_is_what_a_client_runs_that_is_told_nothing() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let origin = Origin::http(&Place::here(), loopback(0));
    let host = Host::start(&["tcp"]);
    let proxy = loopback(free_port());
    let shown = proxy.to_string();
    let link = host.invite("laptop");
    let joined = (host.workdir).run(&["join", &link, "--proxy", &shown, "--no-start"]);
    assert!(joined.status.success(), "{}", joined.text());
    let file = host.workdir.path().join(".config/adit/client.yaml");
    assert!(file.exists() && file.with_extension("key").exists());
    let mut client = (host.workdir).start(&Place::here(), User::Same, "client", &["client"]);
    client.expect_ready();
    fetches(proxy, &origin);
}

#[test]
fn configuration_that_is_there_is_led_to_another_server_and_keeps_all_else() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let origin = Origin::http(&Place::here(), loopback(0));
    let (first, second) = (Host::start(&["tls"]), Host::start(&["tcp"]));
    let joined = first.join("laptop", &first.invite("laptop"));
    assert!(joined.status.success(), "{}", joined.text());
    let (file, key) = first.files("laptop");
    let former = fs::read_to_string(&file).expect("a configuration");
    assert!(former.contains("pin:"), "{former}");
    let mine = "# mine\nrules:\n  - direct 192.168.0.0/16   # the printer\ndns:\n  records: [nas.home A 192.168.1.5]\n";
    fs::write(&file, format!("{former}{mine}")).expect("written");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("an own file");
    let own_key = fs::read(&key).expect("a key");

    let link = second.invite("laptop");
    let force = |workdir: &Workdir| {
        workdir.run(&["join", &link, "-c", path(&file), "--no-start", "--force"])
    };
    // In a way that programs do not change, it is refused before the link is used.
    let braces = format!(
        "{}tls: {{pin: x, system: no}}\n",
        former.split("tls:\n").next().unwrap_or_default()
    );
    let kept = fs::read(&file).expect("a configuration");
    fs::write(&file, &braces).expect("written");
    let refused = force(&first.workdir);
    assert_eq!(refused.status.code(), Some(2), "{}", refused.text());
    assert!(
        refused.stderr.contains("only its author should change"),
        "{}",
        refused.text()
    );
    assert_eq!(fs::read_to_string(&file).expect("a file"), braces);
    assert!(second.names().is_empty());

    fs::write(&file, kept).expect("written");
    let joined = force(&first.workdir);
    assert!(joined.status.success(), "{}", joined.text());
    assert!(
        joined
            .stdout
            .contains("changed in it: server, server_key, tls.pin; all else stays"),
        "{}",
        joined.text()
    );
    let text = fs::read_to_string(&file).expect("a configuration");
    assert!(text.ends_with(mine) && !text.contains("pin:"), "{text}");
    assert_eq!(
        fs::metadata(&file).expect("a file").permissions().mode() & 0o777,
        0o640
    );
    assert_eq!(fs::read(&key).expect("a key"), own_key);
    assert_eq!(
        (first.names(), second.names()),
        (vec!["laptop".into()], vec!["laptop".into()])
    );
    let (_client, proxy) = first.client("laptop");
    fetches(proxy, &origin);
    assert_eq!(second.clients()[0]["sessions"], 1);
}

#[test]
fn server_of_a_user_with_other_state_says_where_its_clients_are() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let (workdir, user, here) = (Workdir::new(), User::Nobody, Place::here());
    let key = workdir.key("server.key", user);
    let folder = |name: &str| {
        let folder = workdir.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        workdir.give(&folder, user);
        folder
    };
    for name in [".local", ".local/state"] {
        folder(name);
    }
    let other = folder("other");
    let port = free_port();
    let listen = format!("tcp://127.0.0.1:{port}");
    let arguments = [
        "server",
        "--egress",
        "user",
        "--listen",
        &listen,
        "--key-file",
        path(&key.file),
    ];
    let start = |state: Option<&Path>, more: &[&str]| {
        let mut command = workdir.command(&here, user);
        command.args(arguments).args(more);
        if let Some(state) = state {
            command.env("XDG_STATE_HOME", state);
        }
        let mut server = workdir.start_command("server", command);
        server.expect_ready();
        server
    };
    let mut server = start(None, &[]);
    let link = workdir.run_as(&here, user, &["invite", "laptop"]);
    assert!(link.status.success(), "{}", link.text());
    let joined = join(&workdir, "laptop", link.stdout.trim());
    assert!(joined.status.success(), "{}", joined.text());
    server.stop();
    assert!(
        !server
            .process()
            .text()
            .contains("there are clients of a server"),
        "{}",
        server.process().text()
    );

    let mut server = start(Some(&other), &[]);
    server.stop();
    let text = server.process().text();
    let warned: Vec<&str> = text
        .lines()
        .filter(|it| it.contains("there are clients of a server"))
        .collect();
    assert_eq!(warned.len(), 1, "{text}");
    let former = fs::read_dir(workdir.path().join(".local/state/adit")).expect("a folder");
    let former = former.flatten().next().expect("a state folder").path();
    assert!(
        warned[0].contains(path(&former)) && warned[0].contains("--state-dir"),
        "{text}"
    );
    // As it says.
    let mut server = start(Some(&other), &["--state-dir", path(&former)]);
    let list = workdir.run_as(&here, user, &["clients", "list"]);
    assert!(list.stdout.contains("laptop"), "{}", list.text());
    server.stop();
    assert!(
        !server
            .process()
            .text()
            .contains("there are clients of a server")
    );
}

#[test]
fn leases_of_another_user_are_told_with_their_file_and_what_helps() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let (workdir, user) = (Workdir::new(), User::Nobody);
    let key = workdir.key("server.key", user);
    let listen = format!("tcp://127.0.0.1:{}", free_port());
    let state = workdir.path().join("state");
    fs::create_dir(&state).expect("a folder");
    workdir.give(&state, user);
    let leases = workdir.file("state/leases.json", "{}");
    fs::set_permissions(&leases, PermissionsExt::from_mode(0o600)).expect("an own file");
    let arguments = ["server", "--egress", "user", "--listen", &listen];
    let more = ["--key-file", path(&key.file), "--state-dir", path(&state)];
    let ended = workdir.run_as(&Place::here(), user, &[&arguments[..], &more].concat());
    assert_eq!(ended.status.code(), Some(1), "{}", ended.text());
    for word in [
        path(&leases),
        "Permission denied",
        "it is user 0's",
        "--state-dir",
    ] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.text());
    }
}

#[test]
fn of_several_at_once_exactly_one_enrols_and_the_others_are_told() {
    for schemes in [["tcp"], ["udp"]] {
        let host = Host::start(&schemes);
        let link = host.invite("laptop");
        let results: Vec<Finished> = thread::scope(|scope| {
            let one = |number: usize| {
                let (workdir, link) = (&host.workdir, &link);
                scope.spawn(move || join(workdir, &format!("client-{number}"), link))
            };
            let all: Vec<_> = (0..6).map(one).collect();
            all.into_iter()
                .map(|it| it.join().expect("no panic"))
                .collect()
        });
        let (enrolled, others): (Vec<_>, Vec<_>) =
            results.iter().partition(|it| it.status.success());
        assert_eq!(enrolled.len(), 1, "{results:#?}");
        assert!(
            enrolled[0].stdout.contains("enrolled as laptop"),
            "{results:#?}"
        );
        for other in others {
            assert!(other.stderr.contains("used already"), "{}", other.text());
        }
        assert_eq!(host.names(), ["laptop"]);
    }
}

#[test]
fn link_that_has_ended_or_was_withdrawn_says_so() {
    let mut host = Host::start(&["tcp"]);
    let link = host.invite("laptop");
    // A minute is the shortest; so the clock is turned on by two days in the server's own file.
    host.restart(|state| {
        let file = state.join("clients.json");
        let mut kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for time in ["made", "ends"] {
            let at = &mut kept["invitations"][0][time];
            *at = (at.as_u64().expect("seconds") - 2 * 86_400).into();
        }
        fs::write(&file, kept.to_string()).unwrap();
    });
    host.refused("late", &link, "has ended");
    // A link that nobody can use is not listed as if somebody could.
    let list = host.ok(&["invite", "--list"]);
    assert_eq!(list.stdout, "nobody is invited\n");
    assert!(list.stderr.contains("--all lists it"), "{}", list.text());
    let list = host.ok(&["invite", "--list", "--all"]).stdout;
    assert!(list.contains("laptop") && list.contains("ended"), "{list}");

    let link = host.invite("laptop");
    let newer = host.invite("laptop");
    host.refused("replaced", &link, "withdrawn");
    host.ok(&["invite", "--withdraw", "laptop"]);
    host.refused("withdrawn", &newer, "withdrawn");
    assert!(host.names().is_empty());
}

#[test]
fn link_with_one_bit_changed_is_damaged_or_meets_silence_and_stays_good() {
    let host = Host::start(&["tcp"]);
    let text = host.invite("laptop");
    for at in [7, text.len() / 2, text.len() - 1] {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let changed = String::from_utf8(bytes).expect("ASCII");
        let finished = host.join("changed", &changed);
        assert_eq!(finished.status.code(), Some(2), "{}", finished.text());
        assert!(finished.stderr.contains("damaged"), "{}", finished.text());
    }
    // With the check made right again, as nobody does by mistake: the server knows no such invitation, and says nothing.
    let link: Link = text.parse().expect("a link");
    let mut token = *link.token.as_bytes();
    token[17] ^= 0x10;
    let forged = Link {
        token: Token::from_bytes(token),
        ..link
    };
    let forged = forged.text().expect("a link").to_string();
    host.refused("forged", &forged, "Silence may mean");
    assert!(host.names().is_empty());
    let joined = host.join("right", &text);
    assert!(joined.status.success(), "{}", joined.text());
    assert_eq!(host.names(), ["laptop"]);
}

#[test]
fn client_that_is_revoked_in_mid_download_is_cut_off() {
    let origin = Origin::http(&Place::here(), loopback(0));
    for scheme in ["udp", "tcp"] {
        let host = Host::start(&[scheme]);
        let joined = host.join("laptop", &host.invite("laptop"));
        assert!(joined.status.success(), "{}", joined.text());
        let (mut client, proxy) = host.client("laptop");
        let took = runtime().block_on(async {
            let mut stream = socks::connect(proxy, origin.address())
                .await
                .expect("a flow");
            let request = b"GET /bytes/100000000000?seed=1 HTTP/1.1\r\nHost: origin\r\n\r\n";
            stream.write_all(request).await.expect("sent");
            let mut buffer = vec![0; 65_536];
            let mut got = 0;
            while got < 1 << 20 {
                let read = stream.read(&mut buffer).await.expect("it flows");
                assert!(read > 0, "it ended early");
                got += read;
            }
            assert_eq!(origin.open(), 1);
            let revoked = Instant::now();
            let host = &host;
            let order = host.ok(&["clients", "revoke", "laptop"]);
            assert!(
                order.stdout.contains("its session was ended"),
                "{}",
                order.text()
            );
            let ordered = revoked.elapsed();
            // What was on its way may still arrive; then it is over.
            let over = async {
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    }
                }
            };
            tokio::time::timeout(SOON, over).await.expect("cut off");
            let at_client = revoked.elapsed();
            let gone = async {
                while origin.open() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(SOON, gone)
                .await
                .expect("the origin is let go");
            (ordered, at_client, revoked.elapsed())
        });
        println!(
            "{scheme}: order answered, flow over at the client, origin's connection closed after {took:?}"
        );
        assert_eq!(host.clients()[0]["revoked"], true);
        let told = |line: &str| line.contains("this client was revoked");
        let line = client.process().wait_for_line(SOON, told);
        assert!(line.is_some(), "the client is told why");
        let fetched = curl::get(
            &Place::here(),
            Via::Socks5h(proxy),
            &origin.url("/bytes/10"),
            &["--max-time", "2"],
        );
        assert_ne!(fetched.status.code(), Some(0), "it is out");
        told_that_it_is_revoked(&host, proxy, &origin);
        let text = client.process().text();
        let warned = text.lines().filter(|line| line.contains("WARN"));
        assert_eq!(warned.count(), 1, "once is enough: {text}");
    }
}

/// Whoever asks a client that was revoked hears that, and at once, not that somebody is slow.
fn told_that_it_is_revoked(host: &Host, proxy: SocketAddr, origin: &Origin) {
    let (config, _) = host.files("laptop");
    let adit = |command: &[&str], more: &[&str]| {
        let config = ["-c", path(&config)];
        host.workdir.run(&[command, &config, more].concat())
    };
    let shown = adit(&["status"], &[]);
    assert!(shown.stdout.contains(": revoked: "), "{}", shown.text());
    let shown = adit(&["status"], &["--json"]).stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["ready"], false);
    assert_eq!(shown["down"]["why"], "revoked", "{shown:#}");
    let health = adit(&["health"], &[]);
    assert_eq!(health.status.code(), Some(1));
    assert!(health.stderr.contains("revoked"), "{}", health.text());
    for url in [origin.url("/bytes/10"), "http://name.example/".to_owned()] {
        let fetched = curl::get(&Place::here(), Via::Http(proxy), &url, &["-i"]);
        let text = fetched.text();
        assert!(text.contains("503 "), "{text}");
        assert!(
            text.contains("the server has revoked this client"),
            "{text}"
        );
    }
    let command = adit(&["run", "--share"], &["--", "true"]);
    if Path::new("/dev/net/tun").exists() {
        assert_eq!(command.status.code(), Some(125), "{}", command.text());
        assert!(command.stderr.contains("revoked"), "{}", command.text());
    }
}

#[test]
fn client_of_the_configuration_is_denied_over_restarts_until_it_is_restored() {
    let mut host = Host::with(&["tcp"], |workdir| {
        vec![("desk".to_owned(), workdir.key("desk.key", User::Same))]
    });
    let revoked = host.ok(&["clients", "revoke", "desk"]).stdout;
    assert!(revoked.contains("configuration"), "{revoked}");
    assert_eq!(host.clients()[0]["revoked"], true);
    host.restart(|_| ());
    assert_eq!(host.clients()[0]["revoked"], true);
    let refused = host.run(&["clients", "rename", "desk", "table"]);
    assert!(
        refused
            .stderr
            .contains("named by the server's configuration"),
        "{}",
        refused.text()
    );
    host.ok(&["clients", "restore", "desk"]);
    assert_eq!(host.clients()[0]["revoked"], false);

    let taken = host.run(&["invite", "desk"]);
    assert!(
        taken.stderr.contains("there is a client `desk` already"),
        "{}",
        taken.text()
    );
    host.join("phone", &host.invite("phone"));
    host.ok(&["clients", "rename", "phone", "tablet"]);
    host.restart(|_| ());
    assert_eq!(host.names(), ["desk", "tablet"]);
    let nobody = host.run(&["clients", "revoke", "phone"]);
    assert!(
        nobody.stderr.contains("no client `phone`"),
        "{}",
        nobody.text()
    );
    let nobody = host.run(&["clients", "restore", "phone"]);
    assert!(
        nobody.stderr.contains("no client `phone`"),
        "{}",
        nobody.text()
    );
}

#[test]
fn invited_client_that_was_revoked_is_restored_with_its_key_and_its_address() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let origin = Origin::http(&Place::here(), loopback(0));
    let mut host = Host::start(&["tcp"]);
    let address = |host: &Host, name: &str| {
        let status = host.ok(&["status", "--json"]).stdout;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        let sessions = status["sessions"].as_array().expect("sessions").clone();
        let of = sessions.into_iter().find(|it| it["client"] == name);
        of.expect("a session")["addresses"].clone()
    };
    for name in ["desk", "laptop"] {
        let joined = host.join(name, &host.invite(name));
        assert!(joined.status.success(), "{}", joined.text());
    }
    // The lowest address is that of the one that is revoked: whoever came next would have it.
    let (mut laptop, proxy) = host.client("laptop");
    fetches(proxy, &origin);
    let before = address(&host, "laptop");
    let revoked = host.ok(&["clients", "revoke", "laptop"]).stdout;
    assert!(
        revoked.contains("`adit clients restore laptop`") && revoked.contains("adit invite laptop"),
        "{revoked}"
    );
    laptop.stop();
    let list = host.ok(&["clients", "list"]).stdout;
    let line = list.lines().find(|line| line.starts_with("laptop"));
    assert!(
        line.is_some_and(|line| line.ends_with("revoked")),
        "it can be found: {list}"
    );
    let (_desk, proxy) = host.client("desk");
    fetches(proxy, &origin);
    assert_ne!(address(&host, "desk"), before);
    host.restart(|_| ());
    host.ok(&["clients", "restore", "laptop"]);
    let (_laptop, proxy) = host.client("laptop");
    fetches(proxy, &origin);
    assert_eq!(address(&host, "laptop"), before);
    let again = host.run(&["clients", "restore", "laptop"]);
    assert!(again.stderr.contains("was not revoked"), "{}", again.text());
}

#[test]
fn killing_either_end_at_any_moment_leaves_whole_files_and_the_same_command_goes_on() {
    let mut host = Host::start(&["tcp"]);
    let started = Instant::now();
    assert!(
        host.join("measure", &host.invite("measure"))
            .status
            .success()
    );
    let usual = started.elapsed();
    // However long it takes here, some kills come before, some within and some after what matters.
    for number in 0..8_u32 {
        let name = format!("client-{number}");
        let link = host.invite(&name);
        let (file, key_file) = host.files(&name);
        let mut command = host.workdir.command(&Place::here(), User::Same);
        command.args(["join", &link, "-c", path(&file), "--no-start"]);
        let mut joining = Process::spawn(&name, command);
        thread::sleep(usual * number / 7);
        if number % 2 == 0 {
            joining.kill();
        } else {
            host.restart(|_| ());
            joining.wait(SOON).expect("it ends");
        }
        for file in [&file, &key_file] {
            let text = fs::read_to_string(file).unwrap_or_default();
            assert!(
                !file.exists() || text.ends_with('\n'),
                "half of {file:?}: {text}"
            );
        }
        let kept = fs::read_to_string(host.state.join("clients.json")).expect("a file");
        serde_json::from_str::<Value>(&kept).expect("a whole file");
        if !file.exists() {
            let again = host.join(&name, &link);
            assert!(again.status.success(), "{}", again.text());
        }
        let checked = host.workdir.run(&["check", path(&file)]);
        assert!(checked.status.success(), "{}", checked.text());
        let public = host.workdir.run(&["pubkey", path(&key_file)]).stdout;
        let clients = host.clients();
        let known = |it: &&Value| it["name"] == *name && it["public_key"] == public.trim();
        assert_eq!(clients.iter().filter(known).count(), 1, "{clients:#?}");
    }
    assert_eq!(host.names().len(), 9);
    // A killed client leaves nothing unfinished; what a killed server leaves, its next start has removed.
    host.restart(|_| ());
    for folder in [host.workdir.path(), &host.state] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            assert!(!name.to_string_lossy().starts_with(".adit-"), "{name:?}");
        }
    }
}

#[test]
fn guests_are_bounded_in_number_and_time() {
    let host = Host::start(&["tcp"]);
    let text = host.invite("laptop");
    let link: Link = text.parse().expect("a link");
    let at = loopback(link.servers[0].port);
    // Says who invited it, and then nothing: a place is taken before anybody has said a token.
    let greet = || {
        let key = SecretKey::generate(&mut rand::rng());
        let mut config = adit::proto::ClientConfig::new(key, link.server_key, *b"instance");
        config.invitation = Some(invitation_id(&link.token));
        let now = SystemTime::now();
        let (_, init) = Initiator::new(&config, now, &mut rand::rng()).expect("a message 1");
        let mut stream = TcpStream::connect(at).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        stream.write_all(&init).expect("sent");
        stream
    };
    let mut guests: Vec<TcpStream> = (0..GUESTS)
        .map(|number| {
            let mut guest = greet();
            let mut head = [0; 5];
            let answered = guest.read_exact(&mut head);
            assert!(
                answered.is_ok() && head[4] == 2,
                "guest {number}: {answered:?}, {head:?}"
            );
            guest
        })
        .collect();
    let mut late = greet();
    for guest in &mut guests {
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).expect("it is let go");
    }
    // Not a byte until it is let go, too, as any stranger.
    let mut silence = Vec::new();
    late.read_to_end(&mut silence).expect("it is let go");
    assert!(silence.is_empty(), "{silence:?}");
    let joined = host.join("laptop", &text);
    assert!(joined.status.success(), "{}", joined.text());
}

#[test]
fn server_that_does_not_know_its_name_asks_for_it() {
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let port = free_port();
    let config = ServerConfig {
        listen: vec![
            format!("tcp://0.0.0.0:{port}"),
            format!("udp://0.0.0.0:{port}"),
        ],
        ..ServerConfig::user_egress()
    };
    let config = workdir.server("server.yaml", &key, User::Same, &config);
    let _server = workdir.start_server(&Place::here(), User::Same, &config);
    let run = |more: &[&str]| workdir.run(&[&["invite", "a", "-c", path(&config)], more].concat());
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(1), "{}", refused.text());
    assert!(
        refused.stderr.contains("--address") && refused.stderr.contains("public:"),
        "{}",
        refused.text()
    );
    let named = run(&["--address", "vpn.example.com", "--qr"]);
    assert!(named.status.success(), "{}", named.text());
    assert!(
        named.stderr.contains('\u{2588}'),
        "a QR code: {}",
        named.stderr
    );
    let link: Link = named.stdout.parse().expect("a link");
    let servers: Vec<String> = link.servers.iter().map(ToString::to_string).collect();
    let both = ["tcp", "udp"].map(|scheme| format!("{scheme}://vpn.example.com:{port}"));
    assert_eq!(servers, both);
    assert_eq!(link.server_key.to_string(), key.public);
    let short = run(&["--address", "vpn.example.com", "--expires", "5s"]);
    assert!(short.stderr.contains("from 1m to 30d"), "{}", short.text());
}
