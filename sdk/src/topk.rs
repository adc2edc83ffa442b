//! Keeping the best k of a stream of scores without allocating per score.

use std::cmp::Ordering;

use crate::filter::Selection;
use crate::id::Row;
use crate::kernel;

/// Scores that are compared with the threshold together: one word of a selection.
const GROUP: usize = 64;

/// A row and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Row in the item table.
    pub row: Row,
    /// Higher is better.
    pub score: f32,
}

/// Best first: higher score, then lower row.
pub(crate) fn best_first(a: &Scored, b: &Scored) -> Ordering {
    b.score.total_cmp(&a.score).then(a.row.cmp(&b.row))
}

/// Score and row in one number: the better, the smaller. Integers are selected and sorted
/// several times faster than pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn new(row: Row, score: f32) -> Self {
        let bits = score.to_bits();
        // Ascends with the score: negative numbers reversed, below the positive ones.
        let ascending = bits ^ ((bits as i32 >> 31) as u32 | 1 << 31);
        Key(u64::from(!ascending) << 32 | u64::from(row))
    }

    fn score(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        let sign = if ascending >> 31 == 0 {
            u32::MAX
        } else {
            1 << 31
        };
        f32::from_bits(ascending ^ sign)
    }

    pub(crate) fn row(self) -> Row {
        self.0 as Row
    }

    fn scored(self) -> Scored {
        Scored {
            row: self.row(),
            score: self.score(),
        }
    }
}

/// Collects the best `k` of the scores offered.
///
/// Candidates above the current k-th score go to a buffer of 2k; when it is full, a selection
/// cuts it back to k and raises the threshold.
pub(crate) struct TopK {
    k: usize,
    limit: usize,
    buffer: Vec<Key>,
    /// The k-th best so far; before there are k, everything is taken.
    threshold: Option<Key>,
    /// Rows may come in any order, so equals of the threshold can still win.
    unordered: bool,
}

impl TopK {
    /// For rows that ascend from offer to offer. `total` is the number of scores that can be
    /// offered at most; it bounds the memory.
    pub(crate) fn new(k: usize, total: usize) -> Self {
        let k = k.min(total);
        let limit = k.saturating_mul(2).max(64);
        TopK {
            k,
            limit,
            buffer: Vec::with_capacity(limit.min(total)),
            threshold: None,
            unordered: false,
        }
    }

    /// As [`TopK::new`], for blocks in any order; within a block rows ascend.
    pub(crate) fn unordered(k: usize, total: usize) -> Self {
        TopK {
            unordered: true,
            ..Self::new(k, total)
        }
    }

    /// Offers a block of scores of rows `first..`, of which only those in `within` count;
    /// `accept` is asked only for rows that would be kept. A NaN counts as the lowest score.
    pub(crate) fn offer(
        &mut self,
        first: Row,
        scores: &[f32],
        within: Option<&Selection>,
        accept: &impl Fn(Row) -> bool,
    ) {
        if self.k == 0 {
            return;
        }
        let kernel = kernel::active();
        for (g, group) in scores.chunks(GROUP).enumerate() {
            let start = first as usize + g * GROUP;
            // Nearly always nothing is above the threshold, and that is one vector test.
            let mut mask = match self.threshold {
                Some(t) if self.unordered => kernel.above(group, t.score().next_down()),
                Some(t) => kernel.above(group, t.score()),
                None => u64::MAX >> (GROUP - group.len()),
            };
            if mask == 0 {
                continue;
            }
            if let Some(rows) = within {
                mask &= rows.word(start);
            }
            while mask != 0 {
                let i = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                self.push((start + i) as Row, group[i], accept);
            }
        }
    }

    /// As [`TopK::offer`] for the scores `sums[i]` · (`scales[i]` · `factor`), which are
    /// computed only where they may be kept. `factor` is positive.
    pub(crate) fn offer_scaled(
        &mut self,
        first: Row,
        (sums, scales, factor): (&[i32], &[f32], f32),
        within: Option<&Selection>,
        accept: &impl Fn(Row) -> bool,
    ) {
        if self.k == 0 {
            return;
        }
        let kernel = kernel::active();
        let groups = sums.chunks(GROUP).zip(scales.chunks(GROUP));
        for (g, (sums, scales)) in groups.enumerate() {
            let start = first as usize + g * GROUP;
            // Three roundings apart from the score itself, which `push` compares.
            let threshold = self.threshold.map(|t| {
                let t = t.score() / factor;
                t - t.abs() * 1e-6 - f32::MIN_POSITIVE
            });
            let mut mask = match threshold {
                Some(t) if t.is_finite() => kernel.above_scaled(sums, scales, t),
                _ => u64::MAX >> (GROUP - sums.len()),
            };
            if mask == 0 {
                continue;
            }
            if let Some(rows) = within {
                mask &= rows.word(start);
            }
            while mask != 0 {
                let i = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let score = sums[i] as f32 * (scales[i] * factor);
                self.push((start + i) as Row, score, accept);
            }
        }
    }

