//! Differentiable operations that candle lacks or computes wastefully.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Device, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

mod cosine_softmax;

pub use cosine_softmax::{cosine_softmax, info_nce};

use crate::error::Result;
use crate::simd;

/// `x · w` where only `w` is trainable: the backward skips the gradient of `x`, which candle's
/// `matmul` always computes.
///
/// # Shapes
/// `x` `[B, I]` (constant), `w` `[I, O]`; the result is `[B, O]`.
pub fn input_linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let x = x.detach().contiguous()?;
    Ok(w.contiguous()?.apply_op1(InputLinear { x })?)
}

struct InputLinear {
    x: Tensor,
}

/// Matrix product through the backend of the storages at hand.
fn backend_matmul<S: BackendStorage>(
    a: &S,
    al: &Layout,
    b: &S,
    bl: &Layout,
) -> candle_core::Result<(S, Shape)> {
    let (m, k) = (al.dims()[0], al.dims()[1]);
    let n = bl.dims()[1];
    let out = a.matmul(b, (1, m, n, k), al, bl)?;
    Ok((out, Shape::from((m, n))))
}

fn wrong_device() -> candle_core::Error {
    candle_core::Error::Msg("operands live on different devices".into())
}

impl CustomOp1 for InputLinear {
    fn name(&self) -> &'static str {
        "input-linear"
    }

    fn cpu_fwd(&self, w: &CpuStorage, wl: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, xl) = self.x.storage_and_layout();
        match &*x {
            Storage::Cpu(x) => backend_matmul(x, xl, w, wl),
            _ => Err(wrong_device()),
        }
    }

    fn cuda_fwd(&self, w: &CudaStorage, wl: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (x, xl) = self.x.storage_and_layout();
        match &*x {
            Storage::Cuda(x) => backend_matmul(x, xl, w, wl),
            _ => Err(wrong_device()),
        }
    }

    fn bwd(&self, _w: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.x.t()?.matmul(g)?))
    }
}

/// `x · wᵀ` where `w` is frozen: neither is its gradient computed nor kept, which candle's `matmul`
/// always does.
///
/// # Shapes
/// `x` `[B, I]`, `w` `[O, I]` (constant); the result is `[B, O]`.
pub fn frozen_linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let w = w.detach();
    Ok(x.contiguous()?.apply_op1(FrozenLinear { w })?)
}

struct FrozenLinear {
    w: Tensor,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (w, wl) = self.w.storage_and_layout();
        match &*w {
            Storage::Cpu(w) => backend_matmul(x, xl, w, &wl.transpose(0, 1)?),
            _ => Err(wrong_device()),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (w, wl) = self.w.storage_and_layout();
        match &*w {
            Storage::Cuda(w) => backend_matmul(x, xl, w, &wl.transpose(0, 1)?),
            _ => Err(wrong_device()),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.matmul(&self.w)?))
    }
}

/// Row indices as a tensor.
pub fn index_tensor(rows: &[u32], dev: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(rows, rows.len(), dev)?)
}

/// Rows of `x` by position.
pub fn pick(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    Ok(x.index_select(&index_tensor(rows, x.device())?, 0)?)
}

/// Rows divided by `max(‖row‖₂, 1e-12)`.
///
/// # Shapes
/// `[N, D]` → `[N, D]`.
pub fn normalize_rows(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op1(NormalizeRows)?);
    }
    let norm = x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
    Ok(x.broadcast_div(&norm)?)
}

struct NormalizeRows;

impl CustomOp1 for NormalizeRows {
    fn name(&self) -> &'static str {
        "normalize-rows"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(s, l)?;
        let d = l.dims()[1];
        let mut out = vec![0f32; x.len()];
        simd::dispatch(|| {
            for (o, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let inv = 1.0 / simd::dot(x, x).sqrt().max(1e-12);
                o.iter_mut().zip(x).for_each(|(o, x)| *o = x * inv);
            }
        });
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }

    /// With y = x / n: dx = (g − y (y·g)) / n. Below the floor the norm is a constant.
    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let d = x.dim(1)?;
        let g = g.contiguous()?;
        let mut out = vec![0f32; x.elem_count()];
        with_cpu(x, |xs, xl| {
            let xs = simd::f32_slice(xs, xl)?;
            with_cpu(y, |ys, yl| {
                let ys = simd::f32_slice(ys, yl)?;
                with_cpu(&g, |gs, gl| {
                    let gs = simd::f32_slice(gs, gl)?;
                    simd::dispatch(|| normalize_backward(&mut out, xs, ys, gs, d));
                    Ok(())
                })
            })
        })?;
        Ok(Some(Tensor::from_vec(out, x.shape(), x.device())?))
    }
}

