//! What is accepted with a warning, or only where it is plainly wanted.

use super::*;

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
