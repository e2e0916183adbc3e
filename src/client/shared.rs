//! The tunnel process of `adit run --share`: hands the command's TUN device to a client that runs.
//!
//! # Theory of operation
//!
//! ```text
//!  waiting for the client's session ──▶ device handed over ──▶ namespace configured: up ──▶ over
//!          │ the client ends, or refuses                                                    ▲
//!          ▼                                                                                │ the command has ended,
//!        failed: said so                                                                    │ a signal, or the client has
//! ```
//!
//! What is done with the device is the [client's business](super::enclosure). This process keeps the control
//! socket's connection open, which tells the client that the command still runs, and this process that the client does.
//! It keeps no descriptor of the device: when the client ends, the device is gone, and the command has loopback alone.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::control::{SessionAnswer, session_order, share_order};
use super::enclosed::{EnclosedError, InnerEnd};
use super::enclosure::Offer;
use crate::io::control::{CallError, Caller};
use crate::io::namespace::{Handed, Other, Outer};

/// Has the client at the other end of `caller` carry the packets of the namespace that `handed` belongs to, until `command`
/// has ended or `stop` is cancelled; says on `outer` when the tunnel is up.
///
/// # Errors
/// [`SharedError`]; the log was told if nobody waits for the tunnel any more.
pub async fn serve(
    caller: Caller,
    handed: Handed,
    outer: &Outer,
    command: Other,
    is_awaited: bool,
    stop: CancellationToken,
) -> Result<(), SharedError> {
    let command = command.watch().map_err(EnclosedError::Watch)?;
    let Handed {
        tun,
        netlink,
        resolv_conf,
    } = handed;
    let mut inner_end = InnerEnd::new(netlink, resolv_conf)?;
    let joined = async {
        let joining = spawn_blocking(move || join(caller, tun, is_awaited));
        let (mut caller, offer) = joining.await.map_err(|_| SharedError::Fault)??;
        inner_end.follow(&offer.to_config()).await?;
        if is_awaited {
            outer.say_up();
        }
        // Whatever it says: it has ended, or lets this command go.
        let _end = spawn_blocking(move || caller.end()).await;
        Ok(())
    };
    let result = tokio::select! {
        biased;
        () = command.ended() => return Ok(()),
        () = stop.cancelled() => return Ok(()),
        joined = joined => joined,
    };
    match &result {
        Ok(()) => error!("the client has ended: the command has no network any more"),
        Err(error) if !is_awaited => error!(%error, "the command has no network"),
        // Whoever waits for the tunnel is told.
        Err(_) => return result,
    }
    // The line is written by another thread, and nothing else is to be done.
    tokio::select! {
        () = command.ended() => {}
        () = stop.cancelled() => {}
    }
    result
}

/// Hands the device over, once the client has a session if that is awaited.
fn join(
    mut caller: Caller,
    tun: OwnedFd,
    is_awaited: bool,
) -> Result<(Caller, Offer), SharedError> {
    if is_awaited {
        wait_for_session(&mut caller)?;
    }
    let answer = caller.call(&share_order(), Some(tun.as_fd()), PATIENCE)?;
    let offer = serde_json::from_value(answer).map_err(CallError::Json)?;
    Ok((caller, offer))
}

/// Waits until the client has a session, and says what for where that takes longer; the other process gives up in its own
/// time.
fn wait_for_session(caller: &mut Caller) -> Result<(), SharedError> {
    let mut wait = SILENCE;
    loop {
        let answer = caller.call(&session_order(wait), None, PATIENCE)?;
        match SessionAnswer::of(&answer) {
            SessionAnswer::Connected => return Ok(()),
            SessionAnswer::Refused(state) => return Err(SharedError::Refused { state }),
            SessionAnswer::Waiting(state) => {
                if wait == SILENCE {
                    warn!("waiting for the tunnel of the client that runs: {state}");
                }
                wait = LONGER;
            }
        }
    }
}

/// Why a command does not share a client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SharedError {
    /// The client does not take it.
    #[error("the client that runs does not share its session: {0}")]
    Call(#[from] CallError),
    /// It has no tunnel, and will have none.
    #[error("the client that runs has no tunnel: {state}")]
    Refused {
        /// How it is.
        state: String,
    },
    /// The namespace cannot be made ready.
    #[error(transparent)]
    Enclosed(#[from] EnclosedError),
    /// A fault.
    #[error("the thread that speaks to the client has failed")]
    Fault,
}

/// How long it is waited for without a word: whoever waits for longer wonders.
const SILENCE: Duration = Duration::from_secs(1);

/// How long each time after that.
const LONGER: Duration = Duration::from_secs(30);

/// How long one answer may take: longer than the client waits for its session before it answers.
const PATIENCE: Duration = Duration::from_secs(45);
