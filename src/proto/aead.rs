//! The AEADs a session may be sealed with, in place, and the choice among them.
//!
//! AES-256-GCM where both ends have it in hardware, else ChaCha20-Poly1305; AES-128-GCM and
//! XChaCha20-Poly1305 when the configuration names them.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use subtle::ConstantTimeEq as _;

use crate::wire::{NONCE_LEN, TAG_LEN};

/// An AEAD we speak; the number is the one on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AeadKind {
    /// AES-256-GCM (NIST SP 800-38D): the fastest where the processor has AES.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305 (RFC 8439): the fastest where it has not.
    ChaCha20Poly1305 = 2,
    /// AES-128-GCM (NIST SP 800-38D): a fifth faster than with 256 bits.
    Aes128Gcm = 3,
    /// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha); its 24-byte nonce is 12 zero bytes ‖ ours.
    XChaCha20Poly1305 = 4,
}

impl AeadKind {
    /// Every kind, in the order a server prefers them when hardware does not decide.
    pub const ALL: [Self; 4] = [
        Self::ChaCha20Poly1305,
        Self::Aes256Gcm,
        Self::Aes128Gcm,
        Self::XChaCha20Poly1305,
    ];

    /// What an end offers when its configuration names none.
    pub const DEFAULT: [Self; 2] = [Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Reads a number from the wire; `None` for one this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            3 => Some(Self::Aes128Gcm),
            4 => Some(Self::XChaCha20Poly1305),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Bytes of its key.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 | Self::XChaCha20Poly1305 => 32,
        }
    }

    /// Its name in configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes128Gcm => "aes-128-gcm",
            Self::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }

    const fn bit(self) -> u8 {
        1 << (self.byte() - 1)
    }

    const fn is_aes(self) -> bool {
        match self {
            Self::Aes256Gcm | Self::Aes128Gcm => true,
            Self::ChaCha20Poly1305 | Self::XChaCha20Poly1305 => false,
        }
    }
}

impl std::fmt::Display for AeadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for AeadKind {
    type Err = AeadNameError;

    fn from_str(text: &str) -> Result<Self, AeadNameError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| AeadNameError {
                found: text.to_owned(),
            })
    }
}

/// A text names no AEAD.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found {found:?}, not one of aes-256-gcm, chacha20-poly1305, aes-128-gcm, xchacha20-poly1305"
)]
pub struct AeadNameError {
    /// The text found.
    pub found: String,
}

/// What one end offers: the AEADs it speaks, and those its hardware makes fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AeadOffer {
    /// A bit for each kind spoken.
    pub spoken: u8,
    /// A bit for each of them that is fast here.
    pub hardware: u8,
}

impl AeadOffer {
    /// Offers `kinds`, or [`AeadKind::DEFAULT`] if there are none; `aes_hardware` says whether the
    /// processor has AES and carry-less multiplication.
    #[must_use]
    pub fn new(kinds: &[AeadKind], aes_hardware: bool) -> Self {
        let kinds = if kinds.is_empty() {
            &AeadKind::DEFAULT[..]
        } else {
            kinds
        };
        let mask = |wanted: &dyn Fn(&AeadKind) -> bool| {
            kinds
                .iter()
                .filter(|kind| wanted(kind))
                .fold(0, |mask, kind| mask | kind.bit())
        };
        Self {
            spoken: mask(&|_| true),
            hardware: mask(&|kind| aes_hardware && kind.is_aes()),
        }
    }

    /// Chooses what both speak: an AES both have in hardware (256 bits first), else the first both
    /// speak in the order of [`AeadKind::ALL`]. `None` if there is none.
    #[must_use]
    pub fn choose(self, other: Self) -> Option<AeadKind> {
        let both = self.spoken & other.spoken;
        let fast = both & self.hardware & other.hardware;
        [AeadKind::Aes256Gcm, AeadKind::Aes128Gcm]
            .into_iter()
            .find(|kind| fast & kind.bit() != 0)
            .or_else(|| {
                AeadKind::ALL
                    .into_iter()
                    .find(|kind| both & kind.bit() != 0)
            })
    }

    /// Whether `kind` is among those offered.
    #[must_use]
    pub const fn includes(self, kind: AeadKind) -> bool {
        self.spoken & kind.bit() != 0
    }
}

