//! Commands with sessions of their own, side by side and as the session changes.

use std::fs;

use adit_integration::{adit::User, namespaces::EGRESS4, process::Process, skip::can_run};

use crate::{
    NEEDS, SOON,
    scene::{Scene, wait_for},
};

#[test]
fn several_commands_run_side_by_side_up_to_the_servers_limit() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    // one after the other there may be any number
    for _ in 0..9 {
        assert!(scene.run(&["true"]).status.success());
    }
    let script = "ip -o -4 address show dev adit0 | grep -o 'inet [0-9.]*'; exec sleep 100";
    let running: Vec<Process> = (0..8).map(|_| scene.start(script)).collect();
    let mut addresses: Vec<String> = running
        .iter()
        .map(|process| {
            let line = process.wait_for_line(SOON, |line| line.starts_with("inet"));
            line.unwrap_or_else(|| panic!("{}", process.text()))
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    let ninth = scene.run(&["true"]);
    assert_eq!(ninth.status.code(), Some(125), "{ninth:?}");
    assert!(
        ninth
            .stderr
            .contains("too many instances run with this key"),
        "{ninth:?}"
    );
    drop(running);
    // sessions of commands that were killed are closed too
    wait_for("there is room again", || {
        scene.run(&["true"]).status.success()
    });
}

#[test]
fn addresses_and_name_servers_follow_the_session() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let flag = scene.workdir.state("flags", User::Nobody).join("moved");
    let script = format!(
        "ask() {{ curl -sS -m 3 --retry 10 --retry-all-errors http://four.example/peer; }}
         ask; until test -e {}; do sleep 0.05; done
         until ip -o address show dev adit0 | grep -q 10.99.0.; do sleep 0.05; done
         ask; grep -o 'nameserver .*' /etc/resolv.conf; ip -o address show dev adit0 | grep -c inet",
        flag.display()
    );
    let mut process = scene.start(&script);
    let through = format!("{EGRESS4}:");
    let is_through = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, is_through).is_some(),
        "{}",
        process.text()
    );
    scene.server.kill();
    let text = fs::read_to_string(&scene.server_config).expect("the test wrote it");
    let moved = text
        .replace("10.86.0.0/24", "10.99.0.0/24")
        .replace("fd86::/64", "fd99::/64");
    fs::write(&scene.server_config, moved).expect("the test's own file");
    scene.server =
        scene
            .workdir
            .start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    fs::write(&flag, "").expect("writes into its own folder");
    assert!(process.wait(SOON).is_some(), "{}", process.text());
    // what it printed last is read a moment later
    process.wait_for_line(SOON, |line| line == "2");
    let lines = process.lines();
    let peers = lines.iter().filter(|line| is_through(line)).count();
    assert_eq!(peers, 2, "{lines:?}");
    assert!(
        lines.contains(&"nameserver 10.99.0.1".to_owned()),
        "{lines:?}"
    );
    assert_eq!(lines.last().map(String::as_str), Some("2"), "{lines:?}");
}
