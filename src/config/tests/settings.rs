//! What each setting says arrives, and what nobody says is as documented.

use super::*;

#[test]
fn a_key_alone_makes_a_server_with_the_documented_defaults() {
    let config = Bench::new()
        .server("key_file: own.key\n")
        .expect("a server")
        .config;
    assert_eq!(
        texts(&config.listen),
        ["udp://0.0.0.0:7443", "tcp://0.0.0.0:7443"]
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
        texts(&config.listen),
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
        texts(&config.allow),
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
    assert_eq!(texts(&config.dns), ["9.9.9.9:53", "[2620:fe::fe]:5353"]);
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
        texts(&pins),
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
    assert_eq!(texts(&guarded.exclude), ["fd00::1/128", "10.0.0.0/8"]);
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
            let user = proxy.auth.as_ref().map_or("-", |auth| &auth.user);
            format!("{} {user} {}", proxy.listen, texts(&proxy.rules).join("; "))
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
