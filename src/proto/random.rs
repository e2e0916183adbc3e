//! A seeded generator that forgets: what it gave cannot be computed again from what it still holds.
//!
//! A session makes key material for as long as it lives. A stream cipher under one key would let
//! whoever reads the process's memory later compute every earlier ephemeral key, so the seed is
//! replaced at each draw (fast key erasure): `seed' ‖ output = HKDF-Expand(seed)`.

use aws_lc_rs::hkdf;
use rand::CryptoRng;
use zeroize::{Zeroize, Zeroizing};

/// The generator. Equal seeds give equal bytes, which is what tests want.
pub(super) struct Generator {
    seed: Zeroizing<[u8; 32]>,
}

impl Generator {
    /// Draws a seed from `rng`.
    pub(super) fn new(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self { seed }
    }

    /// Fills `out` with random bytes and replaces the seed.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(CHUNK) {
            let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*self.seed);
            expand(&prk, &[b"output"], chunk);
            let mut next = Zeroizing::new([0; 32]);
            expand(&prk, &[b"next seed"], &mut *next);
            self.seed.copy_from_slice(&*next);
        }
    }

    /// Draws an array.
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// Draws a number.
    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// Makes a generator of its own, whose bytes tell nothing of this one's.
    #[must_use]
    pub(super) fn child(&mut self) -> Self {
        let mut bytes: [u8; 32] = self.array();
        let seed = Zeroizing::new(bytes);
        bytes.zeroize();
        Self { seed }
    }
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").finish_non_exhaustive()
    }
}

/// Fills `out`, at most 255 hashes long, with `HKDF-Expand(prk, info)` (RFC 5869, section 2.3).
pub(super) fn expand(prk: &hkdf::Prk, info: &[&[u8]], out: &mut [u8]) {
    // Both steps fail only for an output longer than 255 hashes, or one of another length than
    // asked for; every caller asks for a constant below that.
    prk.expand(info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .unwrap_or_else(|_| unreachable!("hkdf output of {} bytes", out.len()));
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Bytes per draw: well under the 8,160 that one HKDF-Expand can give.
const CHUNK: usize = 1024;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_and_draws_never_repeat() {
        let mut a = Generator::new(&mut StdRng::seed_from_u64(1));
        let mut b = Generator::new(&mut StdRng::seed_from_u64(1));
        let mut other = Generator::new(&mut StdRng::seed_from_u64(2));
        let first: [u8; 32] = a.array();
        assert_eq!(first, b.array());
        assert_ne!(first, other.array());
        assert_ne!(first, a.array());
    }

    #[test]
    fn the_seed_held_is_not_the_seed_that_gave_the_bytes() {
        let mut a = Generator::new(&mut StdRng::seed_from_u64(1));
        let before = *a.seed;
        let drawn: [u8; 32] = a.array();
        assert_ne!(*a.seed, before);
        assert_ne!(*a.seed, drawn);
    }

    #[test]
    fn a_child_gives_other_bytes_than_its_parent() {
        let mut parent = Generator::new(&mut StdRng::seed_from_u64(1));
        let mut child = parent.child();
        assert_ne!(parent.array::<32>(), child.array::<32>());
    }

    #[test]
    fn long_output_is_filled_to_its_end() {
        let mut out = vec![0; 5000];
        Generator::new(&mut StdRng::seed_from_u64(3)).fill(&mut out);
        assert!(
            out.chunks(16)
                .all(|chunk| chunk.iter().any(|byte| *byte != 0))
        );
    }
}
