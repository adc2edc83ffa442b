//! 1 byte a value and one f32 scale a row: x̂ = scale · code, scale = max|x| / 127, codes in
//! ±127 (never −128, so that the sign trick of the AVX2 kernel holds). Tables without a tail
//! then [`fit`] the scale.
//!
//! Error bound: |x − x̂| ≤ scale/2 · (1 + 2⁻¹⁵). Half a scale is the rounding of the code; the
//! second term covers the f32 rounding of the quotient (at most 127 · 2⁻²⁴ scales) and of the
//! product scale · code (again 127 · 2⁻²⁴ scales): 254 · 2⁻²⁴ ≤ 2⁻¹⁶ scales.

use crate::kernel;

/// Largest magnitude of a code.
pub const MAX_CODE: i8 = 127;

/// Encodes a row and returns its scale, which is finite and positive; a zero row has scale 1.
///
/// # Panics
/// If the lengths differ. Values must be finite; others give codes without meaning.
pub fn encode(x: &[f32], codes: &mut [i8]) -> f32 {
    assert_eq!(x.len(), codes.len());
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = if max == 0.0 {
        1.0
    } else {
        // A subnormal scale would lose the bound; the smallest normal one only loses range.
        let scale = (max / f32::from(MAX_CODE)).max(f32::MIN_POSITIVE);
        // Near f32::MAX the quotient may round up so that 127 scales overflow.
        if (scale * f32::from(MAX_CODE)).is_finite() {
            scale
        } else {
            scale.next_down()
        }
    };
    for (v, c) in x.iter().zip(codes) {
        // A float-to-int cast saturates, and `clamp` keeps −128 out.
        *c = (v / scale).round().clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// A scale for codes of [`encode`] that keeps x · x̂ = x · x: the error then has no part in the
/// direction of x itself, where the queries that rank x high look. It differs from `scale` by
/// 1/508 at most, so that |x − x̂| ≤ 3/4 · scale · (1 + 2⁻¹⁵): a quarter of a scale more at the
/// largest codes, in exchange for better rankings.
///
/// # Panics
/// If the lengths differ.
pub fn fit(x: &[f32], codes: &[i8], scale: f32) -> f32 {
    assert_eq!(x.len(), codes.len());
    let pairs = || {
        x.iter()
            .zip(codes)
            .map(|(&v, &c)| (f64::from(v), f64::from(c)))
    };
    let square: f64 = pairs().map(|(v, _)| v * v).sum();
    let product: f64 = pairs().map(|(v, c)| v * c).sum();
    let most = f64::from(scale) / 508.0;
    let wanted = square / product - f64::from(scale);
    // A zero row has no direction: 0 / 0.
    if wanted.is_nan() {
        return scale;
    }
    let fitted = (f64::from(scale) + wanted.clamp(-most, most)) as f32;
    let usable = fitted.is_normal() && (fitted * f32::from(MAX_CODE)).is_finite();
    if usable { fitted } else { scale }
}

/// x̂ = scale · code.
///
/// # Panics
/// If the lengths differ.
pub fn decode(codes: &[i8], scale: f32, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len());
    for (c, x) in codes.iter().zip(out) {
        *x = f32::from(*c) * scale;
    }
}

/// Inner product of two coded vectors of the same length, with the active kernel.
///
/// # Panics
/// If the lengths differ.
pub fn score(query: &[i8], query_scale: f32, codes: &[i8], scale: f32) -> f32 {
    let mut out = [0];
    kernel::active().dot_i8(query, codes, &mut out);
    out[0] as f32 * (query_scale * scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(x: &[f32]) {
        let mut codes = vec![0; x.len()];
        let scale = encode(x, &mut codes);
        assert!(scale.is_finite() && scale > 0.0);
        assert!(codes.iter().all(|&c| c != i8::MIN));
        let mut back = vec![0.0; x.len()];
        decode(&codes, scale, &mut back);
        let bound = f64::from(scale) / 2.0 * (1.0 + 1.0 / 32768.0);
        for (a, b) in x.iter().zip(&back) {
            let error = (f64::from(*a) - f64::from(*b)).abs();
            assert!(error <= bound, "{a} became {b} with scale {scale}");
        }
    }

    proptest! {
        #[test]
        fn a_fitted_scale_is_unbiased_and_within_its_bound(
            x in prop::collection::vec(-1.0f32..1.0, 1..130),
            power in -45i32..38,
        ) {
            let x: Vec<f32> = x.iter().map(|v| v * 10f32.powi(power)).collect();
            let mut codes = vec![0; x.len()];
            let scale = encode(&x, &mut codes);
            let fitted = fit(&x, &codes, scale);
            prop_assert!(fitted.is_finite() && fitted > 0.0);
            let mut back = vec![0.0; x.len()];
            decode(&codes, fitted, &mut back);
            let bound = 0.75 * f64::from(scale) * (1.0 + 1.0 / 32768.0);
            for (a, b) in x.iter().zip(&back) {
                prop_assert!((f64::from(*a) - f64::from(*b)).abs() <= bound, "{a} {b}");
            }
            let dot = |y: &[f32]| -> f64 {
                x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let (square, product) = (dot(&x), dot(&back));
            let limited = (fitted / scale - 1.0).abs() > 0.99 / 508.0;
            let close = (square - product).abs() <= 1e-5 * square;
            prop_assert!(limited || close || fitted == scale, "{square} {product}");
        }

        #[test]
        fn error_is_within_half_a_scale(x in prop::collection::vec(-1.0f32..1.0, 0..130), power in -45i32..38) {
            check(&x.iter().map(|v| v * 10f32.powi(power)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn extremes() {
        check(&[0.0; 16]);
        check(&[f32::MAX, -f32::MAX, 0.0]);
        check(&[f32::MIN_POSITIVE, -f32::MIN_POSITIVE / 4.0, 1e-45]);
        check(&[1.0, -1.0, 0.5 / 127.0, 1.5 / 127.0]);
    }

    #[test]
    fn codes_by_hand() {
        // scale = 2.54 / 127 = 0.02; 1.0 / 0.02 = 50; -0.03 / 0.02 = -1.5, rounded away from 0.
        let mut codes = [0; 3];
        let scale = encode(&[2.54, 1.0, -0.0301], &mut codes);
        assert!((scale - 0.02).abs() < 1e-8);
        assert_eq!(codes, [127, 50, -2]);
    }
}
