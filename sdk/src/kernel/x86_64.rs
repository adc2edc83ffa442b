//! AVX2, with FMA and F16C (every x86-64 CPU with AVX2 that is in use has them), and the same
//! kernels around the dot-product instruction of newer CPUs.

use std::arch::x86_64::*;

use super::coded::{CODED_INPUTS, Panels};
use super::{Layer, scalar};

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Rows per step: their eight sums fill one register, so the horizontal additions are shared.
const STEP: usize = 8;

/// Bytes between the row in work and the ones asked for from memory. The CPU's own prefetcher
/// stops at every page of 4 KiB; a prefetch never faults, so it may point beyond the rows.
const AHEAD: usize = 2048;

/// Bytes of rows that are in the nearest cache or soon will be.
const NEAR: usize = 8192;

/// Inner products of i8 codes: |query| as u8 times row with the query's sign, by `maddubs`.
///
/// # Safety
/// The CPU has AVX2; `rows.len() == query.len() * out.len()`; `query.len() <= 65536`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
    let dim = query.len();
    let wide = dim / 32 * 32;
    let steps = out.len() / STEP * STEP;
    let ones = _mm256_set1_epi16(1);
    let mut r = 0;
    while r < steps {
        for line in (0..STEP * dim).step_by(64) {
            let ahead = rows.as_ptr().wrapping_add(r * dim + line + AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        let mut acc = [_mm256_setzero_si256(); STEP];
        let mut d = 0;
        while d < wide {
            // SAFETY: d + 32 ≤ wide ≤ dim = query.len().
            let q = unsafe { _mm256_loadu_si256(query.as_ptr().add(d).cast()) };
            let magnitude = _mm256_abs_epi8(q);
            for (j, a) in acc.iter_mut().enumerate() {
                // SAFETY: r + j < out.len() and d + 32 ≤ dim, so the load ends within `rows`.
                let x = unsafe { _mm256_loadu_si256(rows.as_ptr().add((r + j) * dim + d).cast()) };
                // |q| ≤ 127 and |x| ≤ 128: a pair sums to at most 2 · 127 · 128 = 32512 < 2¹⁵.
                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, q));
                // i32 lanes: at most dim · 127 · 128 < 2³¹ in total.
                *a = _mm256_add_epi32(*a, _mm256_madd_epi16(pairs, ones));
            }
            d += 32;
        }
        // SAFETY: r + 8 ≤ out.len().
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), sums(acc)) };
        if wide < dim {
            for j in 0..STEP {
                let tail = &rows[(r + j) * dim + wide..(r + j + 1) * dim];
                out[r + j] += tail_i8(&query[wide..], tail);
            }
        }
        r += STEP;
    }
    for r in steps..out.len() {
        let row = &rows[r * dim..(r + 1) * dim];
        let mut acc = _mm256_setzero_si256();
        let mut d = 0;
        while d < wide {
            // SAFETY: d + 32 ≤ wide ≤ dim, the length of both slices.
            let (q, x) = unsafe {
                (
                    _mm256_loadu_si256(query.as_ptr().add(d).cast()),
                    _mm256_loadu_si256(row.as_ptr().add(d).cast()),
                )
            };
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones));
            d += 32;
        }
        let half = _mm_add_epi32(
            _mm256_castsi256_si128(acc),
            _mm256_extracti128_si256::<1>(acc),
        );
        let half = _mm_hadd_epi32(half, half);
        let half = _mm_hadd_epi32(half, half);
        out[r] = _mm_cvtsi128_si32(half) + tail_i8(&query[wide..], &row[wide..]);
    }
}

/// At most 31 products.
#[target_feature(enable = "avx2")]
fn tail_i8(query: &[i8], row: &[i8]) -> i32 {
    query
        .iter()
        .zip(row)
        .map(|(&a, &b)| i32::from(a) * i32::from(b))
        .sum()
}

