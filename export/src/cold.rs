//! Room for items that nobody has met yet.
//!
//! A student that knows an item by its content alone is less sure of it, so its scores spread less,
//! and among the first places, where only extremes go, such an item is never seen: what is new
//! stays unknown. A bundle therefore adds the same number to the score of every cold item, just
//! enough for them to take a given share of the first places. Whom a cold item is shown to is the
//! student's choice alone; vectors, and with them the likeness of items, stay as they are.

use serde::Serialize;
use tercet_models::data::{Dataset, Split};
use tercet_models::eval::{EvalQuery, Scorer};

use crate::error::Result;
use crate::scorer::BundleScorer;
use crate::verify::sample_histories;

/// Places of a list that are shared out.
const PLACES: usize = 20;

/// What was done for cold items, for the model card.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ColdItems {
    /// Items of the data without a training event, but with content.
    pub items: usize,
    /// Share of the first 20 places that they should have at least: what was asked for, but no more
    /// than their share of the catalogue, or the same few items would be shown to everyone.
    pub share: f64,
    /// Added to their scores, 0 if they have that share without.
    pub bias: f32,
}

/// The least bias by which items `cold` take `share` of the first places of sampled training
/// histories, without the items of each; of few items, their share of the catalogue.
pub(crate) fn cold_items(
    scorer: &BundleScorer,
    data: &Dataset,
    window: usize,
    cold: &[u32],
    share: f64,
) -> Result<ColdItems> {
    let share = share.min(cold.len() as f64 / data.num_items().max(1) as f64);
    let mut is_cold = vec![false; data.num_items()];
    cold.iter().for_each(|&i| is_cold[i as usize] = true);
    let mut scores = vec![0f32; data.num_items()];
    let mut needed = Vec::new();
    if !cold.is_empty() && share > 0.0 {
        for history in sample_histories(data, window, Split::Valid) {
            let seen: Vec<u32> = history.iter().map(|e| e.item).collect();
            let query = EvalQuery {
                user: 0,
                history,
                mask: Vec::new(),
                targets: Vec::new(),
            };
            scorer.score(std::slice::from_ref(&query), &mut scores)?;
            seen.iter()
                .for_each(|&i| scores[i as usize] = f32::NEG_INFINITY);
            needed.extend(needed_biases(&scores, &is_cold));
        }
    }
    Ok(ColdItems {
        items: cold.len(),
        share,
        bias: least_bias(needed, share),
    })
}

/// The least bias, from 0 on, that is enough for `share` of the places that need these; or for as many as
/// there are cold items for.
fn least_bias(mut needed: Vec<f32>, share: f64) -> f32 {
    let places = (needed.len() as f64 * share).ceil() as usize;
    needed.sort_unstable_by(f32::total_cmp);
    needed.truncate(places);
    let last = needed.into_iter().rev().find(|bias| bias.is_finite());
    last.unwrap_or(0.0).max(0.0)
}

/// A scorer with the same number added for some items.
pub(crate) struct Lifted<S> {
    scorer: S,
    items: Vec<u32>,
    bias: f32,
}

impl<S> Lifted<S> {
    pub(crate) fn new(scorer: S, items: &[u32], bias: f32) -> Self {
        Lifted {
            scorer,
            items: items.to_vec(),
            bias,
        }
    }
}

impl<S: Scorer> Scorer for Lifted<S> {
    fn num_items(&self) -> usize {
        self.scorer.num_items()
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> tercet_models::Result<()> {
        self.scorer.score(queries, out)?;
        for scores in out.chunks_exact_mut(self.num_items().max(1)) {
            for &i in &self.items {
                scores[i as usize] += self.bias;
            }
        }
        Ok(())
    }
}

/// For each of the first places, the bias from which on one more cold item stands among them.
fn needed_biases(scores: &[f32], is_cold: &[bool]) -> Vec<f32> {
    let best = |cold: bool| {
        let of = scores.iter().zip(is_cold).filter(|(_, c)| **c == cold);
        let mut best: Vec<f32> = of.map(|(s, _)| *s).filter(|s| s.is_finite()).collect();
        best.sort_unstable_by(|a, b| b.total_cmp(a));
        best.truncate(PLACES);
        best
    };
    let (warm, cold) = (best(false), best(true));
    let places = PLACES.min(warm.len() + cold.len());
    (0..places)
        .map(|k| match (cold.get(k), warm.get(places - 1 - k)) {
            (None, _) => f32::INFINITY,
            // The place is free.
            (Some(_), None) => f32::NEG_INFINITY,
            (Some(cold), Some(warm)) => warm - cold,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_had_for_the_gap_to_the_last_warm_item() {
        let mut scores: Vec<f32> = (0..30).map(|i| 30.0 - i as f32).collect();
        let is_cold: Vec<bool> = (0..30).map(|i| i >= 20).collect();
        // Warm 30 … 11, cold 10 … 1: the first cold one replaces 11, the second 12, and so on.
        let needed = needed_biases(&scores, &is_cold);
        assert_eq!(needed.len(), 20);
        assert_eq!(needed[..3], [1.0, 3.0, 5.0]);
        assert!(needed[10..].iter().all(|b| *b == f32::INFINITY));
        assert_eq!(least_bias(needed.clone(), 0.0), 0.0);
        assert_eq!(least_bias(needed.clone(), 0.1), 3.0);
        // Ten cold items cannot take more than ten places.
        assert_eq!(least_bias(needed, 1.0), 19.0);
        // Items that are not ranked leave their places to others.
        scores[19] = f32::NEG_INFINITY;
        assert_eq!(
            needed_biases(&scores, &is_cold)[..2],
            [f32::NEG_INFINITY, 3.0]
        );
    }
}
