//! 2 bytes a value, IEEE half precision.
//!
//! Error bound: |x − x̂| ≤ max(|x|·2⁻¹¹, 2⁻²⁵); values of magnitude 65520 and more do not fit.

use half::f16;

use crate::kernel;

/// A value is too large for half precision, or not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange;

/// Rounds `x` to nearest, ties to even.
///
/// # Errors
/// [`OutOfRange`] if a value is NaN or would become infinite.
///
/// # Panics
/// If the lengths differ.
pub fn encode(x: &[f32], out: &mut [f16]) -> Result<(), OutOfRange> {
    assert_eq!(x.len(), out.len());
    for (x, h) in x.iter().zip(out.iter_mut()) {
        *h = f16::from_f32(*x);
        if !h.is_finite() {
            return Err(OutOfRange);
        }
    }
    Ok(())
}

/// Widens stored bits; exact.
///
/// # Panics
/// If the lengths differ.
pub fn decode(bits: &[u16], out: &mut [f32]) {
    assert_eq!(bits.len(), out.len());
    for (b, x) in bits.iter().zip(out) {
        *x = f16::from_bits(*b).to_f32();
    }
}

/// Inner product of `query` and a stored row of the same length, with the active kernel.
///
/// # Panics
/// If the lengths differ.
pub fn score(query: &[f32], bits: &[u16]) -> f32 {
    let mut out = [0.0];
    kernel::active().dot_f16(query, bits, &mut out);
    out[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn error_is_within_the_bound(x in prop::collection::vec(-65000.0f32..65000.0, 0..70), shrink in 0i32..40) {
            let x: Vec<f32> = x.iter().map(|v| v * 0.5f32.powi(shrink)).collect();
            let mut h = vec![f16::ZERO; x.len()];
            encode(&x, &mut h).unwrap();
            let bits: Vec<u16> = h.iter().map(|h| h.to_bits()).collect();
            let mut back = vec![0.0; x.len()];
            decode(&bits, &mut back);
            for (a, b) in x.iter().zip(&back) {
                prop_assert!((a - b).abs() <= (a.abs() / 2048.0).max(0.5f32.powi(25)), "{a} {b}");
            }
        }
    }

    #[test]
    fn too_large_is_refused() {
        let mut out = [f16::ZERO];
        assert_eq!(encode(&[65519.0], &mut out), Ok(()));
        for bad in [65520.0, -1e9, f32::NAN, f32::INFINITY] {
            assert_eq!(encode(&[bad], &mut out), Err(OutOfRange), "{bad}");
        }
    }
}
