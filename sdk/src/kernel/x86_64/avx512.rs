//! The layers of a network in 512 bits, those of codes around `vpdpbusd`.

use super::{Layer, Panels, scalar};
use crate::kernel::coded::CODED_INPUTS;
use std::arch::x86_64::*;

/// Values of a vector.
const LANES: usize = 16;
/// Such values.
type Floats = __m512;
/// As many sums of integers.
type Sums = __m512i;
/// An input of a layer of codes, as wide as it is multiplied.
type Code = i8;
/// Inputs whose products a lane takes at once.
const GROUP: usize = super::vnni::avx512_vnni::GROUP;

#[target_feature(enable = "avx512f")]
fn zero() -> Floats {
    _mm512_setzero_ps()
}

#[target_feature(enable = "avx512f")]
fn splat(x: f32) -> Floats {
    _mm512_set1_ps(x)
}

#[target_feature(enable = "avx512f")]
fn fused(sum: Floats, x: Floats, w: Floats) -> Floats {
    _mm512_fmadd_ps(x, w, sum)
}

#[target_feature(enable = "avx512f")]
fn times(x: Floats, y: Floats) -> Floats {
    _mm512_mul_ps(x, y)
}

#[target_feature(enable = "avx512f")]
fn plus(x: Floats, y: Floats) -> Floats {
    _mm512_add_ps(x, y)
}

/// Zero for what is negative or not a number.
#[target_feature(enable = "avx512f")]
fn positive(x: Floats) -> Floats {
    _mm512_max_ps(x, _mm512_setzero_ps())
}

/// # Safety
/// The CPU has AVX-512; there is room for sixteen values.
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut f32, values: Floats) {
    // SAFETY: by this function's contract.
    unsafe { _mm512_storeu_ps(to, values) }
}

/// # Safety
/// The CPU has AVX-512; there are sixteen values.
#[target_feature(enable = "avx512f")]
unsafe fn floats_at(from: *const f32) -> Floats {
    // SAFETY: by this function's contract.
    unsafe { _mm512_loadu_ps(from) }
}

/// Values times 2²⁴: each to the top of its lane.
///
/// # Safety
/// The CPU has AVX-512; there are sixteen values.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn codes_at(from: *const i8) -> Floats {
    // SAFETY: by this function's contract; any alignment will do.
    let codes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(from.cast()) });
    // Byte 3 of lane i is value i, the others are zero.
    let first = _mm512_set1_epi32(0x0080_8080);
    let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let tops = _mm512_or_si512(_mm512_slli_epi32::<24>(places), first);
    _mm512_cvtepi32_ps(_mm512_shuffle_epi8(codes, tops))
}

linear!(
    /// A layer with int8 weights.
    linear_i8,
    i8,
    "avx512f,avx512bw",
    codes_at,
    scalar::I8_UNIT
);

linear!(
    /// A layer with f32 weights.
    linear_f32,
    f32,
    "avx512f",
    floats_at,
    1.0
);

fade!("avx512f");

/// Weights are multiplied plus 128.
#[target_feature(enable = "avx512f")]
fn start(xs: &[i8]) -> Sums {
    _mm512_set1_epi32(-128 * xs.iter().map(|&x| i32::from(x)).sum::<i32>())
}

#[target_feature(enable = "avx512f")]
fn floats(sums: Sums) -> Floats {
    _mm512_cvtepi32_ps(sums)
}

/// The weights of four inputs for sixteen outputs, those of an output side by side.
///
/// # Safety
/// The CPU has AVX-512; there are 64 values.
#[target_feature(enable = "avx512f")]
unsafe fn weights(from: *const i8) -> __m512i {
    // SAFETY: by this function's contract.
    let signed = unsafe { _mm512_loadu_si512(from.cast()) };
    _mm512_xor_si512(signed, _mm512_set1_epi32(i32::from_ne_bytes([128; 4])))
}

/// # Safety
/// The CPU has AVX-512; there are four values.
#[target_feature(enable = "avx512f")]
unsafe fn group(from: *const i8) -> __m512i {
    // SAFETY: by this function's contract; any alignment will do.
    _mm512_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn products(sums: Sums, weights: __m512i, inputs: __m512i) -> Sums {
    _mm512_dpbusd_epi32(sums, weights, inputs)
}

coded!(linear_coded_inner, "avx512f,avx512bw,avx512vnni");

/// # Safety
/// As for `linear_coded` of AVX2, with the features of this module and of `avx512_vnni`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in crate::kernel) unsafe fn linear_coded(
    xs: &[i8],
    steps: &[f32],
    panels: &Panels,
    scales: &[f32],
    out: &mut [f32],
) {
    let run = if panels.outputs.is_multiple_of(2 * LANES) {
        linear_coded_inner
    } else {
        super::vnni::avx512_vnni::linear_coded
    };
    // SAFETY: the same contract; both want the same panels.
    unsafe { run(xs, steps, panels, scales, out) }
}
