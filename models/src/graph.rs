//! Sparse matrices for graph propagation: the one adjacency normalisation and the one sparse
//! product with its backward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::simd;

/// Sparse matrix in compressed row form, `rows × cols`, f32 values.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseMatrix {
    rows: usize,
    cols: usize,
    offsets: Vec<usize>,
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl SparseMatrix {
    /// Builds from `(row, column, value)` entries in any order; equal positions are summed.
    ///
    /// # Errors
    /// An entry outside `rows × cols`.
    pub fn from_entries(rows: usize, cols: usize, entries: &[(u32, u32, f32)]) -> Result<Self> {
        let mut counts = vec![0usize; rows + 1];
        for &(r, c, _) in entries {
            if r as usize >= rows || c as usize >= cols {
                return Err(Error::Config {
                    reason: format!("entry ({r}, {c}) lies outside a {rows} × {cols} matrix"),
                });
            }
            counts[r as usize + 1] += 1;
        }
        for i in 0..rows {
            counts[i + 1] += counts[i];
        }
        let mut slot = counts.clone();
        let mut placed = vec![(0u32, 0f32); entries.len()];
        for &(r, c, v) in entries {
            placed[slot[r as usize]] = (c, v);
            slot[r as usize] += 1;
        }
        let mut offsets = Vec::with_capacity(rows + 1);
        let mut indices = Vec::with_capacity(entries.len());
        let mut values = Vec::with_capacity(entries.len());
        offsets.push(0);
        for r in 0..rows {
            let row = &mut placed[counts[r]..counts[r + 1]];
            row.sort_by_key(|&(c, _)| c);
            let start = indices.len();
            for &(c, v) in row.iter() {
                if indices.len() > start && indices.last() == Some(&c) {
                    if let Some(last) = values.last_mut() {
                        *last += v;
                    }
                } else {
                    indices.push(c);
                    values.push(v);
                }
            }
            offsets.push(indices.len());
        }
        Ok(Self {
            rows,
            cols,
            offsets,
            indices,
            values,
        })
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Stored entries.
    pub fn nnz(&self) -> usize {
        self.indices.len()
    }

    /// Column indices and values of one row.
    pub fn row(&self, r: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[r]..self.offsets[r + 1];
        (&self.indices[range.clone()], &self.values[range])
    }

    /// All stored values.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// `(row, column, value)` of every stored entry.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u32, f32)> + '_ {
        (0..self.rows).flat_map(move |r| {
            let (i, v) = self.row(r);
            i.iter().zip(v).map(move |(&c, &v)| (r as u32, c, v))
        })
    }

    /// The transpose.
    pub fn transpose(&self) -> Self {
        let mut offsets = vec![0usize; self.cols + 1];
        for &c in &self.indices {
            offsets[c as usize + 1] += 1;
        }
        for i in 0..self.cols {
            offsets[i + 1] += offsets[i];
        }
        let mut slot = offsets.clone();
        let mut indices = vec![0u32; self.nnz()];
        let mut values = vec![0f32; self.nnz()];
        for (r, c, v) in self.entries() {
            let s = &mut slot[c as usize];
            indices[*s] = r;
            values[*s] = v;
            *s += 1;
        }
        Self {
            rows: self.cols,
            cols: self.rows,
            offsets,
            indices,
            values,
        }
    }

    /// Keeps each stored entry with probability `keep` and divides it by `keep`; `draw(k)` gives
    /// the uniform number of the k-th stored entry.
    ///
    /// Each direction of an undirected edge is dropped on its own, so the result of a symmetric
    /// matrix need not be symmetric.
    pub fn drop_entries(&self, keep: f32, mut draw: impl FnMut(usize) -> f32) -> Self {
        if keep >= 1.0 {
            return self.clone();
        }
        let mut out = Self {
            offsets: vec![0],
            indices: Vec::new(),
            values: Vec::new(),
            ..*self
        };
        let mut k = 0;
        for r in 0..self.rows {
            let (idx, val) = self.row(r);
            for (&c, &v) in idx.iter().zip(val) {
                // floor(u + keep) is 1 with probability `keep`.
                if (draw(k) + keep).floor() >= 1.0 {
                    out.indices.push(c);
                    out.values.push(v / keep);
                }
                k += 1;
            }
            out.offsets.push(out.indices.len());
        }
        out
    }

    /// `self · x` for a row-major `x` of `cols × width`.
    pub fn matmul_slice(&self, x: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * width];
        self.add_product(x, width, &mut out);
        out
    }

    /// `out += self · x`.
    fn add_product(&self, x: &[f32], width: usize, out: &mut [f32]) {
        if width == 0 {
            return;
        }
        const ROWS: usize = 256;
        out.par_chunks_mut(width * ROWS)
            .enumerate()
            .for_each(|(block, out)| {
                simd::dispatch(|| {
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        self.add_row(block * ROWS + i, x, width, out);
                    }
                });
            });
    }

    /// One row of the product: [`LANES`] columns at a time, so that the sums stay in registers
    /// while the row's entries pass by.
    #[inline(always)]
    fn add_row(&self, r: usize, x: &[f32], width: usize, out: &mut [f32]) {
        let (idx, val) = self.row(r);
        let mut at = 0;
        while at + LANES <= width {
            let mut sum = [0f32; LANES];
            for (&c, &v) in idx.iter().zip(val) {
                let x = &x[c as usize * width + at..][..LANES];
                for k in 0..LANES {
                    sum[k] += v * x[k];
                }
            }
            out[at..at + LANES]
                .iter_mut()
                .zip(sum)
                .for_each(|(o, s)| *o += s);
            at += LANES;
        }
        for (&c, &v) in idx.iter().zip(val) {
            let x = &x[c as usize * width + at..(c as usize + 1) * width];
            out[at..].iter_mut().zip(x).for_each(|(o, x)| *o += v * x);
        }
    }
}

