//! `adit check`: everything that a start would refuse, without starting.

use std::env;
use std::fmt;

use super::args::CheckArgs;
use super::{Failure, join, print, serve};
use crate::client::dns::lists;
use crate::client::run::dialer;
use crate::config::{ClientConfig, Inputs, Kind, ServerConfig, guess_kind};
use crate::io::tls::{Certificate, ServerTls};

/// Checks a file as a start in this environment would, and the files that it names.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let usual = || join::usual_file().filter(|usual| usual.exists() && args.kind.is_none());
    let path = args.file.clone().or_else(usual);
    let file = match &path {
        Some(path) => path.display().to_string(),
        None => "environment".to_owned(),
    };
    // A file that is named here and is not there is what is wrong, even where the environment says enough.
    if path.as_deref().is_some_and(|path| !path.exists()) {
        return Err(Failure::Usage(format!("{file}: there is no such file")));
    }
    let kind = match (args.kind, &path) {
        (Some(kind), _) => kind,
        (None, Some(path)) => guess_kind(path)?.ok_or_else(|| {
            Failure::Usage(format!(
                "{file}: its keys do not tell whether it is for a server or a client: say --kind"
            ))
        })?,
        (None, None) => {
            return Err(Failure::Usage(format!(
                "{NOTHING}, or --kind the program whose variables are to be checked"
            )));
        }
    };
    let environment = |name: &str| env::var(name).ok();
    let inputs = Inputs {
        file: path.as_deref(),
        environment: &environment,
        flags: &[],
    };
    let useless = |error: &dyn fmt::Display| Failure::Usage(format!("{file}: tls: {error}"));
    let (summary, mut warnings) = match kind {
        Kind::Server => {
            let loaded = ServerConfig::load(inputs)?;
            if let Some(files) = &loaded.config.tls {
                let certificate = Certificate::from_files(&files.certificate, &files.key)
                    .map_err(|error| useless(&error))?;
                ServerTls::new(certificate).map_err(|error| useless(&error))?;
            }
            (loaded.config.to_string(), loaded.warnings)
        }
        Kind::Client => {
            let loaded = ClientConfig::load(inputs)?;
            dialer(&loaded.config).map_err(|error| useless(&error))?;
            let mut warnings = loaded.warnings;
            warnings.extend(lists::check(&loaded.config.dns));
            (loaded.config.to_string(), warnings)
        }
    };
    warnings.extend(serve::unknown_variables());
    for warning in warnings {
        print(&format!("{file}: warning: {warning}"))?;
    }
    print(&format!("{file}: ok: {summary}"))
}

/// What to do where there is nothing to check.
const NOTHING: &str =
    "no configuration: `adit join LINK` makes that of a client; else name the file";