/// Eight horizontal sums at once, as [`sums`].
#[target_feature(enable = "avx2")]
fn sums_f32(acc: [__m256; STEP]) -> __m256 {
    let t0 = _mm256_hadd_ps(
        _mm256_hadd_ps(acc[0], acc[1]),
        _mm256_hadd_ps(acc[2], acc[3]),
    );
    let t1 = _mm256_hadd_ps(
        _mm256_hadd_ps(acc[4], acc[5]),
        _mm256_hadd_ps(acc[6], acc[7]),
    );
    let low = _mm256_permute2f128_ps::<0x20>(t0, t1);
    let high = _mm256_permute2f128_ps::<0x31>(t0, t1);
    _mm256_add_ps(low, high)
}

/// The kernels of float rows: a load of eight values and their tail are what differs.
macro_rules! floats {
    ($(#[$attribute:meta])* $name:ident, $row:ty, $features:literal, $load:expr, $widen:expr) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// The CPU has the features; `rows.len() == query.len() * out.len()`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(query: &[f32], rows: &[$row], out: &mut [f32]) {
            let dim = query.len();
            let wide = dim / 8 * 8;
            let steps = out.len() / STEP * STEP;
            for r in (0..steps).step_by(STEP) {
                if size_of_val(rows) > NEAR {
                    let bytes = STEP * dim * size_of::<$row>();
                    prefetch(rows.as_ptr().cast(), r * dim * size_of::<$row>(), bytes);
                }
                let mut acc = [_mm256_setzero_ps(); STEP];
                for d in (0..wide).step_by(8) {
                    // SAFETY: d + 8 ≤ wide ≤ dim = query.len().
                    let q = unsafe { _mm256_loadu_ps(query.as_ptr().add(d)) };
                    for (j, a) in acc.iter_mut().enumerate() {
                        // SAFETY: r + j < out.len() and d + 8 ≤ dim, so this ends within `rows`.
                        let x = unsafe { $load(rows.as_ptr().add((r + j) * dim + d)) };
                        *a = _mm256_add_ps(*a, _mm256_mul_ps(q, x));
                    }
                }
                // SAFETY: r + 8 ≤ out.len().
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(r), sums_f32(acc)) };
                if wide < dim {
                    for j in 0..STEP {
                        let tail = &rows[(r + j) * dim + wide..(r + j + 1) * dim];
                        let tail = query[wide..].iter().zip(tail);
                        out[r + j] += tail.fold(0.0, |sum, (q, &x)| sum + q * $widen(x));
                    }
                }
            }
            for r in steps..out.len() {
                let row = &rows[r * dim..(r + 1) * dim];
                let mut acc = _mm256_setzero_ps();
                for d in (0..wide).step_by(8) {
                    // SAFETY: d + 8 ≤ wide ≤ dim, the length of both slices.
                    let (q, x) = unsafe {
                        (
                            _mm256_loadu_ps(query.as_ptr().add(d)),
                            $load(row.as_ptr().add(d)),
                        )
                    };
                    acc = _mm256_add_ps(acc, _mm256_mul_ps(q, x));
                }
                let tail = query[wide..].iter().zip(&row[wide..]);
                out[r] = sum(acc) + tail.fold(0.0, |sum, (q, &x)| sum + q * $widen(x));
            }
        }
    };
}

floats!(
    /// Inner products of f32 vectors.
    dot_f32,
    f32,
    "avx2",
    |p| _mm256_loadu_ps(p),
    |x: f32| x
);

floats!(
    /// Inner products of an f32 query with f16 rows.
    dot_f16,
    u16,
    "avx2,f16c",
    |p: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    |x: u16| half::f16::from_bits(x).to_f32()
);

/// Values of a vector.
const LANES: usize = 8;
/// Such values.
type Floats = __m256;

#[target_feature(enable = "avx2")]
fn zero() -> Floats {
    _mm256_setzero_ps()
}

#[target_feature(enable = "avx2")]
fn splat(x: f32) -> Floats {
    _mm256_set1_ps(x)
}

#[target_feature(enable = "avx2,fma")]
fn fused(sum: Floats, x: Floats, w: Floats) -> Floats {
    _mm256_fmadd_ps(x, w, sum)
}

