//! The field GF(2^8) with polynomial 0x11D: its tables, computed when the crate is compiled.

/// The reduction polynomial x^8 + x^4 + x^3 + x^2 + 1, as bits with the highest first.
///
/// It is primitive, so that x itself (2) generates every nonzero element and one pair of
/// logarithm tables serves. It is the polynomial of RFC 5510 and of most erasure coding
/// software, which gives other implementations to compare with.
pub const FIELD_POLYNOMIAL: u16 = 0x11D;

/// The number of nonzero elements: exponents of the generator repeat after so many.
pub(crate) const ORDER: usize = 255;

/// `EXP[i]` is 2^i. Three periods, so that a sum of three logarithms needs no reduction.
pub(crate) static EXP: [u8; 3 * ORDER + 1] = exp_table();

/// `LOG[a]` is the i below 255 with 2^i = a.
///
/// Zero has no logarithm; its entry is 0, so that it is left out of a product computed as a sum.
pub(crate) static LOG: [u8; 256] = log_table();

/// `PRODUCT[c][a]` is c·a: 64 KiB, of which one coefficient touches four cache lines.
pub(crate) static PRODUCT: [[u8; 256]; 256] = product_table();

/// `NIBBLES[c]` holds c·a for a = 0..16, then c·(a·16) for a = 0..16.
///
/// Sixteen bytes are what a byte shuffle of SSSE3, AVX2 or NEON can look up at once; a product is
/// the sum of the products of the two halves of a byte.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
pub(crate) static NIBBLES: [[u8; 32]; 256] = nibble_table();

/// `AFFINE[c]` is the multiplication by c as the 8x8 bit matrix that `GF2P8AFFINEQB` takes.
///
/// That instruction's own multiplication is fixed to polynomial 0x11B, hence the matrix.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) static AFFINE: [u64; 256] = affine_table();

/// Multiplies two elements by their logarithms.
pub(crate) const fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        0
    } else {
        EXP[LOG[a as usize] as usize + LOG[b as usize] as usize]
    }
}

/// Divides `a` by `b`, which is not zero: a caller that cannot know has to ask first.
pub(crate) const fn divide(a: u8, b: u8) -> u8 {
    debug_assert!(b != 0, "division by zero in GF(2^8)");
    if a == 0 {
        0
    } else {
        EXP[LOG[a as usize] as usize + ORDER - LOG[b as usize] as usize]
    }
}

const fn exp_table() -> [u8; 3 * ORDER + 1] {
    let mut table = [0; 3 * ORDER + 1];
    let mut power: u16 = 1;
    let mut i = 0;
    while i < table.len() {
        table[i] = power as u8;
        power <<= 1;
        if power & 0x100 != 0 {
            power ^= FIELD_POLYNOMIAL;
        }
        i += 1;
    }
    table
}

const fn log_table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < ORDER {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
}

const fn product_table() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut c = 0;
    while c < 256 {
        let mut a = 0;
        while a < 256 {
            table[c][a] = multiply(c as u8, a as u8);
            a += 1;
        }
        c += 1;
    }
    table
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
const fn nibble_table() -> [[u8; 32]; 256] {
    let mut table = [[0; 32]; 256];
    let mut c = 0;
    while c < 256 {
        let mut a = 0;
        while a < 16 {
            table[c][a] = multiply(c as u8, a as u8);
            table[c][16 + a] = multiply(c as u8, (a as u8) << 4);
            a += 1;
        }
        c += 1;
    }
    table
}

#[cfg(any(target_arch = "x86_64", test))]
const fn affine_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut c = 0;
    while c < 256 {
        // Byte 7 - i of the matrix selects the input bits whose sum is output bit i.
        let mut input = 0;
        while input < 8 {
            let product = multiply(c as u8, 1 << input);
            let mut output = 0;
            while output < 8 {
                if product >> output & 1 == 1 {
                    table[c] |= 1 << ((7 - output) * 8 + input);
                }
                output += 1;
            }
            input += 1;
        }
        c += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn the_generator_reaches_every_nonzero_element_once() {
        let mut seen = [false; 256];
        for &power in &EXP[..ORDER] {
            assert!(
                !std::mem::replace(&mut seen[usize::from(power)], true),
                "{power} twice"
            );
        }
        assert!(!seen[0]);
        assert_eq!(EXP[ORDER], 1);
    }

    #[test]
    fn every_product_equals_long_multiplication_and_the_oracle() {
        for a in 0..=255 {
            for b in 0..=255 {
                let expected = reference::multiply(a, b);
                assert_eq!(multiply(a, b), expected, "{a} * {b}");
                assert_eq!(
                    PRODUCT[usize::from(a)][usize::from(b)],
                    expected,
                    "{a} * {b}"
                );
                assert_eq!(
                    reed_solomon_erasure::galois_8::mul(a, b),
                    expected,
                    "{a} * {b}"
                );
                let halves = &NIBBLES[usize::from(a)];
                let sum = halves[usize::from(b & 15)] ^ halves[16 + usize::from(b >> 4)];
                assert_eq!(sum, expected, "{a} * {b} by halves");
            }
        }
    }

    #[test]
    fn every_quotient_times_its_divisor_is_the_dividend() {
        for a in 0..=255 {
            for b in 1..=255 {
                assert_eq!(reference::multiply(divide(a, b), b), a, "{a} / {b}");
                assert_eq!(
                    reed_solomon_erasure::galois_8::div(a, b),
                    divide(a, b),
                    "{a} / {b}"
                );
            }
        }
    }

    #[test]
    fn every_bit_matrix_multiplies_as_the_instruction_is_specified() {
        for c in 0..=255_u8 {
            let rows = AFFINE[usize::from(c)].to_le_bytes();
            for a in 0..=255_u8 {
                let bits = (0..8).map(|i| ((rows[7 - i] & a).count_ones() as u8 & 1) << i);
                assert_eq!(bits.sum::<u8>(), reference::multiply(c, a), "{c} * {a}");
            }
        }
    }
}
