//! What a doctor says of programs that run, and of what they have of what a file wants.

use std::path::Path;

use adit_integration::{
    adit::{Adit, Key, ServerConfig, User, Workdir, free_port, path},
    namespaces::Place,
};

use crate::found::{Found, next};

/// Writes a server's file of this key that listens on this port.
fn server(workdir: &Workdir, name: &str, key: &Key, port: u16) -> std::path::PathBuf {
    let config = ServerConfig {
        listen: vec![format!("tcp://127.0.0.1:{port}")],
        ..ServerConfig::user_egress()
    };
    workdir.server(name, key, User::Same, &config)
}

fn look(workdir: &Workdir, config: &Path) -> Found {
    Found::by(workdir, &Place::here(), User::Same, config, &[])
}

/// Starts a server by flags alone.
fn by_flags(workdir: &Workdir, key: &Key, port: u16) -> Adit {
    let listen = format!("tcp://127.0.0.1:{port}");
    let state = workdir.path().join("flags.state");
    let mut adit = workdir.start(
        &Place::here(),
        User::Same,
        "server",
        &[
            "server",
            "--listen",
            &listen,
            "--key-file",
            path(&key.file),
            "--egress",
            "user",
            "--state-dir",
            path(&state),
        ],
    );
    adit.expect_ready();
    adit
}

#[test]
fn server_of_the_same_key_and_another_file_is_told_apart() {
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let ports = [free_port(), free_port()];
    let one = server(&workdir, "one.yaml", &key, ports[0]);
    let other = server(&workdir, "other.yaml", &key, ports[1]);
    let mut running = workdir.start_server(&Place::here(), User::Same, &one);
    let pid = running.process().pid();

    let found = look(&workdir, &one);
    let own = found.says("running", &format!("process {pid}"));
    assert_eq!(own["figures"]["running"], true);
    found.assert("state folder", "one.yaml.state", "ok");
    found.says("state folder", "the program that runs has it");
    found.says("port", "the program that runs listens there");

    let found = look(&workdir, &other);
    found.assert_status(0);
    assert_eq!(
        found.says("running", "no server of this file runs")["figures"]["running"],
        false
    );
    let rival = found.says("running", "with the same key");
    let words = rival["words"].as_str().expect("words");
    for fact in [path(&one), &pid.to_string(), "one.yaml.state"] {
        assert!(words.contains(fact), "{words}");
    }
    // Nothing that this file wants is taken for held by the other.
    found.says("state folder", "can be written to");
    found.says("port", "free");

    // One that wants what the other has.
    let third = server(&workdir, "third.yaml", &key, ports[0]);
    let found = look(&workdir, &third);
    found.assert_status(1);
    found.assert("port", "tcp://", "failed");
    found.says("port", &format!("process {pid}"));
    let rival = found.says("running", "has what is wanted here");
    assert!(next(rival).contains("stop it"), "{rival}");
}

#[test]
fn state_folder_that_another_program_has_is_told_with_its_process() {
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let one = server(&workdir, "one.yaml", &key, free_port());
    let mut text = std::fs::read_to_string(&one).expect("a file");
    // One that takes no orders is known by its lock.
    text = text.replace("one.yaml.state", "one.yaml.state\ncontrol: off");
    let silent = workdir.file("silent.yaml", &text);
    let mut running = workdir.start_server(&Place::here(), User::Same, &silent);
    let found = look(&workdir, &one);
    found.assert_status(1);
    found.assert("state folder", "one.yaml.state", "failed");
    let pid = running.process().pid();
    found.says("state folder", &format!("process {pid} has it"));
    assert!(next(found.about("state folder", "")).contains("state_dir"));
}

#[test]
fn doctor_without_a_file_takes_that_of_the_only_program_and_names_what_has_none() {
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let here = Place::here();
    let bare = |workdir: &Workdir| Found::told(workdir, &here, User::Same, &[]);

    let other_key = workdir.key("other.key", User::Same);
    let config = server(&workdir, "one.yaml", &other_key, free_port());
    let mut running = workdir.start_server(&here, User::Same, &config);
    let found = bare(&workdir);
    found.assert_status(0);
    assert_eq!(found.document["kind"], "server");
    found.assert("configuration", "one.yaml", "ok");
    running.stop();

    let port = free_port();
    let mut flags = by_flags(&workdir, &key, port);
    let pid = flags.process().pid();
    let found = bare(&workdir);
    found.assert_status(0);
    let told = found.says("running", "started without a file");
    assert_eq!(told["figures"]["pid"], pid, "{told}");
    assert!(
        told["words"]
            .as_str()
            .expect("words")
            .contains(&format!("tcp 127.0.0.1:{port}"))
    );
    found.says("configuration", "-c FILE");
    found.assert("descriptors", "", "ok");

    // Beside another: each is named, with its file where it has one.
    let mut running = workdir.start_server(&here, User::Same, &config);
    let found = bare(&workdir);
    assert_eq!(found.all("running").len(), 2, "{:#}", found.document);
    found.says(
        "configuration",
        &format!("adit doctor -c {}", path(&config)),
    );
    running.stop();
    flags.stop();
}

#[test]
fn trial_is_found_by_doctor_and_status_and_serves_where_nothing_else_runs() {
    let workdir = Workdir::new();
    let (mut trial, proxy) = workdir.start_try(User::Same);
    let here = Place::here();
    let found = Found::told(&workdir, &here, User::Same, &[]);
    found.assert_status(0);
    let told = found.says("running", "adit try");
    assert!(
        told["words"]
            .as_str()
            .expect("words")
            .contains(&proxy.to_string()),
        "{told}"
    );
    let status = workdir.run(&["status"]);
    assert!(status.stdout.contains("connected"), "{}", status.text());
    let nc = workdir.run(&["nc", "127.0.0.1", "9"]);
    assert!(
        nc.text().contains("no connection to 127.0.0.1:9"),
        "{}",
        nc.text()
    );
    // Whoever has no configuration of his own is told of its session.
    let hint = workdir.run(&["run", "--", "true"]);
    assert_eq!(hint.status.code(), Some(125), "{}", hint.text());
    assert!(hint.stderr.contains("adit run --share"), "{}", hint.text());
    assert!(trial.stop().0.success());
    // Nothing runs any more, and that is said with what to do.
    let none = workdir.run(&["doctor"]);
    assert_eq!(none.status.code(), Some(2), "{}", none.text());
    assert!(none.stderr.contains("-c FILE"), "{}", none.text());
}
