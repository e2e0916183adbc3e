//! Logs on standard error, as text or JSON.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::args::LogFormat;

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
    filter(level).map(drop)
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

fn begin<W>(level: &str, format: LogFormat, writer: W) -> Result<(), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(level)?;
    let colours = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours);
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("cannot start logging: {error}"))
}

/// A level alone is meant for our own code; what libraries say counts from `warn` on.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let directives = match level.parse::<LevelFilter>() {
        // `LevelFilter` takes numbers too, which nobody means.
        Ok(own) if !level.bytes().all(|byte| byte.is_ascii_digit()) => {
            let others = own.min(LevelFilter::WARN);
            // What it warns of holds names that users asked for.
            let names = own.min(LevelFilter::ERROR);
            format!("{others},adit={own},adit_netstack={own},adit_fec={own},hickory_net={names}")
        }
        Ok(_) | Err(_) => level.to_owned(),
    };
    let wrong = || {
        format!(
            "`{level}` is not a log level: write error, warn, info, debug, trace or off, or directives such as adit::server=debug"
        )
    };
    // A word without a level is taken as a target by `EnvFilter`, and would silence everything else.
    let is_word = directives == level && !level.contains('=');
    if is_word {
        Err(wrong())
    } else {
        EnvFilter::try_new(&directives).map_err(|_| wrong())
    }
}

/// What is logged unless something else was asked for.
pub(super) const DEFAULT_LEVEL: &str = "info";

/// Lines that may wait for a reader that does not read: a minute's at the usual levels.
const WAITING: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_taken_and_words_are_not() {
        for level in [
            "error",
            "WARN",
            "info",
            "debug",
            "trace",
            "off",
            "adit::server=debug",
            "warn,adit=trace",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["", "loud", "3", "adit=loud", "verbose"] {
            let error = filter(level).expect_err(level);
            assert!(error.contains("is not a log level"), "{error}");
        }
    }

    #[test]
    fn a_level_is_for_our_own_code() {
        assert!(
            filter("debug")
                .expect("a filter")
                .to_string()
                .contains("adit=debug")
        );
        assert!(
            filter("debug")
                .expect("a filter")
                .to_string()
                .contains("warn")
        );
        assert!(filter("off").expect("a filter").to_string().contains("off"));
    }
}
