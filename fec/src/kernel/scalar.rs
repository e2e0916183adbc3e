//! The kernel for any processor: one table look-up per byte.

use super::{Kernel, xor};
use crate::gf256::PRODUCT;

/// Looks every product up in a table of 256 bytes per coefficient.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Kernel for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        match coefficient {
            0 => {}
            1 => xor(dst, src),
            _ => table(dst, src, coefficient),
        }
    }
}

/// Adds by look-up; also what the vector kernels leave over at the end of a shard.
#[inline]
pub(super) fn table(dst: &mut [u8], src: &[u8], coefficient: u8) {
    let products = &PRODUCT[usize::from(coefficient)];
    for (d, &s) in dst.iter_mut().zip(src) {
        *d ^= products[usize::from(s)];
    }
}
