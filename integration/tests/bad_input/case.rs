//! One bad input to a listener: what is sent, and what must come back.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use adit_integration::stream::Stream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{DRIP, PATIENCE, SILENCE};

/// Whom a case talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// The server's `tcp://` lane.
    Tcp,
    /// The server's `tls://` lane, below TLS.
    Tls,
    /// The server's `tls://` lane, inside TLS.
    InsideTls,
    /// The client's proxy.
    Proxy,
}

/// What the caller does once its bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Waits for the other side to end the connection.
    Wait,
    /// Ends its direction, and waits for the other.
    Finish,
    /// Resets the connection.
    Reset,
    /// Has sent the bytes one at a time, with pauses.
    Drip,
}

/// What must come back before the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Not a byte.
    Silence,
    /// Nothing, or TLS alerts (content type 21) alone.
    Alert,
    /// Nothing, or frames of this type: challenges to prove that a message is fresh.
    SilenceOrFrame(u8),
    /// Whatever it is, as long as the connection ends.
    Any,
    /// Bytes that begin like this.
    Begins(&'static [u8]),
    /// A SOCKS5 refusal with one of these codes, after the method was accepted.
    Refusal(&'static [u8]),
    /// An HTTP answer with one of these codes.
    Status(&'static [u16]),
    /// An HTTP answer with one of these codes, or not a byte.
    StatusOrSilence(&'static [u16]),
}

/// One of them.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) to: Listener,
    bytes: Vec<u8>,
    then: Then,
    answer: Answer,
}

/// Cases for one listener.
pub(crate) struct Table {
    to: Listener,
    pub(crate) cases: Vec<Case>,
}

impl Table {
    pub(crate) fn new(to: Listener) -> Self {
        Self {
            to,
            cases: Vec::new(),
        }
    }

    pub(crate) fn wait(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, answer: Answer) {
        self.add(name, bytes.as_ref(), Then::Wait, answer);
    }

    pub(crate) fn finish(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, answer: Answer) {
        self.add(name, bytes.as_ref(), Then::Finish, answer);
    }

    pub(crate) fn reset(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, answer: Answer) {
        self.add(name, bytes.as_ref(), Then::Reset, answer);
    }

    pub(crate) fn drip(&mut self, name: &'static str, bytes: impl AsRef<[u8]>, answer: Answer) {
        self.add(name, bytes.as_ref(), Then::Drip, answer);
    }

    fn add(&mut self, name: &'static str, bytes: &[u8], then: Then, answer: Answer) {
        self.cases.push(Case {
            name,
            to: self.to,
            bytes: bytes.to_vec(),
            then,
            answer,
        });
    }
}

/// Does what the case says and compares what comes back.
pub(crate) async fn run(case: &Case, address: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    if case.to == Listener::InsideTls {
        let inside = timeout(PATIENCE, tls(stream))
            .await
            .map_err(|_| "TLS takes too long")?;
        let inside = inside.map_err(|error| format!("TLS: {error}"))?;
        return exchange(case, inside).await;
    }
    if case.then == Then::Reset {
        let _ = stream.set_zero_linger();
    }
    exchange(case, stream).await
}

async fn exchange(case: &Case, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
    let (mut read, mut write) = tokio::io::split(stream);
    // a listener that ends the connection in the middle of what is sent is within its rights
    let send: Pin<Box<dyn Future<Output = ()>>> = match case.then {
        Then::Drip => Box::pin(async {
            for byte in &case.bytes {
                if write.write_all(&[*byte]).await.is_err() || write.flush().await.is_err() {
                    break;
                }
                sleep(DRIP).await;
            }
            std::future::pending::<()>().await;
        }),
        Then::Wait | Then::Finish | Then::Reset => Box::pin(async {
            let sent = write.write_all(&case.bytes).await.and(write.flush().await);
            match case.then {
                Then::Finish if sent.is_ok() => {
                    let _ = write.shutdown().await;
                }
                Then::Reset => return,
                Then::Wait | Then::Finish | Then::Drip => {}
            }
            std::future::pending::<()>().await;
        }),
    };
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    let receive = async {
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => break,
                // a reset says nothing of what this is
                Err(_) => break,
                Ok(length) => got.extend_from_slice(&buffer[..length]),
            }
            if got.len() > 100_000 {
                break;
            }
        }
    };
    let ended = tokio::select! {
        result = timeout(SILENCE, receive) => result.is_ok(),
        () = send => true,
    };
    if !ended {
        return Err(format!(
            "the connection was still open after {SILENCE:?}; {} bytes had come",
            got.len()
        ));
    }
    if answers(&case.answer, &got) {
        Ok(())
    } else {
        Err(format!(
            "{:?} was due, and {} came",
            case.answer,
            show(&got)
        ))
    }
}

fn answers(due: &Answer, got: &[u8]) -> bool {
    let status = |codes: &[u16]| {
        codes.iter().any(|code| {
            got.starts_with(format!("HTTP/1.1 {code} ").as_bytes())
                || got.starts_with(format!("HTTP/1.0 {code} ").as_bytes())
        })
    };
    match due {
        Answer::Silence => got.is_empty(),
        Answer::Any => true,
        Answer::Alert => got.is_empty() || got[0] == 21,
        Answer::SilenceOrFrame(kind) => {
            let mut rest = got;
            while rest.get(4) == Some(kind) {
                rest = &rest[first_frame(rest).len()..];
            }
            rest.is_empty()
        }
        Answer::Begins(bytes) => got.starts_with(bytes),
        Answer::Refusal(codes) => {
            got.starts_with(&[5, 0, 5]) && got.get(3).is_some_and(|code| codes.contains(code))
        }
        Answer::Status(codes) => status(codes),
        Answer::StatusOrSilence(codes) => got.is_empty() || status(codes),
    }
}

/// The first whole frame of a stream lane's bytes.
pub(crate) fn first_frame(bytes: &[u8]) -> &[u8] {
    let length = bytes
        .first_chunk::<4>()
        .map_or(0, |length| u32::from_be_bytes(*length));
    let end = usize::try_from(length)
        .unwrap_or(usize::MAX)
        .saturating_add(4)
        .min(bytes.len());
    &bytes[..end]
}

fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    format!(
        "{} bytes, {:02x?} {text:?}",
        bytes.len(),
        &bytes[..bytes.len().min(16)]
    )
}

/// TLS that asks nothing of the server: what is inside is what is tested.
async fn tls(stream: TcpStream) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A frame of a stream lane.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).expect("short").to_be_bytes();
    [&length[..], &[kind], body].concat()
}

pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Stream::new(99).fill(&mut bytes);
    bytes
}

/// A ClientHello (RFC 8446, section 4.1.2) that offers only TLS 1.2.
pub(crate) fn hello_of_tls12() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend(noise(32));
    hello.extend([0, 0, 4, 0xC0, 0x2F, 0xC0, 0x30, 1, 0]);
    // groups x25519, secp256r1; signatures rsa_pss and ecdsa with SHA-256
    hello.extend([
        0, 24, 0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 6, 0, 4, 8, 4, 4, 3, 0, 11, 0, 2, 1, 0,
    ]);
    let extensions = u16::try_from(hello.len() - 45)
        .expect("short")
        .to_be_bytes();
    hello[43..45].copy_from_slice(&extensions);
    let mut message = vec![1, 0, 0, u8::try_from(hello.len()).expect("short")];
    message.extend(hello);
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    [&[22, 3, 1][..], &length, &message].concat()
}
