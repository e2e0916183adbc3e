//! Endless pseudo-random bytes with a seed, and their SHA-256, never held in memory.
//!
//! Byte `i` depends on the seed and on `i` alone, so that any part can be made or checked without what came before.

use aws_lc_rs::digest;

/// A position in the stream of one seed.
#[derive(Clone, Debug)]
pub struct Stream {
    seed: u64,
    position: u64,
}

impl Stream {
    /// The stream of `seed`, from its first byte.
    pub fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// Fills `out` with the next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut rest = out;
        let skip = usize::try_from(self.position % 8).unwrap_or(0);
        if skip != 0 {
            let word = self.word(self.position / 8).to_le_bytes();
            let take = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(take);
            head.copy_from_slice(&word[skip..skip + take]);
            self.position += take as u64;
            rest = tail;
        }
        for chunk in rest.chunks_mut(8) {
            let word = self.word(self.position / 8).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
            self.position += chunk.len() as u64;
        }
    }

    /// How many bytes have been taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The finalizer of SplitMix64 over a counter: enough that a shifted, repeated or lost byte changes what follows.
    fn word(&self, index: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A running SHA-256 with the number of bytes it covers.
#[derive(Clone)]
pub struct Hasher {
    context: digest::Context,
    length: u64,
}

impl Hasher {
    /// The hash of nothing yet.
    pub fn new() -> Self {
        Self {
            context: digest::Context::new(&digest::SHA256),
            length: 0,
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// The bytes added so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The hash, as 64 lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        hex(self.context.finish().as_ref())
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// The SHA-256 of the first `length` bytes of the stream of `seed`, as hexadecimal digits.
pub fn sha256(seed: u64, length: u64) -> String {
    let mut stream = Stream::new(seed);
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    while stream.position() < length {
        let left = usize::try_from(length - stream.position()).unwrap_or(usize::MAX);
        let part = &mut buffer[..left.min(CHUNK)];
        stream.fill(part);
        hasher.update(part);
    }
    hasher.finish()
}

/// `bytes` as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What origins write and hash at a time; fits the second-level cache.
pub const CHUNK: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_the_same_stream() {
        let mut whole = vec![0; 1000];
        Stream::new(7).fill(&mut whole);
        let mut stream = Stream::new(7);
        let mut pieces = Vec::new();
        for size in [1, 2, 3, 7, 8, 9, 64, 100, 406, 400] {
            let mut piece = vec![0; size];
            stream.fill(&mut piece);
            pieces.extend_from_slice(&piece);
        }
        assert_eq!(whole, pieces);
        assert_eq!(stream.position(), 1000);
    }

    #[test]
    fn hash_is_that_of_the_bytes() {
        let mut bytes = vec![0; 100_001];
        Stream::new(3).fill(&mut bytes);
        let mut hasher = Hasher::new();
        hasher.update(&bytes);
        assert_eq!(hasher.length(), 100_001);
        assert_eq!(hasher.finish(), sha256(3, 100_001));
        assert_ne!(sha256(3, 100_001), sha256(4, 100_001));
    }

    #[test]
    fn hash_of_nothing_is_the_one_of_fips_180() {
        assert_eq!(
            sha256(1, 0),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
