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

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, View};
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

    /// Writes the tensor `weights` `[N, N]` (f32) as safetensors.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] or [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let n = self.weights.nrows();
        let values = self
            .weights
            .as_slice()
            .ok_or_else(|| Error::checkpoint(path, "weights are not contiguous"))?;
        let behavior = self
            .behavior
            .map(|b| ("target_behavior".to_owned(), b.to_string()));
        save_f32(path, "weights", &[n, n], values, behavior)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Checkpoint`] if the file is missing, damaged or of another model.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (shape, values, metadata) = load_f32(path, "weights")?;
        let [rows, columns] = shape[..] else {
            return Err(Error::checkpoint(path, "`weights` is not a matrix"));
        };
        if rows != columns || values.iter().any(|w| !w.is_finite()) {
            return Err(Error::checkpoint(
                path,
                "`weights` is not a finite square matrix",
            ));
        }
        let behavior = match metadata.get("target_behavior") {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Error::checkpoint(path, "target_behavior is not 0 to 255"))?,
            ),
        };
        Ok(Self {
            weights: Array2::from_shape_vec((rows, columns), values)
                .map_err(|e| Error::checkpoint(path, e.to_string()))?,
            behavior,
        })
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

/// Little-endian bytes of an f32 slice with a shape.
struct F32View<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// Writes one f32 tensor through a sibling temporary file.
pub(super) fn save_f32(
    path: &Path,
    name: &str,
    shape: &[usize],
    values: &[f32],
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let bytes = safetensors::serialize([(name, F32View { shape, values })], Some(metadata))
        .map_err(|e| Error::checkpoint(path, e.to_string()))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(folder, e))?;
    file.write_all(&bytes).map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// Shape, values and metadata of one f32 tensor.
type Loaded = (Vec<usize>, Vec<f32>, HashMap<String, String>);

/// Reads what [`save_f32`] wrote.
pub(super) fn load_f32(path: &Path, name: &str) -> Result<Loaded> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let bad = |reason: String| Error::checkpoint(path, reason);
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| bad(format!("not a safetensors file ({e})")))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)
        .map_err(|e| bad(format!("not a safetensors file ({e})")))?;
    let tensor = tensors
        .tensor(name)
        .map_err(|_| bad(format!("no tensor `{name}`; the file is of another model")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(bad(format!("`{name}` is not F32")));
    }
    let values = tensor
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok((
        tensor.shape().to_vec(),
        values,
        metadata.metadata().clone().unwrap_or_default(),
    ))
}
