//! The whole host in the tunnel, from the start to the end, and after a kill.

use std::net::IpAddr;

use adit_integration::{
    adit::{ServerConfig, User, path},
    curl::{self, Via},
    namespaces::{EGRESS4, EGRESS6, ORIGIN4, ORIGIN6, PRIVATE4, SERVER4},
    process,
    scene::PROXY,
    skip::{Need, can_run},
    sniff::Sniffer,
};

use crate::{NEEDS, PORT, SOON, scene::Scene, wait_for};

#[test]
fn whole_host_goes_through_the_tunnel_and_is_as_it_was_afterwards() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let before = scene.host();
    let mut client = scene.client();
    let mut sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
    for (url, through) in [
        (scene.four.url("/peer"), [&four, &four]),
        (scene.six.url("/peer"), [&six, &six]),
        ("http://four.example/peer".into(), [&four, &four]),
        ("http://both.example/peer".into(), [&four, &six]),
    ] {
        let got = scene.seen(&url);
        assert!(
            through.iter().any(|peer| got.starts_with(peer.as_str())),
            "{url}: {got:?}"
        );
    }
    place.run(&format!("ping -c 2 -i 0.2 {ORIGIN4}"));
    place.run(&format!("ping -c 2 -i 0.2 {ORIGIN6}"));
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    let asked = scene.dns.asked();
    assert!(
        asked
            .iter()
            .all(|question| question.peer.ip() == IpAddr::from(EGRESS4)),
        "{asked:?}"
    );
    // the proxy works beside it, by a session of its own
    let got = curl::get(place, Via::Socks5h(PROXY), "http://four.example/peer", &[]);
    assert!(got.stdout.starts_with(&four), "{got:?}");
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
    // what the host has routes of its own for is reached as ever
    sniffer.forget();
    place.run(&format!("ping -c 1 {SERVER4}"));
    wait_for("the neighbour is pinged", || !sniffer.strange().is_empty());

    // both sessions are shown, that of the host and that of the proxy
    let shown = scene.adit(&["status", "-c", path(&scene.client_config)]);
    for carries in ["\nhost  ", "\nproxy "] {
        assert!(shown.stdout.contains(carries), "{}", shown.text());
    }
    // another is refused in words
    let second = scene.workdir.file(
        "second.yaml",
        &std::fs::read_to_string(&scene.client_config).expect("the test wrote it"),
    );
    let refused = scene.adit(&[
        "client",
        "--tun",
        "-c",
        path(&second),
        "--proxy",
        "127.0.0.1:1081",
    ]);
    assert!(
        refused.stderr.contains("is in use by process") && refused.stderr.contains("without --tun"),
        "{refused:?}"
    );
    let mut elsewhere = place.command(scene.workdir.path().join("adit"));
    elsewhere
        .args([
            "client",
            "--tun",
            "-c",
            path(&second),
            "--proxy",
            "127.0.0.1:1081",
        ])
        .env("ADIT_TUN_STATE_DIR", scene.workdir.path().join("elsewhere"));
    let refused = process::run(elsewhere, SOON);
    assert!(
        refused
            .stderr
            .contains("another adit client leads this host"),
        "{refused:?}"
    );
    // nor is what a living one has changed undone
    let refused = scene.adit(&["cleanup", "-c", path(&scene.client_config)]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(
        refused.stderr.contains("is in use by process"),
        "{refused:?}"
    );
    assert!(scene.seen(&scene.four.url("/peer")).starts_with(&four));

    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn killed_client_is_cleaned_up_after_byte_for_byte() {
    if !can_run(NEEDS) {
        return;
    }
    let kill_switch = "tun: {kill_switch: true, exclude: [192.168.0.0/16]}";
    let split = "tun: {routes: [11.0.0.0/24], dns: true}";
    for (what, more, is_link) in [
        ("plain", "tun: true", false),
        ("symbolic link", "tun: true", true),
        ("kill switch", kill_switch, false),
        ("split", split, false),
    ] {
        let scene = Scene::udp(more);
        if is_link {
            scene.lab.client.shell(
                "mkdir /etc/elsewhere; mv /etc/resolv.conf /etc/elsewhere/stub; ln -s elsewhere/stub /etc/resolv.conf",
            );
        }
        let before = scene.host();
        // by the command
        let mut client = scene.client();
        assert_ne!(scene.host(), before);
        let addresses = scene.addresses();
        client.kill();
        let left = scene.host();
        assert_ne!(left, before, "{what}");
        let cleaned = scene.adit(&["cleanup"]);
        assert!(cleaned.status.success(), "{what}: {cleaned:?}");
        assert!(
            cleaned.stdout.contains("undone: /etc/resolv.conf"),
            "{cleaned:?}"
        );
        assert_eq!(scene.host(), before, "{what}: {cleaned:?}");
        let again = scene.adit(&["cleanup"]);
        assert!(
            again.stdout.contains("nothing was left behind") && again.stdout.contains("looked in "),
            "{again:?}"
        );
        // by the next start, which is killed as well, and by one more
        let mut client = scene.client();
        assert_eq!(scene.addresses(), addresses, "{what}: as before the kill");
        client.kill();
        let mut client = scene.client();
        assert_eq!(scene.addresses(), addresses, "{what}: as before the kill");
        assert!(
            scene
                .seen(&scene.four.url("/peer"))
                .starts_with(&format!("{EGRESS4}:"))
        );
        assert!(client.stop().0.success());
        assert_eq!(scene.host(), before, "{what}");
    }
}

#[test]
fn root_that_becomes_an_ordinary_user_keeps_what_the_tunnel_needs() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: true\nuser: 10001:10001");
    let before = scene.host();
    let mut client = scene.client();
    let through = format!("{EGRESS4}:");
    assert!(scene.seen("http://four.example/peer").starts_with(&through));
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
    let mut client = scene.client();
    client.kill();
    let cleaned = scene.adit(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(scene.host(), before);
}

#[test]
fn split_tunnel_carries_what_is_listed_and_leaves_the_rest_outside() {
    if !can_run(NEEDS) {
        return;
    }
    let config = ServerConfig {
        allow: vec!["10.77.2.0/24".into()],
        ..ServerConfig::tun_egress()
    };
    let more = format!(
        "tun: {{routes: [11.0.0.0/24, 10.77.0.0/16], exclude: [\"{SERVER4}\", 10.77.3.0/24]}}"
    );
    let scene = Scene::with(&format!("udp://{SERVER4}:{PORT}"), &more, config);
    let place = &scene.lab.client;
    let _client = scene.client();
    let mut sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    assert!(
        scene
            .seen(&scene.four.url("/peer"))
            .starts_with(&format!("{EGRESS4}:"))
    );
    place.run(&format!("ping -c 1 {PRIVATE4}"));
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    // outside: an exclusion within a network of the list, another family, and whatever is not listed
    place.run(&format!("ping -c 1 {SERVER4}"));
    for address in [
        "10.77.3.1".to_owned(),
        ORIGIN6.to_string(),
        "12.0.0.1".to_owned(),
    ] {
        sniffer.forget();
        place.try_run(&format!("ping -c 1 -W 1 {address}"));
        wait_for("it goes outside", || {
            sniffer
                .strange()
                .iter()
                .any(|line| line.contains(&format!("→ {address}")))
        });
    }
    // names stay the host's own to ask, unless it was said otherwise
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains(&SERVER4.to_string())
    );
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("setpriv")]) {
        return;
    }
    let scene = Scene::udp("");
    let before = scene.host();
    let place = &scene.lab.client;
    let config = path(&scene.client_config);
    scene
        .workdir
        .give(&scene.workdir.path().join("client.key"), User::Nobody);
    let state = scene.workdir.state("nobody", User::Nobody);
    let mut command = scene.workdir.command(place, User::Nobody);
    command
        .args(["client", "--tun", "-c", config])
        .env("ADIT_TUN_STATE_DIR", &state);
    let refused = process::run(command, SOON);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused:?}");
    place.shell("mount -t tmpfs tmpfs /dev/net");
    let refused = scene.adit(&["client", "--tun", "-c", config]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("modprobe tun"), "{refused:?}");
    assert_eq!(scene.host(), before);
}

