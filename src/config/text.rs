//! Reads a configuration from its text alone, for fuzzing: nothing outside decides what comes out.

use std::path::Path;

use super::error::ConfigError;
use super::settings::{Inputs, Settings};
use super::{ClientConfig, ServerConfig};

/// Reads `text` as the file of a server and as that of a client, opening no file that it names; returns what is
/// wrong with it. Something always is, since a key has to be in a file of its own.
pub(crate) fn read_text_alone(text: &str) -> Vec<ConfigError> {
    let environment = |_: &str| None;
    let path = Path::new("text.yaml");
    let inputs = Inputs {
        file: None,
        environment: &environment,
        flags: &[],
    };
    let server = Settings::of_text(inputs, path, text).and_then(|mut settings| {
        let _ = ServerConfig::read(&mut settings, &environment);
        settings.finish()
    });
    let client = Settings::of_text(inputs, path, text).and_then(|mut settings| {
        let _ = ClientConfig::read(&mut settings);
        settings.finish()
    });
    [server, client]
        .into_iter()
        .filter_map(Result::err)
        .collect()
}