/// Columns summed at once: eight 8-wide registers.
const LANES: usize = 64;

/// The symmetric bipartite graph of users and items with self-loops,
/// `D^(-1/2) (B + I) D^(-1/2)`, nodes ordered users first (DiffMM program; LightGCN without the
/// self-loops when `self_loops` is false).
///
/// An isolated node keeps a self-loop of weight 1, or an empty row without self-loops.
pub fn normalized_bipartite<'a>(
    users: usize,
    items: usize,
    edges: impl Iterator<Item = (u32, u32)> + Clone + 'a,
    self_loops: bool,
) -> Result<SparseMatrix> {
    let n = users + items;
    let own = if self_loops { 1.0f64 } else { 0.0 };
    let mut degree = vec![own; n];
    let mut pairs = 0usize;
    for (u, i) in edges.clone() {
        if u as usize >= users || i as usize >= items {
            return Err(Error::Config {
                reason: format!("edge ({u}, {i}) lies outside {users} users × {items} items"),
            });
        }
        degree[u as usize] += 1.0;
        degree[users + i as usize] += 1.0;
        pairs += 1;
    }
    let weight = |a: usize, b: usize| (1.0 / (degree[a] * degree[b]).sqrt()) as f32;
    let mut entries = Vec::with_capacity(pairs * 2 + n);
    for (u, i) in edges {
        let (a, b) = (u as usize, users + i as usize);
        let w = weight(a, b);
        entries.push((a as u32, b as u32, w));
        entries.push((b as u32, a as u32, w));
    }
    if self_loops {
        for v in 0..n {
            entries.push((v as u32, v as u32, weight(v, v)));
        }
    }
    SparseMatrix::from_entries(n, n, &entries)
}

/// A sparse matrix prepared for differentiable products: it keeps its transpose for the backward.
#[derive(Debug, Clone)]
pub struct Propagation {
    forward: Arc<SparseMatrix>,
    backward: Arc<SparseMatrix>,
}

impl Propagation {
    /// Prepares `m`; a symmetric matrix shares its storage with its transpose.
    pub fn new(m: SparseMatrix) -> Self {
        let t = m.transpose();
        let forward = Arc::new(m);
        let backward = if t == *forward {
            forward.clone()
        } else {
            Arc::new(t)
        };
        Self { forward, backward }
    }

