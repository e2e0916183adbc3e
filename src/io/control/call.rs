//! The caller's end, which waits.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde_json::Value;
use thiserror::Error;

use super::line::{Lines, MAX_ANSWER, TooLong};
use super::message::{Answer, Request};
use super::server::may;
use super::stream::send;

/// A connection to the control socket of a running program.
#[derive(Debug)]
pub struct Caller {
    stream: UnixStream,
    lines: Lines,
}

/// Why an order was not carried out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody listens there.
    #[error("nothing runs that has the control socket {}", path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
    },
    /// The system does not let us.
    #[error("{}: {error}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// Another user listens there.
    #[error("{}: this is the socket of another user", path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("no answer over the control socket: {0}")]
    Io(#[from] io::Error),
    /// It was closed without an answer.
    #[error(
        "the control socket was closed without an answer: the program has ended, or serves too many"
    )]
    Closed,
    /// What came is no answer.
    #[error("what answers on the control socket is not this program: {0}")]
    Json(#[from] serde_json::Error),
    /// What came is no answer, and endless.
    #[error("what answers on the control socket is not this program: {0}")]
    TooLong(#[from] TooLong),
    /// The program says why not.
    #[error("{0}")]
    Refused(String),
}

impl CallError {
    /// Whether it is about this socket.
    pub fn is_about(&self, socket: &Path) -> bool {
        matches!(self, Self::NotThere { path } | Self::Connect { path, .. } | Self::Foreign { path } if path == socket)
    }

    /// Whether this user may not look into the place.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Connect { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl Caller {
    /// Connects to the program that listens at `path`.
    ///
    /// # Errors
    ///
    /// [`CallError::NotThere`] when none does.
    pub fn connect(path: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            let path = path.to_owned();
            if nobody.contains(&error.kind()) {
                CallError::NotThere { path }
            } else {
                CallError::Connect { path, error }
            }
        })?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(io::Error::from)?;
        // Root gives orders to programs of any user.
        if !may(peer.uid.as_raw()) && !geteuid().is_root() {
            return Err(CallError::Foreign {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            stream,
            lines: Lines::of(MAX_ANSWER),
        })
    }

    /// The descriptor of the connection, to be kept in the process that has it.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Gives an order, with a descriptor if there is one, and waits for what comes of it.
    ///
    /// # Errors
    ///
    /// [`CallError::Refused`] with the program's reason; else that there is no answer within `limit`.
    pub fn call(
        &mut self,
        request: &Request,
        pass: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value, CallError> {
        self.stream.set_write_timeout(Some(limit))?;
        self.stream.set_read_timeout(Some(limit))?;
        let line = request.line();
        let sent = match pass {
            Some(pass) => send(self.stream.as_fd(), &line, pass).map_err(broken)?,
            None => 0,
        };
        self.stream
            .write_all(line.get(sent..).unwrap_or_default())
            .map_err(broken)?;
        self.answer()
    }

    /// Waits for the end of an order that has one, for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Caller::call`].
    pub fn end(&mut self) -> Result<Value, CallError> {
        self.stream.set_read_timeout(None)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, CallError> {
        loop {
            if let Some(line) = self.lines.pop()? {
                return Answer::parse(&line)?.map_err(CallError::Refused);
            }
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes).map_err(broken)? {
                0 => return Err(CallError::Closed),
                len => self.lines.push(bytes.get(..len).unwrap_or_default()),
            }
        }
    }
}

/// Tells an end without an answer from what else may break a connection.
fn broken(error: io::Error) -> CallError {
    let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    if closed.contains(&error.kind()) {
        CallError::Closed
    } else {
        CallError::Io(error)
    }
}