#[target_feature(enable = "avx2")]
fn times(x: Floats, y: Floats) -> Floats {
    _mm256_mul_ps(x, y)
}

#[target_feature(enable = "avx2")]
fn plus(x: Floats, y: Floats) -> Floats {
    _mm256_add_ps(x, y)
}

/// Zero for what is negative or not a number.
#[target_feature(enable = "avx2")]
fn positive(x: Floats) -> Floats {
    _mm256_max_ps(x, _mm256_setzero_ps())
}

/// # Safety
/// The CPU has AVX2; there is room for eight values.
#[target_feature(enable = "avx2")]
unsafe fn store(to: *mut f32, values: Floats) {
    // SAFETY: by this function's contract.
    unsafe { _mm256_storeu_ps(to, values) }
}

/// # Safety
/// The CPU has AVX2; there are eight values.
#[target_feature(enable = "avx2")]
unsafe fn floats_at(from: *const f32) -> Floats {
    // SAFETY: by this function's contract.
    unsafe { _mm256_loadu_ps(from) }
}

/// Values times 2²⁴: each to the top of its lane, which takes a third of the time of a sign extension.
///
/// # Safety
/// The CPU has AVX2; there are eight values.
#[target_feature(enable = "avx2")]
unsafe fn codes_at(from: *const i8) -> Floats {
    // SAFETY: by this function's contract; any alignment will do.
    let codes = _mm256_set1_epi64x(unsafe { from.cast::<i64>().read_unaligned() });
    // Byte 3 of lane i is value i, the others are zero.
    let top = |i: i32| i << 24 | 0x0080_8080;
    let tops = _mm256_setr_epi32(
        top(0),
        top(1),
        top(2),
        top(3),
        top(4),
        top(5),
        top(6),
        top(7),
    );
    _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, tops))
}

linear!(
    /// A layer with int8 weights.
    linear_i8,
    i8,
    "avx2,fma",
    codes_at,
    scalar::I8_UNIT
);

linear!(
    /// A layer with f32 weights.
    linear_f32,
    f32,
    "avx2,fma",
    floats_at,
    1.0
);

fade!("avx2,fma");

/// As many sums of integers.
type Sums = __m256i;
/// An input of a layer of codes, as wide as it is multiplied.
type Code = i16;
/// Inputs whose products a lane takes at once.
pub(super) const GROUP: usize = 2;

#[target_feature(enable = "avx2")]
fn start(_: &[i8]) -> Sums {
    _mm256_setzero_si256()
}

#[target_feature(enable = "avx2")]
fn floats(sums: Sums) -> Floats {
    _mm256_cvtepi32_ps(sums)
}

/// # Safety
/// The CPU has AVX2; there are sixteen values.
#[target_feature(enable = "avx2")]
unsafe fn weights(from: *const i8) -> __m256i {
    // SAFETY: by this function's contract.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(from.cast()) })
}

/// # Safety
/// The CPU has AVX2; there are two values.
#[target_feature(enable = "avx2")]
unsafe fn group(from: *const i16) -> __m256i {
    // SAFETY: by this function's contract; any alignment will do.
    _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

#[target_feature(enable = "avx2")]
fn products(sums: Sums, weights: __m256i, inputs: __m256i) -> Sums {
    _mm256_add_epi32(sums, _mm256_madd_epi16(weights, inputs))
}

coded!(linear_coded, "avx2");

/// One horizontal sum in the order of [`sums_f32`]: a row has the same score alone and among
/// others.
#[target_feature(enable = "avx2")]
fn sum(v: __m256) -> f32 {
    let pairs = _mm256_hadd_ps(v, v);
    let fours = _mm256_hadd_ps(pairs, pairs);
    let high = _mm256_extractf128_ps::<1>(fours);
    _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(fours), high))
}

