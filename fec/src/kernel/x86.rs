//! Kernels for x86-64: byte shuffles (SSSE3, AVX2) and bit-matrix products (GFNI on AVX2 and AVX-512).
//!
//! A kernel's value is handed out by [`fastest_first`] alone, and only after the processor has said
//! that it has the kernel's instructions: that is what makes calling them sound.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8, _mm_shuffle_epi8,
    _mm_srli_epi64, _mm_storeu_si128, _mm_xor_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi64x,
    _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
    _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_storeu_si512, _mm512_xor_si512,
};

use super::scalar::table;
use super::{Kernel, xor};
use crate::gf256::{AFFINE, NIBBLES};

/// Returns the kernels of this processor, `None` for those it cannot run.
pub(super) fn fastest_first() -> [Option<&'static dyn Kernel>; 4] {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let avx2 = is_x86_feature_detected!("avx2");
    let gfni = is_x86_feature_detected!("gfni");
    let ssse3 = is_x86_feature_detected!("ssse3");
    [
        (gfni && avx512 && avx2).then_some(&GFNI512 as &dyn Kernel),
        (gfni && avx2 && ssse3).then_some(&GFNI256 as &dyn Kernel),
        (avx2 && ssse3).then_some(&AVX2 as &dyn Kernel),
        ssse3.then_some(&SSSE3 as &dyn Kernel),
    ]
}

static GFNI512: Gfni512 = Gfni512(());
static GFNI256: Gfni256 = Gfni256(());
static AVX2: Avx2 = Avx2(());
static SSSE3: Ssse3 = Ssse3(());

/// Multiplies 64 bytes at once by a bit matrix; the end of a shard is masked, never left over.
#[derive(Debug)]
struct Gfni512(());

impl Kernel for Gfni512 {
    fn name(&self) -> &'static str {
        "gfni-avx512"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        // SAFETY: the only value is handed out once GFNI, AVX-512F and AVX-512BW are there.
        unsafe { mul_add_gfni512(dst, src, coefficient) }
    }
}

/// Multiplies 32 bytes at once by a bit matrix.
#[derive(Debug)]
struct Gfni256(());

impl Kernel for Gfni256 {
    fn name(&self) -> &'static str {
        "gfni-avx2"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        // SAFETY: the only value is handed out once GFNI, AVX2 and SSSE3 are there.
        unsafe { mul_add_gfni256(dst, src, coefficient) }
    }
}

/// Looks 32 products up at once, by halves of a byte.
#[derive(Debug)]
struct Avx2(());

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        // SAFETY: the only value is handed out once AVX2 and SSSE3 are there.
        unsafe { mul_add_avx2(dst, src, coefficient) }
    }
}

/// Looks 16 products up at once, by halves of a byte.
#[derive(Debug)]
struct Ssse3(());

