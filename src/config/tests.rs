//! Whole configurations: what is accepted, what is refused and how it is told, and which source wins.

mod keys;
mod mistakes;

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use self::mistakes::{WRONG_CLIENTS, WRONG_SERVERS};
use super::*;
use crate::proto::SecretKey;

/// A folder with keys, to write configurations into.
struct Bench {
    folder: TempDir,
    own: SecretKey,
    other: SecretKey,
    environment: HashMap<String, String>,
    flags: Vec<FlagValue>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rng = rand::rng();
        let (own, other) = (SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
        write_key(&folder.path().join("own.key"), &own, false).expect("a key");
        write_key(&folder.path().join("other.key"), &other, false).expect("a key");
        Self {
            folder,
            own,
            other,
            environment: HashMap::new(),
            flags: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        // The keys stand in for themselves.
        let text = text
            .replace("OWN", &self.own.public().to_string())
            .replace("OTHER", &self.other.public().to_string());
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    fn set(mut self, variable: &str, value: &str) -> Self {
        self.environment
            .insert(variable.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.flags.push(FlagValue { key, flag, values });
        self
    }

    fn load<T>(
        &self,
        file: Option<&Path>,
        load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
    ) -> Result<Loaded<T>, String> {
        let mut environment = self.environment.clone();
        environment
            .entry("HOME".to_owned())
            .or_insert_with(|| "/home/of/nobody".to_owned());
        let lookup = |name: &str| environment.get(name).cloned();
        load(Inputs {
            file,
            environment: &lookup,
            flags: &self.flags,
        })
        .map_err(|error| {
            error
                .to_string()
                .replace(&format!("{}/", self.folder.path().display()), "")
        })
    }

    fn server(&self, text: &str) -> Result<Loaded<ServerConfig>, String> {
        self.load(Some(&self.write("server.yaml", text)), ServerConfig::load)
    }

    fn client(&self, text: &str) -> Result<Loaded<ClientConfig>, String> {
        self.load(Some(&self.write("client.yaml", text)), ClientConfig::load)
    }
}

/// The least that a client needs.
const CLIENT: &str = "server: tcp://203.0.113.7:7443\nserver_key: OTHER\nkey_file: own.key\n";

#[test]
fn a_key_alone_makes_a_server_with_the_documented_defaults() {
    let config = Bench::new()
        .server("key_file: own.key\n")
        .expect("a server")
        .config;
    assert_eq!(
        config
            .listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["tcp://0.0.0.0:7443"]
    );
    assert_eq!(
        config.network.map(|net| net.to_string()).as_deref(),
        Some("10.86.0.0/24")
    );
    assert_eq!(
        config.network6.map(|net| net.to_string()).as_deref(),
        Some("fd86::/64")
    );
    assert_eq!((config.egress, config.mtu), (EgressKind::Tun, 1400));
    assert_eq!(
        config.tun,
        TunConfig {
            name: "adit0".to_owned(),
            masquerade: true
        }
    );
    assert_eq!(
        config.limits,
        Limits {
            flows_per_client: 16_384,
            half_open_per_client: 2048,
            memory: 512 << 20,
            memory_per_client: 128 << 20
        }
    );
    assert_eq!((config.max_clients, config.client_to_client), (4096, false));
    assert!(config.clients.is_empty() && config.allow.is_empty() && config.dns.is_empty());
    assert!(config.aead.is_empty() && config.tls.is_none());
}

#[test]
fn three_settings_make_a_client_with_the_documented_defaults() {
    let bench = Bench::new();
    let config = bench.client(CLIENT).expect("a client").config;
    assert_eq!(
        config.servers,
        ["tcp://203.0.113.7:7443".parse().expect("an address")]
    );
    assert_eq!(config.server_key, bench.other.public());
    assert_eq!(config.secret_key.public(), bench.own.public());
    assert_eq!(config.proxy, SocketAddr::from((Ipv4Addr::LOCALHOST, 1080)));
    assert_eq!(config.connect_timeout, Duration::from_secs(10));
    assert_eq!(config.lanes, 1);
    assert_eq!(config.tls, CertificateCheck::Unchecked);
    assert!(
        config.proxy_auth.is_none() && config.preshared_key.is_none() && config.aead.is_empty()
    );
}

#[test]
fn every_server_setting_arrives() {
    let bench = Bench::new();
    bench.write("cert.pem", "certificate");
    let config = bench
        .server(
            "listen: ['tcp://[::1]:1', tls://127.0.0.1:0]
key_file: [own.key, other.key]
network: off
network6: 2001:db8:1::/48
egress: user
tun: {name: vpn7, masquerade: no}
mtu: 1_280
allow: [192.168.7.0/24, 10.1.2.3, 'fd00:7::/64']
clients:
  - {name: a, public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=, address6: '2001:db8:1::5', preshared_key_file: other.key}
tls: {certificate: cert.pem, key: cert.pem}
dns: [9.9.9.9, '[2620:fe::fe]:5353']
client_to_client: yes
state_dir: state
max_clients: 7
dns_records: [intra.example A 10.1.2.3, '*.dev.example AAAA fd00::1']
limits: {flows_per_client: 100, memory: 64MiB}
aead: [aes-128-gcm, xchacha20-poly1305]
",
        )
        .expect("a server")
        .config;
    assert_eq!(
        config
            .listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["tcp://[::1]:1", "tls://127.0.0.1:0"]
    );
    assert_eq!(config.secret_keys.len(), 2);
    assert_eq!(
        (config.network, config.network6.map(|net| net.prefix_len())),
        (None, Some(48))
    );
    assert_eq!((config.egress, config.mtu), (EgressKind::User, 1280));
    assert_eq!(
        config.tun,
        TunConfig {
            name: "vpn7".to_owned(),
            masquerade: false
        }
    );
    assert_eq!(
        config
            .allow
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["192.168.7.0/24", "10.1.2.3/32", "fd00:7::/64"]
    );
    let client = config.clients.first().expect("a client");
    assert_eq!(
        client.address6.map(|ip| ip.to_string()).as_deref(),
        Some("2001:db8:1::5")
    );
    assert!(client.preshared_key.is_some());
    let tls = config.tls.expect("a certificate");
    assert_eq!(
        (tls.certificate, tls.key),
        (bench.path("cert.pem"), bench.path("cert.pem"))
    );
    assert_eq!(
        config
            .dns
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["9.9.9.9:53", "[2620:fe::fe]:5353"]
    );
    assert_eq!((config.client_to_client, config.max_clients), (true, 7));
    assert_eq!(config.dns_records.len(), 2);
    assert_eq!(config.state_dir, bench.path("state"));
    assert_eq!(
        config.limits,
        Limits {
            flows_per_client: 100,
            half_open_per_client: 100,
            memory: 64 << 20,
            memory_per_client: 64 << 20
        }
    );
    assert_eq!(
        config
            .aead
            .iter()
            .map(|kind| kind.name())
            .collect::<Vec<_>>(),
        ["aes-128-gcm", "xchacha20-poly1305"]
    );
}

#[test]
fn every_client_setting_arrives() {
    let bench = Bench::new();
    bench.write("password", "12345\n");
    let config = bench
        .client(
            "server: [tls://vpn.example.com:8443, tcp://203.0.113.7:7443, wss://vpn.example.com/adit]
server_key: OTHER
key_file: own.key
preshared_key_file: other.key
proxy: 0.0.0.0:0
proxy_user: alice
proxy_password_file: password
tls: {pin: ['sha256//jp/GoBwlKhz2FALTFCUJOzYmOxfHvqWJaQNvO9nlUKI=']}
via: http://bob@proxy.corp.example:3128
via_password_file: password
connect_timeout: 1500ms
lanes: 3
aead: chacha20-poly1305
dns:
  listen: localhost:5353
  upstream: [tls://dns.quad9.net, 9.9.9.9]
  split: [corp.example=10.0.0.53, lan=system]
  records: nas.home A 192.168.1.5
  block: [password, https://lists.example.com/ads.txt]
  allow: password
  blocked: zero
  refresh: 2h
  cache_dir: kept
",
        )
        .expect("a client")
        .config;
    assert_eq!(config.servers.len(), 3);
    assert_eq!(
        config.servers[2].to_string(),
        "wss://vpn.example.com:443/adit"
    );
    let via = config.via.expect("a proxy").proxy;
    assert_eq!(via.to_string(), "http://proxy.corp.example:3128");
    let login = via.login.expect("a user");
    assert_eq!(
        (login.user.as_str(), login.password.as_str()),
        ("bob", "12345")
    );
    let dns = &config.dns;
    assert_eq!(dns.listen, Some(SocketAddr::from(([127, 0, 0, 1], 5353))));
    assert_eq!((dns.upstream.len(), dns.split.len()), (2, 2));
    assert_eq!(dns.records[0].to_string(), "nas.home A 192.168.1.5");
    assert_eq!(dns.block[0], ListSource::File(bench.path("password")));
    assert_eq!(
        dns.block[1].to_string(),
        "https://lists.example.com/ads.txt"
    );
    assert_eq!((dns.block.len(), dns.allow.len()), (2, 1));
    assert_eq!(dns.blocked, BlockedAnswer::Zero);
    assert_eq!(dns.refresh, Duration::from_secs(7200));
    assert_eq!(dns.cache_dir, Some(bench.path("kept")));
    assert!(config.preshared_key.is_some());
    let auth = config.proxy_auth.expect("a password");
    assert_eq!(
        (auth.user.as_str(), auth.password.as_str()),
        ("alice", "12345")
    );
    let CertificateCheck::Pins(pins) = config.tls else {
        panic!("pins are set")
    };
    assert_eq!(
        pins.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["jp/GoBwlKhz2FALTFCUJOzYmOxfHvqWJaQNvO9nlUKI="]
    );
    assert_eq!(config.connect_timeout, Duration::from_millis(1500));
    assert_eq!(config.lanes, 3);
    assert_eq!(config.aead.len(), 1);
}

#[test]
fn tunnel_of_the_whole_host_is_off_on_or_split() {
    let bench = Bench::new();
    let tunnel = |text: &str| {
        let text = format!(
            "server: udp://vpn.example.com:7443\nserver_key: OTHER\nkey_file: own.key\n{text}\n"
        );
        bench.client(&text).expect("a client").config.tun
    };
    assert_eq!(tunnel(""), None);
    assert_eq!(tunnel("tun: false"), None);
    assert_eq!(
        tunnel("tun: {enabled: off, kill_switch: true, state_dir: kept}"),
        None
    );
    let whole = tunnel("tun: {state_dir: kept}").expect("it is on");
    assert_eq!(whole.to_string(), "the whole host through adit0");
    assert_eq!(whole.state_dir, bench.path("kept"));
    assert!(whole.dns && !whole.kill_switch && whole.exclude.is_empty());
    let guarded =
        "tun: {state_dir: kept, name: vpn0, kill_switch: true, exclude: [fd00::1, 10.0.0.0/8]}";
    let guarded = tunnel(guarded).expect("it is on");
    assert_eq!(
        guarded.to_string(),
        "the whole host through vpn0 with a kill switch"
    );
    let shown: Vec<String> = guarded.exclude.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["fd00::1/128", "10.0.0.0/8"]);
    let split = tunnel("tun: {state_dir: kept, routes: [10.0.0.0/8]}").expect("it is on");
    assert_eq!(split.to_string(), "10.0.0.0/8 through adit0");
    assert!(!split.dns);
    // by the flag alone, which leaves the rest of the file's group as it is
    let file = bench.write(
        "client.yaml",
        "server: udp://vpn.example.com:7443\nserver_key: OTHER\nkey_file: own.key\ntun: {enabled: false, name: vpn0, state_dir: kept}\n",
    );
    let flags = ClientConfig::with_tunnel();
    let nothing = |_: &str| None;
    let loaded = ClientConfig::load(Inputs {
        file: Some(&file),
        environment: &nothing,
        flags: &flags,
    });
    let tunnel = loaded.expect("a client").config.tun.expect("it is on");
    assert_eq!(tunnel.name, "vpn0");
}

#[test]
fn further_proxies_take_from_the_first_what_they_do_not_say() {
    let bench = Bench::new();
    bench.write("password", "secret\n");
    fs::set_permissions(bench.path("password"), fs::Permissions::from_mode(0o600)).expect("mode");
    let text = format!(
        "{CLIENT}proxy_user: alice
proxy_password_file: password
rules: [direct 10.0.0.0/8, 'block a.example, b.example']
proxies:
  - listen: 127.0.0.1:1081
  - {{listen: '0.0.0.0:1082', user: bob, password_file: password, rules: tunnel *}}
  - {{listen: '127.0.0.1:0', open: yes, rules: []}}
  - {{listen: '127.0.0.1:0'}}
"
    );
    let config = bench.client(&text).expect("a client").config;
    let told: Vec<String> = (config.listeners().iter())
        .map(|proxy| {
            let rules: Vec<_> = proxy.rules.iter().map(ToString::to_string).collect();
            let user = proxy.auth.as_ref().map_or("-", |auth| &auth.user);
            format!("{} {user} {}", proxy.listen, rules.join("; "))
        })
        .collect();
    let common = "direct 10.0.0.0/8; block a.example b.example";
    assert_eq!(
        told,
        [
            format!("127.0.0.1:1080 alice {common}"),
            format!("127.0.0.1:1081 alice {common}"),
            "0.0.0.0:1082 bob tunnel *".to_owned(),
            "127.0.0.1:0 - ".to_owned(),
            format!("127.0.0.1:0 alice {common}"),
        ]
    );
    assert!(
        config.to_string().ends_with("proxy on 127.0.0.1:1080 with 2 rules, 127.0.0.1:1081 with 2 rules, 0.0.0.0:1082 with 1 rule, 127.0.0.1:0, 127.0.0.1:0 with 2 rules"),
        "{config}"
    );
}

#[test]
fn rules_come_from_the_environment_and_from_flags_too() {
    let rules = |bench: &Bench| -> Vec<String> {
        let config = bench
            .client(&format!("{CLIENT}rules: block *\n"))
            .expect("a client")
            .config;
        config.rules.iter().map(ToString::to_string).collect()
    };
    let bench = Bench::new();
    assert_eq!(rules(&bench), ["block *"]);
    let bench = bench.set(
        "ADIT_RULES",
        "direct a.example b.example, block udp port 443 444",
    );
    assert_eq!(
        rules(&bench),
        ["direct a.example b.example", "block udp port 443 444"]
    );
    let bench = bench.flag("rules", "--rule", &["direct nas", "tunnel *"]);
    assert_eq!(rules(&bench), ["direct nas", "tunnel *"]);
}

#[test]
fn rules_and_proxies_are_bounded() {
    let many = |item: &str, count: usize| format!("[{}]", vec![item; count].join(", "));
    let bench = Bench::new();
    let text = |rules: usize| format!("{CLIENT}rules: {}\n", many("block a.example", rules));
    assert!(bench.client(&text(1000)).is_ok());
    let error = bench.client(&text(1001)).expect_err("too many");
    assert!(
        error.contains("rules[1000]: is one more than the 1000 rules"),
        "{error}"
    );
    let error = bench
        .client(&format!(
            "{CLIENT}proxies: {}\n",
            many("{listen: '127.0.0.1:0'}", 65)
        ))
        .expect_err("too many");
    assert!(
        error.contains("is one more than the 64 further proxies"),
        "{error}"
    );
}

#[test]
fn each_wrong_server_setting_is_told_with_place_and_remedy() {
    for (text, told) in WRONG_SERVERS {
        let bench = Bench::new();
        let error = bench
            .server(&format!("key_file: own.key\n{text}\n"))
            .expect_err(text);
        for words in *told {
            assert!(
                error.contains(words),
                "{text}\nshould say: {words}\nsays: {error}"
            );
        }
    }
}

#[test]
fn each_wrong_client_setting_is_told_with_place_and_remedy() {
    for (text, told) in WRONG_CLIENTS {
        let bench = Bench::new();
        bench.write("empty.key", "");
        fs::set_permissions(bench.path("empty.key"), fs::Permissions::from_mode(0o600))
            .expect("mode");
        let error = bench.client(text).expect_err(text);
        for words in *told {
            assert!(
                error.contains(words),
                "{text}\nshould say: {words}\nsays: {error}"
            );
        }
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let error = Bench::new()
        .server("mtu: 1\nnetwork: x\nwrong: 1\n")
        .expect_err("three mistakes");
    let place = |text: &str| {
        error
            .find(text)
            .unwrap_or_else(|| panic!("{text} in {error}"))
    };
    assert!(place("server.yaml:1:6: mtu") < place("server.yaml:2:10: network"));
    assert!(place("server.yaml:2:10: network") < place("server.yaml:3:1: wrong"));
    assert!(place("server.yaml:3:1: wrong") < place("server.yaml: key_file: is missing"));
}

#[test]
fn countless_mistakes_are_counted() {
    let error = Bench::new()
        .server(&format!(
            "key_file: own.key\nclients: [{}]\n",
            "{}, ".repeat(20_000)
        ))
        .expect_err("nothing is right");
    assert!(
        error.ends_with("server.yaml: and 39970 more mistakes"),
        "{}",
        error.len()
    );
}

#[test]
fn a_mistake_is_shown_in_its_line() {
    let error = Bench::new()
        .server("key_file: own.key\nmtu: 90000 # jumbo\n")
        .expect_err("too large");
    assert!(
        error.ends_with("\n  |\n2 | mtu: 90000 # jumbo\n  |      ^^^^^"),
        "{error}"
    );
}

#[test]
fn a_wrong_password_is_never_shown() {
    let error = Bench::new()
        .client(&format!(
            "{CLIENT}proxy_user: a\nproxy_password: \"pass\\tword\"\n"
        ))
        .expect_err("a tab");
    assert!(
        error.contains("client.yaml:5:17: proxy_password: holds a control character"),
        "{error}"
    );
    assert!(!error.contains("word\""), "{error}");
}

#[test]
fn files_that_are_no_text_are_told_so() {
    let bench = Bench::new();
    let path = bench.path("binary.yaml");
    fs::write(&path, b"mtu: \xff\xfe").expect("written");
    let error = bench
        .load(Some(&path), ServerConfig::load)
        .expect_err("not text");
    assert_eq!(
        error,
        "binary.yaml: not a text file in UTF-8 (first wrong byte at offset 5)"
    );
    fs::write(&path, vec![b'#'; 5 << 20]).expect("written");
    let error = bench
        .load(Some(&path), ServerConfig::load)
        .expect_err("too large");
    assert!(error.contains("at most 4194304 bytes"), "{error}");
    let error = bench
        .load(Some(bench.folder.path()), ServerConfig::load)
        .expect_err("a folder");
    assert!(error.contains("this is a folder, not a file"), "{error}");
}

#[test]
fn files_made_to_exhaust_are_refused() {
    let bench = Bench::new();
    let deep = "[".repeat(100_000);
    let deep_groups = "a: {".repeat(100_000);
    let nested: String = (0..5000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let bomb: String = (0..20_usize)
        .map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i.max(1) - 1))
        .collect();
    let wide = format!("clients: [{}]\n", "a, ".repeat(1_000_000));
    for text in [deep, deep_groups, nested, bomb, wide] {
        let error = bench.server(&text).expect_err("refused");
        assert!(
            error.contains("server.yaml:"),
            "{}",
            error.get(..200).unwrap_or(&error)
        );
    }
}

#[test]
fn environment_wins_over_file_and_flag_over_both() {
    let text = format!("{CLIENT}proxy: 127.0.0.1:1\n");
    let port = |bench: &Bench| bench.client(&text).expect("a client").config.proxy.port();
    let bench = Bench::new();
    assert_eq!(port(&bench), 1);
    let bench = bench.set("ADIT_PROXY", "127.0.0.1:2");
    assert_eq!(port(&bench), 2);
    let bench = bench.flag("proxy", "--proxy", &["127.0.0.1:3", "127.0.0.1:4"]);
    assert_eq!(port(&bench), 4);
}

#[test]
fn a_variable_that_is_empty_counts_as_not_set() {
    let bench = Bench::new().set("ADIT_PROXY", "");
    assert_eq!(
        bench.client(CLIENT).expect("a client").config.proxy.port(),
        1080
    );
}

#[test]
fn a_wrong_value_that_is_overridden_does_not_matter() {
    let bench = Bench::new().set("ADIT_MTU", "1500");
    assert_eq!(
        bench
            .server("key_file: own.key\nmtu: huge\n")
            .expect("a server")
            .config
            .mtu,
        1500
    );
}

#[test]
fn wrong_variables_and_flags_are_told_by_their_names() {
    let error = Bench::new()
        .set("ADIT_TUN_NAME", "a b")
        .server("key_file: own.key\n")
        .expect_err("a space");
    assert!(
        error.contains(
            "environment variable ADIT_TUN_NAME: tun.name: `a b` is not an interface's name"
        ),
        "{error}"
    );
    let error = Bench::new()
        .flag("mtu", "--mtu", &["x"])
        .server("key_file: own.key\n")
        .expect_err("no number");
    assert!(error.contains("--mtu: mtu: `x` is not a number"), "{error}");
}

#[test]
fn repair_is_a_word_or_a_group_or_a_variable() {
    let fixed = |overhead_percent| Repair::Fixed(FixedRepair { overhead_percent });
    for (text, repair) in [
        ("", Repair::Auto),
        ("repair: auto", Repair::Auto),
        ("repair: off", Repair::Off),
        ("repair: false", Repair::Off),
        ("repair: no", Repair::Off),
        ("repair: on", Repair::Auto),
        ("repair: true", Repair::Auto),
        ("repair: yes", Repair::Auto),
        ("repair: fixed", fixed(20)),
        ("repair: fixed:35%", fixed(35)),
        ("repair: \"Fixed: 35 %\"", fixed(35)),
        ("repair: {mode: off}", Repair::Off),
        ("repair: {mode: fixed}", fixed(20)),
        ("repair: {mode: fixed, overhead: 35%}", fixed(35)),
        ("repair:\n  mode: fixed\n  overhead: 100 %", fixed(100)),
    ] {
        let server = Bench::new().server(&format!("key_file: own.key\n{text}\n"));
        assert_eq!(server.expect(text).config.repair, repair, "{text}");
        let client = Bench::new().client(&format!("{CLIENT}{text}\n"));
        assert_eq!(client.expect(text).config.repair, repair, "{text}");
    }
    let bench = Bench::new().set("ADIT_REPAIR", "off");
    let text = "key_file: own.key\nrepair: {mode: auto}\n";
    assert_eq!(bench.server(text).expect(text).config.repair, Repair::Off);
    let own = format!("{CLIENT}repair: {{mode: fixed, overhead: 35%}}\n");
    for (mode, repair) in [
        ("off", Repair::Off),
        ("auto", Repair::Auto),
        ("fixed", fixed(35)),
        ("fixed:7%", fixed(7)),
    ] {
        let bench = Bench::new().flag("repair", "--repair", &[mode]);
        assert_eq!(bench.client(&own).expect(mode).config.repair, repair);
    }
    let bench = Bench::new()
        .set("ADIT_REPAIR", "fixed")
        .set("ADIT_REPAIR_OVERHEAD", "7%");
    let text = "key_file: own.key\n";
    assert_eq!(bench.server(text).expect(text).config.repair, fixed(7));
}

#[test]
fn dns_is_an_address_or_a_group_or_variables() {
    let three = "server: tcp://vpn.example.com:7443\nserver_key: OTHER\nkey_file: own.key\n";
    let read = |bench: Bench, text: &str| {
        let loaded = bench.client(&format!("{three}{text}\n"));
        loaded.expect("a client").config.dns
    };
    let at = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(read(Bench::new(), "dns: 127.0.0.1:53").listen, at(53));
    assert_eq!(
        read(Bench::new(), "dns: {listen: '127.0.0.1:54'}").listen,
        at(54)
    );
    assert_eq!(read(Bench::new(), "dns: {blocked: zero}").listen, None);
    let bench = Bench::new()
        .set("ADIT_DNS", "127.0.0.1:55")
        .set("ADIT_DNS_SPLIT", "a.test=system,b.test=9.9.9.9")
        .flag("dns.upstream", "--dns-upstream", &["9.9.9.9", "1.1.1.1"]);
    let dns = read(bench, "dns: {listen: '127.0.0.1:54', blocked: zero}");
    assert_eq!(dns.listen, at(55));
    assert_eq!((dns.split.len(), dns.upstream.len()), (2, 2));
    assert_eq!(dns.blocked, BlockedAnswer::Zero);
    let open = read(Bench::new(), "dns: {listen: '192.0.2.1:53', open: true}");
    assert!(open.listen.is_some());
    let kept = read(Bench::new().set("XDG_CACHE_HOME", "/x"), "");
    assert_eq!(kept.cache_dir, Some("/x/adit".into()));
}

#[test]
fn lists_from_the_environment_are_separated_by_commas() {
    let bench = Bench::new().set("ADIT_ALLOW", "10.0.0.0/8, fd00::/8,");
    assert_eq!(
        bench
            .server("key_file: own.key\n")
            .expect("a server")
            .config
            .allow
            .len(),
        2
    );
    let bench = Bench::new().flag(
        "listen",
        "--listen",
        &["tcp://127.0.0.1:1", "tls://127.0.0.1:2"],
    );
    assert_eq!(
        bench
            .server("key_file: own.key\n")
            .expect("a server")
            .config
            .listen
            .len(),
        2
    );
}

#[test]
fn no_file_is_needed_where_the_environment_says_enough() {
    let bench = Bench::new();
    let key = bench.path("own.key").display().to_string();
    let other = bench.other.public().to_string();
    let bench = bench
        .set("ADIT_SERVER", "tls://h:1,tcp://h:2")
        .set("ADIT_SERVER_KEY", &other)
        .set("ADIT_KEY_FILE", &key);
    let loaded = bench.load(None, ClientConfig::load).expect("a client");
    assert_eq!((loaded.config.servers.len(), loaded.warnings.len()), (2, 0));
    // A file that is named and not there is worth a warning.
    let loaded = bench
        .load(Some(&bench.path("none.yaml")), ClientConfig::load)
        .expect("a client");
    assert_eq!(loaded.warnings.len(), 1);
}

fn forwards(config: &ClientConfig) -> Vec<String> {
    config.forwards.iter().map(ToString::to_string).collect()
}

#[test]
fn forwards_of_flags_stand_beside_those_of_the_file() {
    let file = format!(
        "{CLIENT}local_forwards: [\"8080:a:80\", \"8081:b:80\"]\nremote_forwards: [\"22:localhost:22\"]\n"
    );
    let bench = Bench::new()
        .flag("local_forwards", "-L", &["9090:c:80"])
        .flag("remote_forwards", "-R", &["80:localhost:8000"]);
    let loaded = bench.client(&file).expect("a client");
    assert_eq!(
        forwards(&loaded.config),
        [
            "-L 127.0.0.1:9090:c:80",
            "-L 127.0.0.1:8080:a:80",
            "-L 127.0.0.1:8081:b:80",
            "-R 80:localhost:8000",
            "-R 22:localhost:22",
        ]
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    // By variables, too, which stand for the file's, as always.
    let bench = bench.set("ADIT_LOCAL_FORWARDS", "7070:d:80");
    let loaded = bench.client(&file).expect("a client");
    assert_eq!(
        forwards(&loaded.config)[..2],
        ["-L 127.0.0.1:9090:c:80", "-L 127.0.0.1:7070:d:80"]
    );
}

#[test]
fn flag_has_the_place_that_the_file_wants_for_another_forward_and_says_so() {
    let file = format!("{CLIENT}local_forwards: [\"8080:a:80\", \"8081:b:80\"]\n");
    let bench = Bench::new().flag("local_forwards", "-L", &["8080:c:80", "8081:b:80"]);
    let loaded = bench.client(&file).expect("a client");
    assert_eq!(
        forwards(&loaded.config),
        ["-L 127.0.0.1:8080:c:80", "-L 127.0.0.1:8081:b:80"]
    );
    assert_eq!(
        loaded.warnings,
        [
            "local_forwards[0]: 127.0.0.1:8080:a:80 is not in force: on the command line TCP 127.0.0.1:8080 is 127.0.0.1:8080:c:80"
        ]
    );
    let twice = Bench::new()
        .flag("local_forwards", "-L", &["8080:c:80", "8080:d:80"])
        .client(CLIENT)
        .expect_err("one place");
    assert!(twice.contains("stands twice"), "{twice}");
}

#[test]
fn routes_of_a_tunnel_that_is_not_there_are_refused() {
    for (key, flag) in [
        ("tun.routes", "--tun-route"),
        ("tun.exclude", "--tun-exclude"),
    ] {
        let refused = |text: &str| {
            let bench = Bench::new().flag(key, flag, &["10.0.0.0/8"]);
            bench.client(&format!("{CLIENT}{text}")).expect_err("none")
        };
        for text in ["", "tun: off\n", "tun: {enabled: off}\n"] {
            let error = refused(text);
            assert!(
                error.contains(&format!("{flag}: {key}: belongs to a tunnel"))
                    && error.contains("add --tun"),
                "{text}: {error}"
            );
        }
    }
    // In a group that says so they wait for another day.
    let off = format!("{CLIENT}tun: {{enabled: off, routes: [10.0.0.0/8]}}\n");
    assert!(
        Bench::new()
            .client(&off)
            .expect("a client")
            .config
            .tun
            .is_none()
    );
}

#[test]
fn a_file_that_is_not_there_is_told_first() {
    let bench = Bench::new();
    let error = bench
        .load(Some(&bench.path("none.yaml")), ClientConfig::load)
        .expect_err("nothing");
    // What it might have is not said to be missing; what stands elsewhere is wrong all the same.
    assert_eq!(error, "none.yaml: there is no such file");
    let error = Bench::new()
        .set("ADIT_MTU", "12")
        .load(Some(Path::new("/none.yaml")), ServerConfig::load)
        .expect_err("a wrong one");
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert_eq!(lines[0], "/none.yaml: there is no such file");
    assert!(lines[1].contains("ADIT_MTU"), "{error}");
    let nothing = bench.load(None, ClientConfig::load).expect_err("nothing");
    assert!(
        nothing.starts_with("configuration: server: is missing"),
        "{nothing}"
    );
}

#[test]
fn an_open_proxy_must_be_wanted() {
    let bench = Bench::new();
    for more in ["proxy_open: true\n", "proxy_user: a\nproxy_password: b\n"] {
        let text = format!("{CLIENT}proxy: 0.0.0.0:1080\n{more}");
        assert!(bench.client(&text).is_ok(), "{more}");
    }
    for proxy in ["127.9.9.9:1", "'[::1]:1'", "localhost:1"] {
        assert!(
            bench.client(&format!("{CLIENT}proxy: {proxy}\n")).is_ok(),
            "{proxy}"
        );
    }
}

#[test]
fn datagrams_are_left_out_where_a_proxy_leads_to_the_server() {
    let servers = "server: [udp://vpn.example.com:1, tls://vpn.example.com:2]\nserver_key: OTHER\nkey_file: own.key\n";
    let loaded = |bench: &Bench, more: &str| {
        let loaded = bench.client(&format!("{servers}{more}")).expect("a client");
        (loaded.config.servers.len(), loaded.warnings)
    };
    let bench = Bench::new().set("HTTPS_PROXY", "http://proxy:3128");
    assert_eq!(loaded(&bench, ""), (2, Vec::new()));
    assert_eq!(loaded(&bench, "via: off\n"), (2, Vec::new()));
    let (count, warnings) = loaded(&bench, "via: env\n");
    assert_eq!(count, 1);
    assert!(
        warnings[0].contains("udp://vpn.example.com:1 is left out"),
        "{warnings:?}"
    );
    let direct = bench.set("NO_PROXY", "example.com");
    assert_eq!(loaded(&direct, "via: env\n"), (2, Vec::new()));
    assert_eq!(loaded(&direct, "via: socks5://proxy:1\n").0, 1);
}

#[test]
fn a_password_of_via_in_a_file_for_all_is_warned_about() {
    let bench = Bench::new();
    let loaded = |via: &str| {
        let text = format!("{CLIENT}via: {via}\n");
        bench.client(&text).expect("a client").warnings
    };
    assert_eq!(loaded("http://bob@proxy:1"), Vec::<String>::new());
    let warnings = loaded("http://bob:s3cret@proxy:1");
    assert!(
        warnings[0].starts_with("via: others than you may read")
            && warnings[0].ends_with("or write via_password_file instead"),
        "{warnings:?}"
    );
}

#[test]
fn keys_without_value_are_as_if_not_written() {
    let config = Bench::new()
        .server("key_file: own.key\nallow:\nclients: ~\ntun:\nmtu: null\n")
        .expect("a server")
        .config;
    assert_eq!(
        (config.allow.len(), config.clients.len(), config.mtu),
        (0, 0, 1400)
    );
}

#[test]
fn settings_without_effect_are_warned_about() {
    let bench = Bench::new();
    let loaded = bench
        .server("key_file: own.key\ntls: {certificate: own.key, key: own.key}\n")
        .expect("a server");
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.contains("no tls:// or wss:// address")),
        "{:?}",
        loaded.warnings
    );
    let loaded = bench
        .client(&format!("{CLIENT}tls: {{system: true}}\n"))
        .expect("a client");
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.contains("no server is reached by tls://")),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn state_goes_where_the_system_says() {
    let state = |bench: &Bench| {
        bench
            .server("key_file: own.key\n")
            .expect("a server")
            .config
            .state_dir
    };
    let bench = Bench::new();
    let usual = state(&bench);
    assert!(
        usual
            .parent()
            .is_some_and(|parent| parent.ends_with("adit")),
        "{usual:?}"
    );
    // Two servers of one host have different keys, and so different folders.
    assert_ne!(usual.file_name(), state(&Bench::new()).file_name());
    let bench = bench.set("STATE_DIRECTORY", "/var/lib/adit-office:/var/lib/more");
    assert_eq!(state(&bench), Path::new("/var/lib/adit-office"));
}

#[test]
fn examples_load_with_their_keys_in_place() {
    for (name, key) in [("server.yaml", "server.key"), ("client.yaml", "client.key")] {
        let bench = Bench::new();
        fs::copy(bench.path("own.key"), bench.path(key)).expect("copied");
        let example = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name);
        let path = bench.path(name);
        fs::copy(example, &path).expect("copied");
        let kind = guess_kind(&path).expect("read");
        let warnings = match kind.expect("a kind") {
            Kind::Server => {
                bench
                    .load(Some(&path), ServerConfig::load)
                    .expect(name)
                    .warnings
            }
            Kind::Client => {
                bench
                    .load(Some(&path), ClientConfig::load)
                    .expect(name)
                    .warnings
            }
        };
        assert_eq!(kind.map(Kind::as_str), name.strip_suffix(".yaml"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn examples_hold_every_key_and_their_comments_load_too() {
    for kind in Kind::ALL {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{kind}.yaml"));
        let text = fs::read_to_string(path).expect("an example");
        for key in kind.keys() {
            let name = key
                .rsplit('.')
                .next()
                .unwrap_or(&key)
                .trim_end_matches("[]");
            let stands = text.lines().any(|line| {
                let line = line
                    .trim_start()
                    .trim_start_matches("# ")
                    .trim_start()
                    .trim_start_matches("- ");
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(':'))
            });
            assert!(stands, "examples/{kind}.yaml lacks {key}");
        }
        // Every commented key that begins its line is a right one once the mark is taken away.
        let opened: String = text
            .lines()
            .map(|line| format!("{}\n", opened(kind, line)))
            .collect();
        let more = opened.lines().filter(|line| !line.starts_with('#')).count();
        let before = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(
            more >= before + 8,
            "{more} lines of examples/{kind}.yaml are open, {before} before"
        );
        let bench = Bench::new();
        for file in [
            "server.key",
            "client.key",
            "laptop.psk",
            "fullchain.pem",
            "privkey.pem",
            "ca.pem",
            "proxy.password",
            "via.password",
            "blocklist.txt",
            "allowlist.txt",
        ] {
            fs::copy(bench.path("own.key"), bench.path(file)).expect("copied");
        }
        let error = match kind {
            Kind::Server => bench.server(&opened).err(),
            Kind::Client => bench.client(&opened).err(),
        };
        // The example shows ways that exclude each other; nothing else may be wrong.
        let allowed = [
            "stands beside proxy_password",
            "stands beside a password in via",
            "a certificate is checked in one way",
            "stands beside tls.certificate",
        ];
        let problems: Vec<&str> = error
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| line.starts_with(kind.as_str()))
            .collect();
        for problem in problems {
            assert!(
                allowed.iter().any(|words| problem.contains(words)),
                "{problem}\n{opened}"
            );
        }
    }
}

/// The line with its comment mark taken away where a key stands behind it.
fn opened(kind: Kind, line: &str) -> String {
    let names: Vec<String> = kind
        .keys()
        .iter()
        .flat_map(|key| {
            key.split('.')
                .map(|part| part.trim_end_matches("[]").to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let Some((indent, rest)) = line.split_once("# ") else {
        return line.to_owned();
    };
    let item = rest.trim_start();
    let is_rule = item.strip_prefix("- ").is_some_and(|rule| {
        let first = rule.split(' ').next().unwrap_or_default();
        Action::ALL.iter().any(|action| action.as_str() == first)
    });
    if is_rule {
        return format!("{indent}{rest}");
    }
    let item = item.trim_start_matches("- ");
    let word = item.split(':').next().unwrap_or_default();
    let is_value = item
        .strip_prefix(word)
        .is_some_and(|rest| rest == ":" || rest.starts_with(": "));
    // Sentences about a key (`pin: SHA-256 of …`) stand inside a paragraph and end in a stop.
    let is_sentence = rest.ends_with('.') || rest.contains(". ");
    if names.iter().any(|name| name == word) && is_value && !is_sentence {
        format!("{indent}{rest}")
    } else {
        line.to_owned()
    }
}

#[test]
fn kinds_are_told_apart_by_their_keys() {
    let bench = Bench::new();
    for (text, kind) in [
        ("listen: []\nkey_file: a\n", Some(Kind::Server)),
        ("proxy: x\n", Some(Kind::Client)),
        ("key_file: a\n", None),
        ("", None),
        ("servr: x\nnetwork: y\n", Some(Kind::Server)),
    ] {
        assert_eq!(
            guess_kind(&bench.write("some.yaml", text)).expect("read"),
            kind,
            "{text}"
        );
    }
}

#[test]
fn variables_that_mean_nothing_are_told_with_the_nearest() {
    for name in [
        "ADIT_SERVER",
        "ADIT_TUN_NAME",
        "ADIT_LOG_LEVEL",
        "ADIT_CONFIG",
        "ADIT_LIMITS_FLOWS_PER_CLIENT",
        "PATH",
        "ADITION",
    ] {
        assert_eq!(unknown_variable(name), None, "{name}");
    }
    let told = unknown_variable("ADIT_SERVR_KEY").expect("told");
    assert!(told.ends_with("did you mean ADIT_SERVER_KEY?"), "{told}");
    assert!(unknown_variable("ADIT_CLIENTS_NAME").is_some());
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn never_panics(text in "([a-z_]{1,8}|[-: \\[\\]{},#&*|>'\"!%@\n\t]|key_file|clients|tun|name|listen|é|\u{1f511}){0,40}") {
            let bench = Bench::new();
            let _ = bench.server(&text);
            let _ = bench.client(&text);
        }
    }
}

#[test]
fn key_is_made_where_that_is_wanted_and_written_by_nobody_yet() {
    let bench = Bench::new();
    let refused = bench
        .server("key_file: new.key\nclients: []\n")
        .expect_err("no key");
    assert!(refused.contains("cannot read new.key"), "{refused}");
    let loaded = bench
        .server("key_file: [new.key, own.key]\ngenerate_key: true\nclients: []\n")
        .expect("a configuration");
    assert_eq!(loaded.config.process.new_key, Some(bench.path("new.key")));
    assert_eq!(loaded.config.secret_keys.len(), 2);
    assert!(!bench.path("new.key").exists(), "reading writes nothing");
    // Only the first is made: a former key that is missing is a mistake.
    let refused = bench
        .server("key_file: [own.key, old.key]\ngenerate_key: true\nclients: []\n")
        .expect_err("a former key cannot be made");
    assert!(refused.contains("cannot read old.key"), "{refused}");
    let client = "server: tcp://127.0.0.1:1\nserver_key: OTHER\n";
    let loaded = bench
        .client(&format!(
            "{client}key_file: mine.key\ngenerate_key: yes\nuser: 5:6\n"
        ))
        .expect("a configuration");
    assert_eq!(loaded.config.process.new_key, Some(bench.path("mine.key")));
    assert_eq!(
        loaded.config.process.user,
        Some(Account { user: 5, group: 6 })
    );
    let loaded = bench
        .client(&format!("{client}key_file: own.key\ngenerate_key: yes\n"))
        .expect("a configuration");
    assert_eq!(loaded.config.process, ProcessConfig::default());
}

#[test]
fn server_needs_no_file_at_all() {
    let bench = Bench::new()
        .set("STATE_DIRECTORY", "/var/lib/of-nobody:/other")
        .set("ADIT_GENERATE_KEY", "true")
        .set("ADIT_LISTEN", "udp://0.0.0.0:7443,tcp://0.0.0.0:7443")
        .set("ADIT_EGRESS", "user")
        .set("ADIT_USER", "10001:10001");
    let loaded = bench
        .load(None, ServerConfig::load)
        .expect("a configuration");
    assert_eq!(loaded.config.listen.len(), 2);
    assert_eq!(loaded.config.egress, EgressKind::User);
    let state = Path::new("/var/lib/of-nobody");
    assert_eq!(loaded.config.state_dir, state);
    assert_eq!(loaded.config.process.new_key, Some(state.join("key")));
    // Whom it serves, invitations or the file say.
    assert!(loaded.config.clients.is_empty());
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}
