//! The user and password that clients of the proxy must present.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// A user and a password, compared in constant time; cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Secret>);

struct Secret {
    user: Zeroizing<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
}

impl Credentials {
    /// Takes a user and a password that both SOCKS5 and HTTP can carry.
    ///
    /// # Errors
    ///
    /// Each must have 1 to 255 bytes (RFC 1929), and the user no colon (RFC 7617).
    pub fn new(user: &str, password: &str) -> Result<Self, CredentialsError> {
        for (what, value) in [("user", user), ("password", password)] {
            if value.is_empty() || value.len() > MAX_FIELD {
                let len = value.len();
                return Err(CredentialsError::Length { what, len });
            }
        }
        if user.contains(':') {
            return Err(CredentialsError::Colon);
        }
        Ok(Self(Arc::new(Secret {
            user: Zeroizing::new(user.as_bytes().to_vec()),
            password: Zeroizing::new(password.as_bytes().to_vec()),
        })))
    }

    /// Whether these are the right ones. The time taken tells at most the lengths.
    pub fn check(&self, user: &[u8], password: &[u8]) -> bool {
        let user = self.0.user.ct_eq(user);
        let password = self.0.password.ct_eq(password);
        bool::from(user & password)
    }

    /// Checks the value of a `Proxy-Authorization` header (RFC 7617).
    pub fn check_basic(&self, value: &[u8]) -> bool {
        let Some((scheme, encoded)) = value.split_at_checked(BASIC.len()) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(BASIC) {
            return false;
        }
        let Ok(decoded) = STANDARD.decode(encoded.trim_ascii()) else {
            return false;
        };
        let decoded = Zeroizing::new(decoded);
        let Some(colon) = decoded.iter().position(|byte| *byte == b':') else {
            return false;
        };
        let (user, password) = decoded.split_at(colon);
        self.check(user, password.get(1..).unwrap_or_default())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why a user and a password cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A field is empty or too long.
    #[error("the {what} has {len} bytes; 1 to 255 are allowed")]
    Length {
        /// `user` or `password`.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// HTTP separates the two by a colon.
    #[error("the user contains a colon, which HTTP cannot carry")]
    Colon,
}

const BASIC: &[u8] = b"Basic ";

/// RFC 1929 section 2: the length is one byte.
const MAX_FIELD: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_pair_is_accepted() {
        let credentials = Credentials::new("user", "pass:word").unwrap();
        assert!(credentials.check(b"user", b"pass:word"));
        for (user, password) in [
            ("user", "pass:worD"),
            ("User", "pass:word"),
            ("", ""),
            ("user", ""),
            ("user", "pass:word\0"),
            ("userpass:word", ""),
        ] {
            assert!(!credentials.check(user.as_bytes(), password.as_bytes()));
        }
    }

    #[test]
    fn basic_header_is_read_as_rfc_7617_says() {
        let credentials = Credentials::new("user", "pass:word").unwrap();
        let right = STANDARD.encode("user:pass:word");
        for value in [
            format!("Basic {right}"),
            format!("basic {right}"),
            format!("BASIC  {right} "),
        ] {
            assert!(credentials.check_basic(value.as_bytes()), "{value}");
        }
        for value in [
            String::new(),
            "Basic".to_owned(),
            "Basic ".to_owned(),
            right.clone(),
            format!("Bearer {right}"),
            "Basic !!!".to_owned(),
            format!("Basic {}", STANDARD.encode("user")),
            format!("Basic {}", STANDARD.encode("user:pass")),
            format!("Basic {}", STANDARD.encode("")),
        ] {
            assert!(!credentials.check_basic(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn pairs_that_a_protocol_cannot_carry_are_refused() {
        let long = "x".repeat(256);
        assert_eq!(
            Credentials::new("", "p").unwrap_err(),
            CredentialsError::Length {
                what: "user",
                len: 0
            }
        );
        assert_eq!(
            Credentials::new("u", &long).unwrap_err(),
            CredentialsError::Length {
                what: "password",
                len: 256
            }
        );
        assert_eq!(
            Credentials::new("a:b", "p").unwrap_err(),
            CredentialsError::Colon
        );
        assert!(Credentials::new("u", &long[1..]).is_ok());
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        let credentials = Credentials::new("user", "hunter2").unwrap();
        assert_eq!(format!("{credentials:?}"), "Credentials(..)");
    }
}
