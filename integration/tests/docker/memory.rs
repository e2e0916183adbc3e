//! A container whose limit of memory is too small for what it is asked to do: the kernel kills, Docker starts it again.

use std::{
    os::unix::fs::chown,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Key, User, Workdir, binary, path},
    docker::{Engine, GATEWAY},
    meters::wait_for,
    origin::Origin,
    process::Process,
    skip::can_run,
};

use crate::{NEEDS, NOTHING, assert_gets, start_client, swarm};

/// Too little for the clients of this test, enough to start with.
const LIMIT: &str = "16m";
/// Keys of the swarm; eight clients have each.
const KEYS: usize = 125;
/// The hang guard of the kill, and of the return.
const SOON: Duration = Duration::from_secs(120);

/// What the engine has noted about a container, each event with one attribute of it.
fn events(engine: &Engine, name: &str, event: &str, format: &str) -> Vec<String> {
    let (container, event) = (format!("container={name}"), format!("event={event}"));
    let listed = engine.docker(&[
        "events", "--since", "1h", "--until", "0s", "--filter", &container, "--filter", &event,
        "--format", format,
    ]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn server_killed_for_want_of_memory_comes_back_with_its_key_and_clients_with_their_sessions() {
    if !can_run(&NEEDS) {
        return;
    }
    let engine = Engine::new();
    engine.build(binary());
    let workdir = Workdir::new();
    let own = workdir.key("server.key", User::Same);
    chown(&own.file, Some(10001), Some(10001)).expect("root gives files away");
    let keys: Vec<_> = (0..KEYS)
        .map(|index| workdir.key(&format!("{index}.key"), User::Same))
        .collect();

    // A client first, whose key the server is told, and which waits for it.
    let client = start_client(
        &engine,
        "first",
        &own.public,
        &["--env=ADIT_SERVER=tcp://server:7443"],
    );
    let entry = |(index, key): (usize, &Key)| {
        format!("  - {{name: c{index}, public_key: \"{}\"}}\n", key.public)
    };
    let swarmed: String = keys.iter().enumerate().map(entry).collect();
    let file = workdir.file(
        "server.yaml",
        &format!("clients:\n  - {{name: first, public_key: \"{client}\"}}\n{swarmed}"),
    );
    let own_options = [
        format!("--memory={LIMIT}"),
        // Docker would give it as much again of the disk
        format!("--memory-swap={LIMIT}"),
        format!("--env=ADIT_ALLOW={GATEWAY}/32"),
        format!("--volume={}:/etc/adit/server.yaml:ro", path(&file)),
        format!("--volume={}:/etc/adit/key:ro", path(&own.file)),
    ];
    let options: Vec<&str> = (NOTHING.into_iter())
        .chain([
            "--restart=always",
            "--volume=state:/var/lib/adit",
            "--env=ADIT_EGRESS=user",
            // a /24 has addresses for 252 of them
            "--env=ADIT_NETWORK=10.86.0.0/20",
            "--env=ADIT_CONFIG=/etc/adit/server.yaml",
            "--env=ADIT_KEY_FILE=/etc/adit/key",
            "--env=ADIT_LISTEN=tcp://0.0.0.0:7443",
        ])
        .chain(own_options.iter().map(String::as_str))
        .collect();
    engine.start("server", &options, &["server"]);
    engine.wait_for("server", "ready: listening on", 1);
    let page = Origin::http(&engine.place, (GATEWAY, 9000).into());
    let url = page.url("/bytes/100000");
    assert_gets(&engine, "first", &url);

    let server = format!("tcp://{}:7443", engine.address("server"));
    let crowd = swarm(&engine, &workdir, &server, &own.public, &keys);
    let mut crowd = Process::spawn("adit bench swarm", crowd);
    let began = Instant::now();
    let killed = wait_for(SOON, || {
        let kills = events(&engine, "server", "oom", "{{.Action}}");
        (!kills.is_empty()).then_some(())
    });
    assert!(killed.is_some(), "{}", crowd.text());
    println!("the kernel has killed it after {:?}", began.elapsed());
    crowd.kill();
    let back = wait_for(SOON, || {
        let restarts = engine.inspect("server", "{{.RestartCount}}");
        let running = engine.inspect("server", "{{.State.Running}}") == "true";
        (running && restarts != "0").then_some(restarts)
    });
    println!("restarts: {}", back.expect("Docker starts it again"));
    let ends = events(&engine, "server", "die", "{{.Actor.Attributes.exitCode}}");
    assert!(
        !ends.is_empty() && ends.iter().all(|code| code == "137"),
        "{ends:?}"
    );
    // the client, which nobody has touched, is served again, and knows the server by the same key
    assert_gets(&engine, "first", &url);
    assert_eq!(engine.inspect("first", "{{.RestartCount}}"), "0");
    engine.docker(&["stop", "server"]);
    assert_eq!(engine.inspect("server", "{{.State.ExitCode}}"), "0");
}
