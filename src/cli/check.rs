//! `adit check`: everything that a start would refuse, without starting.

use std::env;
use std::fmt;

use super::args::CheckArgs;
use super::{Failure, print, serve};
use crate::client::dns::lists;
use crate::client::run::dialer;
use crate::config::{ClientConfig, Inputs, Kind, ServerConfig, guess_kind};
use crate::io::tls::{Certificate, ServerTls};

/// Checks a file as a start in this environment would, and the files that it names.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let file = args.file.display();
    // A file that is named here and is not there is what is wrong, even where the environment says enough.
    if !args.file.exists() {
        return Err(Failure::Usage(format!("{file}: there is no such file")));
    }
    let kind = match args.kind {
        Some(kind) => kind,
        None => guess_kind(&args.file)?.ok_or_else(|| {
            Failure::Usage(format!(
                "{file}: its keys do not tell whether it is for a server or a client: say --kind"
            ))
        })?,
    };
    let environment = |name: &str| env::var(name).ok();
    let inputs = Inputs {
        file: Some(&args.file),
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
