//! What is logged: a level for our own code, or directives.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::settings::Settings;

/// Reads `log_level`.
pub(super) fn read(settings: &mut Settings<'_>) -> Option<String> {
    let level = settings.value("log_level", |text| {
        log_filter(text).map(|_right| text.to_owned())
    });
    level.map(|at| at.value)
}

/// Makes the filter of a level. A level alone is meant for our own code; what libraries say counts from `warn` on.
///
/// # Errors
/// The level makes no sense; the text says what would.
pub fn log_filter(level: &str) -> Result<EnvFilter, String> {
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
            assert!(log_filter(level).is_ok(), "{level}");
        }
        for level in ["", "loud", "3", "adit=loud", "verbose"] {
            let error = log_filter(level).expect_err(level);
            assert!(error.contains("is not a log level"), "{error}");
        }
    }

    #[test]
    fn a_level_is_for_our_own_code() {
        assert!(
            log_filter("debug")
                .expect("a filter")
                .to_string()
                .contains("adit=debug")
        );
        assert!(
            log_filter("debug")
                .expect("a filter")
                .to_string()
                .contains("warn")
        );
        assert!(
            log_filter("off")
                .expect("a filter")
                .to_string()
                .contains("off")
        );
    }
}
