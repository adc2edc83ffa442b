//! The kernels around `vpdpbusd`, which adds four products of u8 and i8 to each i32 lane without
//! saturation.

use super::*;

/// Two sets of CPUs have the instruction in 256 bits under two names.
macro_rules! vnni {
    ($module:ident, $features:literal, $dpbusd:path) => {
        pub(in crate::kernel) mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            fn step(acc: __m256i, x: __m256i, q: __m256i) -> __m256i {
                $dpbusd(acc, x, q)
            }

            /// Inner products of i8 codes: rows plus 128, less 128 · Σ query in the end.
            ///
            /// # Safety
            /// As for `dot_i8` of AVX2, with the features of this module.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
                let dim = query.len();
                let wide = dim / 32;
                let steps = if wide * 32 == dim { out.len() / STEP * STEP } else { 0 };
                let sign = _mm256_set1_epi8(i8::MIN);
                // At most 65536 · 128 · 127 < 2³¹.
                let offset = 128 * query.iter().map(|&v| i32::from(v)).sum::<i32>();
                for r in (0..steps).step_by(STEP) {
                    prefetch(rows.as_ptr().cast(), r * dim, STEP * dim);
                    let mut acc = [_mm256_setzero_si256(); STEP];
                    for b in 0..wide {
                        // SAFETY: 32 b + 32 ≤ dim = query.len().
                        let q = unsafe { load(query, 32 * b) };
                        for (j, a) in acc.iter_mut().enumerate() {
                            // SAFETY: r + j < out.len(), so this ends within `rows`.
                            let x = unsafe { load(rows, (r + j) * dim + 32 * b) };
                            // i32 lanes wrap at worst halfway; the difference is exact.
                            *a = step(*a, _mm256_xor_si256(x, sign), q);
                        }
                    }
                    let total = _mm256_sub_epi32(sums(acc), _mm256_set1_epi32(offset));
                    // SAFETY: r + 8 ≤ out.len().
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), total) };
                }
                // SAFETY: AVX2 comes with the features of this module; the rest has the
                // same shape.
                unsafe { super::dot_i8(query, &rows[steps * dim..], &mut out[steps..]) };
            }

            /// Inner products with rows of unsigned 4-bit codes.
            ///
            /// # Safety
            /// As for `dot_u4` of AVX2, with the features of this module.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn dot_u4(query: &[i8], rows: &[u8], out: &mut [i32]) {
                let (dim, bytes) = (query.len(), query.len() / 2);
                let wide = dim / 64;
                let steps = if wide * 64 == dim { out.len() / STEP * STEP } else { 0 };
                let nibble = _mm256_set1_epi8(15);
                for r in (0..steps).step_by(STEP) {
                    prefetch(rows.as_ptr(), r * bytes, STEP * bytes);
                    let mut acc = [_mm256_setzero_si256(); STEP];
                    for b in 0..wide {
                        // SAFETY: 64 b + 64 ≤ dim = query.len().
                        let low = unsafe { load(query, 64 * b) };
                        // SAFETY: likewise.
                        let high = unsafe { load(query, 64 * b + 32) };
                        for (j, a) in acc.iter_mut().enumerate() {
                            // SAFETY: r + j < out.len(), so this ends within `rows`.
                            let x = unsafe { load(rows, (r + j) * bytes + 32 * b) };
                            let even = _mm256_and_si256(x, nibble);
                            let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(x), nibble);
                            *a = step(step(*a, even, low), odd, high);
                        }
                    }
                    // SAFETY: r + 8 ≤ out.len().
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(r).cast(), sums(acc)) };
                }
                scalar::dot_u4(query, &rows[steps * bytes..], &mut out[steps..]);
            }

            type Code = i8;
            pub(in crate::kernel) const GROUP: usize = 4;

            /// Weights are multiplied plus 128.
            #[target_feature(enable = $features)]
            fn start(xs: &[i8]) -> Sums {
                _mm256_set1_epi32(-128 * xs.iter().map(|&x| i32::from(x)).sum::<i32>())
            }

            /// The weights of four inputs for eight outputs, those of an output side by side.
            ///
            /// # Safety
            /// The CPU has AVX2; there are 32 values.
            #[target_feature(enable = "avx2")]
            unsafe fn weights(from: *const i8) -> __m256i {
                // SAFETY: by this function's contract.
                let signed = unsafe { _mm256_loadu_si256(from.cast()) };
                _mm256_xor_si256(signed, _mm256_set1_epi8(i8::MIN))
            }

            /// # Safety
            /// The CPU has AVX2; there are four values.
            #[target_feature(enable = "avx2")]
            unsafe fn group(from: *const i8) -> __m256i {
                // SAFETY: by this function's contract; any alignment will do.
                _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
            }

            #[target_feature(enable = $features)]
            fn products(sums: Sums, weights: __m256i, inputs: __m256i) -> Sums {
                step(sums, weights, inputs)
            }

            coded!(linear_coded, $features);

            many!(
                /// Many queries with many rows.
                many_i8_inner, $features, step
            );

            /// # Safety
            /// As for `many_i8` of AVX2, with the features of this module.
            #[target_feature(enable = $features)]
            pub(in crate::kernel) unsafe fn many_i8(
                queries: &[i8],
                dim: usize,
                rows: &[i8],
                out: &mut [i32],
            ) {
                // SAFETY: the same contract.
                unsafe { many_i8_inner(queries, dim, rows, out) }
            }
        }
    };
}

vnni!(avx_vnni, "avx2,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
vnni!(
    avx512_vnni,
    "avx2,f16c,avx512f,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32
);

pub(in crate::kernel) fn has_avx_vnni() -> bool {
    is_available() && is_x86_feature_detected!("avxvnni")
}

pub(in crate::kernel) fn has_avx512_vnni() -> bool {
    is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// The kernels of [`vnni!`] with the one instruction put together from AVX2 ones: checks all of
/// them but that instruction on machines that lack it.
#[cfg(test)]
pub(in crate::kernel) mod emulated {
    use super::*;

    #[target_feature(enable = "avx2")]
    fn dpbusd(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        let low = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)),
            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b)),
        );
        let high = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(a)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(b)),
        );
        // Sums of neighbours, whose 64-bit pieces then come in the order low high low high.
        let quads = _mm256_permute4x64_epi64::<0xd8>(_mm256_hadd_epi32(low, high));
        _mm256_add_epi32(acc, quads)
    }

    vnni!(with_avx2, "avx2", dpbusd);
}
