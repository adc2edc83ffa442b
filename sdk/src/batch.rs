//! Many queries at once: for servers and evaluations.
//!
//! A block of rows is read from memory once and multiplied with all queries while it lies in the
//! cache, so the cost per query is that of the products alone. Queries have 7 bits here (codes
//! within ±63), so that products of bytes can be added in pairs without overflow; as in a single
//! search, finalists are scored again with the query as it is.

use crate::error::{Error, Result, check_len};
use crate::id::Row;
use crate::search::{Effort, Scores, Search, find, rescore};
use crate::table::{ItemTable, Metric, Scorer};
use crate::topk::{Scored, TopK};

/// Rows multiplied with all queries at a time.
const ROWS: usize = 128;

/// Queries multiplied with a block of rows at a time: their scores stay in the second-level
/// cache.
const QUERIES: usize = 96;

impl ItemTable {
    /// As [`ItemTable::search`] for many queries, each with rows of its own to leave out besides
    /// those of `search`; results in the order of the queries.
    ///
    /// Tables of f32, f16, int4, those with partitions that the search may pass over, searches
    /// by cosine and of few rows take the queries one by one.
    ///
    /// # Shapes
    /// `queries` `[B, D]`, `exclude` `[B]`.
    ///
    /// # Errors
    /// As [`ItemTable::search`]; [`Error::Length`] if the shapes disagree.
    pub fn search_batch(
        &self,
        queries: &[f32],
        search: &Search<'_>,
        exclude: &[Vec<Row>],
    ) -> Result<Vec<Vec<Scored>>> {
        search.check(self)?;
        let d = self.dim();
        check_len("queries", exclude.len().saturating_mul(d), queries.len())?;
        for query in queries.chunks_exact(d) {
            self.check_query(query)?;
        }
        let share = exclude.len().div_ceil(search.threads).max(1);
        let part = |queries: &[f32], exclude: &[Vec<Row>]| -> Result<Vec<Vec<Scored>>> {
            let mut out = Vec::with_capacity(exclude.len());
            for (queries, exclude) in queries.chunks(QUERIES * d).zip(exclude.chunks(QUERIES)) {
                out.extend(self.batch(queries, search, exclude)?);
            }
            Ok(out)
        };
        if exclude.len() <= share {
            return part(queries, exclude);
        }
        let parts: Vec<Result<Vec<Vec<Scored>>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = queries
                .chunks(share * d)
                .zip(exclude.chunks(share))
                .map(|(queries, exclude)| scope.spawn(move || part(queries, exclude)))
                .collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<Vec<Vec<Scored>>>>| {
                t.join()
                    .unwrap_or_else(|_| Err(Error::argument("a thread of the search failed")))
            };
            threads.into_iter().map(join).collect()
        });
        let mut out = Vec::with_capacity(exclude.len());
        for part in parts {
            out.extend(part?);
        }
        Ok(out)
    }

    /// One thread's share.
    fn batch(
        &self,
        queries: &[f32],
        search: &Search<'_>,
        exclude: &[Vec<Row>],
    ) -> Result<Vec<Vec<Scored>>> {
        let d = self.dim();
        let total = search.within.map_or(self.len(), |rows| rows.len());
        let whole = match search.effort {
            _ if self.parts().is_none() => true,
            Effort::Default => self.parts().is_some_and(|p| p.probes.is_none()),
            Effort::Exact => true,
            Effort::Probes(_) => false,
        };
        let coded = self.int8_codes().filter(|_| {
            whole && search.metric == Metric::Score && exclude.len() > 1 && total >= self.len() / 16
        });
        let excludes = exclude.iter().map(|own| {
            let mut rows = [search.exclude, own].concat();
            rows.sort_unstable();
            rows
        });
        let excludes: Vec<Vec<Row>> = excludes.collect();
        let Some((codes, scales)) = coded else {
            let single = search.clone().threads(1);
            let pairs = queries.chunks_exact(d).zip(&excludes);
            let list = pairs.map(|(query, exclude)| {
                let mut scorer = Scorer::new(self, search.metric, query)?;
                find(self, &mut scorer, None, &single.clone().exclude(exclude))
            });
            return list.collect();
        };
        let kernel = crate::kernel::active();
        let mut packed = Vec::with_capacity(queries.len());
        let mut factors = Vec::with_capacity(exclude.len());
        for query in queries.chunks_exact(d) {
            let max = query.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let scale = (max / 63.0).max(f32::MIN_POSITIVE);
            packed.extend(
                query
                    .iter()
                    .map(|v| (v / scale).round().clamp(-63.0, 63.0) as i8),
            );
            factors.push(scale);
        }
        let mut scorers = Vec::with_capacity(exclude.len());
        for query in queries.chunks_exact(d) {
            scorers.push(Scorer::new(self, search.metric, query)?);
        }
        let keep = scorers
            .first()
            .and_then(|s| s.finalists(search.k))
            .unwrap_or(search.k);
        let mut tops: Vec<TopK> = exclude.iter().map(|_| TopK::new(keep, total)).collect();
        let mut sums = vec![0i32; exclude.len() * ROWS];
        let mut scores = [0.0f32; ROWS];
        let bias = self.biases();
        for first in (0..self.len()).step_by(ROWS) {
            let n = ROWS.min(self.len() - first);
            if search.within.is_some_and(|rows| !rows.touches(first, n)) {
                continue;
            }
            let sums = &mut sums[..exclude.len() * n];
            kernel.many_i8(&packed, d, &codes[first * d..(first + n) * d], sums);
            let scales = &scales[first..first + n];
            let scores = &mut scores[..n];
            for (q, sums) in sums.chunks_exact(n).enumerate() {
                let accept = |row: Row| excludes[q].binary_search(&row).is_err();
                let Some(bias) = bias else {
                    let scores = (sums, scales, factors[q]);
                    tops[q].offer_scaled(first as Row, scores, search.within, &accept);
                    continue;
                };
                for (((s, &sum), &scale), b) in scores
                    .iter_mut()
                    .zip(sums)
                    .zip(scales)
                    .zip(&bias[first..first + n])
                {
                    *s = sum as f32 * (scale * factors[q]) + b;
                }
                tops[q].offer(first as Row, scores, search.within, &accept);
            }
        }
        let mut out = Vec::with_capacity(tops.len());
        for (top, mut scorer) in tops.into_iter().zip(scorers) {
            let mut best = top.finish();
            rescore(&mut scorer, None, &mut best, search.k)?;
            out.push(best);
        }
        Ok(out)
    }
}
