//! NEON, which every aarch64 CPU has, and its dot-product and matrix-product extensions.
//!
//! The intrinsics of the extensions are not stable yet, so their instructions are written out.

use std::arch::aarch64::*;
use std::arch::asm;

use super::coded::{CODED_INPUTS, Panels};
use super::{Layer, groups, packed, scalar};

pub(super) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
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

/// Adds the products of eight lanes, for as many whole groups of eight as there are.
///
/// # Safety
/// The CPU has NEON; both slices have the same length.
#[target_feature(enable = "neon")]
unsafe fn add_products(lanes: &mut [float32x4_t; 2], query: &[f32], row: &[f32]) {
    let mut d = 0;
    while d + 8 <= query.len() {
        // SAFETY: d + 8 ≤ the length of both slices.
        unsafe {
            let (q, x) = (query.as_ptr().add(d), row.as_ptr().add(d));
            lanes[0] = vaddq_f32(lanes[0], vmulq_f32(vld1q_f32(q), vld1q_f32(x)));
            lanes[1] = vaddq_f32(
                lanes[1],
                vmulq_f32(vld1q_f32(q.add(4)), vld1q_f32(x.add(4))),
            );
        }
        d += 8;
    }
}

/// The sum of eight lanes in the order of [`scalar::sum`].
#[target_feature(enable = "neon")]
fn sum(lanes: [float32x4_t; 2]) -> f32 {
    let pairs = vpaddq_f32(lanes[0], lanes[1]);
    let fours = vpaddq_f32(pairs, pairs);
    vgetq_lane_f32::<0>(fours) + vgetq_lane_f32::<1>(fours)
}

/// # Safety
/// The CPU has NEON; both slices have the same length.
#[target_feature(enable = "neon")]
unsafe fn dot_row(query: &[f32], row: &[f32]) -> f32 {
    let wide = query.len() / 8 * 8;
    let mut lanes = [vdupq_n_f32(0.0); 2];
    // SAFETY: by this function's contract.
    unsafe { add_products(&mut lanes, query, row) };
    let tail = query[wide..].iter().zip(&row[wide..]);
    sum(lanes) + tail.fold(0.0, |sum, (q, x)| sum + q * x)
}

/// Inner products of an f32 query with f16 rows, widened 64 values at a time.
///
/// # Safety
/// The CPU has NEON; `rows.len() == query.len() * out.len()`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_f16(query: &[f32], rows: &[u16], out: &mut [f32]) {
    let dim = query.len();
    let wide = dim / 8 * 8;
    let mut buffer = [0.0f32; 64];
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * dim..(r + 1) * dim];
        let mut lanes = [vdupq_n_f32(0.0); 2];
        for (q, x) in query[..wide].chunks(64).zip(row[..wide].chunks(64)) {
            for (b, &h) in buffer.iter_mut().zip(x) {
                *b = half::f16::from_bits(h).to_f32();
            }
            // SAFETY: both slices have `q.len()` values, NEON is there by our own contract.
            unsafe { add_products(&mut lanes, q, &buffer[..q.len()]) };
        }
        let tail = query[wide..].iter().zip(&row[wide..]);
        *o = sum(lanes)
            + tail.fold(0.0, |sum, (q, &x)| {
                sum + q * half::f16::from_bits(x).to_f32()
            });
    }
}

/// Values of a vector.
const LANES: usize = 8;
/// Such values.
type Floats = [float32x4_t; 2];

#[target_feature(enable = "neon")]
fn zero() -> Floats {
    [vdupq_n_f32(0.0); 2]
}

#[target_feature(enable = "neon")]
fn splat(x: f32) -> Floats {
    [vdupq_n_f32(x); 2]
}

#[target_feature(enable = "neon")]
fn fused(sum: Floats, x: Floats, w: Floats) -> Floats {
    [vfmaq_f32(sum[0], x[0], w[0]), vfmaq_f32(sum[1], x[1], w[1])]
}

#[target_feature(enable = "neon")]
fn times(x: Floats, y: Floats) -> Floats {
    [vmulq_f32(x[0], y[0]), vmulq_f32(x[1], y[1])]
}

#[target_feature(enable = "neon")]
fn plus(x: Floats, y: Floats) -> Floats {
    [vaddq_f32(x[0], y[0]), vaddq_f32(x[1], y[1])]
}

/// Zero for what is negative or not a number.
#[target_feature(enable = "neon")]
fn positive(x: Floats) -> Floats {
    let zero = vdupq_n_f32(0.0);
    [vmaxnmq_f32(x[0], zero), vmaxnmq_f32(x[1], zero)]
}

/// # Safety
/// The CPU has NEON; there is room for eight values.
#[target_feature(enable = "neon")]
unsafe fn store(to: *mut f32, values: Floats) {
    // SAFETY: by this function's contract.
    unsafe {
        vst1q_f32(to, values[0]);
        vst1q_f32(to.add(4), values[1]);
    }
}