    /// The matrix itself.
    pub fn matrix(&self) -> &SparseMatrix {
        &self.forward
    }

    /// The transpose, sharing both matrices.
    pub fn transposed(&self) -> Self {
        Self {
            forward: self.backward.clone(),
            backward: self.forward.clone(),
        }
    }

    /// `x + M x + … + M^layers x`, differentiable in `x`: what graph recommenders sum or average over
    /// their layers, without a tensor for each of them.
    ///
    /// # Shapes
    /// `x` is `[n, width]` f32 for a square `M` of n nodes, and so is the result.
    ///
    /// # Errors
    /// Another number of rows, or a matrix that is not square.
    pub fn layer_sum(&self, x: &Tensor, layers: usize) -> Result<Tensor> {
        self.check(x)?;
        if self.forward.rows != self.forward.cols {
            return Err(Error::config(format!(
                "layers of a matrix of {} rows and {} columns",
                self.forward.rows, self.forward.cols
            )));
        }
        if x.device().is_cpu() {
            let op = LayerSum {
                graph: self.clone(),
                layers,
            };
            return Ok(x.contiguous()?.apply_op1(op)?);
        }
        let mut sum = x.clone();
        for _ in 0..layers {
            sum = (x + gather_scatter(&self.forward, &sum)?)?;
        }
        Ok(sum)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let (cols, _) = x.dims2()?;
        if cols == self.forward.cols {
            return Ok(());
        }
        Err(Error::Config {
            reason: format!(
                "propagation over {} nodes got {cols} rows",
                self.forward.cols
            ),
        })
    }

    /// `M · x`, differentiable in `x`.
    ///
    /// On a GPU the product is composed of gather, multiply and scatter-add.
    ///
    /// # Shapes
    /// `x` is `[cols, width]` f32; the result is `[rows, width]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        if x.device().is_cpu() {
            Ok(x.contiguous()?.apply_op1(SpMm(self.clone()))?)
        } else {
            gather_scatter(&self.forward, x)
        }
    }
}

/// Sparse product from ordinary tensor operations, for devices without our kernel.
fn gather_scatter(m: &SparseMatrix, x: &Tensor) -> Result<Tensor> {
    let dev = x.device();
    let rows: Vec<u32> = m.entries().map(|e| e.0).collect();
    let rows = Tensor::from_vec(rows, m.nnz(), dev)?;
    let cols = Tensor::from_slice(&m.indices, m.nnz(), dev)?;
    let vals = Tensor::from_slice(&m.values, (m.nnz(), 1), dev)?;
    let picked = x.index_select(&cols, 0)?.broadcast_mul(&vals)?;
    let zero = Tensor::zeros((m.rows, x.dim(1)?), DType::F32, dev)?;
    Ok(zero.index_add(&rows, &picked, 0)?)
}

struct SpMm(Propagation);

impl CustomOp1 for SpMm {
    fn name(&self) -> &'static str {
        "spmm"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(s, l)?;
        let width = l.dims()[1];
        let out = self.0.forward.matmul_slice(x, width);
        Ok((
            CpuStorage::F32(out),
            Shape::from((self.0.forward.rows, width)),
        ))
    }

    fn bwd(
        &self,
        _arg: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let t = SpMm(self.0.transposed());
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&t)?))
    }
}

/// [`Propagation::layer_sum`] by Horner's rule, `x + M (x + M (…))`.
struct LayerSum {
    graph: Propagation,
    layers: usize,
}

