//! A micro-batch: its sequences, its distinct items and who competes with whom.

use std::collections::HashMap;

use super::loss::Candidates;
use crate::attention::Segments;

/// Sequences of a micro-batch in terms of its distinct items.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    /// The distinct items, in first-seen order; columns and `events` count along it.
    pub(super) items: Vec<u32>,
    /// The input events of all sequences, packed, as indices into `items`.
    pub(super) events: Vec<u32>,
    /// Where each sequence's inputs are.
    pub(super) segments: Segments,
    /// What each input event is scored against; its target is the next event.
    pub(super) candidates: Candidates,
}

impl Batch {
    /// Windows of at least two items each. `log_popularity` holds the logarithm of the share of each
    /// item in the training events; with `mask_own` the other items of a row's own window are no
    /// candidates.
    pub(super) fn new(windows: &[&[u32]], log_popularity: &[f32], mask_own: bool) -> Self {
        let mut column = HashMap::new();
        let mut items = Vec::new();
        let mut copies: Vec<f32> = Vec::new();
        let mut own = Vec::with_capacity(windows.len());
        for window in windows {
            let columns: Vec<u32> = window
                .iter()
                .map(|&item| {
                    let at = *column.entry(item).or_insert_with(|| {
                        items.push(item);
                        copies.push(0.0);
                        items.len() as u32 - 1
                    });
                    copies[at as usize] += 1.0;
                    at
                })
                .collect();
            own.push(columns);
        }
        let inputs = |c: &Vec<u32>| c.len() - 1;
        let segments = Segments::new(own.iter().map(inputs));
        let events = own
            .iter()
            .flat_map(|c| &c[..c.len() - 1])
            .copied()
            .collect();
        let targets = own.iter().flat_map(|c| &c[1..]).copied().collect();
        let group = (0..own.len() as u32)
            .flat_map(|g| std::iter::repeat_n(g, inputs(&own[g as usize])))
            .collect();
        let correction = items.iter().map(|&i| -log_popularity[i as usize]).collect();
        let closed = if mask_own {
            own
        } else {
            vec![Vec::new(); own.len()]
        };
        Self {
            items,
            events,
            segments,
            candidates: Candidates {
                correction,
                copies,
                targets,
                group,
                closed,
            },
        }
    }
}

/// Logarithm of each item's share of the counted events; `-inf` where there is none.
pub(super) fn log_popularity(counts: &[f64]) -> Vec<f32> {
    let total: f64 = counts.iter().sum();
    counts.iter().map(|&c| (c / total).ln() as f32).collect()
}
