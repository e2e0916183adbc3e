//! What a doctor says of a host that goes through the tunnel, and of what a client has left that was killed.

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    namespaces::{Lab, SERVER4},
    scene::Couple,
    skip::{LAB, Need, can_run},
};

use std::time::Duration;

use crate::found::{Found, next};

/// The hang guard of one step: a client that was revoked asks again each 20 s.
const SOON: Duration = Duration::from_secs(45);

/// A server, and a client host whose `/etc` and state folders are its own.
struct Scene {
    lab: Lab,
    workdir: Workdir,
    files: Couple,
    _server: Adit,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let workdir = Workdir::new();
        let lanes = [format!("udp://{SERVER4}:7443")];
        let server = ServerConfig {
            listen: lanes.to_vec(),
            ..ServerConfig::user_egress()
        };
        let files = Couple::write(&workdir, [User::Same; 2], server, ClientConfig::to(&lanes));
        workdir.give(&files.client, User::Nobody);
        lab.client.shell(&format!(
            "mkdir {0}/etc; cp -a /etc/. {0}/etc; mount --bind {0}/etc /etc; mount -t tmpfs tmpfs /var/lib
             ip route add default via {SERVER4} dev c0",
            lab.client.folder().expect("a host of the lab").display()
        ));
        let server = workdir.start_server(&lab.server, User::Same, &files.server);
        Self {
            lab,
            workdir,
            files,
            _server: server,
        }
    }

    /// Starts a client that leads its host by the flag alone.
    fn client(&self) -> Adit {
        let mut adit = self.workdir.start(
            &self.lab.client,
            User::Same,
            "client",
            &["client", "--tun", "-c", path(&self.files.client)],
        );
        adit.expect_ready();
        adit
    }

    fn look(&self, user: User, config: &std::path::Path) -> Found {
        Found::by(
            &self.workdir,
            &self.lab.client,
            user,
            config,
            &["--no-load"],
        )
    }
}

#[test]
fn client_that_leads_its_host_and_was_revoked_is_told_just_that_past_its_kill_switch() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let scene = Scene::new();
    let place = &scene.lab.client;
    let server = path(&scene.files.server);
    let order = |words: &[&str]| {
        let words = [words, &["-c", server]].concat();
        let done = (scene.workdir).run_as(&scene.lab.server, User::Same, &words);
        assert!(done.status.success(), "{}", done.text());
    };
    order(&["clients", "revoke", "laptop"]);
    let config = path(&scene.files.client);
    let mut client = scene.workdir.start(
        place,
        User::Same,
        "client",
        &["client", "--tun", "--kill-switch", "-c", config],
    );
    let ask = |words: &[&str]| {
        let words = [words, &["-c", config]].concat();
        scene.workdir.run_as(place, User::Same, &words)
    };
    adit_integration::scene::wait_for("it is told", SOON, || {
        ask(&["status"]).stdout.contains(": revoked: ")
    });
    // Nothing but what bears the client's mark leaves this host: doctor's probes do.
    let found = scene.look(User::Same, &scene.files.client);
    found.says("running", "revoked");
    found.says("reach", "the server answers: this client was revoked");
    let reach = found.about("reach", "udp://");
    assert!(next(reach).contains("adit clients restore"), "{reach}");
    assert!(!reach.to_string().contains("firewall"), "{reach}");
    assert_eq!(found.all("left behind").len(), 0, "{:#}", found.document);
    // It is let in again without a restart.
    order(&["clients", "restore", "laptop"]);
    client.expect_ready();
    assert!(client.stop().0.success());
}

#[test]
fn tunnel_of_the_host_by_the_flag_alone_is_seen_and_what_it_left_has_a_remedy() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let scene = Scene::new();
    let mut client = scene.client();
    let root = scene.look(User::Same, &scene.files.client);
    root.assert_status(0);
    let own = root.says("running", "the whole host goes through adit0");
    assert_eq!(own["figures"]["running"], true, "{own}");
    assert_eq!(root.all("left behind").len(), 0, "{:#}", root.document);
    // Who may not mark sockets is told that all he sees is seen through the tunnel.
    let key = scene.workdir.key("other.key", User::Nobody);
    let text = std::fs::read_to_string(&scene.files.client).expect("a file");
    let text = text.replace(
        "client.key",
        key.file
            .file_name()
            .and_then(|it| it.to_str())
            .expect("a name"),
    );
    let others = scene.workdir.file("other.yaml", &text);
    let nobody = scene.look(User::Nobody, &others);
    nobody.says("running", "this host goes through the tunnel");

    client.kill();
    let root = scene.look(User::Same, &scene.files.client);
    let left = root.about("left behind", "");
    assert_eq!(left["verdict"], "warning", "{left}");
    let words = left["words"].as_str().expect("words");
    for change in [
        "nftables table inet adit_client",
        "rule",
        "/etc/resolv.conf",
    ] {
        assert!(words.contains(change), "{words}");
    }
    assert!(
        next(left).contains("adit cleanup --state-dir /var/lib/adit/"),
        "{left}"
    );
    // Who may not see root's folder sees the rules all the same.
    let nobody = scene.look(User::Nobody, &others);
    assert!(next(nobody.about("left behind", "")).contains("adit cleanup"));
    // Without a file, too.
    let bare = Found::told(&scene.workdir, &scene.lab.client, User::Same, &[]);
    assert!(next(bare.about("left behind", "")).contains("adit cleanup"));

    let command = next(left).split(" undoes").next().expect("a command");
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let cleaned = scene.workdir.run_as(&scene.lab.client, User::Same, &words);
    assert!(cleaned.status.success(), "{}", cleaned.text());
    for user in [User::Same, User::Nobody] {
        let config = if user == User::Same {
            &scene.files.client
        } else {
            &others
        };
        let found = scene.look(user, config);
        assert_eq!(found.all("left behind").len(), 0, "{:#}", found.document);
    }
}
