//! Item vectors of any scorer: the leading right singular vectors of its score matrix.
//!
//! A teacher without item vectors of its own (EASE, a blend, an ensemble) still says which items
//! belong together: by scoring them alike for the same histories. The D directions that explain
//! most of its scores are a start for the student's learnt item features.

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::rng::{self, Purpose};

/// Passes over the score matrix. The error of a direction falls with the fourth power per pass of
/// the ratio between its singular value and the next; more than five change nothing that shows
/// in a ranking.
const PASSES: usize = 5;
/// Scores held at once.
const MOST_SCORES: usize = 1 << 24;
/// Queries asked at once: what a model of sequences holds for one is more than its scores.
const ASKED: usize = 256;

/// Orthonormal columns `[N, dim]` that span the leading right singular subspace of the scores
/// `[queries, N]`, by subspace iteration. Each scorer's rows are centred and brought to unit
/// deviation before they are added up, so that scale and offset of its scores do not matter.
///
/// # Errors
/// More directions than items or queries, scorers of different catalogues, scores that are all alike.
pub fn score_directions(
    scorers: &[Box<dyn Scorer>],
    queries: &[EvalQuery],
    dim: usize,
    seed: u64,
) -> Result<Tensor> {
    let n = scorers.first().map_or(0, |s| s.num_items());
    if dim == 0 || dim > n.min(queries.len()) {
        return Err(Error::config(format!(
            "{dim} directions of scores need at least as many items ({n}) and histories ({})",
            queries.len()
        )));
    }
    if scorers.iter().any(|s| s.num_items() != n) {
        return Err(Error::config("the teachers know different catalogues"));
    }
    let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("spectrum")]);
    let mut basis = rng::normal(&mut r, (n, dim), 1.0, &Device::Cpu)?;
    let batch = (MOST_SCORES / n).max(1);
    for _ in 0..PASSES {
        let mut product = Tensor::zeros((n, dim), DType::F32, &Device::Cpu)?;
        for part in queries.chunks(batch) {
            let scores = standard_scores(scorers, part, n)?;
            product = (product + scores.t()?.matmul(&scores.matmul(&basis)?)?)?;
        }
        basis = orthonormal(&product)?;
    }
    Ok(basis)
}

/// `[queries, N]`: the mean of the scorers' standardised scores.
fn standard_scores(scorers: &[Box<dyn Scorer>], queries: &[EvalQuery], n: usize) -> Result<Tensor> {
    let mut sum = vec![0f32; queries.len() * n];
    let mut scores = vec![0f32; queries.len() * n];
    let share = 1.0 / scorers.len() as f64;
    for scorer in scorers {
        for (part, out) in queries.chunks(ASKED).zip(scores.chunks_mut(ASKED * n)) {
            scorer.score(part, out)?;
        }
        sum.par_chunks_mut(n)
            .zip(scores.par_chunks(n))
            .for_each(|(sum, row)| add_standardized(sum, row, share));
    }
    Ok(Tensor::from_vec(sum, (queries.len(), n), &Device::Cpu)?)
}

/// Adds `share` times the scores of one query, brought to mean zero and unit deviation over the
/// finite ones. A scorer that rules an item out with -∞ says nothing about it.
pub(crate) fn add_standardized(sum: &mut [f32], scores: &[f32], share: f64) {
    let known = || {
        scores
            .iter()
            .filter(|s| s.is_finite())
            .map(|&s| f64::from(s))
    };
    let count = known().count().max(1) as f64;
    let mean = known().sum::<f64>() / count;
    let deviation = (known().map(|s| (s - mean).powi(2)).sum::<f64>() / count).sqrt();
    if deviation > 0.0 {
        let scale = share / deviation;
        for (to, &s) in sum.iter_mut().zip(scores).filter(|(_, s)| s.is_finite()) {
            *to += ((f64::from(s) - mean) * scale) as f32;
        }
    }
}

/// An orthonormal basis of the span of the columns.
pub(crate) fn orthonormal(columns: &Tensor) -> Result<Tensor> {
    let (n, d) = columns.dims2()?;
    let values: Vec<f32> = columns.flatten_all()?.to_vec1()?;
    let q = Mat::from_fn(n, d, |i, j| f64::from(values[i * d + j]))
        .qr()
        .compute_thin_Q();
    let out: Vec<f32> = (0..n)
        .flat_map(|i| (0..d).map(move |j| (i, j)))
        .map(|(i, j)| q[(i, j)] as f32)
        .collect();
    if out.iter().any(|v| !v.is_finite()) {
        return Err(Error::Numeric {
            reason: "the teachers' scores have no directions: are they all alike?".into(),
        });
    }
    Ok(Tensor::from_vec(out, (n, d), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of rank two plus an offset and a scale per query, which must not matter.
    struct TwoDirections;

    fn direction(k: usize, item: usize) -> f32 {
        match k {
            0 => [1.0, -1.0, 1.0, -1.0][item % 4],
            _ => [1.0, 1.0, -1.0, -1.0][item % 4],
        }
    }

    impl Scorer for TwoDirections {
        fn num_items(&self) -> usize {
            8
        }

        fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
            for (q, row) in queries.iter().zip(out.chunks_mut(8)) {
                let (a, b) = ((q.user as f32).cos(), (q.user as f32).sin());
                for (item, s) in row.iter_mut().enumerate() {
                    let x = a * direction(0, item) + b * direction(1, item);
                    *s = 7.0 + (1.0 + q.user as f32) * x;
                }
            }
            Ok(())
        }
    }

    fn queries(n: u32) -> Vec<EvalQuery> {
        (0..n)
            .map(|user| EvalQuery {
                user,
                history: Vec::new(),
                mask: Vec::new(),
                targets: Vec::new(),
            })
            .collect()
    }

    #[test]
    fn finds_the_span_of_low_rank_scores() -> Result<()> {
        let scorers: Vec<Box<dyn Scorer>> = vec![Box::new(TwoDirections)];
        let q: Vec<Vec<f32>> = score_directions(&scorers, &queries(12), 2, 3)?.to_vec2()?;
        for k in 0..2 {
            // |direction|² is 8: the projection on the basis must keep all of it.
            let kept: f32 = (0..2)
                .map(|c| {
                    (0..8)
                        .map(|i| q[i][c] * direction(k, i))
                        .sum::<f32>()
                        .powi(2)
                })
                .sum();
            assert!((kept - 8.0).abs() < 1e-4, "direction {k} keeps {kept} of 8");
        }
        Ok(())
    }

    #[test]
    fn refuses_more_directions_than_there_can_be() {
        let scorers: Vec<Box<dyn Scorer>> = vec![Box::new(TwoDirections)];
        assert!(score_directions(&scorers, &queries(12), 9, 3).is_err());
        assert!(score_directions(&scorers, &queries(3), 4, 3).is_err());
        assert!(score_directions(&[], &queries(3), 1, 3).is_err());
    }
}
