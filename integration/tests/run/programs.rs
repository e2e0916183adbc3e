//! What users run works as anywhere, with a session of its own or in a shared one.

use std::net::IpAddr;

use adit_integration::{
    adit::User,
    namespaces::{EGRESS4, EGRESS6, ORIGIN4, ORIGIN6, PRIVATE4},
    origin::{Certificate, Origin},
    process::Process,
    skip::can_run,
    stream,
};

use crate::{
    NEEDS, PROGRAMS, SOON,
    scene::{Scene, printed},
};

#[test]
fn commands_of_an_ordinary_user_go_through_a_server_with_egress_user() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let scene = Scene::user("tcp");
        every_program_works(&scene);
        ping_is_refused_where_the_server_may_not_send_it(&scene);
    }
}

#[test]
fn commands_of_an_ordinary_user_go_through_a_server_with_egress_tun() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let scene = Scene::tun("udp");
        every_program_works(&scene);
        packets_may_be_marked(&scene);
    }
}

#[test]
fn every_program_works_in_a_shared_session_with_egress_user() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let mut scene = Scene::user("tcp");
        let _client = scene.shared("");
        every_program_works(&scene);
        assert_eq!(scene.sessions(), 1);
    }
}

#[test]
fn every_program_works_in_a_shared_session_with_egress_tun() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let mut scene = Scene::tun("udp");
        let _client = scene.shared("");
        every_program_works(&scene);
        assert_eq!(scene.sessions(), 1);
    }
}

/// A loss would be waited for, and tell nothing.
fn ping_is_refused_where_the_server_may_not_send_it(scene: &Scene) {
    (scene.lab.server).shell("echo 1 0 > /proc/sys/net/ipv4/ping_group_range");
    for (origin, answer) in [
        (ORIGIN4.to_string(), "Packet filtered"),
        (ORIGIN6.to_string(), "Administratively prohibited"),
    ] {
        let refused = scene.run(&["ping", "-c", "1", "-W", "20", &origin]);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.text());
        assert!(refused.stdout.contains(answer), "{}", refused.text());
    }
}

fn every_program_works(scene: &Scene) {
    let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
    for (url, seen) in [
        (scene.four.url("/peer"), [&four, &four]),
        (scene.six.url("/peer"), [&six, &six]),
        ("http://four.example/peer".into(), [&four, &four]),
        ("http://both.example/peer".into(), [&four, &six]),
    ] {
        let got = printed(scene.run(&["curl", "-sS", "--max-time", "20", &url]));
        assert!(
            seen.iter().any(|peer| got.starts_with(peer.as_str())),
            "{url}: {got}"
        );
    }
    let asked = scene.dns.asked();
    let by_server = |peer: IpAddr| peer == IpAddr::from(EGRESS4);
    assert!(
        !asked.is_empty() && asked.iter().all(|question| by_server(question.peer.ip())),
        "{asked:?}"
    );

    let certificate = Certificate::new(&["four.example"]);
    let _tls = Origin::https(&scene.lab.internet, (ORIGIN4, 443).into(), &certificate);
    let authority = scene.workdir.file("authority.pem", &certificate.authority);
    let length = 16_u64 << 20;
    let url = format!("https://four.example/bytes/{length}?seed=5");
    let script = format!(
        "set -o pipefail; curl -sS --cacert {} '{url}' | sha256sum",
        authority.display()
    );
    let sum = printed(scene.shell(&script));
    assert_eq!(sum.split(' ').next(), Some(&*stream::sha256(5, length)));
    let script = format!(
        "head -c {length} /dev/zero | curl -sS --data-binary @- {}",
        scene.four.url("/sink")
    );
    let sunk = printed(scene.shell(&script));
    assert!(sunk.starts_with(&format!("{length} ")), "{sunk}");

    let script =
        format!("ping -c 3 -i 0.2 {ORIGIN4} && ping -c 1 {ORIGIN6} && ping -c 1 localhost");
    let pinged = printed(scene.shell(&script));
    assert!(
        pinged.contains("3 packets transmitted, 3 received"),
        "{pinged}"
    );
    let dug = printed(scene.run(&["dig", "+short", "four.example"]));
    assert_eq!(dug.trim(), ORIGIN4.to_string());
    let dug = printed(scene.run(&["dig", "+short", "+tcp", "both.example", "AAAA"]));
    assert_eq!(dug.trim(), ORIGIN6.to_string());

    clones(scene);
    calls(scene);

    // what is not allowed to go out is refused there, and said so
    let denied = scene.run(&["curl", "-sS", &format!("http://{PRIVATE4}/")]);
    assert_eq!(denied.status.code(), Some(7), "{denied:?}");
    assert_eq!(scene.server.panics(), Vec::<String>::new());
}