/// Whether this processor has the instructions that make AES-GCM fast.
#[must_use]
pub fn aes_hardware() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// A key for one direction of one epoch. Erased on drop by the libraries that hold it.
pub(super) enum AeadKey {
    /// Kept by aws-lc.
    AwsLc(LessSafeKey),
    /// Kept by `chacha20poly1305`.
    XChaCha(Box<XChaCha20Poly1305>),
}

impl AeadKey {
    /// Expands the key; `bytes` are exactly [`AeadKind::key_len`] long.
    pub(super) fn new(kind: AeadKind, bytes: &[u8]) -> Self {
        let algorithm = match kind {
            AeadKind::Aes256Gcm => &AES_256_GCM,
            AeadKind::Aes128Gcm => &AES_128_GCM,
            AeadKind::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            AeadKind::XChaCha20Poly1305 => {
                let cipher = XChaCha20Poly1305::new_from_slice(bytes)
                    .unwrap_or_else(|_| unreachable!("xchacha20 key of {} bytes", bytes.len()));
                return Self::XChaCha(Box::new(cipher));
            }
        };
        let key = UnboundKey::new(algorithm, bytes)
            .unwrap_or_else(|_| unreachable!("{kind} key of {} bytes", bytes.len()));
        Self::AwsLc(LessSafeKey::new(key))
    }

    /// Seals `text` in place and returns the tag (RFC 5116, section 2.1).
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_LEN], AeadError> {
        let mut out = [0; TAG_LEN];
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
                    .map_err(|_| AeadError)?;
                out.copy_from_slice(tag.as_ref());
            }
            Self::XChaCha(key) => {
                let tag = key
                    .encrypt_in_place_detached(&extended(nonce), aad, text)
                    .map_err(|_| AeadError)?;
                out.copy_from_slice(&tag);
            }
        }
        Ok(out)
    }

    /// Seals text that ends with `data`, which stands elsewhere and stays as it is; `body` is the rest of the text, room
    /// for `data`, and room for the tag.
    ///
    /// AES-GCM encrypts from `data` straight into `body`; the others would do so block by block, at a fraction of their
    /// speed, so there `data` is copied first.
    pub(super) fn seal_gathered(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        body: &mut [u8],
        data: &[u8],
    ) -> Result<(), AeadError> {
        let split = body.len().checked_sub(TAG_LEN).ok_or(AeadError)?;
        let near = split.checked_sub(data.len()).ok_or(AeadError)?;
        match self {
            Self::AwsLc(key) if !data.is_empty() && key.algorithm() != &CHACHA20_POLY1305 => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let (text, rest) = body.split_at_mut(near);
                key.seal_in_place_scatter(nonce, Aad::from(aad), text, data, rest)
                    .map_err(|_| AeadError)
            }
            Self::AwsLc(_) | Self::XChaCha(_) => {
                body[near..split].copy_from_slice(data);
                let (text, tag) = body.split_at_mut(split);
                tag.copy_from_slice(&self.seal(nonce, aad, text)?);
                Ok(())
            }
        }
    }

    /// Opens `text ‖ tag` in place; on failure the bytes are worth nothing (RFC 5116, section 2.2).
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text_and_tag: &mut [u8],
    ) -> Result<(), AeadError> {
        let split = text_and_tag.len().checked_sub(TAG_LEN).ok_or(AeadError)?;
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(aad), text_and_tag)
                    .map_err(|_| AeadError)?;
            }
            Self::XChaCha(key) => {
                let (text, tag) = text_and_tag.split_at_mut(split);
                key.decrypt_in_place_detached(&extended(nonce), aad, text, (&*tag).into())
                    .map_err(|_| AeadError)?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AeadKey(hidden)")
    }
}

/// The bytes do not open under this key, or are longer than the AEAD can seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AeadError;

/// Compares two challenges, tokens or keys in constant time.
pub(super) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

