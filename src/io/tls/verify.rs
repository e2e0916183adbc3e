//! How a client checks the server's certificate: by pin, by authority, or not at all.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use thiserror::Error as ThisError;

use super::refusal::CertificateRefused;

/// What a client asks of the server's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: the session's own key decides. The default.
    #[default]
    Unchecked,
    /// That its public key is one of these.
    Pins(Vec<Pin>),
    /// That it names the host and an authority in this PEM file has signed it.
    CaFile(PathBuf),
    /// That it names the host and an authority the system trusts has signed it.
    System,
}

/// The fingerprint of a certificate's public key: the SHA-256 of its SubjectPublicKeyInfo, as in
/// RFC 7469, section 2.4, and in `curl --pinnedpubkey`.
///
/// It is written as 44 characters of base64. It outlives the certificate as long as the key
/// stays.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl From<[u8; 32]> for Pin {
    fn from(hash: [u8; 32]) -> Pin {
        Pin(hash)
    }
}

impl Pin {
    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the pin of a certificate.
    ///
    /// # Errors
    ///
    /// When the bytes are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Pin, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let hash = digest(&SHA256, &parsed.subject_public_key_info());
        let mut pin = [0; 32];
        pin.copy_from_slice(hash.as_ref());
        Ok(Pin(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = PinParseError;

    fn from_str(text: &str) -> Result<Pin, PinParseError> {
        let bytes = STANDARD.decode(text).map_err(|_| PinParseError::Base64)?;
        let len = bytes.len();
        let pin = bytes.try_into().map_err(|_| PinParseError::Length(len))?;
        Ok(Pin(pin))
    }
}

/// Why a text is no pin.
#[derive(Clone, Copy, Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinParseError {
    /// It is not base64.
    #[error("a certificate pin is 44 characters of base64")]
    Base64,
    /// It has another length.
    #[error("a certificate pin is 32 bytes in base64, this is {0}")]
    Length(usize),
}

/// Accepts a certificate by its public key alone, or any at all.
///
/// Names and dates are not looked at: a pin says more than either. That the server holds the
/// certificate's private key is still checked.
#[derive(Debug)]
pub(super) struct KeyVerifier {
    /// `None` accepts every key.
    pins: Option<Vec<Pin>>,
    provider: Arc<CryptoProvider>,
}

impl KeyVerifier {
    pub(super) fn new(pins: Option<Vec<Pin>>, provider: Arc<CryptoProvider>) -> Arc<KeyVerifier> {
        Arc::new(KeyVerifier { pins, provider })
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Fingerprints are public, so an ordinary comparison leaks nothing.
        if let Some(pins) = &self.pins {
            let found = Pin::of(end_entity)?;
            if !pins.contains(&found) {
                let wanted = pins.clone();
                return Err(CertificateRefused::WrongPin { found, wanted }.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_reads_back_what_it_prints() {
        let pin = Pin([7; 32]);
        assert_eq!(pin.to_string().len(), 44);
        assert_eq!(pin.to_string().parse(), Ok(pin));
    }

    #[test]
    fn pin_of_the_wrong_size_says_so() {
        assert_eq!("AAAA".parse::<Pin>(), Err(PinParseError::Length(3)));
        assert_eq!("a pin!".parse::<Pin>(), Err(PinParseError::Base64));
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_pin() {
        assert!(Pin::of(&CertificateDer::from(vec![0x30; 40])).is_err());
    }
}
