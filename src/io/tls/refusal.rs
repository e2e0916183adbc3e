//! Says in words why a server's certificate was refused, and what would be right.

use std::fmt;
use std::io;

use rustls::{CertificateError, Error, OtherError};
use thiserror::Error as ThisError;

use super::verify::{Pin, Verify};
use crate::config::address::Host;

/// Why the certificate of a server was refused.
#[derive(Clone, Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateRefused {
    /// Its key is another than was pinned.
    #[error("tls.pin is {}, the server's certificate has {found}", Pins(wanted))]
    WrongPin {
        /// The pin of the key that the server has.
        found: Pin,
        /// The pins that were asked for.
        wanted: Vec<Pin>,
    },
    /// None of this host's authorities vouches for it.
    #[error(
        "the certificate is not signed by an authority of this host: use tls.pin or tls.ca_file"
    )]
    UnknownToSystem,
    /// None of the authorities in the file vouches for it.
    #[error("the certificate is not signed by an authority in tls.ca_file")]
    UnknownToCaFile,
    /// It names other hosts.
    #[error("the certificate is not made out to {host}")]
    OtherName {
        /// What was dialled.
        host: String,
    },
    /// Its time is over.
    #[error("the certificate has expired, if the clock of this host is right")]
    Expired,
    /// Its time is to come.
    #[error("the certificate is not valid yet, if the clock of this host is right")]
    NotYet,
}

impl CertificateRefused {
    /// Tells what `error` means for a client that dialled `host` and asked for `verify`; gives the error back where
    /// it says more than we could.
    pub(super) fn explain(error: io::Error, host: &Host, verify: &Verify) -> io::Error {
        let reason = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        let refused = match reason {
            Some(Error::InvalidCertificate(reason)) => Self::of(reason, host, verify),
            Some(_) | None => None,
        };
        match refused {
            Some(refused) => io::Error::new(io::ErrorKind::InvalidData, refused),
            None => error,
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what rustls can say is more than is told apart here, and grows"
    )]
    fn of(reason: &CertificateError, host: &Host, verify: &Verify) -> Option<Self> {
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Some(Self::Expired)
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Some(Self::NotYet)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(Self::OtherName {
                    host: host.to_string(),
                })
            }
            // An authority of the same name whose signature it is not is one that did not sign it.
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                match verify {
                    Verify::System => Some(Self::UnknownToSystem),
                    Verify::CaFile(_) => Some(Self::UnknownToCaFile),
                    Verify::Unchecked | Verify::Pins(_) => None,
                }
            }
            CertificateError::Other(OtherError(ours)) => ours.downcast_ref().cloned(),
            _ => None,
        }
    }
}

impl From<CertificateRefused> for Error {
    fn from(refused: CertificateRefused) -> Self {
        CertificateError::Other(OtherError(std::sync::Arc::new(refused))).into()
    }
}

/// Returns whether what came instead of TLS was no TLS at all, or nothing.
pub fn speaks_no_tls(error: &io::Error) -> bool {
    let reason = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    error.kind() == io::ErrorKind::UnexpectedEof || matches!(reason, Some(Error::InvalidMessage(_)))
}

/// Pins for people.
struct Pins<'a>(&'a [Pin]);

impl fmt::Display for Pins<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pin) in self.0.iter().enumerate() {
            let or = if at == 0 { "" } else { " or " };
            write!(f, "{or}{pin}")?;
        }
        Ok(())
    }
}
