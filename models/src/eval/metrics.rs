//! Ranking metrics with binary relevance, and the selection of the best items.
//!
//! All of them take the ranked list, best first, and the targets as an ascending, distinct slice.
//! Lists may be shorter than `k` (few candidates); the missing places count as misses.

/// Hits among the first `k` over the number of **targets**, however many: recall@k reaches 1 only if
/// all targets are found. 0 without targets.
pub fn recall_at(ranked: &[u32], targets: &[u32], k: usize) -> f64 {
    if targets.is_empty() {
        return 0.0;
    }
    hits(ranked, targets, k) as f64 / targets.len() as f64
}

/// Hits among the first `k` over **k**, even where the list or the targets are shorter.
pub fn precision_at(ranked: &[u32], targets: &[u32], k: usize) -> f64 {
    if k == 0 {
        return 0.0;
    }
    hits(ranked, targets, k) as f64 / k as f64
}

/// Discounted gain `Σ 1 / log2(rank + 1)` (rank from 1) of the hits among the first `k`, over the
/// same sum of an ideal list with **min(|targets|, k)** hits.
pub fn ndcg_at(ranked: &[u32], targets: &[u32], k: usize) -> f64 {
    let ideal: f64 = (0..targets.len().min(k)).map(discount).sum();
    if ideal == 0.0 {
        return 0.0;
    }
    let gain: f64 = ranked
        .iter()
        .take(k)
        .enumerate()
        .filter(|(_, item)| targets.binary_search(item).is_ok())
        .map(|(position, _)| discount(position))
        .sum();
    // The sum of no terms is -0.0.
    gain.abs() / ideal
}

/// 1 if any target is among the first `k`, else 0.
pub fn hit_at(ranked: &[u32], targets: &[u32], k: usize) -> f64 {
    f64::from(u8::from(hits(ranked, targets, k) > 0))
}

/// One over the rank (from 1) of the **first** hit among the first `k`; 0 if there is none.
pub fn mrr_at(ranked: &[u32], targets: &[u32], k: usize) -> f64 {
    ranked
        .iter()
        .take(k)
        .position(|item| targets.binary_search(item).is_ok())
        .map_or(0.0, |position| 1.0 / (position + 1) as f64)
}

fn hits(ranked: &[u32], targets: &[u32], k: usize) -> usize {
    ranked
        .iter()
        .take(k)
        .filter(|item| targets.binary_search(item).is_ok())
        .count()
}

fn discount(position: usize) -> f64 {
    1.0 / ((position + 2) as f64).log2()
}

/// The `k` best items, best first; equal scores go to the lower id. Items in `mask` (ascending) are
/// left out.
///
/// # Errors
///
/// The id of the first item whose score is NaN, masked or not.
pub fn top_k(scores: &[f32], mask: &[u32], k: usize) -> Result<Vec<u32>, u32> {
    let mut select = Select::new(k);
    let mut masked = mask.iter().copied().peekable();
    for (item, &score) in scores.iter().enumerate() {
        let item = item as u32;
        if score.is_nan() {
            return Err(item);
        }
        if masked.next_if_eq(&item).is_some() {
            continue;
        }
        select.push(item, score);
    }
    Ok(select.finish())
}

/// The `k` best of `candidates` (ascending), best first; equal scores go to the lower id.
///
/// # Errors
///
/// The id of the first candidate whose score is NaN.
///
/// # Panics
///
/// If a candidate is not an index into `scores`.
pub fn top_k_of(scores: &[f32], candidates: &[u32], k: usize) -> Result<Vec<u32>, u32> {
    let mut select = Select::new(k);
    for &item in candidates {
        let score = scores[item as usize];
        if score.is_nan() {
            return Err(item);
        }
        select.push(item, score);
    }
    Ok(select.finish())
}

/// Keeps the k best of a stream of ascending ids: a buffer of 2k entries that is cut to k whenever it
/// is full, and a bound that lets almost every item be dismissed by one comparison.
struct Select {
    k: usize,
    buffer: Vec<(f32, u32)>,
    bound: f32,
    bounded: bool,
}

impl Select {
    fn new(k: usize) -> Self {
        Self {
            k,
            buffer: Vec::with_capacity(2 * k.min(1 << 16)),
            bound: f32::NEG_INFINITY,
            bounded: false,
        }
    }