impl Kernel for Ssse3 {
    fn name(&self) -> &'static str {
        "ssse3"
    }

    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8) {
        // SAFETY: the only value is handed out once SSSE3 is there.
        unsafe { mul_add_ssse3(dst, src, coefficient) }
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn mul_add_gfni512(dst: &mut [u8], src: &[u8], coefficient: u8) {
    let matrix = _mm512_set1_epi64(AFFINE[usize::from(coefficient)] as i64);
    let len = dst.len().min(src.len());
    let (dst, dst_end) = dst[..len].as_chunks_mut::<64>();
    let (src, src_end) = src[..len].as_chunks::<64>();
    for (d, s) in dst.iter_mut().zip(src) {
        // SAFETY: both arrays are 64 bytes long, and neither access needs alignment.
        unsafe {
            let s = _mm512_loadu_si512(s.as_ptr().cast());
            let sum = _mm512_xor_si512(
                _mm512_loadu_si512(d.as_ptr().cast()),
                _mm512_gf2p8affine_epi64_epi8::<0>(s, matrix),
            );
            _mm512_storeu_si512(d.as_mut_ptr().cast::<__m512i>(), sum);
        }
    }
    if !src_end.is_empty() {
        let mask = (1_u64 << src_end.len()) - 1;
        // SAFETY: both ends have the same length below 64, the mask has one bit for each of their
        // bytes, and what is masked out is neither read nor written.
        unsafe {
            let s = _mm512_maskz_loadu_epi8(mask, src_end.as_ptr().cast());
            let sum = _mm512_xor_si512(
                _mm512_maskz_loadu_epi8(mask, dst_end.as_ptr().cast()),
                _mm512_gf2p8affine_epi64_epi8::<0>(s, matrix),
            );
            _mm512_mask_storeu_epi8(dst_end.as_mut_ptr().cast(), mask, sum);
        }
    }
}

#[target_feature(enable = "gfni,avx2,ssse3")]
fn mul_add_gfni256(dst: &mut [u8], src: &[u8], coefficient: u8) {
    let matrix = _mm256_set1_epi64x(AFFINE[usize::from(coefficient)] as i64);
    let len = dst.len().min(src.len());
    let (dst, dst_end) = dst[..len].as_chunks_mut::<32>();
    let (src, src_end) = src[..len].as_chunks::<32>();
    for (d, s) in dst.iter_mut().zip(src) {
        let product = _mm256_gf2p8affine_epi64_epi8::<0>(load256(s), matrix);
        store256(d, _mm256_xor_si256(load256(d), product));
    }
    mul_add_ssse3(dst_end, src_end, coefficient);
}

#[target_feature(enable = "avx2,ssse3")]
fn mul_add_avx2(dst: &mut [u8], src: &[u8], coefficient: u8) {
    if coefficient == 1 {
        return xor(dst, src);
    }
    let ([low, high], []) = NIBBLES[usize::from(coefficient)].as_chunks::<16>() else {
        unreachable!("32 bytes are two times 16")
    };
    let low = _mm256_broadcastsi128_si256(load128(low));
    let high = _mm256_broadcastsi128_si256(load128(high));
    let nibble = _mm256_set1_epi8(0x0F);
    let len = dst.len().min(src.len());
    let (dst, dst_end) = dst[..len].as_chunks_mut::<32>();
    let (src, src_end) = src[..len].as_chunks::<32>();
    for (d, s) in dst.iter_mut().zip(src) {
        let s = load256(s);
        let lower = _mm256_and_si256(s, nibble);
        let upper = _mm256_and_si256(_mm256_srli_epi64::<4>(s), nibble);
        let product = _mm256_xor_si256(
            _mm256_shuffle_epi8(low, lower),
            _mm256_shuffle_epi8(high, upper),
        );
        store256(d, _mm256_xor_si256(load256(d), product));
    }
    mul_add_ssse3(dst_end, src_end, coefficient);
}

#[target_feature(enable = "ssse3")]
fn mul_add_ssse3(dst: &mut [u8], src: &[u8], coefficient: u8) {
    if coefficient == 1 {
        return xor(dst, src);
    }
    let ([low, high], []) = NIBBLES[usize::from(coefficient)].as_chunks::<16>() else {
        unreachable!("32 bytes are two times 16")
    };
    let (low, high) = (load128(low), load128(high));
    let nibble = _mm_set1_epi8(0x0F);
    let len = dst.len().min(src.len());
    let (dst, dst_end) = dst[..len].as_chunks_mut::<16>();
    let (src, src_end) = src[..len].as_chunks::<16>();
    for (d, s) in dst.iter_mut().zip(src) {
        let s = load128(s);
        let lower = _mm_and_si128(s, nibble);
        let upper = _mm_and_si128(_mm_srli_epi64::<4>(s), nibble);
        let product = _mm_xor_si128(_mm_shuffle_epi8(low, lower), _mm_shuffle_epi8(high, upper));
        store128(d, _mm_xor_si128(load128(d), product));
    }
    table(dst_end, src_end, coefficient);
}

#[inline]
#[target_feature(enable = "sse2")]
fn load128(from: &[u8; 16]) -> __m128i {
    // SAFETY: the array is 16 bytes long and the load needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn store128(to: &mut [u8; 16], value: __m128i) {
    // SAFETY: the array is 16 bytes long and the store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load256(from: &[u8; 32]) -> __m256i {
    // SAFETY: the array is 32 bytes long and the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn store256(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array is 32 bytes long and the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}
