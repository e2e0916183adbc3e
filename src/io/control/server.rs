//! The program's end: accepts its user, reads orders, writes answers.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::geteuid;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::line::{Lines, TooLong};
use super::message::{Answer, Request};
use super::stream::receive;
use crate::io::unix::Listener;

/// The orders that a program takes.
pub trait Commands: Send + Sync + 'static {
    /// Carries one out; `passed` is the descriptor that came with it. One that it does not know is an error in words.
    fn call(&self, request: Request, passed: Option<OwnedFd>) -> impl Future<Output = Done> + Send;
}

/// What came of an order.
pub enum Done {
    /// Everything is known.
    Now(Result<Value, String>),
    /// It was carried out, and has an end that is told when it comes.
    Later {
        /// What is known now.
        now: Value,
        /// The end.
        end: Pin<Box<dyn Future<Output = Value> + Send>>,
    },
}

/// What a control socket has counted.
#[derive(Debug, Default)]
pub struct ControlStats {
    /// Orders that were carried out.
    pub orders: AtomicU64,
    /// Orders that were not.
    pub refused: AtomicU64,
    /// Lines that are too long, and orders that did not come in time.
    pub bad_lines: AtomicU64,
    /// Connections of another user.
    pub foreign: AtomicU64,
    /// Connections beyond [`MAX_CONNECTIONS`].
    pub full: AtomicU64,
}

/// Serves `listener` until `stop` is cancelled, and counts in `stats`.
pub async fn serve(
    listener: Listener,
    commands: Arc<impl Commands>,
    stats: Arc<ControlStats>,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let held = Arc::new(Semaphore::new(MAX_HELD));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = tasks.join_next() => {
                if done.is_err() {
                    warn!("a connection to the control socket ended by a panic");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%error, "the control socket accepts nobody for now");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !stream.peer_cred().is_ok_and(|peer| may(peer.uid())) {
            add(&stats.foreign);
            continue;
        }
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            add(&stats.full);
            continue;
        };
        let connection = Connection {
            stream,
            lines: Lines::default(),
            passed: None,
            commands: Arc::clone(&commands),
            held: Arc::clone(&held),
            stats: Arc::clone(&stats),
        };
        tasks.spawn(async move {
            if let Err(error) = connection.serve(permit).await {
                debug!(%error, "a connection to the control socket ended");
            }
        });
    }
    tasks.shutdown().await;
    debug!(control = ?stats, "counters");
}

/// Whether a user may give orders: this one, and root.
pub(super) fn may(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

struct Connection<C> {
    stream: UnixStream,
    lines: Lines,
    /// The descriptor that came last, for the order that it came with.
    passed: Option<OwnedFd>,
    commands: Arc<C>,
    held: Arc<Semaphore>,
    stats: Arc<ControlStats>,
}

impl<C: Commands> Connection<C> {
    async fn serve(mut self, permit: OwnedSemaphorePermit) -> io::Result<()> {
        loop {
            let line = match timeout(IDLE, self.line()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(LineError::Io(error))) => return Err(error),
                Ok(Err(LineError::TooLong(error))) => {
                    add(&self.stats.bad_lines);
                    return self.answer(Err(error.to_string())).await;
                }
                Err(_elapsed) => {
                    add(&self.stats.bad_lines);
                    return Ok(());
                }
            };
            let done = match Request::parse(&line) {
                Ok(request) => {
                    let call = self.commands.call(request, self.passed.take());
                    (timeout(CALL, call).await)
                        .unwrap_or_else(|_| Done::Now(Err("it takes too long".to_owned())))
                }
                Err(error) => Done::Now(Err(error.to_string())),
            };
            match done {
                Done::Now(outcome) => self.answer(outcome).await?,
                Done::Later { now, end } => {
                    let Ok(_held) = Arc::clone(&self.held).try_acquire_owned() else {
                        let message = format!("{MAX_HELD} orders wait for their end already");
                        return self.answer(Err(message)).await;
                    };
                    drop(permit);
                    self.answer(Ok(now)).await?;
                    return self.end(end).await;
                }
            }
        }
    }

    /// Tells how it ended, to a caller who still wants to know.
    async fn end(&mut self, end: Pin<Box<dyn Future<Output = Value> + Send>>) -> io::Result<()> {
        let outcome = tokio::select! {
            outcome = end => outcome,
            _gone = self.stream.read_u8() => return Ok(()),
        };
        self.answer(Ok(outcome)).await
    }

    async fn answer(&mut self, outcome: Result<Value, String>) -> io::Result<()> {
        match outcome {
            Ok(_) => add(&self.stats.orders),
            Err(_) => add(&self.stats.refused),
        }
        let line = Answer::new(outcome).line();
        match timeout(ANSWER, self.stream.write_all(&line)).await {
            Ok(written) => written,
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Reads up to the end of a line; `None` at the end of all.
    async fn line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            if let Some(line) = self.lines.pop()? {
                return Ok(Some(line));
            }
            let mut bytes = [0; READ];
            let stream = &self.stream;
            let received = stream.async_io(Interest::READABLE, || receive(stream, &mut bytes));
            let (len, passed) = received.await?;
            if len == 0 {
                return Ok(None);
            }
            self.passed = passed.or(self.passed.take());
            self.lines.push(bytes.get(..len).unwrap_or_default());
        }
    }
}