#[inline(always)]
fn normalize_backward(out: &mut [f32], xs: &[f32], ys: &[f32], gs: &[f32], d: usize) {
    for (((o, x), y), g) in out
        .chunks_exact_mut(d)
        .zip(xs.chunks_exact(d))
        .zip(ys.chunks_exact(d))
        .zip(gs.chunks_exact(d))
    {
        let norm = simd::dot(x, x).sqrt();
        let (inv, along) = if norm > 1e-12 {
            (1.0 / norm, simd::dot(y, g))
        } else {
            (1e12, 0.0)
        };
        for i in 0..d {
            o[i] = (g[i] - y[i] * along) * inv;
        }
    }
}

/// Runs `f` on the host storage behind a tensor, without a copy.
fn with_cpu<R>(
    t: &Tensor,
    f: impl FnOnce(&CpuStorage, &Layout) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(s) => f(s, layout),
        _ => Err(wrong_device()),
    }
}

fn flat(t: &Tensor) -> candle_core::Result<Vec<f32>> {
    t.contiguous()?.flatten_all()?.to_vec1::<f32>()
}

/// Counts of each distinct id and, per distinct id, how often it occurs, in first-seen order.
pub fn distinct(ids: &[u32]) -> (Vec<u32>, Vec<f32>) {
    let mut order: Vec<u32> = Vec::new();
    let mut count: Vec<f32> = Vec::new();
    let mut at = std::collections::HashMap::new();
    for &id in ids {
        let k = *at.entry(id).or_insert_with(|| {
            order.push(id);
            count.push(0.0);
            order.len() - 1
        });
        count[k] += 1.0;
    }
    (order, count)
}

/// Cross-entropy of full-softmax scores against sparse, weighted targets, with some items masked
/// out of the softmax:
///
/// `(1/B) Σ_b Σ_{(j,w) ∈ targets_b} w · ( log Σ_{v ∉ masked_b} exp(s_bv) − s_bj )`
///
/// # Shapes
/// `scores` `[B, N]`; the result is a scalar.
///
/// # Errors
/// A target or masked id outside `N`, or lists of another length than `B`.
pub fn softmax_cross_entropy(
    scores: &Tensor,
    targets: Vec<Vec<(u32, f32)>>,
    masked: Vec<Vec<u32>>,
) -> Result<Tensor> {
    let (b, n) = scores.dims2()?;
    let fits = |id: u32| (id as usize) < n;
    let ok = targets.len() == b
        && masked.len() == b
        && targets.iter().flatten().all(|t| fits(t.0))
        && masked.iter().flatten().all(|&i| fits(i));
    if !ok {
        return Err(crate::Error::config(format!(
            "targets or masks do not fit scores of shape [{b}, {n}]"
        )));
    }
    if scores.device().is_cpu() {
        return Ok(scores
            .contiguous()?
            .apply_op1(SoftmaxCe { targets, masked })?);
    }
    let dev = scores.device();
    let mut hide = vec![0f32; b * n];
    let mut want = vec![0f32; b * n];
    for r in 0..b {
        masked[r]
            .iter()
            .for_each(|&i| hide[r * n + i as usize] = -1e30);
        targets[r]
            .iter()
            .for_each(|&(i, w)| want[r * n + i as usize] += w);
    }
    let open = (scores + Tensor::from_vec(hide, (b, n), dev)?)?;
    let max = open.max_keepdim(1)?.detach();
    let lse = (open.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()? + max)?;
    let loss = (scores.broadcast_sub(&lse)?.neg()? * Tensor::from_vec(want, (b, n), dev)?)?;
    Ok((loss.sum_all()? / b as f64)?)
}

struct SoftmaxCe {
    targets: Vec<Vec<(u32, f32)>>,
    masked: Vec<Vec<u32>>,
}

