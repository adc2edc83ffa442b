//! NEON, which every aarch64 CPU has.

use std::arch::aarch64::*;

pub(super) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

/// Inner products of i8 codes: `vmull_s8` to i16, pairwise added into i32.
///
/// # Safety
/// The CPU has NEON; `rows.len() == query.len() * out.len()`; `query.len() <= 65536`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
    let dim = query.len();
    let wide = dim / 16 * 16;
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * dim..(r + 1) * dim];
        let (mut a, mut b) = (vdupq_n_s32(0), vdupq_n_s32(0));
        let mut d = 0;
        while d < wide {
            // SAFETY: d + 16 ≤ wide ≤ dim, the length of both slices.
            let (q, x) = unsafe {
                (
                    vld1q_s8(query.as_ptr().add(d)),
                    vld1q_s8(row.as_ptr().add(d)),
                )
            };
            // One product is at most 127 · 128 < 2¹⁵; the i32 lanes hold at most
            // dim · 127 · 128 < 2³¹ in total.
            a = vpadalq_s16(a, vmull_s8(vget_low_s8(q), vget_low_s8(x)));
            b = vpadalq_s16(b, vmull_high_s8(q, x));
            d += 16;
        }
        let tail: i32 = query[wide..]
            .iter()
            .zip(&row[wide..])
            .map(|(&q, &x)| i32::from(q) * i32::from(x))
            .sum();
        *o = vaddvq_s32(vaddq_s32(a, b)) + tail;
    }
}

/// Inner products of f32 vectors.
///
/// # Safety
/// The CPU has NEON; `rows.len() == query.len() * out.len()`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_f32(query: &[f32], rows: &[f32], out: &mut [f32]) {
    let dim = query.len();
    for (r, o) in out.iter_mut().enumerate() {
        // SAFETY: both slices have `dim` values, NEON is there by our own contract.
        *o = unsafe { dot_row(query, &rows[r * dim..(r + 1) * dim]) };
    }
}

/// # Safety
/// The CPU has NEON; both slices have the same length.
#[target_feature(enable = "neon")]
unsafe fn dot_row(query: &[f32], row: &[f32]) -> f32 {
    let wide = query.len() / 8 * 8;
    let (mut a, mut b) = (vdupq_n_f32(0.0), vdupq_n_f32(0.0));
    let mut d = 0;
    while d < wide {
        // SAFETY: d + 8 ≤ wide ≤ the length of both slices.
        unsafe {
            let (q, x) = (query.as_ptr().add(d), row.as_ptr().add(d));
            a = vfmaq_f32(a, vld1q_f32(q), vld1q_f32(x));
            b = vfmaq_f32(b, vld1q_f32(q.add(4)), vld1q_f32(x.add(4)));
        }
        d += 8;
    }
    let tail: f32 = query[wide..]
        .iter()
        .zip(&row[wide..])
        .map(|(q, x)| q * x)
        .sum();
    vaddvq_f32(vaddq_f32(a, b)) + tail
}

/// Inner products of an f32 query with f16 rows, widened 64 values at a time.
///
/// # Safety
/// The CPU has NEON; `rows.len() == query.len() * out.len()`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_f16(query: &[f32], rows: &[u16], out: &mut [f32]) {
    let dim = query.len();
    let mut buffer = [0.0f32; 64];
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * dim..(r + 1) * dim];
        *o = query
            .chunks(64)
            .zip(row.chunks(64))
            .map(|(q, x)| {
                for (b, &h) in buffer.iter_mut().zip(x) {
                    *b = half::f16::from_bits(h).to_f32();
                }
                // SAFETY: both slices have `q.len()` values, NEON is there by our own contract.
                unsafe { dot_row(q, &buffer[..q.len()]) }
            })
            .sum();
    }
}
