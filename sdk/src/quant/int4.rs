//! 4 bits a value, an 8-bit factor a group and one f32 scale a row:
//! x̂ = scale · factor · (code − 8), codes 0 to 15.
//!
//! Values are packed in blocks of 64, of which byte j holds value j in its low half and value
//! j + 32 in its high half (a last block of n values: j + n/2); each half of a block is a group.
//! So one load gives two registers of codes, and groups never share a register.
//!
//! Error bound: |x − x̂| ≤ step/2 · (1 + 2⁻¹⁴) with step = scale · factor, and
//! step ≤ max|x of the group| / 7.5 + scale, scale = max|x of the row| / 1912.5. Fifteen half
//! steps cover −max to max, so the largest values are half a step off at most, as all others.

use crate::kernel::{self, groups, packed};

/// Number of bytes, and of factors, of a row of `dim` values.
pub fn row_bytes(dim: usize) -> (usize, usize) {
    (dim / 2, groups(dim))
}

/// Encodes a row and returns its scale, which is finite and positive.
///
/// # Shapes
/// `x` `[D]`, D even; `codes` and `factors` as [`row_bytes`] says.
///
/// # Panics
/// If the shapes disagree. Values must lie within ±`f32::MAX` / 2; others give codes without
/// meaning.
pub fn encode(x: &[f32], codes: &mut [u8], factors: &mut [u8]) -> f32 {
    assert!(x.len().is_multiple_of(2));
    assert_eq!(row_bytes(x.len()), (codes.len(), factors.len()));
    let largest = |x: &[f32]| x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let max = largest(x);
    let scale = if max == 0.0 {
        1.0
    } else {
        // As for int8: never subnormal.
        (max / 7.5 / 255.0).max(f32::MIN_POSITIVE)
    };
    for (block, pair) in packed(x.len()).zip(factors.chunks_exact_mut(2)) {
        let (low, high) = x[block.first..][..2 * block.half].split_at(block.half);
        for (group, factor) in [low, high].into_iter().zip(&mut *pair) {
            // A float-to-int cast saturates.
            *factor = ((largest(group) / 7.5 / scale).ceil().max(1.0)) as u8;
        }
        let code = |v: f32, factor: u8| {
            let step = scale * f32::from(factor);
            ((v / step).round().clamp(-8.0, 7.0) as i8 + 8) as u8
        };
        let bytes = &mut codes[block.first / 2..][..block.half];
        for ((byte, &l), &h) in bytes.iter_mut().zip(low).zip(high) {
            *byte = code(l, pair[0]) | code(h, pair[1]) << 4;
        }
    }
    scale
}

/// x̂ = scale · factor · (code − 8).
///
/// # Panics
/// If the shapes disagree with `out` `[D]`, D even.
pub fn decode(codes: &[u8], factors: &[u8], scale: f32, out: &mut [f32]) {
    assert!(out.len().is_multiple_of(2));
    assert_eq!(row_bytes(out.len()), (codes.len(), factors.len()));
    let dim = out.len();
    for (block, pair) in packed(dim).zip(factors.chunks_exact(2)) {
        let (low, high) = out[block.first..][..2 * block.half].split_at_mut(block.half);
        let step = [scale * f32::from(pair[0]), scale * f32::from(pair[1])];
        let bytes = &codes[block.first / 2..][..block.half];
        for ((byte, l), h) in bytes.iter().zip(low).zip(high) {
            *l = step[0] * (f32::from(byte & 15) - 8.0);
            *h = step[1] * (f32::from(byte >> 4) - 8.0);
        }
    }
}

/// Inner product of an int8 query and a stored row, with the active kernel.
///
/// # Panics
/// If the shapes disagree.
pub fn score(query: &[i8], query_scale: f32, codes: &[u8], factors: &[u8], scale: f32) -> f32 {
    let mut out = [0];
    kernel::active().dot_i4(query, codes, factors, &mut out);
    out[0] as f32 * (query_scale * scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(x: &[f32]) {
        let (bytes, groups) = row_bytes(x.len());
        let (mut codes, mut factors) = (vec![0; bytes], vec![0; groups]);
        let scale = encode(x, &mut codes, &mut factors);
        assert!(scale.is_finite() && scale > 0.0);
        assert!(factors.iter().all(|&f| f > 0));
        let mut back = vec![0.0; x.len()];
        decode(&codes, &factors, scale, &mut back);
        for (block, pair) in packed(x.len()).zip(factors.chunks_exact(2)) {
            for i in 0..2 * block.half {
                let step = f64::from(scale) * f64::from(pair[i / block.half]);
                let at = block.first + i;
                let error = (f64::from(x[at]) - f64::from(back[at])).abs();
                assert!(
                    error <= step / 2.0 * (1.0 + 1.0 / 16384.0),
                    "{at}: {x:?} {back:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn error_is_within_half_a_step(
            x in prop::collection::vec(-1.0f32..1.0, 0..70),
            power in -37i32..37,
            small in 0usize..70,
        ) {
            let mut x: Vec<f32> = x.iter().map(|v| v * 10f32.powi(power)).collect();
            x.truncate(x.len() / 2 * 2);
            let n = small.min(x.len());
            x[..n].iter_mut().for_each(|v| *v *= 1e-3);
            check(&x);
        }

        #[test]
        fn score_is_the_product_of_the_decoded(x in prop::collection::vec(-1.0f32..1.0, 96), q in prop::collection::vec(-127i8..=127, 96)) {
            let (mut codes, mut factors) = (vec![0; 48], vec![0; 4]);
            let scale = encode(&x, &mut codes, &mut factors);
            let mut back = vec![0.0; 96];
            decode(&codes, &factors, scale, &mut back);
            let exact: f64 = back.iter().zip(&q).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let sum: f64 = back.iter().zip(&q).map(|(a, b)| (f64::from(*a) * f64::from(*b)).abs()).sum();
            let got = f64::from(score(&q, 1.0, &codes, &factors, scale));
            prop_assert!((got - exact).abs() <= 8.0 * f64::from(f32::EPSILON) * (sum + 1e-30));
        }
    }

    #[test]
    fn extremes() {
        check(&[0.0; 64]);
        check(&[f32::MAX / 2.0, -f32::MAX / 2.0, 0.0, 1.0]);
        check(&[1.0, -1.0]);
        check(&[]);
    }
}
