//! Which source wins: the file, the environment, or a flag.

use super::*;

#[test]
fn rules_come_from_the_environment_and_from_flags_too() {
    let rules = |bench: &Bench| -> Vec<String> {
        let config = bench
            .client(&format!("{CLIENT}rules: block *\n"))
            .expect("a client")
            .config;
        texts(&config.rules)
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

fn forwards(config: &ClientConfig) -> Vec<String> {
    texts(&config.forwards)
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
