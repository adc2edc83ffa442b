//! Post-processing of frozen item features: mean, leading directions, whitening, unit rows.
//!
//! Hidden states of language models are strongly anisotropic: nearly all of them point the same
//! way, every cosine is close to 1, and a neighbour graph over them is noise. The recipe is ours
//! (the paper's abstract only says that large models supply the features): subtract the mean,
//! remove the leading principal directions, keep the next ones, divide each by its standard
//! deviation, and bring rows to unit length. It is fitted on items with training interactions
//! only; items that come later go through the stored transform.

use candle_core::{Device, Tensor};
use faer::{Mat, Side};
use ndarray::Array2;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::params::TensorMap;
use crate::rng::{self, Purpose};

/// Rows converted to f64 at once.
const BLOCK: usize = 1024;
/// Directions beyond those asked for in the sketch, which the iteration sharpens and drops.
const OVERSAMPLE: usize = 16;
/// Passes over the features after the sketch.
const PASSES: usize = 3;

/// What to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Leading principal directions to remove.
    pub remove: usize,
    /// Directions to keep after them.
    pub keep: usize,
    /// Seed of the sketch.
    pub seed: u64,
}

/// A fitted transform `y = n((x − μ) W)`, where `n` brings rows to unit length.
#[derive(Debug, Clone)]
pub struct Transform {
    mean: Vec<f64>,
    /// `[D, K]`; `None` leaves the features as they are.
    projection: Option<Mat<f64>>,
    width: usize,
}

impl Transform {
    /// Rows are brought to unit length and nothing else.
    pub fn unit_rows(width: usize) -> Self {
        Self {
            mean: vec![0.0; width],
            projection: None,
            width,
        }
    }

