//! The server's certificate: from files, or generated once and kept.
//!
//! A kept certificate is two files in a directory of the server's: `tls.key`, readable by the
//! server's user alone, and `tls.crt`. The key is what matters: a pin names it and not the
//! certificate. So when only the certificate is missing, as after a crash between the two, it is
//! made anew from the key and every pin stays valid; so it is, too, when it is to bear names that it lacks. Files
//! appear whole or not at all.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::ParsedCertificate;
use tempfile::NamedTempFile;
use thiserror::Error;
use zeroize::Zeroizing;

use super::verify::Pin;
use crate::io::clock;

/// A certificate chain with the private key of its first certificate.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pin: Pin,
}

impl Certificate {
    /// Reads a chain and its key from two PEM files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is not PEM, or does not hold what it should.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Certificate, CertificateError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| CertificateError::Read { path, source }
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .map_err(unreadable(chain))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(unreadable(chain))?;
        let first = certificates
            .first()
            .ok_or_else(|| CertificateError::NoCertificate {
                path: chain.to_owned(),
            })?;
        let pin = Pin::of(first).map_err(|source| CertificateError::Invalid {
            path: chain.to_owned(),
            source,
        })?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
        Ok(Certificate {
            chain: certificates,
            key,
            pin,
        })
    }

    /// Reads the certificate kept in `directory`, or generates one for `names` and keeps it.
    ///
    /// `names` are the host names and addresses it is made out to; without any it says
    /// `localhost`. They only matter to clients that check by authority. A kept certificate that
    /// lacks one of them is made anew from the same key.
    ///
    /// # Errors
    ///
    /// When what is kept cannot be read, or what was generated cannot be written.
    pub fn kept(directory: &Path, names: &[String]) -> Result<Certificate, CertificateError> {
        let chain_path = directory.join(CHAIN_FILE);
        let key_path = directory.join(KEY_FILE);
        let has = |path: &Path| {
            path.try_exists().map_err(|source| CertificateError::Look {
                path: path.to_owned(),
                source,
            })
        };
        if !has(&key_path)? {
            create_directory(directory)?;
            let key = KeyPair::generate()?;
            let pem = Zeroizing::new(key.serialize_pem());
            // A certificate whose key is gone is of no use, and must not be met with a new key.
            remove(&chain_path)?;
            write_whole(&key_path, pem.as_bytes(), SECRET)?;
            write_whole(&chain_path, certify(&key, names)?.as_bytes(), PUBLIC)?;
        } else if !has(&chain_path)? || !bears(&chain_path, names)? {
            let pem = fs::read_to_string(&key_path).map_err(|source| CertificateError::Look {
                path: key_path.clone(),
                source,
            })?;
            let key = KeyPair::from_pem(&Zeroizing::new(pem))?;
            write_whole(&chain_path, certify(&key, names)?.as_bytes(), PUBLIC)?;
        }
        Certificate::from_files(&chain_path, &key_path)
    }

    /// Generates a certificate that is kept nowhere.
    ///
    /// # Errors
    ///
    /// When a name is neither a host name nor an address.
    pub fn throw_away(names: &[String]) -> Result<Certificate, CertificateError> {
        let key = KeyPair::generate()?;
        let certificate = parameters(names)?.self_signed(&key)?;
        let chain = vec![certificate.der().clone()];
        let pin = Pin::of(certificate.der()).map_err(CertificateError::Generated)?;
        Ok(Certificate {
            chain,
            key: PrivateKeyDer::from(key),
            pin,
        })
    }

    /// Returns where the chain is that [`Certificate::kept`] keeps in `directory`.
    pub fn kept_chain(directory: &Path) -> PathBuf {
        directory.join(CHAIN_FILE)
    }

    /// Reads from when to when the first certificate of a PEM file is valid.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or holds no certificate.
    pub fn validity(chain: &Path) -> Result<(SystemTime, SystemTime), CertificateError> {
        let first = CertificateDer::pem_file_iter(chain)
            .and_then(|mut all| all.next().transpose())
            .map_err(|source| CertificateError::Read {
                path: chain.to_owned(),
                source,
            })?
            .ok_or_else(|| CertificateError::NoCertificate {
                path: chain.to_owned(),
            })?;
        let invalid = |source| CertificateError::Invalid {
            path: chain.to_owned(),
            source,
        };
        let parsed = ParsedCertificate::try_from(&first).map_err(invalid)?;
        // A verifier looks at the dates first, and says what they are where they do not fit.
        let asked = |seconds: u64| {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let roots = RootCertStore::empty();
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, &[])
        };
        let told = |time: UnixTime| SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
        let from = match asked(0) {
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidYetContext { not_before, .. },
            )) => told(not_before),
            Err(_) | Ok(()) => SystemTime::UNIX_EPOCH,
        };
        match asked(END_OF_TIMES) {
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext {
                not_after,
                ..
            })) => Ok((from, told(not_after))),
            Err(source) => Err(invalid(source)),
            Ok(()) => Ok((
                from,
                told(UnixTime::since_unix_epoch(Duration::from_secs(
                    END_OF_TIMES,
                ))),
            )),
        }
    }

    /// Returns the fingerprint that a client may pin.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    pub(super) fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("pin", &self.pin)
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate to serve.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file cannot be read, or is not the PEM it should be.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: pem::Error,
    },
    /// A file cannot be looked at.
    #[error("cannot read {path}: {source}")]
    Look {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file has no certificate in it.
    #[error("{path} holds no certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The first certificate in the file cannot be understood.
    #[error("the certificate in {path} is invalid: {source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: rustls::Error,
    },
    /// A certificate cannot be generated for these names, or from this key.
    #[error("cannot generate a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A certificate just generated cannot be understood.
    #[error("cannot use the generated certificate: {0}")]
    Generated(rustls::Error),
    /// What was generated cannot be kept.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Whether the certificate in a file is made out to all of `names`.
