//! Commands that share the session of a running client.

use std::{fs, io::Read, net::TcpListener, time::Duration};

use adit_integration::{
    adit::{User, path},
    namespaces::{EGRESS4, EGRESS6, ORIGIN4, ORIGIN6, SERVER4},
    process::{self, Process, Signal},
    skip::{Need, can_run},
    sniff::Sniffer,
};

use crate::{
    NEEDS, PORT, SOON,
    scene::{Scene, printed, wait_for},
};

#[test]
fn commands_share_one_session_and_lose_their_network_with_its_client() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let mut sniffer = Sniffer::start(&scene.lab.client, SERVER4.into(), PORT);
    let mut client = scene.shared("");
    sniffer.forget();
    let over = scene.workdir.state("flags", User::Nobody).join("over");
    let script = format!(
        "ask() {{ curl -sS -m 5 http://four.example/peer; }}
         ask; until test -e {}; do sleep 0.05; done
         until test $(ip -o link | wc -l) = 1; do sleep 0.05; done
         ask; curl -sS -m 2 {}; ping -c 1 -W 1 {ORIGIN4}; ping -c 1 localhost >/dev/null && echo loopback left",
        over.display(),
        scene.four.url("/peer"),
    );
    // more than the sessions of one key may be
    let mut running: Vec<Process> = (0..12).map(|_| scene.start(&script)).collect();
    let through = format!("{EGRESS4}:");
    for process in &running {
        let line = process.wait_for_line(SOON, |line| line.starts_with(&through));
        assert!(line.is_some(), "{}", process.text());
    }
    assert_eq!(scene.sessions(), 1);
    client.kill();
    fs::write(&over, "").expect("writes into its own folder");
    for process in &mut running {
        assert!(process.wait(SOON).is_some(), "{}", process.text());
        let left = process.wait_for_line(SOON, |line| line == "loopback left");
        assert!(left.is_some(), "{}", process.text());
        let answers = process.lines();
        let answers = answers.iter().filter(|line| line.starts_with(&through));
        assert_eq!(answers.count(), 1, "{}", process.text());
        assert!(
            process.text().contains("the client has ended"),
            "{}",
            process.text()
        );
    }
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
}

#[test]
fn shared_commands_wait_while_the_tunnel_is_cut_and_what_they_sent_last_arrives() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let place = scene.lab.client.clone();
    let mut sniffer = Sniffer::start(&place, SERVER4.into(), PORT);
    let _client = scene.shared("");
    sniffer.forget();
    let url = scene.four.url("/peer");
    let cut = scene.workdir.state("flags", User::Nobody).join("cut");
    let script = format!(
        "curl -sS -m 20 {url}; until test -e {}; do sleep 0.05; done; echo asking; curl -sS -m 25 {url} && curl -sS -m 20 http://four.example/peer && echo alive",
        cut.display()
    );
    let process = scene.start(&script);
    let through = format!("{EGRESS4}:");
    let got = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, got).is_some(),
        "{}",
        process.text()
    );
    place.cut(PORT);
    fs::write(&cut, "").expect("writes into its own folder");
    let asks = |line: &str| line == "asking";
    assert!(process.wait_for_line(SOON, asks).is_some());
    std::thread::sleep(Duration::from_secs(3));
    place.mend();
    let alive = |line: &str| line == "alive";
    assert!(
        process.wait_for_line(SOON, alive).is_some(),
        "{}",
        process.text()
    );
    // a command that writes and is gone has its bytes delivered
    let listener = scene.lab.internet.spawn(|| {
        let listener = TcpListener::bind((ORIGIN4, 4000)).expect("a port of the lab");
        let (mut stream, _) = listener.accept().expect("somebody comes");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).map(|_| got.len())
    });
    let script = format!(
        "until exec 3>/dev/tcp/{ORIGIN4}/4000; do sleep 0.1; done; head -c 300000 /dev/zero >&3"
    );
    let sent = scene.shell(&script);
    assert!(sent.status.success(), "{sent:?}");
    let arrived = listener.join().expect("no panic");
    assert_eq!(arrived.expect("an end in order"), 300_000);
    assert_eq!(scene.sessions(), 1);
    assert_eq!(sniffer.strange(), Vec::<String>::new());
}

#[test]
fn shared_command_waits_for_a_server_that_is_down() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let _client = scene.shared("");
    scene.server.kill();
    let health = ["health", "-c", path(&scene.client_config)];
    wait_for("the client notices", || {
        let found = (scene.workdir).run_as(&scene.lab.client, User::Nobody, &health);
        !found.status.success()
    });
    let given_up = process::run(scene.command_with(&["--wait", "1s"], &["true"]), SOON);
    assert_eq!(given_up.status.code(), Some(125), "{given_up:?}");
    assert!(
        given_up.stderr.contains("does not reach its server"),
        "{given_up:?}"
    );
    // Where it is told not to wait, it does not.
    let at_once = process::run(scene.command_with(&["--no-wait"], &["true"]), SOON);
    assert!(at_once.status.success(), "{at_once:?}");
    let url = scene.four.url("/peer");
    let waiting = scene.start(&format!("curl -sS -m 20 {url}"));
    scene.server =
        (scene.workdir).start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    let through = format!("{EGRESS4}:");
    let got = |line: &str| line.starts_with(&through);
    assert!(
        waiting.wait_for_line(SOON, got).is_some(),
        "{}",
        waiting.text()
    );
}

#[test]
fn rules_and_resolver_of_the_client_hold_for_commands_that_share_it() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("dig"), Need::Tool("ping")]) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let more = format!(
        "rules: [\"block {ORIGIN6}\", \"block ads.four.example\"]\ndns:\n  records: [\"here.example A {ORIGIN4}\"]\n  block: [{}]\n",
        scene.workdir.file("blocked", "both.example\n").display()
    );
    let mut client = scene.shared(&more);
    let got = printed(scene.run(&["curl", "-sS", "-m", "20", "http://here.example/peer"]));
    assert!(got.starts_with(&format!("{EGRESS4}:")), "{got}");
    let six = scene.six.url("/peer");
    let refused = scene.run(&["curl", "-sS", "-m", "20", &six]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let lost = scene.run(&["ping", "-c", "1", "-W", "1", &ORIGIN6.to_string()]);
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    let blocked = printed(scene.run(&["dig", "both.example"]));
    assert!(blocked.contains("NXDOMAIN"), "{blocked}");
    let unnamed = printed(scene.run(&["dig", "ads.four.example"]));
    assert!(unnamed.contains("NXDOMAIN"), "{unnamed}");
    // other rules end a flow that they concern, and what they do not block any more goes through
    let script = format!("exec 3<>/dev/tcp/{ORIGIN4}/80; echo open; cat <&3; echo closed");
    let process = scene.start(&script);
    assert!(
        process.wait_for_line(SOON, |line| line == "open").is_some(),
        "{}",
        process.text()
    );
    let text = fs::read_to_string(&scene.client_config).expect("the test wrote it");
    let other = text.replace(&format!("block {ORIGIN6}"), &format!("block {ORIGIN4}"));
    fs::write(&scene.client_config, other).expect("the test's own file");
    client.process().signal(Signal::User1);
    assert!(
        process
            .wait_for_line(SOON, |line| line == "closed")
            .is_some(),
        "{}",
        process.text()
    );
    let got = printed(scene.run(&["curl", "-sS", "-m", "20", &six]));
    assert!(got.starts_with(&format!("[{EGRESS6}]:")), "{got}");
    let refused = scene.run(&["curl", "-sS", "-m", "20", &scene.four.url("/peer")]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
}