    /// A fixed random map to `bits` signs, ±1: what is left of features after a poor encoder. An
    /// ablation, not a method.
    pub fn random_signs_of(width: usize, bits: usize, seed: u64) -> Self {
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("signs")]);
        let projection = Mat::from_fn(width, bits, |_, _| f64::from(rng::unit(&mut r)) - 0.5);
        Self {
            mean: vec![0.0; width],
            projection: Some(projection),
            width,
        }
    }

    /// Fits the transform on the rows for which `fit_on` is true: the principal directions
    /// `remove..remove + keep` in order of variance λ, each divided by `√max(λ, 1e-4 λ_max)` with
    /// λ_max the largest kept one. Directions without any variance give 0. With fewer than two rows
    /// there is nothing to fit and rows are only brought to unit length.
    ///
    /// # Shapes
    /// `values` is `[N, D]`; the transform maps to at most `min(keep, D − remove)` columns.
    ///
    /// # Errors
    /// [`Error::Numeric`] if the eigenvalues cannot be computed.
    pub fn fit(values: &Array2<f32>, fit_on: &[bool], recipe: Recipe) -> Result<Self> {
        let width = values.ncols();
        let rows: Vec<usize> = (0..values.nrows()).filter(|&r| fit_on[r]).collect();
        if rows.len() < 2 {
            return Ok(Self::unit_rows(width));
        }
        let mut mean = vec![0f64; width];
        for &r in &rows {
            for (m, &x) in mean.iter_mut().zip(values.row(r)) {
                *m += f64::from(x);
            }
        }
        mean.iter_mut().for_each(|m| *m /= rows.len() as f64);

        // Never remove so much that nothing is left.
        let remove = recipe.remove.min(width - 1);
        let wanted = (remove + recipe.keep).min(width);
        let sketch = (wanted + OVERSAMPLE).min(width);
        let centred = |block: &[usize]| {
            Mat::from_fn(block.len(), width, |i, j| {
                f64::from(values[(block[i], j)]) - mean[j]
            })
        };
        let mut basis = if sketch == width {
            Mat::identity(width, width)
        } else {
            let mut r = rng::stream(recipe.seed, Purpose::Init, &[rng::name_hash("whitening")]);
            let start = Mat::from_fn(width, sketch, |_, _| f64::from(rng::unit(&mut r)) - 0.5);
            start.qr().compute_thin_Q()
        };
        if sketch < width {
            for _ in 0..PASSES {
                let mut product = Mat::zeros(width, sketch);
                for block in rows.chunks(BLOCK) {
                    let x = centred(block);
                    product += x.transpose() * (&x * &basis);
                }
                basis = product.qr().compute_thin_Q();
            }
        }
        // Rayleigh–Ritz: the covariance inside the subspace, and its eigenvectors.
        let mut inner = Mat::zeros(sketch, sketch);
        for block in rows.chunks(BLOCK) {
            let y = centred(block) * &basis;
            inner += y.transpose() * &y;
        }
        let scale = 1.0 / rows.len() as f64;
        let eigen = inner
            .self_adjoint_eigen(Side::Lower)
            .map_err(|e| Error::Numeric {
                reason: format!("eigenvalues of the feature covariance: {e:?}"),
            })?;
        let (u, s) = (eigen.U(), eigen.S().column_vector());
        // Eigenvalues ascend: the k-th largest is at `sketch − 1 − k`.
        let kept: Vec<usize> = (remove..wanted).map(|k| sketch - 1 - k).collect();
        let variance = |k: usize| (s[k] * scale).max(0.0);
        let largest = kept.first().map_or(0.0, |&k| variance(k));
        let floor = 1e-4 * largest;
        // Below what rounding leaves of the features themselves, a direction holds nothing.
        let total: f64 = (0..sketch).map(variance).sum();
        let size: f64 = mean.iter().map(|m| m * m).sum::<f64>() + total;
        let nothing = 1e-13 * size;
        let factor: Vec<f64> = kept
            .iter()
            .map(|&k| {
                if variance(k) > nothing {
                    1.0 / variance(k).max(floor).sqrt()
                } else {
                    0.0
                }
            })
            .collect();
        let chosen = Mat::from_fn(sketch, kept.len(), |i, j| u[(i, kept[j])] * factor[j]);
        Ok(Self {
            mean,
            projection: Some(&basis * &chosen),
            width,
        })
    }

    /// Columns of the result.
    pub fn output_width(&self) -> usize {
        self.projection.as_ref().map_or(self.width, Mat::ncols)
    }

    /// `(x − μ) W` of every row that is present, zeros for the others.
    fn project(&self, values: &Array2<f32>, present: &[bool]) -> Vec<f32> {
        let k = self.output_width();
        let mut out = vec![0f32; values.nrows() * k];
        out.par_chunks_mut(BLOCK * k)
            .enumerate()
            .for_each(|(b, out)| {
                let at = |i: usize, j: usize| f64::from(values[(b * BLOCK + i, j)]) - self.mean[j];
                let x = Mat::from_fn(out.len() / k, self.width, at);
                let y = match &self.projection {
                    Some(w) => x * w,
                    None => x,
                };
                for (i, row) in out.chunks_exact_mut(k).enumerate() {
                    if present[b * BLOCK + i] {
                        row.iter_mut()
                            .enumerate()
                            .for_each(|(j, o)| *o = y[(i, j)] as f32);
                    }
                }
            });
        out
    }

    /// Transformed features of unit length; missing rows and rows without a direction are zero.
    ///
    /// # Shapes
    /// `[N, D]` → `[N, K]`.
    pub fn apply(&self, values: &Array2<f32>, present: &[bool], dev: &Device) -> Result<Tensor> {
        let k = self.output_width();
        let mut out = self.project(values, present);
        for row in out.chunks_exact_mut(k) {
            unit_length(row);
        }
        Ok(Tensor::from_vec(out, (values.nrows(), k), dev)?)
    }

    /// As [`Transform::apply`], each projected value replaced by its sign first.
    pub fn apply_signs(
        &self,
        values: &Array2<f32>,
        present: &[bool],
        dev: &Device,
    ) -> Result<Tensor> {
        let k = self.output_width();
        let mut out = self.project(values, present);
        for (row, _) in out.chunks_exact_mut(k).zip(present).filter(|(_, p)| **p) {
            row.iter_mut()
                .for_each(|x| *x = if *x >= 0.0 { 1.0 } else { -1.0 });
            unit_length(row);
        }
        Ok(Tensor::from_vec(out, (values.nrows(), k), dev)?)
    }

    /// Stores the transform as `features.<name>.mean` `[D]` and, where it projects,
    /// `features.<name>.projection` `[D, K]`: what a new item's features need.
    pub fn export(&self, name: &str, out: &mut TensorMap) -> Result<()> {
        let mean: Vec<f32> = self.mean.iter().map(|m| *m as f32).collect();
        out.insert(
            format!("features.{name}.mean"),
            Tensor::from_vec(mean, self.width, &Device::Cpu)?,
        );
        if let Some(w) = &self.projection {
            let k = w.ncols();
            let values: Vec<f32> = (0..self.width)
                .flat_map(|i| (0..k).map(move |j| w[(i, j)] as f32))
                .collect();
            out.insert(
                format!("features.{name}.projection"),
                Tensor::from_vec(values, (self.width, k), &Device::Cpu)?,
            );
        }
        Ok(())
    }
}

