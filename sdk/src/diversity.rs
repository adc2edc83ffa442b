//! Choosing a list whose items differ, from the best candidates.
//!
//! Items are picked one at a time, each the one that adds most to the list:
//!
//! | method | value of an item | published as |
//! |---|---|---|
//! | [`DiversityMethod::Mmr`] | (1 − λ) · relevance − λ · max over picks of cosine | J. Carbonell, J. Goldstein: The use of MMR, diversity-based reranking. SIGIR 1998 |
//! | [`DiversityMethod::Dpp`] | (1 − λ) · relevance + λ · ln(det S with it / det S without) | L. Chen, G. Zhang, E. Zhou: Fast greedy MAP inference for determinantal point process. NeurIPS 2018 |
//!
//! λ weighs diversity (in both papers the weight is on relevance), relevance is the score scaled
//! to 0..1 over the candidates, and the first pick is the most relevant. MMR looks at the nearest
//! pick only. The determinant looks at all of them: an item that lies between two picks adds
//! little, although it may be far from each.
//!
//! S holds (1 + cosine) / 2, which is positive semidefinite as the sum of a Gram matrix and a
//! constant one, and unlike the cosine does not take opposites for the same.

use crate::error::{Error, Result};
use crate::id::Row;
use crate::table::{ItemTable, dot};

/// Largest number of candidates that are re-ranked.
pub const MAX_POOL: usize = 4096;

/// How [`Query::diversity`](crate::Query::diversity) keeps items apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DiversityMethod {
    /// Maximal marginal relevance: away from the most similar item of the list.
    #[default]
    Mmr,
    /// Greedy maximum of a determinantal point process: away from all items of the list
    /// together.
    Dpp,
}

/// What is left of an item's variance counts as nothing below this.
const FLOOR: f64 = 1e-12;

/// Checks λ.
pub(crate) fn check_lambda(lambda: f32) -> Result<()> {
    // NaN is in no range.
    if (0.0..=1.0).contains(&lambda) {
        return Ok(());
    }
    Err(Error::argument(format!(
        "diversity is {lambda}, accepted are numbers from 0 to 1"
    )))
}

/// Number of candidates for `k` results.
pub(crate) fn pool_size(pool: Option<usize>, k: usize) -> Result<usize> {
    match pool {
        None => Ok(k.saturating_mul(5).clamp(100, MAX_POOL)),
        Some(pool) if (1..=MAX_POOL).contains(&pool) => Ok(pool),
        Some(pool) => Err(Error::argument(format!(
            "a pool of {pool} candidates, accepted are 1 to {MAX_POOL}"
        ))),
    }
}

/// Order in which up to `picks` of the candidates are picked, as indices. `values` are their
/// scores; `take` may refuse a candidate, which then is out.
///
/// Costs O(picks · candidates · D) time, and for DPP as much again times picks / D, up to
/// D + 2 picks; 4 · D bytes a candidate, for DPP 8 · (D + 2) more.
pub(crate) fn pick(
    method: DiversityMethod,
    lambda: f32,
    table: &ItemTable,
    rows: &[Row],
    values: &[f64],
    picks: usize,
    take: &mut dyn FnMut(Row) -> Result<bool>,
) -> Result<Vec<usize>> {
    let units = Units::new(table, rows)?;
    let relevance = relevance(values);
    let lambda = f64::from(lambda);
    let mut objective = match method {
        DiversityMethod::Mmr => Objective::Mmr(vec![f32::NEG_INFINITY; rows.len()]),
        DiversityMethod::Dpp => Objective::Dpp(Determinant::new(rows.len(), table.dim() + 2)),
    };
    let mut open = vec![true; rows.len()];
    let mut order = Vec::with_capacity(picks.min(rows.len()));
    while order.len() < picks {
        let mut next: Option<(f64, usize)> = None;
        for i in (0..rows.len()).filter(|&i| open[i]) {
            let value = if order.is_empty() {
                relevance[i]
            } else {
                (1.0 - lambda) * relevance[i] + lambda * objective.gain(i)
            };
            let better =
                next.is_none_or(|(top, j)| value > top || (value == top && rows[i] < rows[j]));
            if better {
                next = Some((value, i));
            }
        }
        let Some((_, i)) = next else { break };
        open[i] = false;
        if take(rows[i])? {
            order.push(i);
            objective.add(i, &open, &units);
        }
    }
    Ok(order)
}

/// Unit vectors of the candidates.
struct Units {
    dim: usize,
    vectors: Vec<f32>,
}

impl Units {
    fn new(table: &ItemTable, rows: &[Row]) -> Result<Self> {
        let dim = table.dim();
        let mut vectors = vec![0.0; rows.len() * dim];
        for (&row, x) in rows.iter().zip(vectors.chunks_exact_mut(dim)) {
            table.decode(row, x)?;
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
        Ok(Units { dim, vectors })
    }

    fn cosine(&self, i: usize, j: usize) -> f32 {
        let d = self.dim;
        dot(
            &self.vectors[i * d..(i + 1) * d],
            &self.vectors[j * d..(j + 1) * d],
        )
    }
}

enum Objective {
    /// Largest cosine with a pick so far.
    Mmr(Vec<f32>),
    Dpp(Determinant),
}

impl Objective {
    fn gain(&self, i: usize) -> f64 {
        match self {
            Objective::Mmr(nearest) => -f64::from(nearest[i]),
            Objective::Dpp(d) => libm::log(d.rest[i].max(FLOOR)),
        }
    }

    fn add(&mut self, pick: usize, open: &[bool], units: &Units) {
        match self {
            Objective::Mmr(nearest) => {
                for i in (0..open.len()).filter(|&i| open[i]) {
                    nearest[i] = nearest[i].max(units.cosine(i, pick));
                }
            }
            Objective::Dpp(d) => d.add(pick, open, units),
        }
    }
}

/// Cholesky factor of S over the picks, a row per candidate: `rest` is what adding a candidate
/// would multiply the determinant by.
struct Determinant {
    width: usize,
    rank: usize,
    factor: Vec<f64>,
    rest: Vec<f64>,
}

impl Determinant {
    fn new(candidates: usize, width: usize) -> Self {
        Determinant {
            width,
            rank: 0,
            factor: vec![0.0; candidates * width],
            rest: vec![1.0; candidates],
        }
    }

    fn add(&mut self, pick: usize, open: &[bool], units: &Units) {
        // S has rank D + 1 at most: behind that many picks nothing is left of anyone.
        if self.rank == self.width || self.rest[pick] <= FLOOR {
            return;
        }
        let (w, n) = (self.width, self.rank);
        let root = self.rest[pick].sqrt();
        let row: Vec<f64> = self.factor[pick * w..pick * w + n].to_vec();
        for i in (0..open.len()).filter(|&i| open[i]) {
            let s = (1.0 + f64::from(units.cosine(i, pick))) / 2.0;
            let own = &mut self.factor[i * w..(i + 1) * w];
            let known: f64 = own.iter().zip(&row).map(|(a, b)| a * b).sum();
            let e = (s - known) / root;
            own[n] = e;
            self.rest[i] -= e * e;
        }
        self.rank += 1;
    }
}

/// Scores scaled to 0..1; all 0 if they are equal. Infinite ones take the ends.
fn relevance(values: &[f64]) -> Vec<f64> {
    let finite = values.iter().filter(|s| s.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &s| {
        (low.min(s), high.max(s))
    });
    let scaled = values.iter().map(|&s| {
        if high > low && s.is_finite() {
            (s - low) / (high - low)
        } else {
            f64::from(u8::from(s == f64::INFINITY))
        }
    });
    scaled.collect()
}
