//! Serves one SOCKS client: negotiates, then connects or opens a UDP relay.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;

use super::linger;
use super::listen::Context;
use super::socks::{Command, Negotiation, ReplyCode, Request, SocksError, UNSPECIFIED};
use crate::client::resolve::OriginError;
use crate::client::tunnel::ConnectError;

/// Serves the connection until its flow is attached, its relay has ended or it failed.
pub(super) async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    context: &Context,
    handshake: OwnedSemaphorePermit,
) {
    let stats = &context.settings.stats;
    let negotiated = timeout(
        context.settings.handshake_timeout,
        negotiate(&mut stream, context),
    )
    .await;
    drop(handshake);
    let outcome = match negotiated {
        Ok(Ok((request, early))) => match request.command {
            Command::Connect => connect(stream, &request, early, context).await,
            Command::Associate => associate(stream, peer, &request, context).await,
        },
        Ok(Err(failure)) => Err(End {
            failure,
            stream: Some(stream),
        }),
        Err(_elapsed) => Err(Failure::TimedOut.into()),
    };
    let Err(End { failure, stream }) = outcome else {
        return;
    };
    debug!(%failure, "socks client not served");
    match &failure {
        Failure::Negotiation(SocksError::PasswordWanted | SocksError::WrongPassword) => {
            stats.unauthorized.add();
        }
        Failure::Negotiation(_) => stats.socks_refused.add(),
        Failure::TimedOut => stats.handshake_timed_out.add(),
        Failure::Gone | Failure::Io(_) => stats.client_gone.add(),
        Failure::Origin(error) => context.count_failure(error),
        Failure::Relay(_) | Failure::RelaySocket(_) => stats.origin_failed.add(),
    }
    if let Some(stream) = stream {
        linger::close(stream).await;
    }
}

/// How serving a client ended: why, and the connection if it has an answer to read.
struct End {
    failure: Failure,
    stream: Option<TcpStream>,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            stream: None,
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Failure::Io(error).into()
    }
}

/// Why a client was not served.
#[derive(Debug, Error)]
enum Failure {
    #[error("negotiation failed: {0}")]
    Negotiation(#[from] SocksError),
    #[error("the client took too long")]
    TimedOut,
    #[error("the client went away")]
    Gone,
    #[error("the client's connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("no flow: {0}")]
    Origin(#[from] OriginError),
    #[error("no relay: {0}")]
    Relay(ConnectError),
    #[error("no socket for the relay: {0}")]
    RelaySocket(io::Error),
}

async fn negotiate(
    stream: &mut TcpStream,
    context: &Context,
) -> Result<(Request, Vec<u8>), Failure> {
    let mut negotiation = Negotiation::new(context.settings.credentials.clone());
    let mut buffer = [0; READ];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Err(Failure::Gone);
        }
        let outcome = negotiation.handle_bytes(buffer.get(..len).unwrap_or_default());
        if let Some(answer) = negotiation.poll_transmit() {
            stream.write_all(&answer).await?;
        }
        if let Some(request) = outcome? {
            return Ok((request, negotiation.into_early()));
        }
    }
}

async fn connect(
    mut stream: TcpStream,
    request: &Request,
    early: Vec<u8>,
    context: &Context,
) -> Result<(), End> {
    let connected = tokio::select! {
        connected = context.open(&request.host, request.port) => connected,
        // A client that sent early data may rightly have finished sending.
        () = gone(&stream), if early.is_empty() => return Err(Failure::Gone.into()),
    };
    match connected {
        Ok(opened) => {
            // The inner address would mean nothing to the application.
            let answer = request.reply(ReplyCode::Succeeded, UNSPECIFIED);
            stream.write_all(&answer).await?;
            context.settings.stats.socks_connects.add();
            opened.carry(stream, early).await;
            Ok(())
        }
        Err(error) => {
            let code = ReplyCode::from(&error);
            Err(refuse(stream, request, code, error.into()).await)
        }
    }
}

async fn associate(
    mut stream: TcpStream,
    peer: SocketAddr,
    request: &Request,
    context: &Context,
) -> Result<(), End> {
    // Where the client reached us over TCP it can reach us over UDP.
    let mut local = stream.local_addr()?;
    local.set_port(0);
    if local.ip() != local.ip().to_canonical() {
        local = SocketAddr::new(local.ip().to_canonical(), 0);
    }
    let bound = async {
        let socket = UdpSocket::bind(local).await?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    let (socket, address) = match bound.await {
        Ok(bound) => bound,
        Err(error) => {
            let code = ReplyCode::GeneralFailure;
            return Err(refuse(stream, request, code, Failure::RelaySocket(error)).await);
        }
    };
    let client = peer.ip().to_canonical();
    let rules = context.settings.rules.clone();
    let mut association = match context.tunnel.associate(socket, client, rules).await {
        Ok(association) => association,
        Err(error) => {
            let code = ReplyCode::from(&error);
            return Err(refuse(stream, request, code, Failure::Relay(error)).await);
        }
    };
    let answer = request.reply(ReplyCode::Succeeded, address);
    stream.write_all(&answer).await?;
    context.settings.stats.socks_associates.add();
    // RFC 1928 section 7: the relay lives as long as this connection, which carries
    // nothing more.
    let mut scratch = [0; READ];
    loop {
        tokio::select! {
            () = association.ended() => return Ok(()),
            read = stream.read(&mut scratch) => match read {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_ignored) => {}
            }
        }
    }
}

/// Tells the client why it is not served.
async fn refuse(
    mut stream: TcpStream,
    request: &Request,
    code: ReplyCode,
    failure: Failure,
) -> End {
    match stream.write_all(&request.refusal(code)).await {
        Ok(()) => End {
            failure,
            stream: Some(stream),
        },
        // A client that does not hear it has gone, but the reason is the same.
        Err(_gone) => failure.into(),
    }
}

/// Waits until the client has closed its connection; for ever if it sends something
/// instead.
async fn gone(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        Ok(_early) => std::future::pending().await,
    }
}

/// Larger than any negotiation sent ahead in one go.
const READ: usize = 2048;