impl SoftmaxCe {
    /// `Σ_{v open} exp(s_v − max)` and the maximum over all scores of a row.
    fn normaliser(&self, row: &[f32], r: usize) -> (f32, f32) {
        let max = simd::dispatch(|| {
            let mut lanes = [f32::NEG_INFINITY; 8];
            let chunks = row.chunks_exact(8);
            let tail = chunks
                .remainder()
                .iter()
                .fold(f32::NEG_INFINITY, |m, x| m.max(*x));
            for c in chunks {
                for i in 0..8 {
                    lanes[i] = if c[i] > lanes[i] { c[i] } else { lanes[i] };
                }
            }
            lanes.iter().fold(tail, |m, x| m.max(*x))
        });
        let mut sum = simd::dispatch(|| {
            let mut acc = [0f32; 8];
            let chunks = row.chunks_exact(8);
            let tail: f32 = chunks.remainder().iter().map(|x| simd::exp(x - max)).sum();
            for c in chunks {
                for i in 0..8 {
                    acc[i] += simd::exp(c[i] - max);
                }
            }
            acc.iter().sum::<f32>() + tail
        });
        for &i in &self.masked[r] {
            sum -= simd::exp(row[i as usize] - max);
        }
        if sum > 1e-3 {
            return (sum, max);
        }
        // Masked items held nearly all the mass: subtracting cancelled, so sum the open ones.
        let mut open = vec![true; row.len()];
        self.masked[r]
            .iter()
            .for_each(|&i| open[i as usize] = false);
        let max = row
            .iter()
            .zip(&open)
            .filter(|(_, o)| **o)
            .fold(f32::NEG_INFINITY, |m, (x, _)| m.max(*x));
        let sum = row
            .iter()
            .zip(&open)
            .filter(|(_, o)| **o)
            .map(|(x, _)| simd::exp(x - max))
            .sum();
        (sum, max)
    }
}

impl CustomOp1 for SoftmaxCe {
    fn name(&self) -> &'static str {
        "softmax-cross-entropy"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(s, l)?;
        let n = l.dims()[1];
        let per_row: Vec<f64> = x
            .par_chunks(n)
            .enumerate()
            .map(|(r, row)| {
                let targets = &self.targets[r];
                if targets.is_empty() {
                    return 0.0;
                }
                let (sum, max) = self.normaliser(row, r);
                let lse = f64::from(sum).ln() + f64::from(max);
                targets
                    .iter()
                    .map(|&(j, w)| f64::from(w) * (lse - f64::from(row[j as usize])))
                    .sum()
            })
            .collect();
        let loss = per_row.iter().sum::<f64>() / self.targets.len().max(1) as f64;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _r: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (b, n) = x.dims2()?;
        let g = g.to_scalar::<f32>()? / b as f32;
        let mut d = flat(x)?;
        d.par_chunks_mut(n).enumerate().for_each(|(r, row)| {
            let targets = &self.targets[r];
            if targets.is_empty() {
                row.fill(0.0);
                return;
            }
            let (sum, max) = self.normaliser(row, r);
            let total: f32 = targets.iter().map(|t| t.1).sum();
            let k = g * total / sum;
            simd::dispatch(|| row.iter_mut().for_each(|x| *x = k * simd::exp(*x - max)));
            self.masked[r].iter().for_each(|&i| row[i as usize] = 0.0);
            targets.iter().for_each(|&(j, w)| row[j as usize] -= g * w);
        });
        Ok(Some(Tensor::from_vec(d, (b, n), x.device())?))
    }
}