fn bears(path: &Path, names: &[String]) -> Result<bool, CertificateError> {
    let certificate =
        CertificateDer::from_pem_file(path).map_err(|source| CertificateError::Read {
            path: path.to_owned(),
            source,
        })?;
    let certificate =
        ParsedCertificate::try_from(&certificate).map_err(|source| CertificateError::Invalid {
            path: path.to_owned(),
            source,
        })?;
    // What is no name at all is told when the certificate is made.
    Ok(names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    }))
}

fn certify(key: &KeyPair, names: &[String]) -> Result<String, CertificateError> {
    Ok(parameters(names)?.self_signed(key)?.pem())
}

/// A plain server certificate, without the marks that a generator leaves by default.
fn parameters(names: &[String]) -> Result<CertificateParams, CertificateError> {
    let names = match names {
        [] => vec!["localhost".to_owned()],
        names => names.to_vec(),
    };
    let mut subject = DistinguishedName::new();
    if let Some(first) = names.first() {
        subject.push(DnType::CommonName, first.clone());
    }
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = subject;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = clock::unix();
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + VALID).into();
    Ok(parameters)
}

fn create_directory(directory: &Path) -> Result<(), CertificateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| CertificateError::Write {
            path: directory.to_owned(),
            source,
        })
}

fn remove(path: &Path) -> Result<(), CertificateError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CertificateError::Write {
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file so that it is there whole, or as it was before, whenever the machine stops.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertificateError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        // Created with 0600, so that a secret is never readable by others even for a moment.
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| CertificateError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The file of a kept private key.
const KEY_FILE: &str = "tls.key";

/// The year 10000, which no certificate can name.
const END_OF_TIMES: u64 = 253_402_300_800;

/// The file of a kept certificate.
const CHAIN_FILE: &str = "tls.crt";

/// The mode of a file with a secret in it.
const SECRET: u32 = 0o600;

/// The mode of a file that everybody may read.
const PUBLIC: u32 = 0o644;

/// A certificate is valid from a day ago, for clients whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a generated certificate is valid: ten years, as those that distributions generate
/// for a new machine. Clients that pin never look.
const VALID: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path)
            .expect("the file is there")
            .permissions()
            .mode()
            & 0o7777
    }

    #[test]
    fn dates_are_those_of_the_certificate() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("dated.crt");
        let mut dated = parameters(&["h".to_owned()]).expect("a name");
        let from = time::OffsetDateTime::from_unix_timestamp(1_000_000_000).expect("a time");
        dated.not_before = from;
        dated.not_after = from + Duration::from_secs(3600);
        let key = KeyPair::generate().expect("a key");
        let made = dated.self_signed(&key).expect("a certificate");
        fs::write(&file, made.pem()).expect("room");
        let (from, until) = Certificate::validity(&file).expect("dates");
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((since(from), since(until)), (1_000_000_000, 1_000_003_600));
    }

    #[test]
    fn generated_certificate_is_kept_across_a_restart() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let directory = state.path().join("new/deep");
        let names = ["vpn.example.com".to_owned()];
        let first = Certificate::kept(&directory, &names).expect("generates");
        let again = Certificate::kept(&directory, &names).expect("reads");
        assert_eq!(first.pin(), again.pin());
        assert_eq!(first.chain, again.chain);
        assert_eq!(mode(&directory.join("tls.key")), 0o600);
        assert_eq!(mode(&directory.join("tls.crt")), 0o644);
        assert_eq!(mode(&directory), 0o700);
        let files = fs::read_dir(&directory).expect("readable").count();
        assert_eq!(files, 2, "temporary files were left behind");
    }

    #[test]
    fn lost_certificate_is_made_anew_with_the_same_pin() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let first = Certificate::kept(state.path(), &[]).expect("generates");
        fs::remove_file(state.path().join("tls.crt")).expect("was there");
        let again = Certificate::kept(state.path(), &[]).expect("makes it anew");
        assert_eq!(first.pin(), again.pin());
    }

    #[test]
    fn kept_certificate_gets_the_names_that_it_lacks_and_keeps_its_pin() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let first = Certificate::kept(state.path(), &[]).expect("generates");
        let names = ["vpn.example.com".to_owned(), "203.0.113.7".to_owned()];
        let named = Certificate::kept(state.path(), &names).expect("makes it anew");
        assert_eq!(first.pin(), named.pin());
        assert!(bears(&state.path().join("tls.crt"), &names).expect("reads"));
        // One name less needs no other certificate.
        let again = Certificate::kept(state.path(), &names[..1]).expect("reads");
        assert_eq!(named.chain, again.chain);
    }

    #[test]
    fn lost_key_gets_a_new_certificate_too() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let first = Certificate::kept(state.path(), &[]).expect("generates");
        fs::remove_file(state.path().join("tls.key")).expect("was there");
        let again = Certificate::kept(state.path(), &[]).expect("generates");
        assert_ne!(first.pin(), again.pin());
        super::super::ServerTls::new(again).expect("key and certificate belong together");
    }

    #[test]
    fn two_servers_have_different_keys() {
        let one = Certificate::throw_away(&[]).expect("generates");
        let other = Certificate::throw_away(&[]).expect("generates");
        assert_ne!(one.pin(), other.pin());
    }

    #[test]
    fn file_that_is_no_certificate_is_named() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let path = state.path().join("empty.pem");
        fs::write(&path, "nothing\n").expect("writable");
        let error = Certificate::from_files(&path, &path).expect_err("no certificate");
        assert!(matches!(error, CertificateError::NoCertificate { .. }));
        assert!(error.to_string().contains("empty.pem"));
        let missing = state.path().join("missing.pem");
        let error = Certificate::from_files(&missing, &path).expect_err("no file");
        assert!(error.to_string().contains("missing.pem"));
    }

    #[test]
    fn unwritable_directory_is_named() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let file = state.path().join("file");
        fs::write(&file, "").expect("writable");
        let error = Certificate::kept(&file.join("below"), &[]).expect_err("a file is in the way");
        assert!(error.to_string().contains("file/below"), "{error}");
    }

    #[test]
    fn name_that_is_no_name_is_refused() {
        let names = ["späte.example".to_owned()];
        assert!(Certificate::throw_away(&names).is_err());
    }
}
