//! Logs on standard error, as text or JSON.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{MakeWriter, SubscriberBuilder};

use super::args::LogFormat;
use crate::config::log_filter;

/// Starts logging; to be called once.
///
/// # Errors
/// The level makes no sense; the text says what would.
pub(super) fn start(level: &str, format: LogFormat) -> Result<(), String> {
    begin(level, format, io::stderr)
}

/// Starts logging by a thread of its own, for a process that must not wait: whoever reads standard error may have
/// stopped reading. Lines that find [`WAITING`] others are dropped.
///
/// # Errors
/// As [`start`].
pub(super) fn start_aside(level: &str, format: LogFormat) -> Result<(), String> {
    let (lines, waiting) = sync_channel::<Vec<u8>>(WAITING);
    thread::Builder::new()
        .name("adit-log".to_owned())
        .spawn(move || {
            for line in waiting {
                // Nothing is left to be done for whoever closed standard error.
                let _ = io::stderr().write_all(&line);
            }
        })
        .map_err(|error| format!("cannot start logging: {error}"))?;
    begin(level, format, move || Aside(lines.clone()))
}

/// Checks a level without starting anything.
///
/// # Errors
/// The level makes no sense; the text says what would.
pub(super) fn check(level: &str) -> Result<(), String> {
    log_filter(level).map(drop)
}

/// A log line on its way to the thread that writes it.
struct Aside(SyncSender<Vec<u8>>);

impl io::Write for Aside {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _full = self.0.try_send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs by another level from now on; nothing happens in a program that has not started logging.
///
/// # Errors
/// The level makes no sense; the text says what would.
pub(super) fn change(level: &str) -> Result<(), String> {
    let filter = log_filter(level)?;
    CHANGE.get().map_or(Ok(()), |change| change(filter))
}

fn begin<W>(level: &str, format: LogFormat, writer: W) -> Result<(), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = log_filter(level)?;
    let colours =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours);
    let started = match format {
        // The journal notes the time of each line, and would show two.
        LogFormat::Text if goes_to_journal() => as_text(builder.without_time()),
        LogFormat::Text => as_text(builder),
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            keep(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
            builder.try_init()
        }
    };
    started.map_err(|error| format!("cannot start logging: {error}"))
}

fn as_text<T, W>(
    builder: SubscriberBuilder<DefaultFields, Format<Full, T>, EnvFilter, W>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    T: FormatTime + Send + Sync + 'static,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = builder.with_target(false).with_filter_reloading();
    let handle = builder.reload_handle();
    keep(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
    builder.try_init()
}

/// Whether standard error is the stream to the journal that systemd has named (systemd.exec(5), `JOURNAL_STREAM`).
fn goes_to_journal() -> bool {
    let file = File::from(match io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => stderr,
        Err(_) => return false,
    });
    let (Ok(stream), Ok(stderr)) = (env::var("JOURNAL_STREAM"), file.metadata()) else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// Keeps what changes the level. A program starts logging once.
fn keep(change: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static) {
    let _first = CHANGE.set(Box::new(change));
}

type Change = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// What changes the level, once logging has started.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// What is logged unless something else was asked for.
pub(super) const DEFAULT_LEVEL: &str = "info";

/// Lines that may wait for a reader that does not read: a minute's at the usual levels.
const WAITING: usize = 256;