    fn push(&mut self, row: Row, score: f32, accept: &impl Fn(Row) -> bool) {
        // Also turns -0.0 into 0.0, so that both sort as equals.
        let score = if score.is_nan() {
            f32::NEG_INFINITY
        } else {
            score + 0.0
        };
        let key = Key::new(row, score);
        // The threshold may have risen since the group was tested.
        if self.threshold.is_some_and(|t| key >= t) || !accept(row) {
            return;
        }
        self.buffer.push(key);
        if self.buffer.len() >= self.limit {
            self.cut();
        }
    }

    /// Score of the k-th best so far, if there are k.
    pub(crate) fn worst(&mut self) -> Option<f32> {
        // A cut costs a pass over the buffer; in between the last threshold is good enough.
        let half = self.k + self.k / 2;
        if self.buffer.len() >= half.max(1) || self.threshold.is_none() {
            self.cut();
        }
        self.threshold.map(Key::score)
    }

    /// Rows kept so far, k and more once there are k.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    fn cut(&mut self) {
        if self.k > 0 && self.buffer.len() >= self.k {
            let (_, kth, _) = self.buffer.select_nth_unstable(self.k - 1);
            self.threshold = Some(*kth);
            self.buffer.truncate(self.k);
        }
    }

    /// The best, best first.
    pub(crate) fn finish(mut self) -> Vec<Scored> {
        self.cut();
        self.buffer.sort_unstable();
        self.buffer.truncate(self.k);
        self.buffer.into_iter().map(Key::scored).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(scores: &[f32], k: usize, accept: impl Fn(Row) -> bool) -> Vec<Scored> {
        let mut all: Vec<Scored> = scores
            .iter()
            .enumerate()
            .map(|(row, &score)| Scored {
                row: row as Row,
                score: score + 0.0,
            })
            .filter(|s| accept(s.row))
            .collect();
        all.sort_by(best_first);
        all.truncate(k);
        all
    }

    proptest! {
        // Few distinct values, so that ties are common.
        #[test]
        fn equals_a_full_sort(
            scores in prop::collection::vec((-20i8..20).prop_map(|x| f32::from(x) / 4.0), 0..3000),
            k in 0usize..120,
            block in 1usize..700,
            modulus in 1u32..5,
        ) {
            let accept = |row: Row| row.is_multiple_of(modulus);
            let mut top = TopK::new(k, scores.len());
            for (b, part) in scores.chunks(block).enumerate() {
                top.offer((b * block) as Row, part, None, &accept);
            }
            prop_assert_eq!(top.finish(), reference(&scores, k, accept));
            let mut top = TopK::unordered(k, scores.len());
            for (b, part) in scores.chunks(block).enumerate().rev() {
                top.offer((b * block) as Row, part, None, &accept);
            }
            prop_assert_eq!(top.finish(), reference(&scores, k, accept));
        }
    }

    #[test]
    fn keys_keep_score_and_row_and_their_order() {
        let scores = [
            f32::NEG_INFINITY,
            -2.5,
            -1e-40,
            0.0,
            1e-40,
            1.0,
            2.5,
            f32::INFINITY,
        ];
        for (i, &a) in scores.iter().enumerate() {
            for row in [0, 7, Row::MAX] {
                let s = Key::new(row, a).scored();
                assert_eq!((s.row, s.score.to_bits()), (row, a.to_bits()));
            }
            assert!(Key::new(3, a) < Key::new(4, a));
            assert!(scores[..i].iter().all(|&b| Key::new(9, a) < Key::new(0, b)));
        }
    }

    #[test]
    fn signed_zeros_tie_and_nan_is_last() {
        let mut top = TopK::new(3, 4);
        top.offer(0, &[f32::NAN, -0.0, 0.0, -1.0], None, &|_| true);
        let rows: Vec<Row> = top.finish().iter().map(|s| s.row).collect();
        assert_eq!(rows, [1, 2, 3]);
    }

    #[test]
    fn ascending_scores_keep_the_memory_bounded() {
        let mut top = TopK::new(2, 1 << 20);
        let scores: Vec<f32> = (0..1024).map(|x| x as f32).collect();
        for b in 0..64 {
            top.offer(b * 1024, &scores, None, &|_| true);
        }
        assert!(top.buffer.capacity() <= 64);
        assert_eq!(
            top.finish()[0],
            Scored {
                row: 1023,
                score: 1023.0
            }
        );
    }
}
