//! The server's side of TLS.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tokio_rustls::TlsAcceptor;

use super::certificate::Certificate;
use super::verify::Pin;
use super::{ALPN, BUFFER_LIMIT, provider};
use crate::io::lane::LaneStream;

/// Puts TLS on accepted connections; made once and shared by all listeners.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    pin: Pin,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Prepares to answer with `certificate`.
    ///
    /// # Errors
    ///
    /// When the certificate and its key do not belong together or are of no use for TLS 1.3.
    pub fn new(certificate: Certificate) -> Result<ServerTls, rustls::Error> {
        let pin = certificate.pin();
        let (chain, key) = certificate.into_parts();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pin,
        })
    }

    /// Makes the handshake on an accepted connection.
    ///
    /// # Errors
    ///
    /// When the peer does not speak TLS 1.3 or the connection fails. The caller bounds the time.
    pub async fn accept(&self, stream: LaneStream) -> io::Result<LaneStream> {
        let mut stream = self.acceptor.accept(stream).await?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_LIMIT));
        Ok(LaneStream::Tls(Box::new(stream.into())))
    }

    /// Returns the fingerprint that a client may pin.
    pub fn pin(&self) -> Pin {
        self.pin
    }
}
