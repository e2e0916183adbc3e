//! Hosts on which the program cannot run, and what it says about them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use adit_integration::{
    adit::{ClientConfig, ServerConfig, User, Workdir, free_port, path},
    namespaces::{Lab, Place, SERVER4},
    scene::open_tun,
    skip::{Need, can_run},
};

use crate::Scene;

#[test]
fn port_in_use_is_named() {
    let mut scene = Scene::new();
    let taken = scene.tcp;
    let config = scene.workdir.server(
        "second.yaml",
        &scene.server_key,
        User::Same,
        &ServerConfig {
            listen: vec![format!("tcp://{taken}")],
            clients: vec![("laptop".into(), scene.client_key.public.clone())],
            ..ServerConfig::user_egress()
        },
    );
    refuses(
        &scene.workdir,
        &Place::here(),
        User::Same,
        "server",
        &config,
        &[&taken.to_string(), "in use"],
    );
    let config = scene.workdir.client(
        "second-client.yaml",
        &scene.other_key,
        &ClientConfig {
            server: vec![format!("tcp://{taken}")],
            server_key: scene.server_key.public.clone(),
            proxy: scene.proxy,
            more: String::new(),
        },
    );
    refuses(
        &scene.workdir,
        &Place::here(),
        User::Same,
        "client",
        &config,
        &[&scene.proxy.to_string(), "in use"],
    );
    scene.client.stop();
}

#[test]
fn state_folder_of_a_running_server_is_locked() {
    let scene = Scene::new();
    let text = fs::read_to_string(scene.workdir.path().join("server.yaml")).expect("reads");
    let other = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let third = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let text = text
        .replace(&scene.tcp.to_string(), &other.to_string())
        .replace(&scene.tls.to_string(), &third.to_string());
    let config = scene.workdir.file("second.yaml", &text);
    refuses(
        &scene.workdir,
        &Place::here(),
        User::Same,
        "server",
        &config,
        &["server.yaml.state", "in use"],
    );
}

#[test]
fn unreadable_key_file_is_named() {
    if !can_run(&[Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let workdir = Workdir::new();
    let key = workdir.key("server.key", User::Same);
    let client = workdir.key("client.key", User::Same);
    let config = workdir.server(
        "server.yaml",
        &key,
        User::Nobody,
        &ServerConfig {
            listen: vec![format!("tcp://127.0.0.1:{}", free_port())],
            clients: vec![("laptop".into(), client.public)],
            ..ServerConfig::user_egress()
        },
    );
    let words = ["server.yaml:2:", "key_file", "server.key", "permission"];
    refuses(
        &workdir,
        &Place::here(),
        User::Nobody,
        "server",
        &config,
        &words,
    );
}

#[test]
fn missing_rights_and_devices_are_named() {
    if !can_run(&[
        Need::Root,
        Need::Tun,
        Need::Tool("ip"),
        Need::Tool("setpriv"),
    ]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    let config = |name: &str, user, network: &str| {
        let key = workdir.key(&format!("{name}.key"), user);
        workdir.server(
            &format!("{name}.yaml"),
            &key,
            user,
            &ServerConfig {
                listen: vec![format!("tcp://{SERVER4}:7443")],
                clients: vec![(
                    "laptop".into(),
                    workdir
                        .key(&format!("{name}-client.key"), User::Same)
                        .public,
                )],
                network: network.into(),
                ..ServerConfig::tun_egress()
            },
        )
    };
    open_tun(&lab.server);
    let powerless = config("powerless", User::Nobody, "10.86.0.0/24");
    refuses(
        &workdir,
        &lab.server,
        User::Nobody,
        "server",
        &powerless,
        &["CAP_NET_ADMIN"],
    );
    let overlapping = config("overlapping", User::Same, "10.77.0.0/16");
    refuses(
        &workdir,
        &lab.server,
        User::Same,
        "server",
        &overlapping,
        &["10.77.0.0/16", "10.77."],
    );
    lab.server.shell("chmod 000 /dev/net/tun");
    let locked = config("locked", User::NetAdmin, "10.86.0.0/24");
    refuses(
        &workdir,
        &lab.server,
        User::NetAdmin,
        "server",
        &locked,
        &["/dev/net/tun"],
    );
    lab.server.shell("rm /dev/net/tun");
    let missing = config("missing", User::Same, "10.86.0.0/24");
    refuses(
        &workdir,
        &lab.server,
        User::Same,
        "server",
        &missing,
        &["/dev/net/tun"],
    );
}

/// Runs `adit server` or `adit client`, which must end by itself with an error of these words.
fn refuses(
    workdir: &Workdir,
    place: &Place,
    user: User,
    command: &str,
    config: &Path,
    words: &[&str],
) {
    let told = workdir.run_as(place, user, &[command, "-c", path(config)]);
    assert!(
        !told.status.success() && told.status.code().is_some(),
        "{told:?}"
    );
    for word in words {
        assert!(
            told.stderr.contains(word),
            "{word:?} is missing in {told:?}"
        );
    }
    assert!(!told.stderr.contains("panicked"), "{told:?}");
}
