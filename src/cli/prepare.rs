//! Between the configuration and the start: the key that the program makes, and whom it becomes.
//!
//! Both are done while there is one thread. A key that was made belongs to whom the program becomes, so that a reload can
//! read it again; a folder is given away only where it is the program's own, which that of the state is.

use std::net::SocketAddr;

use tracing::{debug, info};

use super::{Failure, print};
use crate::config::{
    Account, ClientConfig, EgressKind, Forward, ProcessConfig, ServerConfig, write_key,
};
use crate::io::privilege::{self, Rights, StepDownError};
use crate::io::tun;
use crate::proto::SecretKey;

/// Steps down with what a server needs: its state folder, with egress `tun` CAP_NET_ADMIN and the device, and
/// CAP_NET_BIND_SERVICE where it listens on a port that asks for it.
pub(super) fn server(config: &ServerConfig) -> Result<(), Failure> {
    let account = to_become(&config.process);
    keep_key(&config.process, config.secret_keys.first(), account)?;
    let Some(account) = account else {
        return Ok(());
    };
    let mut rights = bind_right(
        config
            .listen
            .iter()
            .map(|at| at.address)
            .chain(config.admin),
    );
    if config.egress == EgressKind::Tun {
        rights |= Rights::NET_ADMIN;
        tun::hold_node();
    }
    privilege::hand_over(&config.state_dir, account.user, account.group).map_err(run)?;
    step_down(account, rights)
}

/// Steps down with what a client needs: nothing, but for ports that ask for CAP_NET_BIND_SERVICE, and for the tunnel of
/// the whole host its state folder, CAP_NET_ADMIN, the device, and to write /etc/resolv.conf, which is root's, as root would.
pub(super) fn client(config: &ClientConfig) -> Result<(), Failure> {
    let account = to_become(&config.process);
    keep_key(&config.process, Some(&config.secret_key), account)?;
    let Some(account) = account else {
        return Ok(());
    };
    let listeners = config.listeners();
    let proxies = listeners.iter().map(|proxy| proxy.listen);
    let others = [config.dns.listen, config.admin].into_iter().flatten();
    let forwards = config.forwards.iter().filter_map(Forward::near_address);
    let mut rights = bind_right(proxies.chain(others).chain(forwards));
    if let Some(tunnel) = &config.tun {
        rights |= Rights::NET_ADMIN;
        if tunnel.dns {
            rights |= Rights::DAC_OVERRIDE | Rights::FOWNER;
        }
        tun::hold_node();
        privilege::hand_over(&tunnel.state_dir, account.user, account.group).map_err(run)?;
    }
    step_down(account, rights)
}

/// The right that listening on these addresses asks for.
fn bind_right(mut addresses: impl Iterator<Item = SocketAddr>) -> Rights {
    let free = privilege::first_free_port();
    if addresses.any(|address| (1..free).contains(&address.port())) {
        Rights::NET_BIND_SERVICE
    } else {
        Rights::empty()
    }
}

/// Whom this process becomes, if it is root's.
fn to_become(process: &ProcessConfig) -> Option<Account> {
    let account = process.user?;
    if privilege::is_root() {
        return Some(account);
    }
    debug!(%account, "not root, and so the user stays");
    None
}

fn step_down(account: Account, rights: Rights) -> Result<(), Failure> {
    privilege::step_down(account.user, account.group, rights).map_err(run)?;
    info!(%account, kept = ?rights, "no longer root");
    Ok(())
}

/// Writes a key that was made, and prints its public half.
fn keep_key(
    process: &ProcessConfig,
    key: Option<&SecretKey>,
    account: Option<Account>,
) -> Result<(), Failure> {
    let (Some(path), Some(key)) = (&process.new_key, key) else {
        return Ok(());
    };
    write_key(path, key, false)?;
    if let Some(Account { user, group }) = account {
        privilege::give(path, user, group).map_err(run)?;
    }
    print(&format!("public key: {}", key.public()))
}

fn run(error: StepDownError) -> Failure {
    Failure::Run(error.into())
}