fn extended(nonce: [u8; NONCE_LEN]) -> XNonce {
    let mut extended = XNonce::default();
    extended[24 - NONCE_LEN..].copy_from_slice(&nonce);
    extended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_stands_in_two_places_is_sealed_as_if_it_stood_in_one() {
        for kind in AeadKind::ALL {
            let key = AeadKey::new(kind, &[7; 32][..kind.key_len()]);
            for (near, far) in [
                (13, 0),
                (13, 1),
                (0, 40),
                (13, 65_536),
                (16, 100),
                (31, 4_096),
            ] {
                let text: Vec<u8> = (0..near + far).map(|at| at as u8).collect();
                let mut whole = text.clone();
                let tag = key.seal([3; NONCE_LEN], b"aad", &mut whole).unwrap();
                whole.extend_from_slice(&tag);
                let mut body = vec![0; near + far + TAG_LEN];
                body[..near].copy_from_slice(&text[..near]);
                key.seal_gathered([3; NONCE_LEN], b"aad", &mut body, &text[near..])
                    .unwrap();
                assert!(body == whole, "{kind}, {near} and {far} bytes");
            }
        }
    }

    #[test]
    fn every_kind_opens_what_it_sealed_and_nothing_changed() {
        for kind in AeadKind::ALL {
            let key = AeadKey::new(kind, &[7; 32][..kind.key_len()]);
            let mut bytes = b"sixteen letters!and more".to_vec();
            let tag = key.seal([1; 12], b"aad", &mut bytes).unwrap();
            bytes.extend_from_slice(&tag);
            for index in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                assert_eq!(
                    key.open([1; 12], b"aad", &mut changed),
                    Err(AeadError),
                    "{kind} byte {index}"
                );
            }
            assert_eq!(
                key.open([2; 12], b"aad", &mut bytes.clone()),
                Err(AeadError)
            );
            assert_eq!(
                key.open([1; 12], b"aae", &mut bytes.clone()),
                Err(AeadError)
            );
            assert_eq!(
                key.open([1; 12], b"aad", &mut bytes.clone()[..15]),
                Err(AeadError)
            );
            key.open([1; 12], b"aad", &mut bytes).unwrap();
            assert_eq!(&bytes[..24], b"sixteen letters!and more");
        }
    }

    #[test]
    fn chacha20_poly1305_vector_of_rfc_8439() {
        // Section 2.8.2.
        let key: Vec<u8> = (0x80..0xA0).collect();
        let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
        let aad = [
            0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
        ];
        let mut text =
            *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip \
            for the future, sunscreen would be it.";
        let tag = AeadKey::new(AeadKind::ChaCha20Poly1305, &key)
            .seal(nonce, &aad, &mut text)
            .unwrap();
        assert_eq!(text[..4], [0xd3, 0x1a, 0x8d, 0x34]);
        assert_eq!(
            tag,
            [
                0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60,
                0x06, 0x91
            ]
        );
    }

    #[test]
    fn aes_256_is_chosen_only_if_both_have_it_in_hardware() {
        let with = AeadOffer::new(&[], true);
        let without = AeadOffer::new(&[], false);
        assert_eq!(with.choose(with), Some(AeadKind::Aes256Gcm));
        assert_eq!(with.choose(without), Some(AeadKind::ChaCha20Poly1305));
        assert_eq!(without.choose(with), Some(AeadKind::ChaCha20Poly1305));
    }

    #[test]
    fn a_named_kind_is_chosen_if_the_other_speaks_it() {
        let all = AeadOffer::new(&AeadKind::ALL, true);
        for kind in AeadKind::ALL {
            assert_eq!(all.choose(AeadOffer::new(&[kind], false)), Some(kind));
        }
        let only = |kind| AeadOffer::new(&[kind], true);
        assert_eq!(
            only(AeadKind::Aes128Gcm).choose(only(AeadKind::XChaCha20Poly1305)),
            None
        );
        let forged = AeadOffer {
            spoken: 0xF0,
            hardware: 0xFF,
        };
        assert_eq!(all.choose(forged), None);
    }

    #[test]
    fn numbers_and_names_come_back() {
        for kind in AeadKind::ALL {
            assert_eq!(AeadKind::from_byte(kind.byte()), Some(kind));
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!(AeadKind::from_byte(0), None);
        assert_eq!(AeadKind::from_byte(5), None);
        assert!("rot13".parse::<AeadKind>().is_err());
    }
}
