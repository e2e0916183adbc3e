//! Between the configuration and the start: the key that the program makes, and whom it becomes.
//!
//! Both are done while there is one thread. A key that was made belongs to whom the program becomes, so that a reload can
//! read it again; a folder is given away only where it is the program's own, which that of the state is.

use tracing::{debug, info};

use super::{Failure, print};
use crate::config::{Account, ClientConfig, EgressKind, ProcessConfig, ServerConfig, write_key};
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
    let mut rights = Rights::empty();
    if config.egress == EgressKind::Tun {
        rights |= Rights::NET_ADMIN;
        tun::hold_node();
    }
    let free = privilege::first_free_port();
    let ports = config.listen.iter().map(|at| at.address.port());
    if ports.into_iter().any(|port| (1..free).contains(&port)) {
        rights |= Rights::NET_BIND_SERVICE;
    }
    privilege::hand_over(&config.state_dir, account.user, account.group).map_err(run)?;
    step_down(account, rights)
}

/// Steps down with nothing, since a client needs nothing.
pub(super) fn client(config: &ClientConfig) -> Result<(), Failure> {
    let account = to_become(&config.process);
    keep_key(&config.process, Some(&config.secret_key), account)?;
    account.map_or(Ok(()), |account| step_down(account, Rights::empty()))
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
