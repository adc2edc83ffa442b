//! The 8-bit codes of [`int8`](super::int8) as two planes of 4 bits: the high halves, half the
//! bytes, find the candidates, and the low halves make the full code of those alone.
//!
//! code = 16 · (high − 8) + low, high and low 0 to 15. Packed as in [`int4`](super::int4). The
//! first stage takes the low half for its mean, 7.5, so its vector is
//! x̃ = scale · (16 · high − 120.5), at most 7.5 scales from x̂. No byte is stored twice: the
//! table is as large as an int8 one.
//!
//! Error bound: that of int8 for x̂; |x̂ − x̃| ≤ 7.5 · scale.

use crate::kernel::{self, packed};

/// Splits codes into high and low halves.
///
/// # Panics
/// Unless `codes` has an even number D and the planes D / 2 bytes each.
pub fn split(codes: &[i8], high: &mut [u8], low: &mut [u8]) {
    assert!(codes.len().is_multiple_of(2));
    assert_eq!((codes.len() / 2, codes.len() / 2), (high.len(), low.len()));
    for block in packed(codes.len()) {
        for j in 0..block.half {
            let (a, b) = (codes[block.first + j], codes[block.first + block.half + j]);
            let at = block.first / 2 + j;
            let top = |c: i8| (c >> 4) as u8 & 15 ^ 8;
            high[at] = top(a) | top(b) << 4;
            low[at] = a as u8 & 15 | (b as u8 & 15) << 4;
        }
    }
}

/// Puts codes together again.
///
/// # Panics
/// As [`split`].
pub fn join(high: &[u8], low: &[u8], codes: &mut [i8]) {
    assert!(codes.len().is_multiple_of(2));
    assert_eq!((codes.len() / 2, codes.len() / 2), (high.len(), low.len()));
    let code = |high: u8, low: u8| ((high ^ 8) << 4 | low) as i8;
    for block in packed(codes.len()) {
        let bytes = block.first / 2..block.first / 2 + block.half;
        let halves = high[bytes.clone()].iter().zip(&low[bytes]);
        let (first, second) = codes[block.first..][..2 * block.half].split_at_mut(block.half);
        for (((h, l), a), b) in halves.zip(first).zip(second) {
            *a = code(h & 15, l & 15);
            *b = code(h >> 4, l >> 4);
        }
    }
}

/// x̃ of the first stage.
///
/// # Panics
/// Unless `out` has an even number D and `high` D / 2 bytes.
pub fn decode_coarse(high: &[u8], scale: f32, out: &mut [f32]) {
    assert!(out.len().is_multiple_of(2));
    assert_eq!(out.len() / 2, high.len());
    let value = |half: u8| scale * (16.0 * f32::from(half) - 120.5);
    for block in packed(out.len()) {
        let (first, second) = out[block.first..][..2 * block.half].split_at_mut(block.half);
        let bytes = &high[block.first / 2..][..block.half];
        for ((byte, a), b) in bytes.iter().zip(first).zip(second) {
            *a = value(byte & 15);
            *b = value(byte >> 4);
        }
    }
}

/// Twice the inner product with x̃ / scale, from the kernel's sum over high halves and the sum
/// of the query's codes; at most 1024 · 127 · 241 < 2³¹.
#[inline]
pub(crate) fn coarse(sum: i32, query_sum: i32) -> i32 {
    32 * sum - 241 * query_sum
}

/// Inner product of an int8 query and the first stage of a stored row, with the active kernel.
///
/// # Panics
/// If the shapes disagree.
pub fn score_coarse(query: &[i8], query_scale: f32, high: &[u8], scale: f32) -> f32 {
    let mut out = [0];
    kernel::active().dot_u4(query, high, &mut out);
    let query_sum = query.iter().map(|&q| i32::from(q)).sum();
    coarse(out[0], query_sum) as f32 * (query_scale * scale * 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn planes_are_lossless_and_the_first_is_near(
            codes in prop::collection::vec(-127i8..=127, 0..80),
            query in prop::collection::vec(-127i8..=127, 160),
        ) {
            let codes = &codes[..codes.len() / 2 * 2];
            let n = codes.len() / 2;
            let (mut high, mut low) = (vec![0; n], vec![0; n]);
            split(codes, &mut high, &mut low);
            let mut back = vec![0; codes.len()];
            join(&high, &low, &mut back);
            prop_assert_eq!(codes, &back[..]);
            let mut coarse = vec![0.0; codes.len()];
            decode_coarse(&high, 1.0, &mut coarse);
            for (c, x) in codes.iter().zip(&coarse) {
                prop_assert!((f32::from(*c) - x).abs() <= 7.5);
            }
            let query = &query[..codes.len()];
            let exact: f32 = coarse.iter().zip(query).map(|(x, q)| x * f32::from(*q)).sum();
            // Halves of integers below 2²⁴: exact.
            prop_assert_eq!(score_coarse(query, 1.0, &high, 1.0), exact);
        }
    }

    #[test]
    fn every_code() {
        for code in -127i8..=127 {
            let (mut high, mut low, mut back) = ([0], [0], [0, 0]);
            split(&[code, 5], &mut high, &mut low);
            join(&high, &low, &mut back);
            assert_eq!(back, [code, 5]);
        }
    }
}