/// # Safety
/// The CPU has NEON; there are eight values.
#[target_feature(enable = "neon")]
unsafe fn floats_at(from: *const f32) -> Floats {
    // SAFETY: by this function's contract.
    unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
}

/// Values times 2²⁴: each to the top of its lane.
///
/// # Safety
/// The CPU has NEON; there are eight values.
#[target_feature(enable = "neon")]
unsafe fn codes_at(from: *const i8) -> Floats {
    // SAFETY: by this function's contract.
    let codes = vcombine_s8(unsafe { vld1_s8(from) }, vdup_n_s8(0));
    // Byte 3 of lane i is value i, the others are beyond the table and so zero.
    let top = |i: u32| vreinterpretq_u8_u32(vaddq_u32(vdupq_n_u32(i << 24 | 0x00ff_ffff), PLACES));
    let widen = |tops| vcvtq_f32_s32(vreinterpretq_s32_s8(vqtbl1q_s8(codes, tops)));
    [widen(top(0)), widen(top(4))]
}

/// Lane i holds i in its top byte.
// SAFETY: four numbers are a vector of them.
const PLACES: uint32x4_t = unsafe { std::mem::transmute([0u32, 1 << 24, 2 << 24, 3 << 24]) };

linear!(
    /// A layer with int8 weights.
    linear_i8,
    i8,
    "neon",
    codes_at,
    scalar::I8_UNIT
);

linear!(
    /// A layer with f32 weights.
    linear_f32,
    f32,
    "neon",
    floats_at,
    1.0
);

fade!("neon");

/// As many sums of integers.
type Sums = [int32x4_t; 2];

#[target_feature(enable = "neon")]
fn start(_: &[i8]) -> Sums {
    [vdupq_n_s32(0); 2]
}

#[target_feature(enable = "neon")]
fn floats(sums: Sums) -> Floats {
    sums.map(|s| vcvtq_f32_s32(s))
}

/// An input of a layer of codes, as wide as it is multiplied.
type Code = i16;
/// Inputs whose products a lane takes at once.
pub(super) const GROUP: usize = 2;

/// The weights of two inputs for eight outputs.
///
/// # Safety
/// The CPU has NEON; there are sixteen values.
#[target_feature(enable = "neon")]
unsafe fn weights(from: *const i8) -> [int16x8_t; 2] {
    // SAFETY: by this function's contract.
    let pairs = unsafe { vld2_s8(from) };
    [vmovl_s8(pairs.0), vmovl_s8(pairs.1)]
}

/// # Safety
/// The CPU has NEON; there are two values.
#[target_feature(enable = "neon")]
unsafe fn group(from: *const i16) -> [int16x8_t; 2] {
    // SAFETY: by this function's contract.
    unsafe { [vld1q_dup_s16(from), vld1q_dup_s16(from.add(1))] }
}

#[target_feature(enable = "neon")]
fn products([low, high]: Sums, w: [int16x8_t; 2], x: [int16x8_t; 2]) -> Sums {
    let low = vmlal_s16(low, vget_low_s16(w[0]), vget_low_s16(x[0]));
    let high = vmlal_high_s16(high, w[0], x[0]);
    [
        vmlal_s16(low, vget_low_s16(w[1]), vget_low_s16(x[1])),
        vmlal_high_s16(high, w[1], x[1]),
    ]
}

coded!(linear_coded, "neon");

/// The layer of codes by dot products.
pub(super) mod dotprod_layer {
    use super::*;

    type Code = i8;
    pub(in crate::kernel) const GROUP: usize = 4;

    /// The weights of four inputs for eight outputs, those of an output side by side.
    ///
    /// # Safety
    /// The CPU has NEON; there are 32 values.
    #[target_feature(enable = "neon")]
    unsafe fn weights(from: *const i8) -> [int8x16_t; 2] {
        // SAFETY: by this function's contract.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16))] }
    }

    /// # Safety
    /// The CPU has NEON; there are four values.
    #[target_feature(enable = "neon")]
    unsafe fn group(from: *const i8) -> int8x16_t {
        // SAFETY: by this function's contract; any alignment will do.
        vreinterpretq_s8_s32(vdupq_n_s32(unsafe { from.cast::<i32>().read_unaligned() }))
    }

    #[target_feature(enable = "neon,dotprod")]
    fn products(sums: Sums, weights: [int8x16_t; 2], inputs: int8x16_t) -> Sums {
        [
            sdot(sums[0], weights[0], inputs),
            sdot(sums[1], weights[1], inputs),
        ]
    }

    coded!(linear_coded, "neon,dotprod");
}

