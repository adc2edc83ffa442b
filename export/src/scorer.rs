//! A bundle as a model to be evaluated.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use tercet::{Bundle, Row, UserTower, kernel};
use tercet_models::data::{Dataset, HistoryEvent};
use tercet_models::error::Error as ModelsError;
use tercet_models::eval::{EvalQuery, Scorer};

use crate::error::{Error, Result};

/// Scores the items of a data set through the runtime, as a device would: user vectors come from
/// the bundle's own tower over the decoded item table, and a score is `query · x̂ + bias` with the
/// f32 query and the quantized row.
///
/// That is the formula by which a session orders its finalists. A session with an int8 table first
/// picks max(1.5k, k + 32) finalists with a query of 8 bits; what that first pass loses is not
/// visible here, [`Parity::scan_overlap`](crate::Parity::scan_overlap) measures it.
///
/// Items and behaviours are matched by name. An item that the bundle lacks scores −∞, an event of
/// such an item is not seen, and an unknown behaviour counts as "any".
pub struct BundleScorer {
    bundle: Bundle,
    /// Row of each item of the data set.
    rows: Vec<Option<Row>>,
    /// Decoded vectors in the order of the data set, zero for unknown items.
    vectors: Vec<f32>,
    bias: Vec<f32>,
    /// Behaviour of the bundle per behaviour of the data set.
    behaviors: Vec<i64>,
    /// One per thread.
    towers: Vec<Mutex<UserTower>>,
}

impl std::fmt::Debug for BundleScorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleScorer")
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl BundleScorer {
    /// A scorer of the items of `data`. Holds the decoded vectors in memory, 4 · D bytes an item.
    ///
    /// # Errors
    /// A bundle that cannot be run, or one that shares no item with the data.
    pub fn new(bundle: &Bundle, data: &Dataset) -> Result<Self> {
        let table = bundle.table();
        let d = table.dim();
        let rows: Vec<Option<Row>> = data
            .items
            .keys()
            .map(|key| table.find(key))
            .collect::<tercet::Result<_>>()?;
        if rows.iter().all(Option::is_none) {
            return Err(Error::Mismatch {
                reason: format!(
                    "none of the {} items of the data is in the bundle",
                    rows.len()
                ),
            });
        }
        let mut vectors = vec![0f32; rows.len() * d];
        for (row, out) in rows.iter().zip(vectors.chunks_exact_mut(d)) {
            if let Some(row) = row {
                table.decode(*row, out)?;
            }
        }
        let bias = rows
            .iter()
            .map(|row| row.map_or(f32::NEG_INFINITY, |row| table.bias(row)))
            .collect();
        let behaviors = data
            .behaviors
            .iter()
            .map(|name| bundle.manifest().behavior_id(name).unwrap_or(0))
            .collect();
        let towers = (0..rayon::current_num_threads().max(1))
            .map(|_| bundle.load_user_tower().map(Mutex::new))
            .collect::<tercet::Result<_>>()?;
        Ok(Self {
            bundle: bundle.clone(),
            rows,
            vectors,
            bias,
            behaviors,
            towers,
        })
    }

    /// Items of the data set that the bundle lacks.
    pub fn unknown_items(&self) -> usize {
        self.rows.iter().filter(|r| r.is_none()).count()
    }

    /// A history as the runtime takes it.
    pub fn events(&self, history: &[HistoryEvent]) -> Vec<(Row, i64)> {
        history
            .iter()
            .filter_map(|e| {
                let row = (*self.rows.get(e.item as usize)?)?;
                let behavior = self.behaviors.get(usize::from(e.behavior)).copied();
                Some((row, behavior.unwrap_or(0)))
            })
            .collect()
    }

    /// User vectors of histories, row-major `[histories.len(), D]`.
    ///
    /// # Errors
    /// Whatever the engine reports.
    pub fn user_vectors(&self, histories: &[&[HistoryEvent]]) -> Result<Vec<f32>> {
        let events: Vec<Vec<(Row, i64)>> = histories.iter().map(|h| self.events(h)).collect();
        let share = events.len().div_ceil(self.towers.len()).max(1);
        let parts: Vec<Vec<f32>> = events
            .par_chunks(share)
            .zip(&self.towers)
            .map(|(part, tower)| {
                let mut tower = tower.lock().unwrap_or_else(PoisonError::into_inner);
                tower.encode(self.bundle.table(), part)
            })
            .collect::<tercet::Result<_>>()?;
        Ok(parts.concat())
    }
}

impl Scorer for BundleScorer {
    fn num_items(&self) -> usize {
        self.rows.len()
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> tercet_models::Result<()> {
        let histories: Vec<&[HistoryEvent]> =
            queries.iter().map(|q| q.history.as_slice()).collect();
        let users = self
            .user_vectors(&histories)
            .map_err(|e| ModelsError::Scores {
                reason: format!("the bundle cannot be run: {}", chain(&e)),
            })?;
        let kernel = kernel::active();
        let d = self.bundle.table().dim();
        users
            .par_chunks_exact(d)
            .zip(out.par_chunks_mut(self.rows.len().max(1)))
            .for_each(|(user, scores)| {
                kernel.dot_f32(user, &self.vectors, scores);
                for (s, b) in scores.iter_mut().zip(&self.bias) {
                    *s += b;
                }
            });
        Ok(())
    }
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}
