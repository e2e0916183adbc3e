//! The `tun` egress on hosts of its own: what only the kernel can say.

mod foreign;
pub(crate) mod host;
mod packets;
mod processes;
mod restore;

use self::host::{Namespace, cable, set_sysctl};
use super::*;
use crate::io::state::StateDir;

fn settings() -> TunSettings {
    TunSettings {
        name: "adit0".into(),
        mtu: 1400,
        gateway4: Some("10.86.0.1/24".parse().unwrap()),
        gateway6: Some("fd86::1/64".parse().unwrap()),
        masquerade: true,
    }
}

fn state() -> (tempfile::TempDir, StateDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    (directory, state)
}

fn second() -> TunSettings {
    TunSettings {
        name: "adit1".into(),
        gateway4: Some("10.87.0.1/24".parse().unwrap()),
        gateway6: Some("fd87::1/64".parse().unwrap()),
        ..settings()
    }
}

/// A host with one interface to an Internet host: addresses 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there.
async fn internet() -> Namespace {
    let internet = Namespace::new();
    let here = ("eth0", [("192.0.2.1", 24), ("2001:db8::1", 64)]);
    let there = ("eth0", [("192.0.2.2", 24), ("2001:db8::2", 64)]);
    // The far end needs another name until it is moved.
    cable(here, ("far0", there.1), &internet).await;
    internet
}

/// A host whose sysctls are not the defaults, so that putting them back takes more than switching off.
async fn odd_host() -> Namespace {
    let internet = internet().await;
    set_sysctl("net/ipv4/conf/all/accept_redirects", "0");
    set_sysctl("net/ipv4/conf/eth0/forwarding", "1");
    set_sysctl("net/ipv6/conf/eth0/forwarding", "1");
    set_sysctl("net/ipv6/conf/default/forwarding", "1");
    set_sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    internet
}

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A driver moves all of it into a task.
const fn _tasks_may_own_it<T: Send + 'static>() {}
const _: () = _tasks_may_own_it::<TunEgress>();

#[test]
fn setup_can_run_in_a_task() {
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    let (_directory, state) = state();
    let settings = TunSettings {
        name: "no/name".into(),
        ..settings()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(is_send(setup(&settings, &state)))
        .unwrap_err();
    assert!(
        matches!(error, SetupError::Open(OpenError::Name { .. })),
        "{error}"
    );
}