/// Four neighbouring products are added to each lane.
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches these registers only; the CPU has it by the attribute.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// Products of 2 × 8 with 2 × 8 values are added to a 2 × 2 matrix: rows of `a` down, rows of
/// `b` across.
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as in `sdot`.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// As [`sdot`], with instructions that every CPU has; codes within ±127.
#[target_feature(enable = "neon")]
fn sdot_neon(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // One product is at most 127 · 128 < 2¹⁵, and pairs are added in 32 bits.
    let acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    vpadalq_s16(acc, vmull_high_s8(a, b))
}

pub(super) fn has_dotprod() -> bool {
    is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
}

pub(super) fn has_i8mm() -> bool {
    has_dotprod() && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// The 16 bytes at `at`.
///
/// # Safety
/// The CPU has NEON; `at + 16 <= values.len()`.
#[target_feature(enable = "neon")]
unsafe fn load(values: &[i8], at: usize) -> int8x16_t {
    debug_assert!(at + 16 <= values.len());
    // SAFETY: by this function's contract.
    unsafe { vld1q_s8(values.as_ptr().add(at)) }
}

/// Low and high halves of the 16 bytes at `at`.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "neon")]
unsafe fn load_halves(bytes: &[u8], at: usize) -> (int8x16_t, int8x16_t) {
    debug_assert!(at + 16 <= bytes.len());
    // SAFETY: by this function's contract.
    let x = unsafe { vld1q_u8(bytes.as_ptr().add(at)) };
    (
        vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))),
        vreinterpretq_s8_u8(vshrq_n_u8::<4>(x)),
    )
}

/// The kernels that are loops around a step of four products a lane.
macro_rules! dots {
    ($module:ident, $features:literal, $sdot:ident) => {
        pub(super) mod $module {
            use super::*;

            /// Inner products of i8 codes.
            ///
            /// # Safety
            /// The CPU has the features; `rows.len() == query.len() * out.len()`;
            /// `query.len() <= 65536`.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
                let dim = query.len();
                let wide = dim / 16 * 16;
                for (r, o) in out.iter_mut().enumerate() {
                    let row = &rows[r * dim..(r + 1) * dim];
                    // Two chains, so that a sum need not wait for the one before.
                    let mut acc = [vdupq_n_s32(0); 2];
                    for d in (0..wide).step_by(16) {
                        // SAFETY: d + 16 ≤ wide ≤ dim, the length of both slices.
                        let (q, x) = unsafe { (load(query, d), load(row, d)) };
                        // i32 lanes: at most dim · 127 · 128 < 2³¹ in total.
                        let a = &mut acc[d / 16 % 2];
                        *a = $sdot(*a, q, x);
                    }
                    let mut tail = [0];
                    scalar::dot_i8(&query[wide..], &row[wide..], &mut tail);
                    *o = vaddvq_s32(vaddq_s32(acc[0], acc[1])) + tail[0];
                }
            }

            /// Inner products with rows of unsigned 4-bit codes.
            ///
            /// # Safety
            /// The CPU has the features; `query.len()` is even;
            /// `rows.len() == query.len() / 2 * out.len()`.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn dot_u4(query: &[i8], rows: &[u8], out: &mut [i32]) {
                let bytes = query.len() / 2;
                if !query.len().is_multiple_of(64) {
                    return scalar::dot_u4(query, rows, out);
                }
                for (r, o) in out.iter_mut().enumerate() {
                    let row = &rows[r * bytes..(r + 1) * bytes];
                    let mut acc = [vdupq_n_s32(0); 2];
                    for d in (0..bytes).step_by(32) {
                        for (i, a) in acc.iter_mut().enumerate() {
                            // SAFETY: the row has d + 32 bytes, the query 2 d + 64 values.
                            let (low, high, q0, q1) = unsafe {
                                let (low, high) = load_halves(row, d + 16 * i);
                                let at = 2 * d + 16 * i;
                                (low, high, load(query, at), load(query, at + 32))
                            };
                            *a = $sdot($sdot(*a, low, q0), high, q1);
                        }
                    }
                    *o = vaddvq_s32(vaddq_s32(acc[0], acc[1]));
                }
            }

            /// Many queries with many rows: each row is read once for four queries.
            ///
            /// # Safety
            /// The CPU has the features; `queries.len()` and `rows.len()` are multiples of
            /// `dim`; `out.len()` is the product of their counts.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn many_i8(
                queries: &[i8],
                dim: usize,
                rows: &[i8],
                out: &mut [i32],
            ) {
                let n = rows.len() / dim;
                let count = queries.len() / dim;
                let wide = dim / 16 * 16;
                for (r, row) in rows.chunks_exact(dim).enumerate() {
                    let mut q = 0;
                    while q < count {
                        let width = (count - q).min(4);
                        // A narrow last group reads its last query more than once.
                        let at = [0, 1, 2, 3].map(|i: usize| (q + i.min(width - 1)) * dim);
                        let mut acc = [vdupq_n_s32(0); 4];
                        for d in (0..wide).step_by(16) {
                            // SAFETY: d + 16 ≤ wide ≤ dim = row.len().
                            let x = unsafe { load(row, d) };
                            for (a, at) in acc.iter_mut().zip(at) {
                                // SAFETY: at + d + 16 ≤ at + dim ≤ queries.len().
                                *a = $sdot(*a, x, unsafe { load(queries, at + d) });
                            }
                        }
                        for (i, a) in acc.iter().enumerate().take(width) {
                            let query = &queries[at[i] + wide..at[i] + dim];
                            let mut tail = [0];
                            scalar::dot_i8(query, &row[wide..], &mut tail);
                            out[(q + i) * n + r] = vaddvq_s32(*a) + tail[0];
                        }
                        q += width;
                    }
                }
            }
        }
    };
}

