//! The client's side of TLS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, pem};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::refusal::CertificateRefused;
use super::verify::{KeyVerifier, Verify};
use super::{ALPN, BUFFER_LIMIT, provider};
use crate::config::address::Host;
use crate::io::lane::LaneStream;

/// Puts TLS on connections to servers; made once and shared by all dials.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    /// The same, for servers that are not ours.
    web: TlsConnector,
    /// What is asked of certificates, to say what one lacks.
    verify: Verify,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Prepares for what `verify` asks; authorities are read now, not at each connection.
    ///
    /// # Errors
    ///
    /// When the file of authorities cannot be read or the system has none.
    pub fn new(verify: &Verify) -> Result<ClientTls, ClientTlsError> {
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = match verify {
            Verify::Unchecked => KeyVerifier::new(None, Arc::clone(&provider)),
            Verify::Pins(pins) => KeyVerifier::new(Some(pins.clone()), Arc::clone(&provider)),
            Verify::CaFile(path) => signed_by(roots_of_file(path)?, &provider)?,
            Verify::System => signed_by(roots_of_system()?, &provider)?,
        };
        let connector = |versions: &[&'static SupportedProtocolVersion]| {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier))
                .with_no_client_auth();
            config.alpn_protocols = vec![ALPN.to_vec()];
            config.resumption = Resumption::disabled();
            Ok::<_, rustls::Error>(TlsConnector::from(Arc::new(config)))
        };
        Ok(ClientTls {
            connector: connector(&[&TLS13])?,
            web: connector(&[&TLS13, &TLS12])?,
            verify: verify.clone(),
        })
    }

    /// Makes the handshake on a connection to a server of ours; `host` is what was dialled.
    ///
    /// The server is sent the host's name (SNI) if it is one; an address is not sent.
    ///
    /// # Errors
    ///
    /// When the peer does not speak TLS 1.3, its certificate is not what was asked for, or the
    /// connection fails. The caller bounds the time.
    pub async fn connect(&self, host: &Host, stream: LaneStream) -> io::Result<LaneStream> {
        self.handshake(&self.connector, host, stream).await
    }

    /// The same with somebody else's server, which may have TLS 1.2 alone.
    ///
    /// # Errors
    ///
    /// As [`ClientTls::connect`], of both versions.
    pub async fn connect_web(&self, host: &Host, stream: LaneStream) -> io::Result<LaneStream> {
        self.handshake(&self.web, host, stream).await
    }

    async fn handshake(
        &self,
        connector: &TlsConnector,
        host: &Host,
        stream: LaneStream,
    ) -> io::Result<LaneStream> {
        let name = match host {
            Host::Ip(ip) => ServerName::from(*ip),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        };
        let mut stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| CertificateRefused::explain(error, host, &self.verify))?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_LIMIT));
        Ok(LaneStream::Tls(Box::new(stream.into())))
    }
}

/// Why a client's TLS cannot be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientTlsError {
    /// The file of authorities cannot be read, or is not PEM.
    #[error("cannot read certificate authorities from {path}: {source}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: pem::Error,
    },
    /// The file has no certificate in it, or none that can be an authority.
    #[error("{path} holds no certificate authority that can be used")]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The system's store of authorities is empty or cannot be read.
    #[error("the system has no certificate authorities: {reason}")]
    NoSystemRoots {
        /// What the search met, if it met an error.
        reason: String,
    },
    /// An authority cannot be used by the verifier.
    #[error("cannot use the certificate authorities: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The library refuses its settings.
    #[error("cannot set up TLS: {0}")]
    Settings(#[from] rustls::Error),
}

fn signed_by(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, ClientTlsError> {
    let provider = Arc::clone(provider);
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, ClientTlsError> {
    let unreadable = |source| ClientTlsError::CaFile {
        path: path.to_owned(),
        source,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(ClientTlsError::NoAuthority {
            path: path.to_owned(),
        });
    }
    Ok(roots)
}

pub(super) fn roots_of_system() -> Result<RootCertStore, ClientTlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(ClientTlsError::NoSystemRoots {
            reason: found.errors.first().map_or_else(
                || "no store was found; install the ca-certificates package".to_owned(),
                ToString::to_string,
            ),
        });
    }
    Ok(roots)
}
