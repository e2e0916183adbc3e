//! The inner loop of every code here, `dst += coefficient · src`, for each kind of processor.
//!
//! One program has to run everywhere, so the kernel is chosen when it runs and not when it is
//! compiled: [`best`] asks the processor. A kernel exists for a caller only if the processor it
//! runs on has what the kernel needs.

mod scalar;

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

use std::fmt;

pub use scalar::Scalar;

/// Multiplies and adds over GF(2^8), byte by byte.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Returns the kernel's name, as it stands in benchmarks and logs.
    fn name(&self) -> &'static str;

    /// Adds `coefficient · src` to `dst`, over the length of the shorter; bytes of `dst` beyond it
    /// stay.
    fn mul_add(&self, dst: &mut [u8], src: &[u8], coefficient: u8);
}

/// Returns the fastest kernel that this processor can run.
pub fn best() -> &'static dyn Kernel {
    arch::fastest_first()
        .into_iter()
        .flatten()
        .next()
        .unwrap_or(&Scalar)
}

/// Returns every kernel that this processor can run, the fastest first; [`Scalar`] is the last.
pub fn available() -> Vec<&'static dyn Kernel> {
    let mut kernels: Vec<_> = arch::fastest_first().into_iter().flatten().collect();
    kernels.push(&Scalar);
    kernels
}

#[cfg(target_arch = "x86_64")]
use x86 as arch;

#[cfg(target_arch = "aarch64")]
use neon as arch;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    //! No kernel beyond the scalar one is written for this processor.

    pub(super) fn fastest_first() -> [Option<&'static dyn super::Kernel>; 0] {
        []
    }
}

/// Adds `src` to `dst`: multiplication by one.
#[inline(always)]
fn xor(dst: &mut [u8], src: &[u8]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d ^= s;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    fn expected(dst: &[u8], src: &[u8], coefficient: u8) -> Vec<u8> {
        let mut sum = dst.to_vec();
        for (d, &s) in sum.iter_mut().zip(src) {
            *d ^= reference::multiply(coefficient, s);
        }
        sum
    }

    #[test]
    fn every_kernel_multiplies_every_byte_by_every_coefficient() {
        let src: Vec<u8> = (0..=255).collect();
        let dst: Vec<u8> = (0..=255_u8)
            .map(|b| b.wrapping_mul(167).rotate_left(3))
            .collect();
        for kernel in available() {
            for coefficient in 0..=255 {
                let mut sum = dst.clone();
                kernel.mul_add(&mut sum, &src, coefficient);
                assert_eq!(
                    sum,
                    expected(&dst, &src, coefficient),
                    "{kernel:?} by {coefficient}"
                );
            }
        }
    }

    #[test]
    fn every_kernel_agrees_with_the_oracle_on_a_shard() {
        let src: Vec<u8> = (0..1300_u32).map(|i| (i * i / 7) as u8).collect();
        for kernel in available() {
            for coefficient in [0, 1, 2, 29, 128, 255] {
                let mut sum = vec![0x5A; src.len()];
                let mut oracle = sum.clone();
                kernel.mul_add(&mut sum, &src, coefficient);
                reed_solomon_erasure::galois_8::mul_slice_xor(coefficient, &src, &mut oracle);
                assert_eq!(sum, oracle, "{kernel:?} by {coefficient}");
            }
        }
    }

    #[test]
    fn every_kernel_touches_no_byte_beyond_the_shorter_slice_at_any_length_and_alignment() {
        let bytes: Vec<u8> = (0..400_u32).map(|i| (i * 89 + 7) as u8).collect();
        for kernel in available() {
            for len in 0..200 {
                for offset in [0, 1, 7, 31] {
                    let src = &bytes[offset..offset + len];
                    let mut longer = bytes.clone();
                    kernel.mul_add(&mut longer[offset / 2..], src, 0xA7);
                    let mut want = bytes.clone();
                    want.splice(offset / 2.., expected(&bytes[offset / 2..], src, 0xA7));
                    assert_eq!(longer, want, "{kernel:?}, {len} bytes at {offset}");

                    let mut shorter = src.to_vec();
                    kernel.mul_add(&mut shorter, &bytes[offset..], 0xA7);
                    assert_eq!(shorter, expected(src, &bytes[offset..], 0xA7), "{kernel:?}");
                }
            }
        }
    }

    #[test]
    fn the_best_kernel_is_the_first_and_names_are_unique() {
        let kernels = available();
        assert_eq!(best().name(), kernels[0].name());
        let mut names: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), kernels.len());
    }

    proptest! {
        #[test]
        fn every_kernel_equals_long_multiplication(
            dst in prop::collection::vec(any::<u8>(), 0..700),
            src in prop::collection::vec(any::<u8>(), 0..700),
            coefficient: u8,
        ) {
            let want = expected(&dst, &src, coefficient);
            for kernel in available() {
                let mut sum = dst.clone();
                kernel.mul_add(&mut sum, &src, coefficient);
                prop_assert_eq!(&sum, &want, "{:?}", kernel);
            }
        }
    }
}
