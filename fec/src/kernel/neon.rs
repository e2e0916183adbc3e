//! The kernel for 64-bit Arm: byte shuffles by NEON, which every such processor has.
//!
//! The kernel's value is handed out by [`fastest_first`] alone, and only after the processor has
//! said that it has NEON: that is what makes calling it sound.

use std::arch::aarch64::{
    uint8x16_t, vandq_u8, vdupq_n_u8, veorq_u8, vld1q_u8, vqtbl1q_u8, vshrq_n_u8, vst1q_u8,
};
use std::arch::is_aarch64_feature_detected;

use super::scalar::table;
use super::{Kernel, xor};
use crate::gf256::NIBBLES;

/// Returns the kernels of this processor, `None` for those it cannot run.
pub(super) fn fastest_first() -> [Option<&'static dyn Kernel>; 1] {
    [is_aarch64_feature_detected!("neon").then_some(&NEON as &dyn Kernel)]
}

static NEON: Neon = Neon(());

/// Looks 16 products up at once, by halves of a byte.
#[derive(Debug)]
struct Neon(());

impl Kernel for Neon {
    fn name(&self) -> &'static str {
        "neon"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        // SAFETY: the only value is handed out once NEON is there.
        unsafe { mul_add_neon(dst, src, coefficient) }
    }
}

#[target_feature(enable = "neon")]
fn mul_add_neon(dst: &mut [u8], src: &[u8], coefficient: u8) {
    if coefficient == 1 {
        return xor(dst, src);
    }
    let ([low, high], []) = NIBBLES[usize::from(coefficient)].as_chunks::<16>() else {
        unreachable!("32 bytes are two times 16")
    };
    let (low, high) = (load(low), load(high));
    let nibble = vdupq_n_u8(0x0F);
    let len = dst.len().min(src.len());
    let (dst, dst_end) = dst[..len].as_chunks_mut::<16>();
    let (src, src_end) = src[..len].as_chunks::<16>();
    for (d, s) in dst.iter_mut().zip(src) {
        let s = load(s);
        let lower = vqtbl1q_u8(low, vandq_u8(s, nibble));
        let upper = vqtbl1q_u8(high, vshrq_n_u8::<4>(s));
        store(d, veorq_u8(load(d), veorq_u8(lower, upper)));
    }
    table(dst_end, src_end, coefficient);
}

#[inline]
#[target_feature(enable = "neon")]
fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array is 16 bytes long and the load needs no alignment.
    unsafe { vld1q_u8(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(to: &mut [u8; 16], value: uint8x16_t) {
    // SAFETY: the array is 16 bytes long and the store needs no alignment.
    unsafe { vst1q_u8(to.as_mut_ptr(), value) }
}