/// Which of at most 64 scores are above the threshold.
///
/// # Safety
/// The CPU has AVX2; `scores.len() <= 64`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn above(scores: &[f32], threshold: f32) -> u64 {
    let t = _mm256_set1_ps(threshold);
    let mut mask = 0u64;
    let mut chunks = scores.chunks_exact(8);
    let mut shift = 0;
    for chunk in &mut chunks {
        // SAFETY: a chunk has 8 values.
        let s = unsafe { _mm256_loadu_ps(chunk.as_ptr()) };
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(s, t);
        mask |= u64::from(_mm256_movemask_ps(above) as u8) << shift;
        shift += 8;
    }
    for &s in chunks.remainder() {
        mask |= u64::from(s > threshold) << shift;
        shift += 1;
    }
    mask
}

/// Which of at most 64 codes equal the wanted one, and whether one is stray.
///
/// # Safety
/// The CPU has AVX2; `codes.len() <= 64`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn equal(codes: &[u32], wanted: u32, limit: u32) -> (u64, bool) {
    let (w, l) = (
        _mm256_set1_epi32(wanted as i32),
        _mm256_set1_epi32(limit as i32),
    );
    let none = _mm256_set1_epi32(-1);
    let wide = codes.len() / 8 * 8;
    let (mut mask, mut strays) = (0u64, _mm256_setzero_si256());
    for i in (0..wide).step_by(8) {
        // SAFETY: i + 8 ≤ wide ≤ codes.len().
        let x = unsafe { _mm256_loadu_si256(codes.as_ptr().add(i).cast()) };
        let same = _mm256_castsi256_ps(_mm256_cmpeq_epi32(x, w));
        mask |= u64::from(_mm256_movemask_ps(same) as u8) << i;
        // x ≥ limit, unsigned, and not all ones.
        let high = _mm256_cmpeq_epi32(_mm256_max_epu32(x, l), x);
        strays = _mm256_or_si256(
            strays,
            _mm256_andnot_si256(_mm256_cmpeq_epi32(x, none), high),
        );
    }
    let mut stray = _mm256_testz_si256(strays, strays) == 0;
    for (i, &code) in codes.iter().enumerate().skip(wide) {
        mask |= u64::from(code == wanted) << i;
        stray |= code >= limit && code != u32::MAX;
    }
    (mask, stray)
}

/// Which of at most 64 sums are above the threshold after scaling.
///
/// # Safety
/// The CPU has AVX2; `sums.len() <= 64`; `scales.len() == sums.len()`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn above_scaled(sums: &[i32], scales: &[f32], threshold: f32) -> u64 {
    let t = _mm256_set1_ps(threshold);
    let wide = sums.len() / 8 * 8;
    let mut mask = 0u64;
    for i in (0..wide).step_by(8) {
        // SAFETY: i + 8 ≤ wide ≤ the length of both slices.
        let (x, scale) = unsafe {
            (
                _mm256_loadu_si256(sums.as_ptr().add(i).cast()),
                _mm256_loadu_ps(scales.as_ptr().add(i)),
            )
        };
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_mul_ps(_mm256_cvtepi32_ps(x), scale), t);
        mask |= u64::from(_mm256_movemask_ps(above) as u8) << i;
    }
    for i in wide..sums.len() {
        mask |= u64::from(sums[i] as f32 * scales[i] > threshold) << i;
    }
    mask
}

/// Eight horizontal sums at once: lane k becomes the sum of `acc[k]`.
#[target_feature(enable = "avx2")]
fn sums(acc: [__m256i; STEP]) -> __m256i {
    let t0 = _mm256_hadd_epi32(
        _mm256_hadd_epi32(acc[0], acc[1]),
        _mm256_hadd_epi32(acc[2], acc[3]),
    );
    let t1 = _mm256_hadd_epi32(
        _mm256_hadd_epi32(acc[4], acc[5]),
        _mm256_hadd_epi32(acc[6], acc[7]),
    );
    let low = _mm256_permute2x128_si256::<0x20>(t0, t1);
    let high = _mm256_permute2x128_si256::<0x31>(t0, t1);
    _mm256_add_epi32(low, high)
}

/// Asks for the lines of the bytes `at..at + len` further on; `at` may lie beyond `rows`.
#[target_feature(enable = "sse")]
fn prefetch(rows: *const u8, at: usize, len: usize) {
    for line in (0..len).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add(at + line + AHEAD).cast());
    }
}