fn unit_length(row: &mut [f32]) {
    let norm = row
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt();
    if norm > 1e-12 {
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn recipe(remove: usize, keep: usize) -> Recipe {
        Recipe {
            remove,
            keep,
            seed: 1,
        }
    }

    /// Oracle D11: covariance diag(2, 0.5), whitened rows ±(√2, 0) and ±(0, √2).
    #[test]
    fn whitening_matches_oracle() -> Result<()> {
        let x = array![[2f32, 0.], [-2., 0.], [0., 1.], [0., -1.]];
        let t = Transform::fit(&x, &[true; 4], recipe(0, 2))?;
        let y = t.project(&x, &[true; 4]);
        let r = 2f32.sqrt();
        let want = [r, 0.0, r, 0.0, 0.0, r, 0.0, r];
        for (g, w) in y.iter().zip(want) {
            assert!((g.abs() - w).abs() < 1e-5, "{y:?}");
        }
        assert!((y[0] + y[2]).abs() < 1e-6, "opposite rows stay opposite");
        Ok(())
    }

    /// Features of rank 40 in 60 columns plus a large common direction.
    fn anisotropic(n: usize) -> Array2<f32> {
        let mut r = rng::stream(5, Purpose::Init, &[]);
        let mut draw = || rng::unit(&mut r) - 0.5;
        let mix: Vec<f32> = (0..40 * 60).map(|_| draw()).collect();
        let z: Vec<f32> = (0..n * 40).map(|_| draw()).collect();
        Array2::from_shape_fn((n, 60), |(i, j)| {
            let own: f32 = (0..40)
                .map(|k| z[i * 40 + k] * mix[k * 60 + j] / (1.0 + k as f32))
                .sum();
            5.0 + z[i * 40] * 3.0 + own
        })
    }

    #[test]
    fn the_sketch_agrees_with_the_whole_decomposition() -> Result<()> {
        let x = anisotropic(300);
        // 8 + 2 + oversampling < 60 columns: a sketch. Distances do not depend on axis signs.
        let few = Transform::fit(&x, &[true; 300], recipe(2, 8))?;
        let all = Transform::fit(&x, &[true; 300], recipe(2, 58))?;
        let (a, b) = (few.project(&x, &[true; 300]), all.project(&x, &[true; 300]));
        for i in 0..20 {
            for j in 0..8 {
                let (p, q) = (a[i * 8 + j].abs(), b[i * 58 + j].abs());
                assert!((p - q).abs() < 2e-2 * (1.0 + q), "{i} {j}: {p} {q}");
            }
        }
        Ok(())
    }

    #[test]
    fn whitened_columns_have_unit_variance_and_cosines_spread() -> Result<()> {
        let x = anisotropic(300);
        let t = Transform::fit(&x, &[true; 300], recipe(2, 16))?;
        let y = t.project(&x, &[true; 300]);
        for c in 0..16 {
            let var = (0..300).map(|i| y[i * 16 + c].powi(2)).sum::<f32>() / 300.0;
            assert!((var - 1.0).abs() < 1e-2, "{c}: {var}");
        }
        let cosine = |t: &Tensor| -> Result<f32> {
            let c = t.narrow(0, 0, 1)?.matmul(&t.narrow(0, 1, 299)?.t()?)?;
            Ok(c.mean_all()?.to_scalar()?)
        };
        let dev = Device::Cpu;
        let raw = Transform::unit_rows(60).apply(&x, &[true; 300], &dev)?;
        assert!(cosine(&raw)? > 0.9);
        assert!(cosine(&t.apply(&x, &[true; 300], &dev)?)?.abs() < 0.1);
        Ok(())
    }

    #[test]
    fn fitted_on_training_rows_only() -> Result<()> {
        let x = anisotropic(100);
        let mut other = x.clone();
        other.row_mut(99).fill(1e3);
        let mut fit_on = [true; 100];
        fit_on[99] = false;
        let a = Transform::fit(&x, &fit_on, recipe(2, 16))?.project(&x, &[true; 100]);
        let b = Transform::fit(&other, &fit_on, recipe(2, 16))?.project(&other, &[true; 100]);
        assert_eq!(a[..99 * 16], b[..99 * 16]);
        assert_ne!(a[99 * 16..], b[99 * 16..]);
        Ok(())
    }

    #[test]
    fn degenerate_features_give_finite_rows() -> Result<()> {
        let dev = Device::Cpu;
        let same = Array2::from_elem((6, 3), 0.7f32);
        let one = Array2::from_elem((6, 1), 0.7f32);
        for (x, fit_on) in [(&same, [true; 6]), (&same, [false; 6]), (&one, [true; 6])] {
            let present = [true, true, false, true, true, true];
            let t = Transform::fit(x, &fit_on, recipe(2, 256))?;
            assert!(t.output_width() >= 1);
            let y = t.apply(x, &present, &dev)?.to_vec2::<f32>()?;
            assert!(y.iter().flatten().all(|v| v.is_finite()));
            assert!(y[2].iter().all(|v| *v == 0.0), "missing rows stay zero");
        }
        let signs = Transform::random_signs_of(3, 8, 1).apply_signs(&same, &[true; 6], &dev)?;
        let norm = signs.sqr()?.sum(1)?.to_vec1::<f32>()?;
        assert!(norm.iter().all(|n| (n - 1.0).abs() < 1e-5));
        Ok(())
    }
}