dots!(plain, "neon", sdot_neon);
dots!(dotprod, "neon,dotprod", sdot);
pub(super) use plain::{dot_i8, dot_u4, many_i8};

/// Inner products with rows of signed 4-bit codes and a factor per group.
///
/// # Safety
/// The CPU has NEON; `query.len()` is even; `rows.len() == query.len() / 2 * out.len()`;
/// `factors.len() == groups(query.len()) * out.len()`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dot_i4(query: &[i8], rows: &[u8], factors: &[u8], out: &mut [i32]) {
    let (dim, bytes) = (query.len(), query.len() / 2);
    if !dim.is_multiple_of(64) {
        return scalar::dot_i4(query, rows, factors, out);
    }
    let groups = groups(dim);
    let eight = vdupq_n_s8(8);
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * bytes..(r + 1) * bytes];
        let factors = &factors[r * groups..(r + 1) * groups];
        let mut sum = vdupq_n_s32(0);
        for (block, pair) in packed(dim).zip(factors.chunks_exact(2)) {
            let mut acc = [vdupq_n_s32(0); 2];
            for i in [0, 16] {
                // SAFETY: a block has 32 bytes from first / 2 and 64 values from first.
                let (low, high, q0, q1) = unsafe {
                    let (low, high) = load_halves(row, block.first / 2 + i);
                    let at = block.first + i;
                    (low, high, load(query, at), load(query, at + 32))
                };
                acc[0] = sdot_neon(acc[0], vsubq_s8(low, eight), q0);
                acc[1] = sdot_neon(acc[1], vsubq_s8(high, eight), q1);
            }
            // At most 1024 · 8 · 127 · 255 in total: below 2²⁹.
            sum = vmlaq_n_s32(sum, acc[0], i32::from(pair[0]));
            sum = vmlaq_n_s32(sum, acc[1], i32::from(pair[1]));
        }
        *o = vaddvq_s32(sum);
    }
}

/// Many queries with many rows, two by two.
///
/// # Safety
/// The CPU has FEAT_I8MM and FEAT_DotProd; otherwise as [`dotprod::many_i8`].
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn many_i8mm(queries: &[i8], dim: usize, rows: &[i8], out: &mut [i32]) {
    let (n, count) = (rows.len() / dim, queries.len() / dim);
    if !dim.is_multiple_of(8) || n < 2 || count < 2 {
        // SAFETY: the same contract.
        return unsafe { dotprod::many_i8(queries, dim, rows, out) };
    }
    // An odd last row or query is paired with the one before it and computed twice.
    let pair = |i: usize, n: usize| i.min(n - 2);
    for r in (0..n).step_by(2) {
        let r = pair(r, n);
        for q in (0..count).step_by(2) {
            let q = pair(q, count);
            let mut acc = vdupq_n_s32(0);
            for d in (0..dim).step_by(8) {
                // SAFETY: r + 2 ≤ n, q + 2 ≤ count and d + 8 ≤ dim.
                let (x, y) = unsafe {
                    let eight = |v: &[i8], at: usize| vld1_s8(v.as_ptr().add(at));
                    (
                        vcombine_s8(eight(rows, r * dim + d), eight(rows, (r + 1) * dim + d)),
                        vcombine_s8(
                            eight(queries, q * dim + d),
                            eight(queries, (q + 1) * dim + d),
                        ),
                    )
                };
                acc = smmla(acc, y, x);
            }
            let mut lanes = [0i32; 4];
            // SAFETY: `lanes` has room for four values.
            unsafe { vst1q_s32(lanes.as_mut_ptr(), acc) };
            out[q * n + r..][..2].copy_from_slice(&lanes[..2]);
            out[(q + 1) * n + r..][..2].copy_from_slice(&lanes[2..]);
        }
    }
}
