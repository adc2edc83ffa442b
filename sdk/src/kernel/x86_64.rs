//! AVX2, with FMA and F16C (every x86-64 CPU with AVX2 that is in use has both).

use std::arch::x86_64::*;

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
        // Lane k of `sums` becomes the sum of acc[k].
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
        let sums = _mm256_add_epi32(low, high);
        // SAFETY: r + 8 ≤ out.len().
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), sums) };
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

/// Inner products of f32 vectors.
///
/// # Safety
/// The CPU has AVX2 and FMA; `rows.len() == query.len() * out.len()`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot_f32(query: &[f32], rows: &[f32], out: &mut [f32]) {
    let dim = query.len();
    let wide = dim / 16 * 16;
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * dim..(r + 1) * dim];
        let (mut a, mut b) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let mut d = 0;
        while d < wide {
            // SAFETY: d + 16 ≤ wide ≤ dim, the length of both slices.
            unsafe {
                let (q, x) = (query.as_ptr().add(d), row.as_ptr().add(d));
                a = _mm256_fmadd_ps(_mm256_loadu_ps(q), _mm256_loadu_ps(x), a);
                b = _mm256_fmadd_ps(_mm256_loadu_ps(q.add(8)), _mm256_loadu_ps(x.add(8)), b);
            }
            d += 16;
        }
        let tail: f32 = query[wide..]
            .iter()
            .zip(&row[wide..])
            .map(|(q, x)| q * x)
            .sum();
        *o = sum(_mm256_add_ps(a, b)) + tail;
    }
}

/// Inner products of an f32 query with f16 rows.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; `rows.len() == query.len() * out.len()`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dot_f16(query: &[f32], rows: &[u16], out: &mut [f32]) {
    let dim = query.len();
    let wide = dim / 8 * 8;
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * dim..(r + 1) * dim];
        let mut acc = _mm256_setzero_ps();
        let mut d = 0;
        while d < wide {
            // SAFETY: d + 8 ≤ wide ≤ dim, the length of both slices.
            unsafe {
                let x = _mm256_cvtph_ps(_mm_loadu_si128(row.as_ptr().add(d).cast()));
                acc = _mm256_fmadd_ps(_mm256_loadu_ps(query.as_ptr().add(d)), x, acc);
            }
            d += 8;
        }
        let tail: f32 = query[wide..]
            .iter()
            .zip(&row[wide..])
            .map(|(q, &x)| q * half::f16::from_bits(x).to_f32())
            .sum();
        *o = sum(acc) + tail;
    }
}

#[target_feature(enable = "avx2")]
fn sum(v: __m256) -> f32 {
    let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
}
