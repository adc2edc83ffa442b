//! 4 more bits a value behind the 8 of [`int8`](super::int8) or
//! [`two_stage`](super::two_stage): read for the finalists only, so they cost bytes on disk but
//! no time in the scan.
//!
//! A tail t of 0 to 15 says in which sixteenth of its step the value lies:
//! x̂ = scale · (code + (t − 7.5) / 16). Packed as in [`int4`](super::int4).
//!
//! Error bound: |x − x̂| ≤ scale/32 · (1 + 2⁻¹¹), a sixteenth of that of int8. (The rounding of
//! the quotient is at most 127 · 2⁻²⁴ scales, as in int8.)

use crate::kernel::packed;

/// Encodes what is left of `x` behind its 8-bit codes.
///
/// # Panics
/// Unless `x` and `codes` have the same even number D and `tail` D / 2 bytes.
pub fn encode(x: &[f32], codes: &[i8], scale: f32, tail: &mut [u8]) {
    assert!(x.len().is_multiple_of(2));
    assert_eq!((x.len(), x.len() / 2), (codes.len(), tail.len()));
    let value = |at: usize| {
        let rest = x[at] / scale - f32::from(codes[at]);
        // A float-to-int cast saturates.
        ((rest + 0.5) * 16.0).floor().clamp(0.0, 15.0) as u8
    };
    for block in packed(x.len()) {
        for j in 0..block.half {
            let at = block.first + j;
            tail[block.first / 2 + j] = value(at) | value(at + block.half) << 4;
        }
    }
}

/// x̂ = scale · (code + (t − 7.5) / 16).
///
/// # Panics
/// Unless `out` and `codes` have the same even number D and `tail` D / 2 bytes.
pub fn decode(codes: &[i8], scale: f32, tail: &[u8], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(2));
    assert_eq!((out.len(), out.len() / 2), (codes.len(), tail.len()));
    let value = |code: i8, t: u8| scale * (f32::from(code) + (f32::from(t) - 7.5) / 16.0);
    for block in packed(out.len()) {
        let (first, second) = out[block.first..][..2 * block.half].split_at_mut(block.half);
        let (c0, c1) = codes[block.first..][..2 * block.half].split_at(block.half);
        let bytes = tail[block.first / 2..][..block.half].iter();
        let codes = c0.iter().zip(c1);
        for (((byte, (c0, c1)), a), b) in bytes.zip(codes).zip(first).zip(second) {
            *a = value(*c0, byte & 15);
            *b = value(*c1, byte >> 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::int8;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn error_is_within_a_sixteenth_of_int8(x in prop::collection::vec(-1.0f32..1.0, 0..80), power in -37i32..37) {
            let x: Vec<f32> = x[..x.len() / 2 * 2].iter().map(|v| v * 10f32.powi(power)).collect();
            let (mut codes, mut tail) = (vec![0; x.len()], vec![0; x.len() / 2]);
            let scale = int8::encode(&x, &mut codes);
            encode(&x, &codes, scale, &mut tail);
            let mut back = vec![0.0; x.len()];
            decode(&codes, scale, &tail, &mut back);
            for (a, b) in x.iter().zip(&back) {
                let error = (f64::from(*a) - f64::from(*b)).abs();
                let bound = f64::from(scale) / 32.0 * (1.0 + 1.0 / 2048.0);
                prop_assert!(error <= bound, "{a} became {b} with scale {scale}");
            }
        }
    }
}
