//! The coefficient of a source in a repair, a function of the source's number and the repair's key.

/// Returns the coefficient of source `number` in the repairs under `key`: 1 to 255, never 0.
///
/// Both ends compute it from the two numbers alone, in any order, so that a decoder looks up only
/// those of missing sources. RFC 8681 (section 3.6) runs a generator seeded by the key over the whole
/// window instead; the distribution is the same at its greatest density, without the zeros.
///
/// The two are mixed by the finalizer of SplitMix64, and 32 bits of the result are scaled to
/// 1..=255. Keys of repairs whose windows overlap should differ: under one key they have the same
/// coefficients.
pub const fn coefficient(number: u64, key: u16) -> u8 {
    // Odd, and far from any small multiple of another key: keys are drawn in a row.
    const KEY_STEP: u64 = 0xD1B5_4A32_D192_ED03;
    let mut mixed = number
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add((key as u64 + 1).wrapping_mul(KEY_STEP));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (((mixed >> 32) * 255) >> 32) as u8 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nonzero_coefficient_is_about_as_frequent_and_zero_never_comes() {
        let mut counts = [0_u32; 256];
        for key in 0..100 {
            for number in 0..2_550 {
                counts[usize::from(coefficient(number, key))] += 1;
            }
        }
        assert_eq!(counts[0], 0);
        // 1,000 each on average, with a standard deviation of 32.
        let (least, most) = (counts[1..].iter().min(), counts[1..].iter().max());
        assert!(
            least > Some(&850) && most < Some(&1_150),
            "{least:?} {most:?}"
        );
    }

    #[test]
    fn two_sources_under_two_keys_in_a_row_are_singular_as_rarely_as_chance_has_it() {
        let (mut singular, mut tried) = (0, 0);
        for key in 0..200 {
            for number in 0..100 {
                let (a, b) = (coefficient(number, key), coefficient(number + 1, key));
                let (c, d) = (
                    coefficient(number, key + 1),
                    coefficient(number + 1, key + 1),
                );
                tried += 1;
                singular += u32::from(crate::gf256::multiply(a, d) == crate::gf256::multiply(b, c));
            }
        }
        // One in 255: 78 of 20,000, with a standard deviation of 9.
        assert!((40..=120).contains(&singular), "{singular} of {tried}");
    }

    #[test]
    fn coefficients_are_what_the_other_end_of_the_world_computes() {
        let known: Vec<u8> = (0..4)
            .flat_map(|key| (0..4).map(move |number| coefficient(number, key)))
            .chain([coefficient(u64::MAX, u16::MAX), coefficient(1 << 32, 7)])
            .collect();
        assert_eq!(known, KNOWN);
    }

    /// By another implementation, in Python. Another rule is another protocol.
    const KNOWN: [u8; 18] = [
        130, 45, 118, 134, 108, 61, 90, 27, 97, 25, 170, 151, 122, 126, 162, 106, 116, 120,
    ];
}
