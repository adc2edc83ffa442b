//! Finding the best rows of a table: score a block, compare with the threshold, keep what is
//! above; then score the finalists again with all the precision there is.

use crate::blend::{Prior, sample_rows};
use crate::error::{Error, Result, check_len};
use crate::filter::Selection;
use crate::id::Row;
use crate::table::{ItemTable, Metric};
use crate::topk::{Scored, TopK, best_first};

/// Rows scored at a time; their scores stay in the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// Below one row in so many, the rows of a selection are scored one by one.
const SPARSE: usize = 64;

/// Largest number of threads of one search.
pub(crate) const MAX_THREADS: usize = 256;

/// How much of a partitioned table a search looks at. Tables without partitions are always
/// searched as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Effort {
    /// What the bundle was written for: [`Effort::Probes`] with the number in its manifest, or
    /// [`Effort::Exact`] if it names none.
    #[default]
    Default,
    /// All partitions that can hold one of the best: partitions are visited by descending upper
    /// bound, and the search ends when the bound falls below the worst item kept. Same result
    /// as without partitions.
    Exact,
    /// The so many most promising partitions, 1 at least, and further ones only until k items
    /// are found. Partitions without a row that passes the filter do not count.
    Probes(usize),
}

/// What to look for in an [`ItemTable`].
///
/// ```
/// use tercet::{Metric, Search};
/// let search = Search::top(100).metric(Metric::Cosine).exclude(&[3, 7]);
/// ```
#[derive(Debug, Clone)]
pub struct Search<'a> {
    pub(crate) k: usize,
    pub(crate) metric: Metric,
    pub(crate) exclude: &'a [Row],
    pub(crate) within: Option<&'a Selection>,
    pub(crate) effort: Effort,
    pub(crate) threads: usize,
}

impl<'a> Search<'a> {
    /// The best `k` rows by [`Metric::Score`]. With `k` larger than the table all rows are
    /// returned, 0 is refused by the search.
    pub fn top(k: usize) -> Self {
        Search {
            k,
            metric: Metric::Score,
            exclude: &[],
            within: None,
            effort: Effort::Default,
            threads: 1,
        }
    }

    /// Sets what to rank by.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Rows to skip, in any order; repeats and rows beyond the table are harmless.
    pub fn exclude(mut self, rows: &'a [Row]) -> Self {
        self.exclude = rows;
        self
    }

    /// Only these rows. If they are fewer than N / 64, only they are scored.
    pub fn within(mut self, rows: &'a Selection) -> Self {
        self.within = Some(rows);
        self
    }

    /// How much of a partitioned table to look at.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// Threads to use, 1 to 256; default 1, which is best on a device: a busy machine loses more
    /// by waiting for a thread than a scan takes. The result does not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    pub(crate) fn check(&self, table: &ItemTable) -> Result<()> {
        if self.k == 0 {
            return Err(Error::argument("k is 0, ask for at least one item"));
        }
        if self.effort == Effort::Probes(0) {
            return Err(Error::argument("0 probes, ask for at least one partition"));
        }
        if self.threads == 0 || self.threads > MAX_THREADS {
            return Err(Error::argument(format!(
                "{} threads, accepted are 1 to {MAX_THREADS}",
                self.threads
            )));
        }
        match self.within {
            Some(rows) => check_len("selection of rows", table.len(), rows.items()),
            None => Ok(()),
        }
    }
}

/// What a user, or several, think of the rows of a table.
pub(crate) trait Scores {
    /// Scores of the rows from `first`, at most [`BLOCK`] of them.
    fn block(&mut self, first: usize, scores: &mut [f32]);

    /// Whether `block` is good for finding candidates only.
    fn approximate(&self) -> bool;

    /// The score of a row with all the precision of the table.
    fn exact(&mut self, row: Row) -> Result<f32>;

    /// Scores of evenly spaced rows.
    fn sample(&mut self, table: &ItemTable) -> Result<Vec<f32>> {
        sample_rows(table.len())
            .map(|row| self.exact(row))
            .collect()
    }
}

/// The popularity of every row, for users of whom nothing is known.
pub(crate) struct Popular<'a>(pub(crate) &'a [f32]);

impl Scores for Popular<'_> {
    fn block(&mut self, first: usize, scores: &mut [f32]) {
        scores.copy_from_slice(&self.0[first..first + scores.len()]);
    }

    fn approximate(&self) -> bool {
        false
    }

    fn exact(&mut self, row: Row) -> Result<f32> {
        Ok(self.0.get(row as usize).copied().unwrap_or(0.0))
    }
}

/// Candidates to keep for `k` results of an approximate scan.
pub(crate) fn finalists(k: usize) -> usize {
    k.saturating_mul(2).max(k.saturating_add(64))
}

/// The best rows by `scores` and `prior`, best first, ties to the lower row.
pub(crate) fn find(
    table: &ItemTable,
    scores: &mut dyn Scores,
    prior: Option<&Prior<'_>>,
    search: &Search<'_>,
) -> Result<Vec<Scored>> {
    search.check(table)?;
    let mut excluded = search.exclude.to_vec();
    excluded.sort_unstable();
    let accept = |row: Row| excluded.binary_search(&row).is_err();
    let keep = if scores.approximate() {
        finalists(search.k)
    } else {
        search.k
    };
    let mut best = match search.within {
        Some(rows) if rows.len() < table.len() / SPARSE => {
            let mut top = TopK::new(keep, rows.len());
            for row in rows.rows().filter(|&row| accept(row)) {
                let mut score = [0.0];
                scores.block(row as usize, &mut score);
                if let Some(prior) = prior {
                    prior.add(row as usize, &mut score);
                }
                top.offer(row, &score, None, &|_| true);
            }
            top.finish()
        }
        within => {
            let total = within.map_or(table.len(), Selection::len);
            let mut top = TopK::new(keep, total);
            let mut buffer = [0.0f32; BLOCK];
            for first in (0..table.len()).step_by(BLOCK) {
                let n = BLOCK.min(table.len() - first);
                if within.is_none_or(|rows| rows.touches(first, n)) {
                    scores.block(first, &mut buffer[..n]);
                    if let Some(prior) = prior {
                        prior.add(first, &mut buffer[..n]);
                    }
                    top.offer(first as Row, &buffer[..n], within, &accept);
                }
            }
            top.finish()
        }
    };
    if scores.approximate() {
        rescore(scores, prior, &mut best, search.k)?;
    }
    Ok(best)
}

/// Scores finalists exactly and keeps the best `k`.
pub(crate) fn rescore(
    scores: &mut dyn Scores,
    prior: Option<&Prior<'_>>,
    best: &mut Vec<Scored>,
    k: usize,
) -> Result<()> {
    for s in best.iter_mut() {
        let mut score = [scores.exact(s.row)?];
        if let Some(prior) = prior {
            prior.add(s.row as usize, &mut score);
        }
        s.score = if score[0].is_nan() {
            f32::NEG_INFINITY
        } else {
            score[0] + 0.0
        };
    }
    best.sort_unstable_by(best_first);
    best.truncate(k);
    Ok(())
}
