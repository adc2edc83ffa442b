//! Re-ranking by maximal marginal relevance.
//!
//! J. Carbonell, J. Goldstein: The use of MMR, diversity-based reranking for reordering
//! documents and producing summaries. SIGIR 1998. Items are picked one at a time, each the one
//! with the largest
//!
//! ```text
//! (1 − λ) · relevance − λ · max over picked items of cosine(item, picked)
//! ```
//!
//! Here λ weighs diversity (the paper's λ weighs relevance), relevance is the score scaled to
//! 0..1 over the candidates, and the first pick is always the most relevant.

use crate::error::{Error, Result};
use crate::table::{ItemTable, dot};
use crate::topk::Scored;

/// Largest number of candidates that are re-ranked.
pub const MAX_POOL: usize = 4096;

/// Checked settings: λ in 0..=1 and candidates for `k` results, at most [`MAX_POOL`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Diversity {
    pub(crate) lambda: f32,
    pub(crate) pool: usize,
}

impl Diversity {
    /// Nothing if `lambda` is 0.
    pub(crate) fn new(lambda: f32, pool: Option<usize>, k: usize) -> Result<Option<Self>> {
        // NaN is in no range.
        if !(0.0..=1.0).contains(&lambda) {
            return Err(Error::argument(format!(
                "diversity is {lambda}, accepted are numbers from 0 to 1"
            )));
        }
        let pool = match pool {
            None => k.saturating_mul(5).clamp(100, MAX_POOL),
            Some(pool) if (1..=MAX_POOL).contains(&pool) => pool,
            Some(pool) => {
                return Err(Error::argument(format!(
                    "a pool of {pool} candidates, accepted are 1 to {MAX_POOL}"
                )));
            }
        };
        Ok((lambda != 0.0).then_some(Diversity { lambda, pool }))
    }

    /// Moves the picks to the front of `best`, which is sorted best first, and cuts it to `k`.
    /// Items beyond the pool keep their order behind the picks.
    ///
    /// Costs O(k · pool · D) time and pool · D · 4 bytes.
    pub(crate) fn rerank(&self, table: &ItemTable, best: &mut Vec<Scored>, k: usize) -> Result<()> {
        let pool = self.pool.min(best.len());
        let picks = k.min(pool);
        let d = table.dim();
        let mut vectors = vec![0.0; pool * d];
        for (s, x) in best.iter().zip(vectors.chunks_exact_mut(d)) {
            table.decode(s.row, x)?;
            let norm = dot(x, x).sqrt();
            // A zero vector is like nothing; so is one of a damaged file.
            let scale = if norm > 0.0 && norm.is_finite() {
                norm.recip()
            } else {
                0.0
            };
            for v in x.iter_mut() {
                *v = if v.is_finite() { *v * scale } else { 0.0 };
            }
        }
        let relevance = relevance(&best[..pool]);
        let lambda = f64::from(self.lambda);
        // Largest cosine with a pick so far.
        let mut nearest = vec![f32::NEG_INFINITY; pool];
        let mut picked = vec![false; pool];
        let mut order = Vec::with_capacity(picks);
        let mut pick = 0;
        while order.len() < picks {
            picked[pick] = true;
            order.push(best[pick]);
            let y = &vectors[pick * d..(pick + 1) * d];
            let mut next: Option<(f64, usize)> = None;
            for (i, x) in vectors.chunks_exact(d).enumerate() {
                if picked[i] {
                    continue;
                }
                nearest[i] = nearest[i].max(dot(x, y));
                let value = (1.0 - lambda) * relevance[i] - lambda * f64::from(nearest[i]);
                let better = next.is_none_or(|(top, j)| {
                    value > top || (value == top && best[i].row < best[j].row)
                });
                if better {
                    next = Some((value, i));
                }
            }
            match next {
                Some((_, i)) => pick = i,
                None => break,
            }
        }
        best.drain(..pool);
        best.splice(..0, order);
        best.truncate(k);
        Ok(())
    }
}

/// Scores scaled to 0..1; all 0 if they are equal. Infinite ones take the ends.
fn relevance(scored: &[Scored]) -> Vec<f64> {
    let finite = scored.iter().map(|s| f64::from(s.score));
    let finite = finite.filter(|s| s.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| {
        (low.min(s), high.max(s))
    });
    scored
        .iter()
        .map(|s| {
            let s = f64::from(s.score);
            if high > low && s.is_finite() {
                (s - low) / (high - low)
            } else {
                f64::from(u8::from(s == f64::INFINITY))
            }
        })
        .collect()
}
