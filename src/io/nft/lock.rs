//! A lock on the network namespace that nobody without CAP_NET_ADMIN can take, keep or disturb.
//!
//! ```text
//! table inet adit_host_lock {     # flags owner: it is gone when the process is, however that ended
//! }
//! ```
//!
//! The table is empty and does nothing. It has exactly the reach of what it stands for, rules and routing tables, whatever
//! files the processes see; and the kernel refuses it to others while its owner lives. A file would not be the same one in
//! two mount namespaces that share a network, a Unix socket can be bound, and its queue filled, by any user.

use std::io;

use super::message::{
    Batch, NFPROTO_INET, NFT_MSG_GETTABLE, NFT_MSG_NEWTABLE, NFT_TABLE_F_OWNER, NFTA_TABLE_FLAGS,
    NFTA_TABLE_NAME, NLM_F_CREATE, NLM_F_EXCL, find_number, find_text,
};
use super::rules::{NftError, delete, has_net_admin};
use super::socket::NftSocket;

/// The lock; it ends with its socket.
#[derive(Debug)]
pub struct Lock {
    _socket: NftSocket,
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Lock),
    /// Another process has it.
    Held,
    /// The kernel is older than 5.12, and knows no owners.
    Unknown,
}

impl Lock {
    /// Takes it without waiting.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn take() -> Result<Taken, NftError> {
        Self::try_take().map_err(|source| NftError::of(NAME, source))
    }

    /// Looks whether a process has it, and leaves it alone.
    ///
    /// # Errors
    /// This process may not look, for which it needs CAP_NET_ADMIN.
    pub fn is_held() -> io::Result<bool> {
        let tables = NftSocket::open()?.list(NFT_MSG_GETTABLE)?;
        Ok(tables.iter().any(|table| {
            let flags = find_number(&table.attributes, NFTA_TABLE_FLAGS).unwrap_or(0);
            table.family == NFPROTO_INET
                && find_text(&table.attributes, NFTA_TABLE_NAME) == Some(NAME)
                && flags & NFT_TABLE_F_OWNER != 0
        }))
    }

    fn try_take() -> io::Result<Taken> {
        let socket = NftSocket::open()?;
        let mut made = socket.run(creation());
        if is(&made, libc::EEXIST) {
            // Without an owner it is nobody's lock: somebody has made it by hand.
            made = delete(&socket, NAME).and_then(|()| socket.run(creation()));
        }
        match made {
            Ok(()) => Ok(Taken::Ours(Self { _socket: socket })),
            made if is(&made, libc::EINVAL) || is(&made, libc::EOPNOTSUPP) => Ok(Taken::Unknown),
            // Of an owned table the kernel says what it says to those without privilege.
            made if is(&made, libc::EPERM) && has_net_admin(&socket) => Ok(Taken::Held),
            Err(error) => Err(error),
        }
    }
}

fn is(result: &io::Result<()>, errno: i32) -> bool {
    let error = result.as_ref().err();
    error.and_then(io::Error::raw_os_error) == Some(errno)
}

fn creation() -> Batch {
    let mut batch = Batch::new(NFPROTO_INET);
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, |to| {
        to.text(NFTA_TABLE_NAME, NAME);
        to.number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    });
    batch
}

const NAME: &str = "adit_host_lock";