/// Why there is no line.
enum LineError {
    Io(io::Error),
    TooLong(TooLong),
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<TooLong> for LineError {
    fn from(error: TooLong) -> Self {
        Self::TooLong(error)
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Connections served at once: people at terminals and a few scripts.
pub const MAX_CONNECTIONS: usize = 64;

/// Connections that wait for the end of what they ordered: one for each `adit nc`.
pub const MAX_HELD: usize = 1024;

/// How long a connection may take for its next order.
pub const IDLE: Duration = Duration::from_secs(30);

/// How long an order may take: longer than a connection through the tunnel, which has time-outs of its own.
const CALL: Duration = Duration::from_secs(90);

/// How long a caller may take to read an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long accepting rests when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Larger than most orders.
const READ: usize = 4096;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;

    use serde_json::{Map, json};

    use super::*;
    use crate::io::control::{CallError, Caller, MAX_LINE};

    /// Answers what it is told to; writes to a descriptor that it is passed.
    struct Echo;

    impl Commands for Echo {
        async fn call(&self, request: Request, passed: Option<OwnedFd>) -> Done {
            if let Some(passed) = passed {
                use std::io::Write as _;
                std::fs::File::from(passed).write_all(b"passed").unwrap();
            }
            match request.command.as_str() {
                "echo" => Done::Now(Ok(Value::Object(request.arguments))),
                "later" => Done::Later {
                    now: json!("begun"),
                    end: Box::pin(async { json!("over") }),
                },
                other => Done::Now(Err(format!("`{other}` is not known"))),
            }
        }
    }

    struct Setting {
        _folder: tempfile::TempDir,
        path: PathBuf,
        stop: CancellationToken,
    }

    fn serving() -> Setting {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            Arc::new(Echo),
            Arc::default(),
            stop.clone(),
        ));
        Setting {
            _folder: folder,
            path,
            stop,
        }
    }

    async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn orders_on_one_connection_are_answered_in_their_order() {
        let setting = serving();
        let path = setting.path.clone();
        blocking(move || {
            let mut caller = Caller::connect(&path).unwrap();
            for number in 0..3 {
                let mut arguments = Map::new();
                arguments.insert("number".into(), json!(number));
                let answer = caller.call(&Request::new("echo", arguments), None, SOON);
                assert_eq!(answer.unwrap(), json!({"number": number}));
            }
            let refused = caller.call(&Request::new("dance", Map::new()), None, SOON);
            let refused = refused.unwrap_err();
            assert!(matches!(&refused, CallError::Refused(text) if text.contains("`dance`")));
        })
        .await;
        setting.stop.cancel();
    }

    #[tokio::test]
    async fn descriptor_comes_along_and_the_end_comes_later() {
        let setting = serving();
        let path = setting.path.clone();
        let (mut reader, writer) = io::pipe().unwrap();
        blocking(move || {
            let mut caller = Caller::connect(&path).unwrap();
            let request = Request::new("later", Map::new());
            let now = caller.call(&request, Some(writer.as_fd()), SOON).unwrap();
            drop(writer);
            assert_eq!(now, json!("begun"));
            let mut got = String::new();
            io::Read::read_to_string(&mut reader, &mut got).unwrap();
            assert_eq!(got, "passed");
            assert_eq!(caller.end().unwrap(), json!("over"));
        })
        .await;
    }

    #[tokio::test]
    async fn lines_that_are_too_long_or_no_orders_are_answered_in_words() {
        let setting = serving();
        let mut stream = UnixStream::connect(&setting.path).await.unwrap();
        stream
            .write_all(b"no json\n{\"version\":1,\"command\":\"echo\"}\n")
            .await
            .unwrap();
        let mut lines = Lines::default();
        let mut buffer = [0; 1024];
        let mut got = Vec::new();
        while got.len() < 2 {
            let len = stream.read(&mut buffer).await.unwrap();
            assert!(len > 0);
            lines.push(&buffer[..len]);
            while let Some(line) = lines.pop().unwrap() {
                got.push(Answer::parse(&line).unwrap());
            }
        }
        assert!(got[0].as_ref().is_err_and(|text| text.contains("no order")));
        assert_eq!(got[1], Ok(json!({})), "the connection goes on");
        let long = vec![b'x'; MAX_LINE + READ];
        // It may be closed before all was taken.
        let _cut = stream.write_all(&long).await;
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8(answer).unwrap();
        assert!(text.contains("at most 262144 bytes"), "{text}");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_are_closed() {
        let setting = serving();
        let mut open = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(&setting.path).await.unwrap();
            stream
                .write_all(b"{\"version\":1,\"command\":\"echo\"}\n")
                .await
                .unwrap();
            stream.read_u8().await.unwrap();
            open.push(stream);
        }
        let mut late = UnixStream::connect(&setting.path).await.unwrap();
        assert_eq!(late.read(&mut [0; 8]).await.unwrap(), 0);
        open.pop();
        // The server hears of it a moment later.
        loop {
            let mut stream = UnixStream::connect(&setting.path).await.unwrap();
            let _cut = stream
                .write_all(b"{\"version\":1,\"command\":\"echo\"}\n")
                .await;
            if stream.read(&mut [0; 8]).await.is_ok_and(|len| len > 0) {
                break;
            }
        }
    }

    #[test]
    fn this_user_and_root_may_and_nobody_else() {
        let own = geteuid().as_raw();
        assert!(may(own) && may(0));
        assert!(!may(own + 1) && !may(u32::MAX));
    }

    #[test]
    fn nobody_there_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert!(matches!(
            Caller::connect(&path),
            Err(CallError::NotThere { .. })
        ));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(
            Caller::connect(&path),
            Err(CallError::NotThere { .. })
        ));
    }
}