#[test]
fn client_that_has_had_no_session_yet_takes_orders_and_says_what_it_waits_for() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: {kill_switch: true}");
    let place = &scene.lab.client;
    let before = scene.host();
    let config = path(&scene.client_config);
    scene.lab.server.cut_datagrams(PORT);
    let mut client = scene.begin();
    let ask = |words: &[&str]| scene.adit(&[words, &["-c", config]].concat());
    wait_for("it takes orders", || ask(&["status"]).status.success());
    // What keeps everything else on this host is the kill switch, and whoever asks why is answered.
    assert!(place.run("nft list ruleset").contains("chain leaving"));
    let shown = ask(&["status"]);
    assert!(
        shown.stdout.contains("connecting: no server has answered"),
        "{}",
        shown.text()
    );
    let health = ask(&["health"]);
    assert_eq!(health.status.code(), Some(1), "{}", health.text());
    assert!(health.stderr.contains("connecting"), "{}", health.text());
    let look = ask(&["doctor", "--no-load"]);
    for fact in ["runs: connecting", "its kill switch lets nothing else out"] {
        assert!(look.stdout.contains(fact), "{fact}: {}", look.text());
    }
    assert!(!look.stdout.contains("adit cleanup"), "{}", look.text());
    // Nor is a living one without a control socket taken for a dead one: it has the lock.
    let other = format!(
        "{}\ncontrol: {}\n",
        std::fs::read_to_string(&scene.client_config).expect("the test wrote it"),
        path(&scene.workdir.path().join("other"))
    );
    let other = scene.workdir.file("other.yaml", &other);
    let mut look = scene.workdir.command(place, User::Same);
    look.args(["doctor", "--no-load", "-c", path(&other)])
        .env("XDG_RUNTIME_DIR", "/nowhere");
    let look = process::run(look, SOON);
    assert!(!look.stdout.contains("adit cleanup"), "{}", look.text());

    // The proxy's session comes second: a fixed address would be the host's.
    scene.lab.server.mend();
    client.expect_ready();
    let shown = ask(&["status"]);
    for carries in ["\nhost  ", "\nproxy "] {
        assert!(shown.stdout.contains(carries), "{}", shown.text());
    }
    let seen = scene.seen(&scene.four.url("/peer"));
    assert!(seen.starts_with(&format!("{EGRESS4}:")), "{seen}");
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
    // One that is stopped before it was ever up leaves nothing either.
    scene.lab.server.cut_datagrams(PORT);
    let mut client = scene.begin();
    wait_for("it takes orders", || ask(&["status"]).status.success());
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}
