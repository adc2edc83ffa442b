//! 1 byte a value and one f32 scale a row: x̂ = scale · code, scale = max|x| / 127, codes in
//! ±127 (never −128, so that the sign trick of the AVX2 kernel holds).
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
