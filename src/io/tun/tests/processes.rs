//! Servers as processes of their own: killed for real, and run by an ordinary user.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::{
    assert_unchanged, enter_new_mounts, everything, make_tun_node, mount, on_host_with_children,
    skip, sysctl,
};
use super::*;
use crate::io::netlink::Netlink;
use crate::io::nft;

/// This test program once more, as another process that runs the test `name` in the role of a server.
fn server(program: &str, name: &str, state: &Path, wrapper: &[&str]) -> Command {
    let arguments = [program, "--exact", name, "--nocapture", "--test-threads=1"];
    let mut whole = wrapper.iter().copied().chain(arguments);
    let mut command = Command::new(whole.next().unwrap());
    command
        .args(whole)
        .env(ROLE, state)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// The server's side: sets up, says so, and undoes when its input ends.
fn serve(state: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let state = StateDir::open(state).unwrap();
        match setup(&settings(), &state).await {
            Ok(egress) => {
                println!("\nready");
                io::stdin().read_line(&mut String::new()).unwrap();
                drop(egress.tun);
                egress.undo.undo().unwrap();
                println!("\nundone");
            }
            Err(error) => println!("\nfailed: {error}"),
        }
    });
}

/// Reads until a line begins so, and gives it.
fn line(output: &mut impl BufRead, beginnings: &[&str]) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the server ended");
        if beginnings
            .iter()
            .any(|beginning| line.starts_with(beginning))
        {
            return line.trim().to_owned();
        }
    }
}

fn role() -> Option<PathBuf> {
    std::env::var_os(ROLE).map(PathBuf::from)
}

/// Names the state directory for the process that plays the server.
const ROLE: &str = "ADIT_TEST_SERVER_STATE";

#[test]
fn sigkill_leaves_no_interface_and_no_table_and_the_next_start_the_rest() {
    if let Some(state) = role() {
        return serve(&state);
    }
    on_host_with_children(|| async {
        let before = everything();
        let directory = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let name = "io::tun::tests::processes::sigkill_leaves_no_interface_and_no_table_and_the_next_start_the_rest";
        let mut child = server(program.to_str().unwrap(), name, directory.path(), &[])
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut output, &["ready", "failed"]), "ready");
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", child.id())),
            "{error}"
        );
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert!(Netlink::open().unwrap().link("adit0").await.unwrap().is_up);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(nft::chains().unwrap(), []);
        assert!(Netlink::open().unwrap().link("adit0").await.is_err());
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");

        let state = StateDir::open(directory.path()).unwrap();
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

/// A place where an ordinary user finds the test program and a state directory of its own, and may open /dev/net/tun
/// if its mode says so. The calling thread's mounts are its own from here on.
fn place_for_users(tun_mode: u32) -> (tempfile::TempDir, String, PathBuf) {
    enter_new_mounts();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let node = directory.path().join("tun");
    make_tun_node(&node, tun_mode);
    mount(node.to_str().unwrap(), "/dev/net/tun", libc::MS_BIND);
    let program = directory.path().join("program");
    std::fs::write(&program, "").unwrap();
    mount(
        std::env::current_exe().unwrap().to_str().unwrap(),
        program.to_str().unwrap(),
        libc::MS_BIND,
    );
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
    (directory, program.to_str().unwrap().to_owned(), state)
}

/// Nobody.
const USER: u32 = 65_534;

fn has_setpriv() -> bool {
    let found = Command::new("setpriv")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skip("needs the program setpriv");
    }
    found
}

#[test]
fn ordinary_user_with_cap_net_admin_alone_sets_up_and_undoes() {
    if let Some(state) = role() {
        // Nothing but that one capability.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(
            status.contains("CapEff:\t0000000000001000") && status.contains("Uid:\t65534"),
            "{status}"
        );
        return serve(&state);
    }
    on_host_with_children(|| async {
        if !has_setpriv() {
            return;
        }
        let _internet = odd_host().await;
        let before = everything();
        let (_directory, program, state) = place_for_users(0o666);
        let name =
            "io::tun::tests::processes::ordinary_user_with_cap_net_admin_alone_sets_up_and_undoes";
        let user = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ];
        let only = [
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin",
        ];
        let mut child = server(&program, name, &state, &[&user[..], &only[..]].concat())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut output, &["ready", "failed"]), "ready");
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
        assert_eq!(nft::chains().unwrap().len(), 3);
        // Root shares with it, and neither switches off what the other needs.
        let (_root_directory, root_state) = super::state();
        let egress = setup(&second(), &root_state).await.unwrap();
        drop(child.stdin.take());
        assert_eq!(line(&mut output, &["undone", "failed"]), "undone");
        assert!(child.wait().unwrap().success());
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

#[test]
fn ordinary_user_without_capability_is_told_how_to_give_it() {
    if let Some(state) = role() {
        return serve(&state);
    }
    for (mode, words) in [
        (0o666, ["CAP_NET_ADMIN", "setcap"]),
        (0o600, ["chmod 0666 /dev/net/tun", "egress: user"]),
    ] {
        on_host_with_children(move || async move {
            if !has_setpriv() {
                return;
            }
            let before = everything();
            let (_directory, program, state) = place_for_users(mode);
            let name = "io::tun::tests::processes::ordinary_user_without_capability_is_told_how_to_give_it";
            let user = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--bounding-set=-all",
            ];
            let mut child = server(&program, name, &state, &user).spawn().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let answer = line(&mut output, &["ready", "failed"]);
            assert!(words.iter().all(|word| answer.contains(word)), "{answer}");
            drop(child.stdin.take());
            child.wait().unwrap();
            assert_unchanged(&before);
        });
    }
}

#[test]
fn ordinary_user_cannot_keep_forwarding_on_or_block_the_exit() {
    if role().is_some() {
        // What is claimed here would make an exit leave forwarding on; what is held, wait.
        let names = [
            "adit.sysctl/1.0/1/1/net/ipv4/ip_forward",
            "adit.sysctl-turn",
        ];
        let sockets = names.map(|name| {
            let address = SocketAddr::from_abstract_name(name).unwrap();
            UnixListener::bind_addr(&address).unwrap()
        });
        println!("\nready");
        io::stdin().read_line(&mut String::new()).unwrap();
        drop(sockets);
        return;
    }
    on_host_with_children(|| async {
        if !has_setpriv() {
            return;
        }
        let before = everything();
        let (_directory, program, place) = place_for_users(0o600);
        let name =
            "io::tun::tests::processes::ordinary_user_cannot_keep_forwarding_on_or_block_the_exit";
        let user = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
        ];
        let mut child = server(&program, name, &place, &user).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut output, &["ready", "failed"]), "ready");
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
        drop(child.stdin.take());
        child.wait().unwrap();
    });
}