/// The 32 bytes at `at`.
///
/// # Safety
/// `at + 32 <= bytes.len()`.
#[target_feature(enable = "avx2")]
unsafe fn load<T>(bytes: &[T], at: usize) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: by this function's contract.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// Inner products with rows of unsigned 4-bit codes.
///
/// # Safety
/// The CPU has AVX2; `query.len()` is even; `rows.len() == query.len() / 2 * out.len()`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot_u4(query: &[i8], rows: &[u8], out: &mut [i32]) {
    let (dim, bytes) = (query.len(), query.len() / 2);
    let wide = dim / 64;
    let steps = if wide * 64 == dim {
        out.len() / STEP * STEP
    } else {
        0
    };
    let (ones, nibble) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
    for r in (0..steps).step_by(STEP) {
        prefetch(rows.as_ptr(), r * bytes, STEP * bytes);
        let mut acc = [_mm256_setzero_si256(); STEP];
        for b in 0..wide {
            // SAFETY: 64 b + 64 ≤ dim = query.len().
            let low = unsafe { load(query, 64 * b) };
            // SAFETY: likewise.
            let high = unsafe { load(query, 64 * b + 32) };
            for (j, a) in acc.iter_mut().enumerate() {
                // SAFETY: r + j < out.len() and 32 b + 32 ≤ bytes, so this ends within `rows`.
                let x = unsafe { load(rows, (r + j) * bytes + 32 * b) };
                let even = _mm256_and_si256(x, nibble);
                let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(x), nibble);
                // Four products of at most 15 · 127 in an i16 lane: at most 7620.
                let pairs = _mm256_add_epi16(
                    _mm256_maddubs_epi16(even, low),
                    _mm256_maddubs_epi16(odd, high),
                );
                *a = _mm256_add_epi32(*a, _mm256_madd_epi16(pairs, ones));
            }
        }
        // SAFETY: r + 8 ≤ out.len().
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), sums(acc)) };
    }
    scalar::dot_u4(query, &rows[steps * bytes..], &mut out[steps..]);
}

/// Inner products with rows of signed 4-bit codes and a factor per group.
///
/// # Safety
/// The CPU has AVX2; `query.len()` is even; `rows.len() == query.len() / 2 * out.len()`;
/// `factors.len() == groups(query.len()) * out.len()`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot_i4(query: &[i8], rows: &[u8], factors: &[u8], out: &mut [i32]) {
    let (dim, bytes) = (query.len(), query.len() / 2);
    let (wide, groups) = (dim / 64, crate::kernel::groups(dim));
    let steps = if wide * 64 == dim {
        out.len() / STEP * STEP
    } else {
        0
    };
    let (eights, nibble) = (_mm256_set1_epi8(8), _mm256_set1_epi8(15));
    for r in (0..steps).step_by(STEP) {
        prefetch(rows.as_ptr(), r * bytes, STEP * bytes);
        let mut acc = [_mm256_setzero_si256(); STEP];
        for b in 0..wide {
            // SAFETY: 64 b + 64 ≤ dim = query.len().
            let low = unsafe { load(query, 64 * b) };
            // SAFETY: likewise.
            let high = unsafe { load(query, 64 * b + 32) };
            // Codes are stored plus 8; what that adds to a pair is the same in every row.
            let low8 = _mm256_maddubs_epi16(eights, low);
            let high8 = _mm256_maddubs_epi16(eights, high);
            for (j, a) in acc.iter_mut().enumerate() {
                // SAFETY: r + j < out.len() and 32 b + 32 ≤ bytes, so this ends within `rows`.
                let x = unsafe { load(rows, (r + j) * bytes + 32 * b) };
                let even = _mm256_and_si256(x, nibble);
                let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(x), nibble);
                // At most 2 · 8 · 127 in an i16 lane.
                let even = _mm256_sub_epi16(_mm256_maddubs_epi16(even, low), low8);
                let odd = _mm256_sub_epi16(_mm256_maddubs_epi16(odd, high), high8);
                let at = (r + j) * groups + 2 * b;
                let even_factor = _mm256_set1_epi16(i16::from(factors[at]));
                let odd_factor = _mm256_set1_epi16(i16::from(factors[at + 1]));
                // Two pairs of at most 2 · 2032 · 255 a block: below 2²⁹ over 16 blocks.
                let even = _mm256_madd_epi16(even, even_factor);
                let odd = _mm256_madd_epi16(odd, odd_factor);
                *a = _mm256_add_epi32(*a, _mm256_add_epi32(even, odd));
            }
        }
        // SAFETY: r + 8 ≤ out.len().
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), sums(acc)) };
    }
    let rest = &factors[steps * groups..];
    scalar::dot_i4(query, &rows[steps * bytes..], rest, &mut out[steps..]);
}