/// The command's kernel and the origin's agree on marks of congestion, so that what the origin sends may be marked.
fn packets_may_be_marked(scene: &Scene) {
    let downloaded = |origin: &Origin, counters: &str| {
        let url = origin.url("/bytes/300000?seed=5");
        printed(scene.shell(&format!("curl -sS -o /dev/null '{url}' && cat {counters}")))
    };
    let four = downloaded(&scene.four, "/proc/net/netstat");
    let mut lines = four.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, counts) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split(' ').zip(counts.split(' '));
    let count = counters.find_map(|(name, count)| (name == "InECT0Pkts").then_some(count));
    assert!(count.is_some_and(|count| count != "0"), "{four}");

    let six = downloaded(&scene.six, "/proc/net/snmp6");
    let mut words = six
        .split_whitespace()
        .skip_while(|word| *word != "Ip6InECT0Pkts");
    assert!(words.nth(1).is_some_and(|count| count != "0"), "{six}");
}

/// A second of a call's worth of datagrams each way, as iperf3 sends them, loses hardly any.
fn calls(scene: &Scene) {
    for direction in [&[][..], &["--reverse"]] {
        let mut server = scene.lab.internet.command("iperf3");
        server.args(["--server", "--one-off", "--forceflush"]);
        let server = Process::spawn("iperf3", server);
        let listens = |line: &str| line.contains("Server listening");
        assert!(server.wait_for_line(SOON, listens).is_some());
        let call = [
            "iperf3",
            "-u",
            "-c",
            "four.example",
            "-b",
            "2M",
            "-t",
            "1",
            "--json",
        ];
        let report = printed(scene.run(&[&call, direction].concat()));
        let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
        let sum = &report["end"]["sum"];
        let (packets, lost) = (&sum["packets"], &sum["lost_percent"]);
        assert!(
            packets.as_u64() > Some(100) && lost.as_f64().is_some_and(|lost| lost < 10.0),
            "{direction:?}: {sum}"
        );
    }
}

/// A repository of the Internet host comes whole by the protocol of git.
fn clones(scene: &Scene) {
    let place = &scene.lab.internet;
    let folder = place.folder().expect("a host of the lab").display();
    place.shell(&format!(
        "export HOME={folder} GIT_CONFIG_GLOBAL=/dev/null; cd {folder}; git init -q repository; cd repository;
         head -c 3000000 /dev/urandom > file; git add file; git -c user.name=t -c user.email=t@example commit -qm first"
    ));
    let mut daemon = place.command("git");
    daemon
        .args([
            "daemon",
            "--export-all",
            "--reuseaddr",
            "--informative-errors",
        ])
        .args([
            format!("--base-path={folder}"),
            format!("--listen={ORIGIN4}"),
        ])
        .env("HOME", format!("{folder}"))
        .args(["--verbose"]);
    let daemon = Process::spawn("git daemon", daemon);
    daemon.wait_for_line(SOON, |line| line.contains("Ready"));
    let into = scene.workdir.state("clones", User::Nobody);
    let script = format!(
        "cd {} && GIT_CONFIG_GLOBAL=/dev/null git clone -q git://four.example/repository && sha256sum < repository/file",
        into.display()
    );
    let sum = printed(scene.shell(&script));
    assert_eq!(
        sum,
        place.shell(&format!("sha256sum < {folder}/repository/file"))
    );
}
