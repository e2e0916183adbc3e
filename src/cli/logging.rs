//! Logs on standard error, as text or JSON.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::args::LogFormat;

/// Starts logging; to be called once.
///
/// # Errors
/// The level makes no sense; the text says what would.
pub(super) fn start(level: &str, format: LogFormat) -> Result<(), String> {
    let filter = filter(level)?;
    let colours = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
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
            format!("{others},adit={own},adit_netstack={own},adit_fec={own}")
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