/// Largest dim for which rows are interleaved.
const TILE_DIM: usize = 1024;

/// Sixteen rows in the order of the outer products below: four values of row 0, of row 1, …
/// of row 7, then the next four values; rows 8 to 15 behind them. Values are stored plus 128.
#[repr(align(32))]
struct Tile([u8; 16 * TILE_DIM]);

/// # Safety
/// The CPU has AVX2; `rows.len() == 16 * dim`; `dim` is a multiple of 4 up to `TILE_DIM`.
#[target_feature(enable = "avx2")]
unsafe fn interleave(rows: &[i8], dim: usize, tile: &mut Tile) {
    let steps = dim / 4;
    let sign = _mm256_set1_epi8(i8::MIN);
    for half in 0..2 {
        let rows = &rows[half * 8 * dim..(half + 1) * 8 * dim];
        let mut t = 0;
        // Eight rows × eight quads are a square of u32, transposed in registers.
        while t + 8 <= steps {
            let mut x = [_mm256_setzero_si256(); 8];
            for (r, x) in x.iter_mut().enumerate() {
                // SAFETY: r · dim + 4 t + 32 ≤ 8 · dim.
                *x = _mm256_xor_si256(unsafe { load(rows, r * dim + 4 * t) }, sign);
            }
            for (i, y) in transpose(x).into_iter().enumerate() {
                let to = &mut tile.0[(half * steps + t + i) * 32..][..32];
                // SAFETY: `to` has 32 bytes.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), y) };
            }
            t += 8;
        }
        let quads: &[[u8; 4]] = bytemuck::cast_slice(rows);
        for t in t..steps {
            for r in 0..8 {
                let x = u32::from_le_bytes(quads[r * steps + t]) ^ 0x8080_8080;
                let at = (half * steps + t) * 32 + r * 4;
                tile.0[at..at + 4].copy_from_slice(&x.to_le_bytes());
            }
        }
    }
}

/// Transposes 8 × 8 values of 32 bits.
#[target_feature(enable = "avx2")]
fn transpose(x: [__m256i; 8]) -> [__m256i; 8] {
    let pair = |i: usize| {
        (
            _mm256_unpacklo_epi32(x[i], x[i + 1]),
            _mm256_unpackhi_epi32(x[i], x[i + 1]),
        )
    };
    let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (pair(0), pair(2), pair(4), pair(6));
    let four = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    // Columns k and k + 4 of rows 0 to 3, and of rows 4 to 7.
    let ((e0, e1), (e2, e3)) = (four(a0, b0), four(a1, b1));
    let ((f0, f1), (f2, f3)) = (four(c0, d0), four(c1, d1));
    let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
    let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
    [
        low(e0, f0),
        low(e1, f1),
        low(e2, f2),
        low(e3, f3),
        high(e0, f0),
        high(e1, f1),
        high(e2, f2),
        high(e3, f3),
    ]
}

