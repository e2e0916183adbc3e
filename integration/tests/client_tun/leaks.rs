//! What stays inside whatever happens, with the kill switch and without.

use std::{net::IpAddr, path::PathBuf, process::Command};

use adit_integration::{
    adit::{ServerConfig, User, path},
    namespaces::{EGRESS4, ORIGIN4, ORIGIN6, SERVER4, SERVER6},
    process::{self, Process},
    skip::can_run,
    sniff::Sniffer,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::{NEEDS, PORT, SOON, scene::Scene, wait_for};

/// A program that tries everything that could leak, over and over, until the file `end` is there.
fn restless(scene: &Scene) -> (Process, PathBuf) {
    let end = scene.workdir.path().join("end");
    let mut command: Command = scene.lab.client.command("bash");
    command.args([
        "-c",
        &format!(
            "export RES_OPTIONS='timeout:1 attempts:1'
             until test -e {end}; do
               curl -sS -m 1 {four} & curl -sS -m 1 {six} & curl -sS -m 1 http://four.example/ & getent ahosts both.example &
               ping -c 1 -W 1 {ORIGIN4} & ping -c 1 -W 1 {ORIGIN6} & ping -c 1 -W 1 {SERVER4} & ping -c 1 -W 1 {SERVER6} &
               dig +tries=1 +time=1 @{SERVER4} four.example & dig +tries=1 +time=1 @{SERVER6} four.example &
               ping -I c0 -c 1 -W 1 {ORIGIN4} & curl -sS -m 1 --interface c0 {six} &
               (echo x > /dev/udp/{SERVER4}/53) & (echo x > /dev/udp/224.0.0.251/5353) & wait; echo round
             done 2>&1",
            end = end.display(),
            four = scene.four.url("/peer"),
            six = scene.six.url("/peer"),
        ),
    ]);
    (Process::spawn("restless programs", command), end)
}

fn rounds(process: &Process) -> usize {
    process
        .lines()
        .iter()
        .filter(|line| *line == "round")
        .count()
}

#[test]
fn nothing_leaks_with_the_kill_switch_while_the_tunnel_is_down_or_the_client_dead() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: {kill_switch: true}");
    let place = &scene.lab.client;
    let before = scene.host();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    // the sniffer sees what there is to see
    place.try_run(&format!("ping -c 1 -W 1 {ORIGIN4}"));
    place.try_run(&format!("ping -c 1 -W 1 {ORIGIN6}"));
    wait_for("both families are seen to leak", || {
        let strange = sniffer.strange();
        let to = |address: IpAddr| {
            strange
                .iter()
                .any(|line| line.contains(&format!("→ {address}")))
        };
        to(ORIGIN4.into()) && to(ORIGIN6.into())
    });
    drop(sniffer);

    let mut client = scene.client();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let (mut process, end) = restless(&scene);
    let through = format!("{EGRESS4}:");
    assert!(
        process
            .wait_for_line(SOON, |line| line.starts_with(&through))
            .is_some(),
        "{}",
        process.text()
    );
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "while it is up");
    // cut at the other side, so that the client's own datagrams are seen to go on
    scene.lab.server.cut_datagrams(PORT);
    let begun = rounds(&process);
    wait_for("it is restless while cut", || rounds(&process) > begun + 4);
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "while it is cut");
    assert!(sniffer.tunnelled() > 0);
    scene.lab.server.mend();
    wait_for("the tunnel is back", || {
        scene.seen(&scene.four.url("/peer")).starts_with(&through)
    });

    client.kill();
    let begun = rounds(&process);
    wait_for("it is restless with the client dead", || {
        rounds(&process) > begun + 3
    });
    // a start that finds what is left has no gap
    let mut client = scene.client();
    let begun = rounds(&process);
    wait_for("it is restless with the next client", || {
        rounds(&process) > begun + 2
    });
    client.kill();
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "after a crash");
    std::fs::write(end, "").expect("writes into its own folder");
    assert!(process.wait(SOON).is_some());
    drop(sniffer);
    let cleaned = scene.adit(&["cleanup", "-c", path(&scene.client_config)]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(scene.host(), before);
}

