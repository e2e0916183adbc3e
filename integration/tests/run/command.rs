//! The command is the process that was started, with its user, its terminal and nothing more.

use std::{fs, os::unix::process::ExitStatusExt};

use adit_integration::{
    adit::{User, path},
    namespaces::EGRESS4,
    process::{self, Signal},
    skip::can_run,
    terminal::Terminal,
};

use crate::{
    NEEDS, SOON,
    scene::{Scene, printed, tunnel_process, wait_for},
};

#[test]
fn command_is_the_process_that_was_started_under_its_own_user_and_without_capabilities() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    // identity, loopback, interfaces, descriptors
    let seen = printed(scene.shell(
        "id -u; id -g; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2 | sort -u; ls /sys/class/net >/dev/null;
         ip -o link | cut -d: -f2 | tr -d ' \\n'; echo; ip -o -4 address show dev adit0 | grep -o 'inet [0-9.]*'; ls /proc/self/fd | tr '\\n' ' '",
    ));
    let mut outside = scene.outside();
    outside.args(["-c", "ls /proc/self/fd | tr '\\n' ' '"]);
    let descriptors = printed(process::run(outside, SOON));
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(
        lines,
        [
            "65534",
            "65534",
            "0000000000000000",
            "loadit0",
            "inet 10.86.0.2",
            &descriptors
        ],
        "{seen}"
    );
    let raw = scene.run(&["ip", "address", "add", "192.0.2.1/32", "dev", "adit0"]);
    assert!(!raw.status.success(), "{raw:?}");

    // exit statuses, and signals as the parent sees them
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        assert_eq!(scene.shell(script).status.code(), Some(code));
    }
    assert_eq!(
        scene.shell("kill -KILL $$").status.signal(),
        Some(libc::SIGKILL)
    );
    assert_eq!(
        scene.shell("kill -TERM $$").status.signal(),
        Some(libc::SIGTERM)
    );
    let missing = scene.run(&["no-such-command-anywhere"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(
        missing.stderr.contains("there is no such command"),
        "{missing:?}"
    );
    let unfit = scene.run(&["/etc/passwd"]);
    assert_eq!(unfit.status.code(), Some(126), "{unfit:?}");
    let broken = scene.workdir.file("broken.yaml", "server: nowhere\n");
    let mut command = scene.workdir.command(&scene.lab.client, User::Nobody);
    command.args(["run", "-c", path(&broken), "--", "true"]);
    let broken = process::run(command, SOON);
    assert_eq!(broken.status.code(), Some(125), "{broken:?}");
    assert!(broken.stderr.contains("broken.yaml:1:"), "{broken:?}");

    // a signal to the process that was started is one to the command
    let mut process =
        scene.start("trap 'echo caught; exit 3' USR1 TERM; echo set; while :; do sleep 0.05; done");
    assert!(process.wait_for_line(SOON, |line| line == "set").is_some());
    process.signal(Signal::Terminate);
    assert_eq!(process.wait(SOON).and_then(|status| status.code()), Some(3));
    assert!(
        process
            .wait_for_line(SOON, |line| line == "caught")
            .is_some()
    );

    // standard streams, and what is left of them with the tunnel process
    let mut command = scene.outside();
    command.args([
        "-c",
        "set -o pipefail; echo hello | adit run -c $C -- tr a-z A-Z 2>&1 | cat; adit run -c $C -- sh -c 'kill -9 $$'; echo $?",
    ]);
    let piped = process::run(command, SOON);
    assert!(
        piped.stdout.starts_with("HELLO\n") && piped.stdout.ends_with("137\n"),
        "{piped:?}"
    );
    let process = scene.start("echo up; sleep 100");
    assert!(process.wait_for_line(SOON, |line| line == "up").is_some());
    let tunnel = tunnel_process(&scene.client_config).expect("there is a tunnel process");
    let leads = |fd: u32| fs::read_link(format!("/proc/{tunnel}/fd/{fd}")).ok();
    assert_eq!(
        [leads(0), leads(1)],
        [Some("/dev/null".into()), Some("/dev/null".into())]
    );
    drop(process);
    wait_for("the tunnel process ends with the command", || {
        tunnel_process(&scene.client_config).is_none()
    });
}

#[test]
fn ctrl_c_and_ctrl_z_are_the_commands_own() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    let mut shell = scene.outside();
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ");
    let mut terminal = Terminal::start(shell);
    terminal.expect("$ ", SOON);
    terminal.send("adit run -c $C -- sh -c 'echo be''gun; exec sleep 100'\n");
    terminal.expect("begun", SOON);
    terminal.send("\x03");
    terminal.send("echo code=$?\n");
    terminal.expect("code=130", SOON);
    terminal.send("adit run -c $C -- bash -c 'echo be''gun; read line; echo got $line; curl -sS http://four.example/peer'\n");
    terminal.expect("begun", SOON);
    terminal.send("\x1a");
    terminal.expect("Stopped", SOON);
    terminal.send("echo in''between\n");
    terminal.expect("inbetween", SOON);
    terminal.send("fg\n");
    terminal.expect("adit run", SOON);
    terminal.send("words\n");
    terminal.expect("got words", SOON);
    terminal.expect(&format!("{EGRESS4}:"), SOON);
    terminal.send("exit\n");
    assert!(terminal.wait(SOON).is_some_and(|status| status.success()));
}