/// Queries × rows as outer products: a vector holds four values of eight rows, and four values
/// of a query are broadcast against it, so lanes are rows and no sum crosses lanes.
macro_rules! many {
    ($(#[$attribute:meta])* $name:ident, $features:literal, $step:ident) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// The CPU has the features; `queries.len()` and `rows.len()` are multiples of `dim`;
        /// `out.len()` is the product of their counts; query codes lie within ±63.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(queries: &[i8], dim: usize, rows: &[i8], out: &mut [i32]) {
            let n = rows.len() / dim.max(1);
            if dim == 0 || !dim.is_multiple_of(4) || dim > TILE_DIM {
                scalar::many_i8(queries, dim, rows, out);
                return;
            }
            let mut tile = Tile([0; 16 * TILE_DIM]);
            let (steps, tiles) = (dim / 4, n / 16);
            // Rows hold values plus 128.
            let offsets = queries.chunks_exact(dim).map(|q| {
                128 * q.iter().map(|&v| i32::from(v)).sum::<i32>()
            });
            let offsets: Vec<i32> = offsets.collect();
            for (t, block) in rows.chunks_exact(16 * dim).enumerate() {
                // SAFETY: a block has 16 · dim codes, and dim was checked above.
                unsafe { interleave(block, dim, &mut tile) };
                let mut q = 0;
                while q < offsets.len() {
                    let width = (offsets.len() - q).min(3);
                    // A narrow last group reads its last query more than once.
                    let at = [0, 1, 2].map(|i: usize| (q + i.min(width - 1)) * dim);
                    // Six sums and two operands: all registers, if they are named.
                    let zero = _mm256_setzero_si256();
                    let (mut a0, mut a1, mut b0) = (zero, zero, zero);
                    let (mut b1, mut c0, mut c1) = (zero, zero, zero);
                    for s in 0..steps {
                        // SAFETY: both vectors end at or before 32 · 2 · steps = 16 · dim.
                        let x0 = unsafe { load(&tile.0, s * 32) };
                        // SAFETY: as above.
                        let x1 = unsafe { load(&tile.0, (steps + s) * 32) };
                        // SAFETY: at + 4 s + 4 ≤ queries.len() for each; any alignment will do.
                        let four = |at: usize| unsafe {
                            let four = queries.as_ptr().add(at + 4 * s).cast::<i32>();
                            _mm256_set1_epi32(four.read_unaligned())
                        };
                        let q = four(at[0]);
                        (a0, a1) = ($step(a0, x0, q), $step(a1, x1, q));
                        let q = four(at[1]);
                        (b0, b1) = ($step(b0, x0, q), $step(b1, x1, q));
                        let q = four(at[2]);
                        (c0, c1) = ($step(c0, x0, q), $step(c1, x1, q));
                    }
                    let acc = [[a0, a1], [b0, b1], [c0, c1]];
                    for (i, a) in acc.iter().enumerate().take(width) {
                        let offset = _mm256_set1_epi32(offsets[q + i]);
                        let to = &mut out[(q + i) * n + t * 16..][..16];
                        // SAFETY: `to` has room for 16 values.
                        unsafe {
                            let to = to.as_mut_ptr().cast::<__m256i>();
                            _mm256_storeu_si256(to, _mm256_sub_epi32(a[0], offset));
                            _mm256_storeu_si256(to.add(1), _mm256_sub_epi32(a[1], offset));
                        }
                    }
                    q += width;
                }
            }
            let done = tiles * 16;
            if done < n {
                let mut rest = vec![0; n - done];
                for (q, query) in queries.chunks_exact(dim).enumerate() {
                    scalar::dot_i8(query, &rows[done * dim..], &mut rest);
                    out[q * n + done..(q + 1) * n].copy_from_slice(&rest);
                }
            }
        }
    };
}

/// acc + Σ of four products a lane; x unsigned, q within ±63.
#[target_feature(enable = "avx2")]
fn step_avx2(acc: __m256i, x: __m256i, q: __m256i) -> __m256i {
    // A pair is at most 2 · 255 · 63 = 32130 < 2¹⁵.
    let pairs = _mm256_maddubs_epi16(x, q);
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

many!(
    /// Many queries with many rows, by `maddubs`.
    many_i8, "avx2", step_avx2
);

// What follows uses the macros above.
pub(super) mod avx512;
pub(super) mod vnni;
