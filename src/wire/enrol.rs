//! Enrolment: what a link proves, what the server answers, and the names that clients are given.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The secret of an invitation. Erased on drop; never printed by `Debug`.
#[derive(Clone)]
pub struct Token(Zeroizing<[u8; TOKEN_LEN]>);

impl Token {
    /// Takes the bytes as they are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TOKEN_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; TOKEN_LEN] {
        &self.0
    }
}

impl PartialEq for Token {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for Token {}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Names an invitation in message 1: derived from its token, which it does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvitationId(pub [u8; INVITATION_ID_LEN]);

/// What the server makes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The key is a client's from now on, or was made one by this invitation before.
    Enrolled,
    /// Another key was enrolled by this invitation.
    Used,
    /// Its time is over.
    Late,
    /// The token is not the invitation's.
    WrongToken,
    /// It was withdrawn.
    Withdrawn,
    /// The key is a client's already, by other ways than this invitation.
    KnownKey,
    /// There are as many clients as the server keeps.
    Full,
    /// The server could not write it down.
    NotKept,
    /// Another client has the name that it was to have.
    NameTaken,
    /// An answer this version does not know.
    Unknown(u8),
}

impl Verdict {
    /// Reads a verdict byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Enrolled,
            1 => Self::Used,
            2 => Self::Late,
            3 => Self::WrongToken,
            4 => Self::Withdrawn,
            5 => Self::KnownKey,
            6 => Self::Full,
            7 => Self::NotKept,
            8 => Self::NameTaken,
            other => Self::Unknown(other),
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Enrolled => 0,
            Self::Used => 1,
            Self::Late => 2,
            Self::WrongToken => 3,
            Self::Withdrawn => 4,
            Self::KnownKey => 5,
            Self::Full => 6,
            Self::NotKept => 7,
            Self::NameTaken => 8,
            Self::Unknown(byte) => byte,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enrolled => f.write_str("enrolled"),
            Self::Used => f.write_str("this invitation was used already: a link works once"),
            Self::Late => f.write_str("this invitation has ended"),
            Self::WrongToken => f.write_str("the link is damaged: its secret is not the invitation's"),
            Self::Withdrawn => f.write_str("this invitation was withdrawn"),
            Self::KnownKey => f.write_str("the server knows this key already as that of a client"),
            Self::Full => f.write_str("the server keeps as many clients as it can"),
            Self::NotKept => f.write_str("the server could not write the new client down; its log says why"),
            Self::NameTaken => f.write_str(
                "the server has given the name to another client meanwhile: ask for a new invitation",
            ),
            Self::Unknown(byte) => write!(f, "the server refuses it for reason {byte}"),
        }
    }
}

/// Whether a text may be a client's name: 1 to [`MAX_NAME_LEN`] letters, digits and `-`, `_`, `.`, `@`, so that it is one
/// word of a command line, a log and a list.
#[must_use]
pub fn is_client_name(text: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&text.len())
        && (text.chars()).all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
}

/// Bytes of a token: 256 bits cannot be guessed.
pub const TOKEN_LEN: usize = 32;

/// Bytes of an invitation's name: 128 bits do not repeat by chance, and are no easier to guess than a token's use is worth.
pub const INVITATION_ID_LEN: usize = 16;

/// Bytes of the longest name of a client: it is shown in a line of a log.
pub const MAX_NAME_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_survives_its_byte() {
        for byte in 0..=255 {
            assert_eq!(Verdict::from_byte(byte).byte(), byte);
        }
    }

    #[test]
    fn token_is_never_printed() {
        assert_eq!(
            format!("{:?}", Token::from_bytes([7; TOKEN_LEN])),
            "Token(hidden)"
        );
    }

    #[test]
    fn names_are_single_words() {
        for name in [
            "laptop",
            "a",
            "anna@work",
            "ci-7.example_x",
            &"n".repeat(64),
        ] {
            assert!(is_client_name(name), "{name}");
        }
        for name in ["", "two words", "a/b", "ä", "a\n", &"n".repeat(65)] {
            assert!(!is_client_name(name), "{name}");
        }
    }
}
