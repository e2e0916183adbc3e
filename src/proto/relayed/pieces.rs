//! Bytes of a flow that came in several frames, which stand apart.

/// Bytes in order, in pieces: what one write is to take, though several frames brought it.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    /// How many of the first bytes do not count.
    skipped: usize,
}

impl<'a> Pieces<'a> {
    /// All bytes of `pieces`.
    #[must_use]
    pub const fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self { pieces, skipped: 0 }
    }

    /// All but the first `len` bytes.
    #[must_use]
    pub const fn skip(self, len: usize) -> Self {
        Self {
            pieces: self.pieces,
            skipped: self.skipped.saturating_add(len),
        }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(self) -> usize {
        let all: usize = self.pieces.iter().map(|piece| piece.len()).sum();
        all.saturating_sub(self.skipped)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The bytes, piece by piece; no piece is empty.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut skipped = self.skipped;
        self.pieces.iter().filter_map(move |piece| {
            let rest = piece.get(skipped..);
            skipped = skipped.saturating_sub(piece.len());
            rest.filter(|rest| !rest.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_bytes_they_were_cut_from(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..6),
            skips in prop::collection::vec(0..8usize, 0..3),
        ) {
            let all = pieces.concat();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let cut = skips.iter().fold(Pieces::new(&slices), |cut, len| cut.skip(*len));
            let rest = all.get(skips.iter().sum()..).unwrap_or_default();
            prop_assert_eq!(cut.len(), rest.len());
            prop_assert_eq!(cut.is_empty(), rest.is_empty());
            prop_assert_eq!(cut.iter().collect::<Vec<_>>().concat(), rest);
            prop_assert!(cut.iter().all(|piece| !piece.is_empty()));
        }
    }
}
