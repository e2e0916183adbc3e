//! What an invitation's token stands for: the name that it has in the clear, and the hash that a server keeps.

use aws_lc_rs::{digest, hkdf};

use super::random::{Generator, expand};
use crate::wire::{INVITATION_ID_LEN, InvitationId, TOKEN_LEN, Token};

/// Draws the token of a new invitation.
#[must_use]
pub fn draw_token(rng: &mut impl rand::CryptoRng) -> Token {
    Token::from_bytes(Generator::new(rng).array::<TOKEN_LEN>())
}

/// Derives what names the invitation in message 1; nobody learns the token from it.
#[must_use]
pub fn invitation_id(token: &Token) -> InvitationId {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL).extract(token.as_bytes());
    let mut id = [0; INVITATION_ID_LEN];
    expand(&prk, &[b"id"], &mut id);
    InvitationId(id)
}

/// Derives what a server keeps to know the token again.
#[must_use]
pub fn token_hash(token: &Token) -> [u8; TOKEN_HASH_LEN] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(LABEL);
    context.update(token.as_bytes());
    let mut hash = [0; TOKEN_HASH_LEN];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Bytes of the hash: SHA-256.
pub const TOKEN_HASH_LEN: usize = 32;

const LABEL: &[u8] = b"adit invitation";

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn each_token_has_an_id_and_a_hash_of_its_own() {
        let mut rng = StdRng::seed_from_u64(1);
        let (one, two) = (draw_token(&mut rng), draw_token(&mut rng));
        assert_ne!(one, two);
        assert_ne!(invitation_id(&one), invitation_id(&two));
        assert_ne!(token_hash(&one), token_hash(&two));
        assert_eq!(invitation_id(&one), invitation_id(&one.clone()));
    }

    /// So that another implementation can be checked by it; computed by Python's hmac and hashlib.
    #[test]
    fn vectors() {
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let token = Token::from_bytes([0x11; TOKEN_LEN]);
        assert_eq!(
            hex(&invitation_id(&token).0),
            "49c80be0ffa533a7a655bbf4e634265d"
        );
        assert_eq!(
            hex(&token_hash(&token)),
            "f4a2b730592c8856657633cf22dd07d52e397cd40813088bd2e7a453dff1e593"
        );
    }
}
