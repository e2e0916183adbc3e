//! What is refused, and how it is told: all of it at once, with place and remedy.

use super::mistakes::{WRONG_CLIENTS, WRONG_SERVERS};
use super::*;

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
