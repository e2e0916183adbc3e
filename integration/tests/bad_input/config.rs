//! Wrong configurations, told by file, line and key.

use std::{fs, os::unix::fs::PermissionsExt};

use adit_integration::adit::{User, Workdir, path};

/// What is replaced in [`SERVER`] by what, the line that must be told, and the words; `~` begins a line.
const SERVER_CASES: &str = "\
egress: user | egres: user | 4 | egres, egress
egress: user | egress: usr | 4 | egress, usr, tun, user
egress: user | egress: [user, tun] | 4 | egress
egress: user | egress: user~tun: {nam: adit0} | 5 | nam, name
egress: user | egress: user~tun: {name: a-name-that-is-too-long} | 5 | tun.name, 15
egress: user | egress: user~mtu: 100 | 5 | mtu, 1280, 9000
egress: user | egress: user~mtu: big | 5 | mtu, big
egress: user | egress: user~allow: [10.0.0.1/8] | 5 | allow, 10.0.0.0/8
egress: user | egress: user~allow: [everything] | 5 | allow, everything
egress: user | egress: user~client_to_client: maybe | 5 | client_to_client, maybe, true
egress: user | egress: user~egress: tun | 5 | egress
egress: user | egress: user~limits: {flows_per_client: 0} | 5 | limits.flows_per_client, 1
egress: user | egress: user~dns: [nowhere] | 5 | dns, nowhere
egress: user | egress: user~aead: [rot13] | 5 | aead, rot13
egress: user | egress: user~tls: {certificate: none.pem, key: none.pem} | 5 | tls, none.pem
egress: user | egress: user~repare: on | 5 | repare, repair
egress: user | egress: user~repair: {mode: fixed, overhead: lots} | 5 | repair.overhead, lots, 20%
egress: user | egress: \"user | 4 |
egress: user | egress: user~\tbad: tab | 5 |
tcp://127.0.0.1:7443 | sctp://127.0.0.1:7443 | 1 | listen, sctp, udp, tcp
tcp://127.0.0.1:7443 | tcp://127.0.0.1:99999 | 1 | listen, 99999
tcp://127.0.0.1:7443 | tcp://somewhere:7443 | 1 | listen, somewhere
tcp://127.0.0.1:7443 | 127.0.0.1:7443 | 1 | listen, tcp://
tcp://127.0.0.1:7443 | tcp://127.0.0.1:7443, tcp://127.0.0.1:7443 | 1 | listen, 127.0.0.1:7443
server.key | none.key | 2 | key_file, none.key, no such file
server.key | open.key | 2 | key_file, open.key, 600
server.key | short.key | 2 | key_file, short.key
10.86.0.0/24 | 10.86.0.5/24 | 3 | network, 10.86.0.0/24
10.86.0.0/24 | 10.86.0.0/33 | 3 | network, 10.86.0.0/33
10.86.0.0/24 | fd86::/64 | 3 | network, network6
10.86.0.0/24 | 127.0.0.0/8 | 3 | network, 127.0.0.0/8
CLIENT | AAAA | 6 | public_key, AAAA
CLIENT | SERVER | 6 | server itself
name: laptop | nme: laptop | 6 | nme, name
name: laptop | name: \"lap top\" | 6 | clients[0].name, lap top
name: laptop | name: laptop, address: 10.99.0.9 | 6 | 10.99.0.9, 10.86.0.0/24
clients: | clients: laptop # | 5 | clients";

