//! Hosts and clients that cannot do it are named, with the remedy.

use std::fs;

use adit_integration::{
    adit::{User, path},
    process::{self, Process},
    skip::can_run,
};

use crate::{NEEDS, SOON, scene::Scene};

#[test]
fn closed_hosts_are_named_with_their_remedy() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    let place = &scene.lab.client;
    place.shell("chmod 600 /dev/net/tun");
    let refused = scene.run(&["true"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("chmod 0666 /dev/net/tun"),
        "{refused:?}"
    );
    place.shell("rm /dev/net/tun");
    let refused = scene.run(&["true"]);
    assert!(refused.stderr.contains("modprobe tun"), "{refused:?}");
    place.shell("mknod -m 666 /dev/net/tun c 10 200");

    // a chroot, as some sandboxes are, forbids user namespaces
    let mut jailed = place.command("sh");
    jailed.args([
        "-ec",
        "mount --bind / /mnt; mount --rbind /proc /mnt/proc; mount --bind \"$0\" /mnt/tmp;
         exec chroot --userspec=65534:65534 /mnt /tmp/adit run -c /tmp/client.yaml -- true",
        path(scene.workdir.path()),
    ]);
    let text = fs::read_to_string(&scene.client_config).expect("the test wrote it");
    let inside = text.replace(path(scene.workdir.path()), "/tmp");
    scene.workdir.file("client.yaml", &inside);
    let refused = process::run(jailed, SOON);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("a chroot or a container forbids it"),
        "{refused:?}"
    );

    // a server that does not answer
    scene
        .workdir
        .file("client.yaml", &text.replace("7443", "7444"));
    let command = scene.command_with(&["--wait", "1s"], &["true"]);
    let alone = process::run(command, SOON);
    assert_eq!(alone.status.code(), Some(125), "{alone:?}");
    assert!(
        alone.stderr.contains("the tunnel is not up after 1 s"),
        "{alone:?}"
    );
}

#[test]
fn command_of_a_client_that_was_revoked_is_told_just_that_and_at_once() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    let order = |words: &[&str]| {
        let words = [words, &["-c", path(&scene.server_config)]].concat();
        let done = (scene.workdir).run_as(&scene.lab.server, User::Nobody, &words);
        assert!(done.status.success(), "{done:?}");
    };
    order(&["clients", "revoke", "laptop"]);
    // A minute is what it would wait for a server that does not answer.
    let refused = process::run(scene.command_with(&["--wait", "1h"], &["true"]), SOON);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("this client was revoked"),
        "{refused:?}"
    );
    assert!(!refused.stderr.contains("connecting"), "{refused:?}");
    order(&["clients", "restore", "laptop"]);
    assert!(scene.run(&["true"]).status.success());
}

#[test]
fn client_that_cannot_be_shared_is_told_why() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    scene.options = vec!["--share".into()];
    let none = scene.run(&["true"]);
    assert_eq!(none.status.code(), Some(125), "{none:?}");
    assert!(
        none.stderr
            .contains("no client runs with the configuration")
            && none.stderr.contains("without --share"),
        "{none:?}"
    );
    let bare = |scene: &Scene, options: &[&str]| {
        let mut run = scene.workdir.command(&scene.lab.client, User::Nobody);
        run.args(["run", "--share"])
            .args(options)
            .args(["--", "true"]);
        process::run(run, SOON)
    };
    let none = bare(&scene, &[]);
    assert!(
        none.stderr.contains("no client of this user runs"),
        "{none:?}"
    );

    // the only one is found without a configuration; of two, one must be named
    let first = scene.workdir.path().join("first");
    let second = scene.workdir.path().join("second");
    let _client = scene.shared("");
    assert!(bare(&scene, &[]).status.success());
    let other = fs::read_to_string(&scene.client_config)
        .expect("the test wrote it")
        .replace("1080", "1081");
    let with_socket = format!("{other}\ncontrol: {}\n", path(&first));
    let with_socket = scene.workdir.file("other.yaml", &with_socket);
    let mut root = scene
        .workdir
        .start_client(&scene.lab.client, User::Same, &with_socket);
    let foreign = bare(&scene, &["--control", path(&first)]);
    assert_eq!(foreign.status.code(), Some(125), "{foreign:?}");
    assert!(foreign.stderr.contains("Permission denied"), "{foreign:?}");
    root.kill();
    // an older one knows nothing of it
    let mut old = scene
        .workdir
        .program_as(&scene.lab.client, User::Nobody, "perl");
    fs::create_dir(&second).expect("the test's own folder");
    scene.workdir.give(&second, User::Nobody);
    let second = second.join("socket");
    old.args(["-MIO::Socket::UNIX", "-e", OLD_CLIENT, path(&second)]);
    let old = Process::spawn("old client", old);
    assert!(
        old.wait_for_line(SOON, |line| line == "listening")
            .is_some()
    );
    let refused = bare(&scene, &["--control", path(&second)]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("is it an older adit?"),
        "{refused:?}"
    );
}

/// Answers one order as a client does that does not know it.
const OLD_CLIENT: &str = r#"
my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die $!; $| = 1; print "listening\n";
while (my $c = $s->accept) { if (defined(my $line = <$c>)) {
    print $c qq({"version":1,"error":"this client does not know `session`: is it an older adit?"}\n) } }
"#;