impl CustomOp1 for LayerSum {
    fn name(&self) -> &'static str {
        "layer-sum"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(s, l)?;
        let mut sum = x.to_vec();
        for _ in 0..self.layers {
            let mut next = x.to_vec();
            self.graph.forward.add_product(&sum, l.dims()[1], &mut next);
            sum = next;
        }
        Ok((CpuStorage::F32(sum), l.shape().clone()))
    }

    fn bwd(
        &self,
        _arg: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let t = Self {
            graph: self.graph.transposed(),
            layers: self.layers,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&t)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn toy() -> SparseMatrix {
        let edges = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)];
        normalized_bipartite(3, 4, edges.into_iter(), true).unwrap()
    }

    fn close(got: &[f32], want: &[f64], tol: f64) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < tol, "{got:?} {want:?}");
        }
    }

    /// Oracle 10.3 of the DiffMM specification.
    #[test]
    fn adjacency_matches_oracle() {
        let a = toy();
        let at = |r: usize, c: u32| {
            let (i, v) = a.row(r);
            i.iter().position(|&x| x == c).map_or(0.0, |k| v[k])
        };
        let s6 = 1.0 / 6f32.sqrt();
        for (r, c, want) in [
            (0, 0, 1.0 / 3.0),
            (0, 3, s6),
            (0, 4, 1.0 / 3.0),
            (1, 4, 1.0 / 3.0),
            (1, 5, s6),
            (2, 6, 0.5),
            (2, 2, 0.5),
            (3, 3, 0.5),
            (4, 4, 1.0 / 3.0),
            (5, 5, 0.5),
            (6, 6, 0.5),
        ] {
            assert!((at(r, c) - want).abs() < 1e-6, "({r},{c})");
            assert_eq!(at(r, c), at(c as usize, r as u32), "symmetric");
        }
        let x = [1., 0., 0., 1., 1., 1., 1., 2., 0., -1., 0.5, 0.5, -1., 0.];
        let want = [
            0.7415816238,
            0.4831632476,
            0.2041241452,
            0.2041241452,
            0.0,
            0.5,
            0.9082482905,
            1.0,
            0.3333333333,
            0.0,
            0.25,
            0.6582482905,
            0.0,
            0.5,
        ];
        close(&a.matmul_slice(&x, 2), &want, 1e-6);
    }

    #[test]
    fn layer_sum_and_its_gradient_equal_the_plain_sum() -> Result<()> {
        // An asymmetric matrix, so that a missing transpose would show.
        let m = SparseMatrix::from_entries(
            3,
            3,
            &[(0, 1, 0.5), (1, 2, -1.0), (2, 0, 0.25), (2, 2, 0.75)],
        )?;
        let graph = Propagation::new(m);
        let x = Var::new(&[[1f32, -2.0], [0.5, 3.0], [-1.0, 0.25]], &Device::Cpu)?;
        let weight = Tensor::new(&[[0.3f32, -1.0], [2.0, 0.5], [1.0, 1.5]], &Device::Cpu)?;
        let wide = SparseMatrix::from_entries(2, 3, &[(0, 1, 0.5)])?;
        assert!(Propagation::new(wide).layer_sum(&x, 1).is_err());
        for layers in [0, 1, 3] {
            let mut layer = x.as_tensor().clone();
            let mut plain = layer.clone();
            for _ in 0..layers {
                layer = graph.apply(&layer)?;
                plain = (plain + &layer)?;
            }
            let sum = graph.layer_sum(&x, layers)?;
            let gradient = |y: &Tensor| -> Result<Tensor> {
                let grads = (y * &weight)?.sum_all()?.backward()?;
                Ok(grads.get(&x).cloned().expect("a gradient"))
            };
            for (got, want) in [(&sum, &plain), (&gradient(&sum)?, &gradient(&plain)?)] {
                let gap = (got - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(gap < 1e-5, "{layers} layers: {gap}");
            }
        }
        Ok(())
    }

    #[test]
    fn spmm_backward_equals_finite_differences() -> Result<()> {
        // An asymmetric matrix, so that a missing transpose would show.
        let m = SparseMatrix::from_entries(
            3,
            2,
            &[(0, 0, 1.5), (0, 1, -2.0), (2, 0, 0.5), (2, 1, 3.0)],
        )?;
        let p = Propagation::new(m);
        let x0 = vec![0.3f32, -0.7, 1.1, 0.2];
        let weights = Tensor::new(&[[1f32, 2.0], [3.0, -1.0], [0.5, 4.0]], &Device::Cpu)?;
        let f = |x: &[f32]| -> Result<f32> {
            let x = Tensor::from_slice(x, (2, 2), &Device::Cpu)?;
            Ok((p.apply(&x)?.sqr()? * &weights)?.sum_all()?.to_scalar()?)
        };
        let var = Var::from_slice(&x0, (2, 2), &Device::Cpu)?;
        let loss = (p.apply(var.as_tensor())?.sqr()? * &weights)?.sum_all()?;
        let g = loss.backward()?;
        let g = g
            .get(var.as_tensor())
            .expect("gradient")
            .flatten_all()?
            .to_vec1::<f32>()?;
        for i in 0..4 {
            let (mut a, mut b) = (x0.clone(), x0.clone());
            a[i] += 1e-2;
            b[i] -= 1e-2;
            let fd = (f(&a)? - f(&b)?) / 2e-2;
            assert!((g[i] - fd).abs() < 1e-2 * (1.0 + fd.abs()), "{} {fd}", g[i]);
        }
        Ok(())
    }

    #[test]
    fn every_width_gives_the_same_columns() {
        let a = toy();
        let wide: Vec<f32> = (0..7 * 150).map(|i| (i as f32 * 0.37).sin()).collect();
        let full = a.matmul_slice(&wide, 150);
        for width in [1, 63, 64, 65, 128, 150] {
            let part: Vec<f32> = (0..7)
                .flat_map(|r| wide[r * 150..r * 150 + width].to_vec())
                .collect();
            let got = a.matmul_slice(&part, width);
            for r in 0..7 {
                for c in 0..width {
                    assert!((got[r * width + c] - full[r * 150 + c]).abs() < 1e-6);
                }
            }
        }
    }

    /// What other devices compute, with its gradient; an asymmetric matrix with an empty row.
    #[test]
    fn gather_scatter_equals_kernel() -> Result<()> {
        let entries = [(0, 0, 1.5), (0, 1, -2.0), (2, 0, 0.5), (2, 1, 3.0)];
        let skew = SparseMatrix::from_entries(3, 2, &entries)?;
        for m in [toy(), skew] {
            let n = m.shape().1;
            let x = Tensor::arange(0f32, 2.0 * n as f32, &Device::Cpu)?.reshape((n, 2))?;
            let x = Var::from_tensor(&x)?;
            let fast = Propagation::new(m.clone()).apply(x.as_tensor())?;
            let slow = gather_scatter(&m, x.as_tensor())?;
            let apart = |a: &Tensor, b: &Tensor| -> Result<f32> {
                Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
            };
            assert!(apart(&fast, &slow)? < 1e-5);
            let gradient = |y: Tensor| -> Result<Tensor> {
                let g = y.sqr()?.sum_all()?.backward()?;
                Ok(g.get(x.as_tensor()).expect("gradient").clone())
            };
            assert!(apart(&gradient(fast)?, &gradient(slow)?)? < 1e-3);
        }
        Ok(())
    }

    /// Oracle 10.8: uniforms [.1, .49, .5, .93], keep .5.
    #[test]
    fn edge_dropout_matches_oracle() {
        let m =
            SparseMatrix::from_entries(1, 4, &[(0, 0, 0.5), (0, 1, 0.4), (0, 2, 0.3), (0, 3, 0.2)])
                .unwrap();
        let u = [0.1f32, 0.49, 0.5, 0.93];
        let d = m.drop_entries(0.5, |k| u[k]);
        assert_eq!(d.row(0).0, &[2, 3]);
        close(d.row(0).1, &[0.6, 0.4], 1e-6);
    }

    #[test]
    fn isolated_nodes_keep_a_unit_loop() {
        let a = normalized_bipartite(2, 2, [(0u32, 0u32)].into_iter(), true).unwrap();
        assert_eq!(a.row(1), (&[1u32][..], &[1f32][..]));
    }

    #[test]
    fn an_edge_outside_is_refused() {
        assert!(normalized_bipartite(2, 2, [(0u32, 2u32)].into_iter(), true).is_err());
    }
}