    fn push(&mut self, item: u32, score: f32) {
        // Ids ascend, so a later item with the bound's score loses the tie.
        if self.k == 0 || (self.bounded && score <= self.bound) {
            return;
        }
        self.buffer.push((score, item));
        if self.buffer.len() >= 2 * self.k {
            self.buffer.select_nth_unstable_by(self.k - 1, better);
            self.buffer.truncate(self.k);
            self.bound = self.buffer[self.k - 1].0;
            self.bounded = true;
        }
    }

    fn finish(mut self) -> Vec<u32> {
        self.buffer.sort_unstable_by(better);
        self.buffer.truncate(self.k);
        self.buffer.into_iter().map(|(_, item)| item).collect()
    }
}

fn better(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    // 0.0 and -0.0 are equal scores, which `total_cmp` would tell apart; NaN was refused.
    b.0.partial_cmp(&a.0)
        .unwrap_or(std::cmp::Ordering::Equal)
        .then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worked_example() {
        let mut ranked = vec![7, 3, 9, 1, 5, 2, 8, 4, 6, 0];
        ranked.extend(10..20);
        let targets = [3, 5, 42];
        // Hits at ranks 2 and 5: DCG = 1/log2(3) + 1/log2(6), IDCG = 1 + 1/log2(3) + 1/2.
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(recall_at(&ranked, &targets, 20), 2.0 / 3.0);
        close(precision_at(&ranked, &targets, 20), 2.0 / 20.0);
        close(ndcg_at(&ranked, &targets, 20), 0.477_623_703_5);
        close(hit_at(&ranked, &targets, 20), 1.0);
        close(mrr_at(&ranked, &targets, 20), 1.0 / 2.0);
        // Only the first place: no hit; IDCG is 1.
        close(ndcg_at(&ranked, &targets, 1), 0.0);
        // Two places: DCG = 1/log2(3), IDCG = 1 + 1/log2(3).
        let d = 1.0 / 3f64.log2();
        close(ndcg_at(&ranked, &targets, 2), d / (1.0 + d));
        close(recall_at(&ranked, &targets, 2), 1.0 / 3.0);
    }

    #[test]
    fn short_lists_and_no_targets() {
        assert_eq!(recall_at(&[], &[1], 10), 0.0);
        assert_eq!(precision_at(&[1], &[1], 10), 0.1);
        assert_eq!(ndcg_at(&[1], &[1], 10), 1.0);
        assert_eq!(ndcg_at(&[1], &[], 10), 0.0);
        assert_eq!(mrr_at(&[2, 1], &[1], 1), 0.0);
    }

    #[test]
    fn ties_and_masks() {
        let scores = [1.0, 3.0, 3.0, -0.0, 0.0, f32::NEG_INFINITY];
        assert_eq!(top_k(&scores, &[], 4).unwrap(), [1, 2, 0, 3]);
        assert_eq!(top_k(&scores, &[1, 3], 9).unwrap(), [2, 0, 4, 5]);
        assert_eq!(top_k(&scores, &[], 0).unwrap(), Vec::<u32>::new());
        assert_eq!(top_k(&[0.0, f32::NAN], &[1], 1), Err(1));
    }

    proptest! {
        #[test]
        fn top_k_equals_sort(
            scores in prop::collection::vec((-3i8..3).prop_map(f32::from), 0..200),
            mask in prop::collection::btree_set(0u32..200, 0..20),
            k in 0usize..40,
        ) {
            let mask: Vec<u32> = mask.into_iter().collect();
            let mut all: Vec<u32> = (0..scores.len() as u32).filter(|i| !mask.contains(i)).collect();
            all.sort_by(|&a, &b| {
                scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
            });
            all.truncate(k);
            prop_assert_eq!(top_k(&scores, &mask, k).unwrap(), all);
        }

        #[test]
        fn metrics_stay_in_the_unit_interval(
            ranked in Just((0u32..40).collect::<Vec<_>>()).prop_shuffle(),
            targets in prop::collection::btree_set(0u32..60, 1..10),
            k in 1usize..50,
        ) {
            let targets: Vec<u32> = targets.into_iter().collect();
            for metric in [recall_at, precision_at, ndcg_at, hit_at, mrr_at] {
                let value = metric(&ranked, &targets, k);
                prop_assert!((0.0..=1.0).contains(&value));
                prop_assert!(metric(&ranked, &targets, k) <= 1.0);
            }
            prop_assert!(recall_at(&ranked, &targets, k) <= hit_at(&ranked, &targets, k));
        }
    }
}
