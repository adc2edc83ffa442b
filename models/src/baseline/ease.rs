//! EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019): a linear
//! item-item model in closed form, strong wherever the catalogue is small.
//!
//! With the binary user-item matrix X and P = (XᵀX + λI)⁻¹ (eq. 8), the weights are
//! B_ij = −P_ij / P_jj off the diagonal and 0 on it. The score of item j for a history H is
//! Σ_{i∈H} B_ij, so users never seen work as well. Departure: repeated events count once, both in X
//! and in H.
//!
//! Cost: N³ multiply-adds and, while fitting, 20 N² bytes (two f64 matrices and the f32 weights);
//! then 4 N² bytes. That is 1 GB and some seconds for 7 000 items; hence
//! [`EaseConfig::max_items`].

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, FitOn};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, HistoryEvent, Scorer};

/// Options of [`Ease::fit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EaseConfig {
    /// The L2 penalty λ, positive. Sparse data wants about 100, dense data several hundred.
    pub lambda: f64,
    /// The rows X is made of.
    pub fit_on: FitOn,
    /// Refuses larger catalogues: fitting needs 20 N² bytes.
    pub max_items: usize,
}

impl Default for EaseConfig {
    fn default() -> Self {
        Self {
            lambda: 200.0,
            fit_on: FitOn::Train,
            max_items: 25_000,
        }
    }
}

/// A fitted model.
#[derive(Debug, Clone, PartialEq)]
pub struct Ease {
    weights: Array2<f32>,
    behavior: Option<u8>,
}

impl Ease {
    /// From fitted weights `[N, N]` and the one behaviour that counts.
    pub fn new(weights: Array2<f32>, behavior: Option<u8>) -> Self {
        Self { weights, behavior }
    }

    /// Solves for the weights.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if λ is not positive or the catalogue exceeds `max_items`;
    /// [`Error::Numeric`] if XᵀX + λI cannot be factored.
    pub fn fit(data: &Dataset, config: &EaseConfig) -> Result<Self> {
        let n = data.num_items();
        if !(config.lambda > 0.0 && config.lambda.is_finite()) {
            return Err(Error::config(format!(
                "ease: lambda is {}; it must be positive",
                config.lambda
            )));
        }
        if n > config.max_items {
            return Err(Error::config(format!(
                "ease: {n} items exceed max_items = {}; fitting would need {:.1} GB",
                config.max_items,
                20.0 * (n as f64).powi(2) / 1e9
            )));
        }
        let rows = data.fit_rows(config.fit_on);
        let columns = rows.transpose(n);

        // Symmetric, so a row-major Gram matrix is also the column-major one that faer wants.
        let mut gram = vec![0f64; n * n];
        gram.par_chunks_mut(n.max(1))
            .enumerate()
            .for_each(|(item, out)| {
                for &user in columns.row(item as u32) {
                    for &other in rows.row(user) {
                        out[other as usize] += 1.0;
                    }
                }
                out[item] += config.lambda;
            });

        let par = Par::rayon(0);
        let mut memory = MemBuffer::try_new(factor::cholesky_in_place_scratch::<f64>(
            n,
            par,
            Default::default(),
        ))
        .map_err(|_| Error::Numeric {
            reason: "ease: out of memory".to_owned(),
        })?;
        factor::cholesky_in_place(
            MatMut::from_column_major_slice_mut(&mut gram, n, n),
            Default::default(),
            par,
            MemStack::new(&mut memory),
            Default::default(),
        )
        .map_err(|e| Error::Numeric {
            reason: format!("ease: the Gram matrix is not positive definite ({e:?}); raise lambda"),
        })?;
        let mut inverse_factor = vec![0f64; n * n];
        triangular_inverse::invert_lower_triangular(
            MatMut::from_column_major_slice_mut(&mut inverse_factor, n, n),
            MatRef::from_column_major_slice(&gram, n, n),
            par,
        );
        // P = L⁻ᵀ L⁻¹; only its lower triangle is written.
        let l = MatRef::from_column_major_slice(&inverse_factor, n, n);
        triangular::matmul(
            MatMut::from_column_major_slice_mut(&mut gram, n, n),
            BlockStructure::TriangularLower,
            Accum::Replace,
            l.transpose(),
            BlockStructure::TriangularUpper,
            l,
            BlockStructure::TriangularLower,
            1.0,
            par,
        );
        drop(inverse_factor);

        let p = gram;
        let mut weights = vec![0f32; n * n];
        weights
            .par_chunks_mut(n.max(1))
            .enumerate()
            .for_each(|(i, out)| {
                for (j, weight) in out.iter_mut().enumerate() {
                    if i != j {
                        let (row, column) = if i > j { (i, j) } else { (j, i) };
                        *weight = (-p[column * n + row] / p[j * n + j]) as f32;
                    }
                }
            });
        if weights.iter().any(|w| !w.is_finite()) {
            return Err(Error::Numeric {
                reason: "ease: the solution is not finite; raise lambda".to_owned(),
            });
        }
        let weights = Array2::from_shape_vec((n, n), weights)
            .map_err(|e| Error::config(format!("ease: {e}")))?;
        Ok(Self {
            weights,
            behavior: data.target_behavior,
        })
    }

    /// B: row i holds what having item i adds to the score of every item.
    pub fn weights(&self) -> &Array2<f32> {
        &self.weights
    }

    /// The one behaviour of a history that counts; all if `None`.
    pub fn behavior(&self) -> Option<u8> {
        self.behavior
    }

    /// The distinct items of a history that count, ascending.
    fn active(&self, history: &[HistoryEvent]) -> Vec<u32> {
        let mut items: Vec<u32> = history
            .iter()
            .filter(|e| {
                self.behavior
                    .is_none_or(|b| b == e.behavior || e.behavior == 0)
            })
            .map(|e| e.item)
            .filter(|&item| (item as usize) < self.weights.nrows())
            .collect();
        items.sort_unstable();
        items.dedup();
        items
    }
}

impl Scorer for Ease {
    fn num_items(&self) -> usize {
        self.weights.nrows()
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        let n = self.num_items();
        out.par_chunks_mut(n.max(1))
            .zip(queries)
            .for_each(|(row, query)| {
                row.fill(0.0);
                for item in self.active(&query.history) {
                    let weights = self.weights.row(item as usize);
                    for (score, weight) in row.iter_mut().zip(weights) {
                        *score += weight;
                    }
                }
            });
        Ok(())
    }
}
