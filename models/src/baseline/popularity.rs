//! Item popularity: the floor every model must clear.

use crate::data::{Dataset, FitOn};
use crate::error::Result;
use crate::eval::{EvalQuery, Scorer};

/// Scores every item by how often it was used, whoever asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Popularity {
    counts: Vec<f32>,
}

impl Popularity {
    /// From the score of each item.
    pub fn new(counts: Vec<f32>) -> Self {
        Self { counts }
    }

    /// Counts the rows of the splits, of the target behaviour if the data has one. Repeated events
    /// count.
    pub fn fit(data: &Dataset, fit_on: FitOn) -> Self {
        Self {
            counts: data.counts(fit_on).into_iter().map(|c| c as f32).collect(),
        }
    }

    /// The score of each item.
    pub fn counts(&self) -> &[f32] {
        &self.counts
    }
}

impl Scorer for Popularity {
    fn num_items(&self) -> usize {
        self.counts.len()
    }

    fn score(&self, _queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        if self.counts.is_empty() {
            return Ok(());
        }
        for row in out.chunks_exact_mut(self.counts.len()) {
            row.copy_from_slice(&self.counts);
        }
        Ok(())
    }
}