const SERVER: &str = "\
listen: [tcp://127.0.0.1:7443]
key_file: server.key
network: 10.86.0.0/24
egress: user
clients:
  - {name: laptop, public_key: \"CLIENT\"}
";

/// The same for [`CLIENT`].
const CLIENT_CASES: &str = "\
proxy: 127.0.0.1:1080 | proxxy: 127.0.0.1:1080 | 4 | proxxy, proxy
127.0.0.1:1080 | 1080 | 4 | proxy, 127.0.0.1:1080
127.0.0.1:1080 | socks5://127.0.0.1:1080 | 4 | proxy, socks5://
127.0.0.1:1080 | 0.0.0.0:1080 | 4 | proxy, 0.0.0.0:1080, proxy_password
127.0.0.1:1080 | 127.0.0.1:1080~proxy_user: me | 5 | proxy_user, password
127.0.0.1:1080 | 127.0.0.1:1080~connect_timeout: soon | 5 | connect_timeout, soon, 10s
127.0.0.1:1080 | 127.0.0.1:1080~dns: [nowhere] | 5 | dns, nowhere
127.0.0.1:1080 | 127.0.0.1:1080~tls: {pin: zz} | 5 | tls.pin, zz
127.0.0.1:1080 | 127.0.0.1:1080~tls: {ca_file: none.pem} | 5 | tls.ca_file, none.pem
127.0.0.1:1080 | 127.0.0.1:1080~aead: [rot13] | 5 | aead, rot13
tcp://127.0.0.1:7443 | http://127.0.0.1:7443 | 1 | server, http, tcp
tcp://127.0.0.1:7443 | tcp://127.0.0.1:0 | 1 | server, port
tcp://127.0.0.1:7443 | tcp://0.0.0.0:7443 | 1 | server, 0.0.0.0
SERVER | not-base64! | 2 | server_key, not-base64!
SERVER | CLIENT | 2 | server_key, client itself
client.key | none.key | 3 | key_file, none.key, no such file";

const CLIENT: &str = "\
server: tcp://127.0.0.1:7443
server_key: \"SERVER\"
key_file: client.key
proxy: 127.0.0.1:1080
";

#[test]
fn wrong_configurations_are_told_by_file_line_and_key() {
    let workdir = Workdir::new();
    let [server, client] =
        ["server.key", "client.key"].map(|name| workdir.key(name, User::Same).public);
    let secret = fs::read_to_string(workdir.path().join("server.key")).expect("reads");
    for (name, text, mode) in [
        ("open.key", secret.as_str(), 0o644),
        ("short.key", "AAAA\n", 0o600),
    ] {
        let file = workdir.file(name, text);
        fs::set_permissions(file, PermissionsExt::from_mode(mode)).expect("an own file");
    }
    let filled = |text: &str| text.replace("SERVER", &server).replace("CLIENT", &client);
    let mut failures = Vec::new();
    for (command, good, cases) in [
        ("server", SERVER, SERVER_CASES),
        ("client", CLIENT, CLIENT_CASES),
    ] {
        let name = format!("{command}.yaml");
        let file = workdir.file(&name, &filled(good));
        let checked = workdir.run(&["check", path(&file)]);
        assert!(checked.status.success(), "{checked:?}");
        for case in cases.lines() {
            let columns: Vec<_> = case.split('|').map(str::trim).collect();
            let [found, wrong, line, words] = columns[..] else {
                panic!("{case:?}")
            };
            assert!(good.contains(found), "{found:?} is not in {good:?}");
            workdir.file(
                &name,
                &filled(&good.replacen(found, &wrong.replace('~', "\n"), 1)),
            );
            let place = format!("{name}:{line}:");
            let due: Vec<_> = words
                .split(", ")
                .filter(|word| !word.is_empty())
                .chain([place.as_str()])
                .collect();
            for arguments in [&["check", path(&file)][..], &[command, "-c", path(&file)]] {
                let told = workdir.run(arguments);
                let missing: Vec<_> = due
                    .iter()
                    .filter(|word| !told.stderr.contains(**word))
                    .collect();
                let panicked = told.stderr.contains("panicked");
                if told.status.success() || !missing.is_empty() || panicked {
                    failures.push(format!("{case}: {missing:?} not in {told:?}"));
                }
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let secret = fs::read_to_string(&key.file).expect("reads");
    let file = |name: &str, text: &str| workdir.file(name, text);
    let binary = workdir.path().join("binary.yaml");
    fs::write(&binary, [0xFF, 0xFE, 0, 1]).expect("writes");
    let folder = workdir.path().join("folder.yaml");
    fs::create_dir(&folder).expect("makes");
    let bomb: String = (0..20_usize)
        .map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i.max(1) - 1))
        .collect();
    let files = [
        binary,
        folder,
        file("huge.yaml", &"# filler\n".repeat(1_000_000)),
        file("deep.yaml", &"[".repeat(100_000)),
        file("bomb.yaml", &bomb),
        file("list.yaml", "- one\n- two\n"),
        key.file,
        workdir.path().join("none.yaml"),
    ];
    for file in files {
        let file = path(&file);
        let name = file.rsplit('/').next().unwrap_or_default();
        for arguments in [
            &["check", file][..],
            &["server", "-c", file],
            &["client", "-c", file],
        ] {
            let told = workdir.run(arguments);
            assert!(!told.status.success(), "{arguments:?}: {told:?}");
            let clear = told.stderr.contains(name) && !told.stderr.contains("panicked");
            assert!(clear, "{arguments:?}: {told:?}");
            assert!(
                !told.text().contains(secret.trim()),
                "{arguments:?} shows a secret key"
            );
        }
    }
}