#[test]
fn kill_switch_stays_when_the_tunnel_fails_and_when_no_other_can_start() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: {kill_switch: true}");
    let place = &scene.lab.client;
    let before = scene.host();
    let mut client = scene.client();
    let is_closed = || {
        let table = place.run("nft list ruleset").contains("chain leaving");
        let ping = format!("ping -c 1 -W 1 {SERVER4}");
        assert_eq!(table, !place.try_run(&ping).status.success());
        table
    };
    // somebody takes the device away: the client cannot go on
    place.run("ip link del adit0");
    assert!(
        client
            .process()
            .wait(SOON)
            .is_some_and(|status| !status.success())
    );
    assert!(is_closed());
    // nor can the next begin
    place.shell("mount -t tmpfs tmpfs /dev/net");
    let refused = scene.adit(&["client", "--tun", "-c", path(&scene.client_config)]);
    assert!(
        refused.stderr.contains("the kill switch stays"),
        "{refused:?}"
    );
    assert!(is_closed());
    place.run("umount /dev/net");
    assert!(scene.adit(&["cleanup"]).status.success());
    assert_eq!(scene.host(), before);
    // an end in order takes it away, too
    let mut client = scene.client();
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn nobody_without_privilege_can_disturb_the_lock_on_the_host() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let before = scene.host();
    // who looks at names of sockets could be kept out by whoever has the name, and lets nobody in any more
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let held = place.spawn(move || {
        let name = SocketAddrUnix::new_abstract_name(b"adit.host-tunnel").expect("a name");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            socket.expect("a socket")
        };
        let listener = open();
        bind(&listener, &name).expect("it is free");
        listen(&listener, 0).expect("listens");
        let mut waiting = Vec::new();
        loop {
            let caller = open();
            if connect(&caller, &name).is_err() {
                break;
            }
            waiting.push(caller);
        }
        assert!(!waiting.is_empty());
        let _ended = wait.recv();
        drop(listener);
    });
    let mut client = scene.client();
    let seen = scene.seen(&scene.four.url("/peer"));
    assert!(seen.starts_with(&format!("{EGRESS4}:")), "{seen:?}");
    // an ordinary user can neither take it nor release it
    for line in [
        "add table inet adit_host_lock",
        "delete table inet adit_host_lock",
        "flush ruleset",
    ] {
        let mut nft = scene.workdir.program_as(place, User::Nobody, "nft");
        nft.args(line.split(' '));
        let refused = process::run(nft, SOON);
        assert!(!refused.status.success(), "{line}: {}", refused.text());
    }
    let mut second = place.command(scene.workdir.path().join("adit"));
    (second.args(["client", "--tun", "-c", path(&scene.client_config)]))
        .args(["--proxy", "127.0.0.1:1081"])
        .env("ADIT_TUN_STATE_DIR", scene.workdir.path().join("elsewhere"));
    let second = process::run(second, SOON);
    let why = "another adit client leads this host";
    assert!(second.stderr.contains(why), "{}", second.text());
    drop(done);
    held.join().expect("no panic");
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn ipv6_does_not_leak_beside_a_tunnel_that_has_none() {
    if !can_run(NEEDS) {
        return;
    }
    let config = ServerConfig {
        network6: "off".into(),
        ..ServerConfig::tun_egress()
    };
    let scene = Scene::with(&format!("udp://{SERVER4}:{PORT}"), "", config);
    let place = &scene.lab.client;
    let mut client = scene.client();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let six = place.try_run(&format!("curl -sS -m 2 {}", scene.six.url("/peer")));
    assert!(!six.status.success(), "{six:?}");
    let ping = place.try_run(&format!("ping -c 1 -W 1 {ORIGIN6}"));
    assert!(!ping.status.success(), "{ping:?}");
    assert!(
        scene
            .seen(&scene.four.url("/peer"))
            .starts_with(&format!("{EGRESS4}:"))
    );
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(client.stop().0.success());
}