/// Numerically safe `log σ(x)`.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    // log σ(x) = min(x, 0) − log(1 + exp(−|x|))
    let soft = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok((x.minimum(0f64)? - soft)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn normalize_rows_gradient_equals_plain_composition() -> Result<()> {
        let x = Var::new(&[[3f32, 4.0], [0.1, -0.2], [0.0, 0.0]], &Device::Cpu)?;
        let w = Tensor::new(&[[1f32, 2.0], [-1.0, 0.5], [1.0, 1.0]], &Device::Cpu)?;
        let fast = (normalize_rows(x.as_tensor())? * &w)?.sum_all()?;
        let norm = (x.as_tensor().sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?;
        let slow = (x.as_tensor().broadcast_div(&norm)? * &w)?.sum_all()?;
        assert!((fast.to_scalar::<f32>()? - slow.to_scalar::<f32>()?).abs() < 1e-6);
        let (gf, gs) = (fast.backward()?, slow.backward()?);
        let a = gf.get(x.as_tensor()).expect("gradient").to_vec2::<f32>()?;
        let b = gs.get(x.as_tensor()).expect("gradient").to_vec2::<f32>()?;
        for i in 0..2 {
            for j in 0..2 {
                assert!((a[i][j] - b[i][j]).abs() < 1e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn a_constant_input_gets_no_gradient_and_the_weight_the_right_one() -> Result<()> {
        let dev = Device::Cpu;
        let x = Var::new(&[[1f32, 2.0, 3.0], [0.5, -1.0, 2.0]], &dev)?;
        let w = Var::new(&[[0.1f32, 0.2, -0.3], [1.0, 0.0, 2.0]], &dev)?;
        let w = Var::from_tensor(&w.as_tensor().t()?.contiguous()?)?;
        let fast = input_linear(x.as_tensor(), w.as_tensor())?;
        let slow = x.as_tensor().matmul(w.as_tensor())?;
        assert_eq!(fast.to_vec2::<f32>()?, slow.to_vec2::<f32>()?);
        let g = fast.sqr()?.sum_all()?.backward()?;
        let h = slow.sqr()?.sum_all()?.backward()?;
        assert!(g.get(x.as_tensor()).is_none());
        assert_eq!(
            g.get(w.as_tensor()).expect("gradient").to_vec2::<f32>()?,
            h.get(w.as_tensor()).expect("gradient").to_vec2::<f32>()?
        );
        Ok(())
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_and_the_input_the_right_one() -> Result<()> {
        let dev = Device::Cpu;
        let x = Var::new(&[[1f32, 2.0, 3.0], [0.5, -1.0, 2.0]], &dev)?;
        let w = Var::new(&[[0.1f32, 0.2, -0.3], [1.0, 0.0, 2.0]], &dev)?;
        let fast = frozen_linear(x.as_tensor(), w.as_tensor())?;
        let slow = x.as_tensor().matmul(&w.as_tensor().t()?)?;
        assert_eq!(fast.to_vec2::<f32>()?, slow.to_vec2::<f32>()?);
        let g = fast.sqr()?.sum_all()?.backward()?;
        let h = slow.sqr()?.sum_all()?.backward()?;
        assert!(g.get(w.as_tensor()).is_none());
        assert_eq!(
            g.get(x.as_tensor()).expect("gradient").to_vec2::<f32>()?,
            h.get(x.as_tensor()).expect("gradient").to_vec2::<f32>()?
        );
        Ok(())
    }

    #[test]
    fn softmax_cross_entropy_by_hand_and_by_finite_differences() -> Result<()> {
        let dev = Device::Cpu;
        let x0 = vec![0.5f32, -1.0, 2.0, 0.0, 1.0, 30.0, -0.3, 0.2, 0.1, -2.0];
        let targets = vec![vec![(0, 1.0), (2, 0.5)], vec![(1, 2.0)]];
        // The second row masks the item that holds nearly all the mass.
        let masked = vec![vec![3], vec![0]];
        let f = |x: &[f32]| -> Result<f32> {
            let t = Tensor::from_slice(x, (2, 5), &dev)?;
            Ok(softmax_cross_entropy(&t, targets.clone(), masked.clone())?.to_scalar()?)
        };
        let lse = |v: &[f64]| v.iter().map(|x| x.exp()).sum::<f64>().ln();
        let a = lse(&[0.5, -1.0, 2.0, 1.0]);
        let b = lse(&[-0.3, 0.2, 0.1, -2.0]);
        let want = ((a - 0.5) + 0.5 * (a - 2.0) + 2.0 * (b + 0.3)) / 2.0;
        assert!((f64::from(f(&x0)?) - want).abs() < 1e-5);
        let v = Var::from_slice(&x0, (2, 5), &dev)?;
        let loss = softmax_cross_entropy(v.as_tensor(), targets.clone(), masked.clone())?;
        let g = loss.backward()?;
        let g = flat(g.get(v.as_tensor()).expect("gradient"))?;
        for i in 0..x0.len() {
            let (mut p, mut m) = (x0.clone(), x0.clone());
            p[i] += 1e-2;
            m[i] -= 1e-2;
            let fd = (f(&p)? - f(&m)?) / 2e-2;
            assert!((g[i] - fd).abs() < 2e-3, "{i}: {} {fd}", g[i]);
        }
        assert!(
            softmax_cross_entropy(v.as_tensor(), vec![vec![(9, 1.0)], vec![]], masked).is_err()
        );
        Ok(())
    }

    #[test]
    fn log_sigmoid_is_safe_at_both_ends() -> Result<()> {
        let x = Tensor::new(&[-100f32, -1.0, 0.0, 1.0, 100.0], &Device::Cpu)?;
        let y = log_sigmoid(&x)?.to_vec1::<f32>()?;
        let want = [
            -100.0f32,
            -1.313_261_7,
            -std::f32::consts::LN_2,
            -0.313_261_7,
            0.0,
        ];
        for (a, b) in y.iter().zip(want) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        Ok(())
    }
}
