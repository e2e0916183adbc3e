//! `adit nc`: standard input and output as a connection, as `rules:` have it: through the tunnel unless they say otherwise.
//!
//! The connection is one end of a socket pair, whose other end is handed to a running client, or to a session of our own;
//! two threads copy between this end and standard input and output. An end of either direction is passed on by itself,
//! so that both sides may half-close. It is over when the flow is, whether or not anybody would still write to
//! standard input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::args::Args as AllArgs;
use super::running::{Found, Which};
use super::{Failure, logging, signals};
use crate::client::control::{connect, connect_order, is_finished};
use crate::client::rules::{InForce, Rules};
use crate::client::run::Client;
use crate::config::ClientConfig;
use crate::io::control::Caller;
use crate::io::relay::{Fate, FlowWatch};

/// The arguments of `adit nc`.
#[derive(Debug, Args)]
pub(super) struct NcArgs {
    #[command(flatten)]
    which: Which,
    /// A name, which is resolved beyond the server unless `rules:` say otherwise, or an address
    #[arg(value_name = "HOST")]
    host: String,
    /// The port
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// Runs `adit nc`.
pub(super) fn run(all: &AllArgs, args: &NcArgs) -> Result<(), Failure> {
    let found = args.which.find()?;
    let outcome = match found {
        Found::Running(caller) => through(caller, args),
        Found::Idle(Some(config), _) => {
            // Whoever runs ssh wants to read of errors alone.
            let level = all.log_level.as_deref().unwrap_or("warn");
            logging::start(level, all.log_format).map_err(Failure::Usage)?;
            alone(&config, args)
        }
        Found::Idle(None, why) => Err(anyhow::Error::msg(why)),
    };
    outcome.map_err(Failure::Run)
}

/// Goes through the client that runs.
fn through(mut caller: Caller, args: &NcArgs) -> anyhow::Result<()> {
    let (near, far) = UnixStream::pair()?;
    let order = connect_order(&args.host, args.port);
    let connected = caller.call(&order, Some(far.as_fd()), PATIENCE);
    drop(far);
    connected?;
    let copying = Copying::start(near)?;
    let end = caller.end();
    let finished = matches!(&end, Ok(end) if is_finished(end));
    let outcome = copying.finish(finished);
    // What the client says of the end counts only where the bytes have not said it better.
    end.context("the client has ended")?;
    outcome
}

/// Makes a session for this connection alone.
fn alone(config: &ClientConfig, args: &NcArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        signals::listen(stop.clone(), None).context("cannot listen for signals")?;
        let client = Client::start(config)?;
        // Nothing replaces them: this process reads its configuration once.
        let (_replace, rules) = InForce::new(Rules::new(&config.rules));
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Err(anyhow::Error::msg("stopped")),
            outcome = converse(&client, rules, args) => outcome,
            () = client.ended() => bail!("the tunnel's driver has failed; the log says more"),
        };
        client.close().await;
        outcome
    });
    // A thread that waits for standard input must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn converse(client: &Client, rules: InForce, args: &NcArgs) -> anyhow::Result<()> {
    let (near, far) = UnixStream::pair()?;
    let watch = FlowWatch::new(Arc::default());
    let place = (args.host.as_str(), args.port);
    let fate = connect(&client.opener(rules), place, OwnedFd::from(far), watch).await;
    let fate = fate.map_err(anyhow::Error::msg)?;
    let copying = Copying::start(near)?;
    let finished = matches!(fate.await, Fate::Finished);
    if finished {
        // What was written last may not have arrived.
        let _late = timeout(DRAIN, client.tunnel().idle()).await;
    }
    tokio::task::spawn_blocking(move || copying.finish(finished)).await?
}

/// The threads that copy.
struct Copying {
    down: JoinHandle<io::Result<()>>,
}

impl Copying {
    fn start(socket: UnixStream) -> anyhow::Result<Self> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // Who reads our output hears its end when the copy is closed, and not only when we are gone.
        let nothing = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nothing)?;
        let up = socket.try_clone()?;
        // Never waited for: it may wait for somebody who types nothing more.
        thread::spawn(move || {
            let _cut = copy(input, &up);
            let _gone = up.shutdown(Shutdown::Write);
        });
        let down = thread::spawn(move || {
            let copied = copy(&socket, output);
            if copied.is_err() {
                // Nobody reads: the far end is to know.
                let _gone = socket.shutdown(Shutdown::Both);
            }
            copied
        });
        Ok(Self { down })
    }

    /// Waits until all that came is written, and tells whether all did.
    fn finish(self, finished: bool) -> anyhow::Result<()> {
        match self.down.join() {
            Ok(Ok(())) if finished => Ok(()),
            Ok(Ok(())) => bail!("the connection was cut"),
            Ok(Err(error)) => Err(error).context("cannot write to standard output"),
            Err(_) => bail!("the thread that writes has failed"),
        }
    }
}

/// Copies to the end of `from`. One that fails to be read has ended: its fate is told elsewhere.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
        };
        to.write_all(buffer.get(..len).unwrap_or_default())?;
    }
}

/// How long a running client may take to connect: longer than its own attempts.
const PATIENCE: Duration = Duration::from_secs(100);

/// How long what was written last may take to arrive.
const DRAIN: Duration = Duration::from_secs(30);

/// Bytes copied at a time: two pipes full.
const BUFFER: usize = 128 << 10;
