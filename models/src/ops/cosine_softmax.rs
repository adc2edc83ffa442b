//! A softmax over cosines with all rows of a view, streamed over tiles: contrastive losses and rankings.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::{backend_matmul, with_cpu};
use crate::error::Result;
use crate::simd;

/// InfoNCE of anchors against **all** rows of a view:
///
/// `Σ_j w_j · −log( exp(⟨a_j, b_{p_j}⟩/τ) / Σ_v exp(⟨a_j, b_v⟩/τ) )`
///
/// Weights replace repeated anchors exactly (a node drawn three times has three times the weight). It is
/// [`cosine_softmax`] with one target a row and nothing masked.
///
/// # Shapes
/// As there, `positive` and `weight` of length B.
///
/// # Errors
/// As there.
pub fn info_nce(
    anchors: &Tensor,
    view: &Tensor,
    positive: &[u32],
    weight: &[f32],
    tau: f64,
) -> Result<Tensor> {
    let targets = positive.iter().zip(weight).map(|(&p, &w)| vec![(p, w)]);
    let targets: Vec<_> = targets.collect();
    let none = vec![Vec::new(); targets.len()];
    cosine_softmax(anchors, view, targets, none, tau)
}

/// Cross-entropy of a softmax over the cosines of anchors with all rows of a view against sparse, weighted
/// targets, with some rows masked out of the softmax:
///
/// `Σ_b Σ_{(j,w) ∈ targets_b} w · ( log Σ_{v ∉ masked_b} exp(⟨a_b, b_v⟩/τ) − ⟨a_b, b_j⟩/τ )`
///
/// The similarities are streamed over tiles of the view; their exponentials are kept for the
/// backward while they are few, and computed again when they are many, so that memory is bounded.
/// On a GPU the same is composed of candle's operations, tile by tile too.
///
/// # Shapes
/// `anchors` `[B, D]`, `view` `[V, D]`, both with rows of norm at most one (so that 1/τ bounds every
/// exponent), `targets` and `masked` of length B; the result is a scalar.
///
/// # Errors
/// τ below 0.02 (the exponentials would leave f32), or a target or masked row outside the view.
pub fn cosine_softmax(
    anchors: &Tensor,
    view: &Tensor,
    targets: Vec<Vec<(u32, f32)>>,
    masked: Vec<Vec<u32>>,
    tau: f64,
) -> Result<Tensor> {
    let (b, v) = (anchors.dim(0)?, view.dim(0)?);
    let mut named = targets.iter().flatten().map(|t| t.0);
    let ok = targets.len() == b
        && masked.len() == b
        && named.all(|t| (t as usize) < v)
        && masked.iter().flatten().all(|&m| (m as usize) < v);
    if tau < 0.02 || !ok {
        return Err(crate::Error::config(format!(
            "a softmax of {b} anchors over {v} rows needs a temperature of at least 0.02 (got {tau}), and targets and masks among the rows for each anchor"
        )));
    }
    let op = CosineSoftmax {
        targets,
        masked,
        inv_tau: (1.0 / tau) as f32,
        kept: Mutex::new(None),
    };
    if anchors.device().is_cpu() {
        return Ok(anchors.contiguous()?.apply_op2(&view.contiguous()?, op)?);
    }
    op.composed(anchors, view)
}

struct CosineSoftmax {
    /// Per anchor, rows of the view and their weights.
    targets: Vec<Vec<(u32, f32)>>,
    /// Per anchor, rows that are not in its softmax.
    masked: Vec<Vec<u32>>,
    inv_tau: f32,
    /// What the forward leaves for the backward: row sums, and the tiles while they are few.
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    sums: Vec<f32>,
    tiles: Vec<Vec<f32>>,
}

/// Columns of the similarity matrix that exist at one time.
const TILE: usize = 1024;

/// Most similarities kept from forward to backward: 64 MB.
const KEEP: usize = 1 << 24;

/// Least sum of a row of exponentials, where nothing is open or all of it is beyond f32.
const LEAST_SUM: f32 = f32::MIN_POSITIVE;

/// Rows `[start, start + len)` of a contiguous `[V, D]` layout.
fn rows_of(l: &Layout, start: usize, len: usize) -> candle_core::Result<Layout> {
    l.narrow(0, start, len)
}

impl CosineSoftmax {
    /// The weight of each anchor: that of all its targets.
    fn weights(&self) -> Vec<f32> {
        let total = |t: &Vec<(u32, f32)>| t.iter().map(|t| t.1).sum();
        self.targets.iter().map(total).collect()
    }

    /// The masked rows of an anchor that lie in a tile, as columns of it.
    fn hidden(&self, anchor: usize, start: usize, len: usize) -> impl Iterator<Item = usize> + '_ {
        let columns = self.masked[anchor]
            .iter()
            .map(move |&m| (m as usize).wrapping_sub(start));
        columns.filter(move |&c| c < len)
    }

    /// `exp((⟨a_j, b_v⟩ − 1)/τ)` for all anchors and the rows of one tile, `[B, len]`, 0 where masked;
    /// adds the sum of each row to `sums`.
    fn tile(
        &self,
        a: (&CpuStorage, &Layout),
        b: (&CpuStorage, &Layout),
        start: usize,
        len: usize,
        sums: &mut [f32],
    ) -> candle_core::Result<Vec<f32>> {
        let bl = rows_of(b.1, start, len)?.transpose(0, 1)?;
        let mut e = cpu_matmul(a.0, a.1, b.0, &bl)?;
        let k = self.inv_tau;
        e.par_chunks_mut(len)
            .zip(sums.par_iter_mut())
            .enumerate()
            .for_each(|(anchor, (row, sum))| {
                simd::dispatch(|| row.iter_mut().for_each(|x| *x = simd::exp(*x * k - k)));
                self.hidden(anchor, start, len).for_each(|c| row[c] = 0.0);
                *sum += simd::dispatch(|| simd::sum(row));
            });
        Ok(e)
    }

    /// The same from ordinary tensor operations, for devices without our kernel: value and gradients are
    /// computed at once, tile by tile, so that the similarities of one tile exist at a time.
    fn composed(&self, anchors: &Tensor, view: &Tensor) -> Result<Tensor> {
        let dev = anchors.device();
        let (a, b) = (anchors.detach(), view.detach());
        let (n, v) = (a.dim(0)?, b.dim(0)?);
        let k = f64::from(self.inv_tau);
        let none_masked = self.masked.iter().all(Vec::is_empty);
        let tile = |start: usize| -> Result<(Tensor, Tensor)> {
            let len = TILE.min(v - start);
            let rows = b.narrow(0, start, len)?;
            let mut e = a.matmul(&rows.t()?)?.affine(k, -k)?.exp()?;
            if !none_masked {
                let mut open = vec![1f32; n * len];
                for anchor in 0..n {
                    let hidden = self.hidden(anchor, start, len);
                    hidden.for_each(|c| open[anchor * len + c] = 0.0);
                }
                e = (e * Tensor::from_vec(open, (n, len), dev)?)?;
            }
            Ok((rows, e))
        };
        let w = Tensor::from_vec(self.weights(), (n, 1), dev)?;
        let mut sums = w.zeros_like()?;
        for start in (0..v).step_by(TILE) {
            sums = (sums + tile(start)?.1.sum_keepdim(1)?)?;
        }
        let sums = sums.maximum(f64::from(LEAST_SUM))?;
        let share = (&w / &sums)?;
        let (mut at, mut to, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for (anchor, targets) in self.targets.iter().enumerate() {
            for &(target, weight) in targets {
                at.push(anchor as u32);
                to.push(target);
                each.push(weight);
            }
        }
        let pairs = each.len();
        let each = Tensor::from_vec(each, (pairs, 1), dev)?;
        let (at, to) = (
            Tensor::from_vec(at, pairs, dev)?,
            Tensor::from_vec(to, pairs, dev)?,
        );
        let pulled = b.index_select(&to, 0)?.broadcast_mul(&each)?;
        let pulling = a.index_select(&at, 0)?;
        let along = ((&pulling * &pulled)?.sum_all()? * k)?;
        let value = (((sums.log()? + k)? * &w)?.sum_all()? - along)?;
        let mut da = a.zeros_like()?.index_add(&at, &pulled.neg()?, 0)?;
        let mut db = Vec::new();
        for start in (0..v).step_by(TILE) {
            let (rows, e) = tile(start)?;
            let p = e.broadcast_mul(&share)?;
            da = (da + p.matmul(&rows)?)?;
            db.push(p.t()?.matmul(&a)?);
        }
        let pulling = pulling.broadcast_mul(&each)?.neg()?;
        let db = Tensor::cat(&db, 0)?.index_add(&to, &pulling, 0)?;
        // A zero whose gradient is the wanted one.
        let carry = |x: &Tensor, known: &Tensor, dx: Tensor| ((x - known)? * (dx * k)?)?.sum_all();
        Ok(((value + carry(anchors, &a, da)?)? + carry(view, &b, db)?)?)
    }
}

impl CustomOp2 for CosineSoftmax {
    fn name(&self) -> &'static str {
        "cosine-softmax"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, d) = (al.dims()[0], al.dims()[1]);
        let v = bl.dims()[0];
        let keep = n * v <= KEEP;
        let mut sums = vec![0f32; n];
        let mut tiles = Vec::new();
        for start in (0..v).step_by(TILE) {
            let len = TILE.min(v - start);
            let e = self.tile((a, al), (b, bl), start, len, &mut sums)?;
            if keep {
                tiles.push(e);
            }
        }
        sums.iter_mut().for_each(|s| *s = s.max(LEAST_SUM));
        let (av, bv) = (simd::f32_slice(a, al)?, simd::f32_slice(b, bl)?);
        let mut loss = 0f64;
        for (j, targets) in self.targets.iter().enumerate() {
            let log_sum = f64::from(sums[j].ln()) + f64::from(self.inv_tau);
            for &(p, w) in targets {
                let s = simd::dot(&av[j * d..][..d], &bv[p as usize * d..][..d]);
                loss += f64::from(w) * (log_sum - f64::from(s * self.inv_tau));
            }
        }
        if let Ok(mut kept) = self.kept.lock() {
            *kept = Some(Kept { sums, tiles });
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self
            .kept
            .lock()
            .ok()
            .and_then(|mut k| k.take())
            .ok_or_else(|| {
                candle_core::Error::Msg("cosine-softmax: backward without its forward".into())
            })?;
        let g = grad.to_scalar::<f32>()? * self.inv_tau;
        let mut tiles = kept.tiles.into_iter();
        let (da, db) = with_cpu(a, |a, al| {
            with_cpu(b, |b, bl| {
                let (n, d) = (al.dims()[0], al.dims()[1]);
                let v = bl.dims()[0];
                // Against the similarities: W_j · softmax over the view, less w at each target, W_j the
                // weight of all.
                let weights = self.weights();
                let share = weights.iter().zip(&kept.sums).map(|(w, s)| g * w / s);
                let share: Vec<f32> = share.collect();
                let (av, bv) = (simd::f32_slice(a, al)?, simd::f32_slice(b, bl)?);
                let shared: Vec<f32> = av
                    .chunks_exact(d)
                    .zip(&share)
                    .flat_map(|(row, k)| row.iter().map(move |x| x * k))
                    .collect();
                let (shared, shared_at) = (CpuStorage::F32(shared), Layout::contiguous((n, d)));
                let mut da = vec![0f32; n * d];
                let mut db = Vec::with_capacity(v * d);
                for start in (0..v).step_by(TILE) {
                    let len = TILE.min(v - start);
                    let e = match tiles.next() {
                        Some(t) => t,
                        None => self.tile((a, al), (b, bl), start, len, &mut vec![0.0; n])?,
                    };
                    let e = CpuStorage::F32(e);
                    let el = Layout::contiguous((n, len));
                    let part = cpu_matmul(&e, &el, b, &rows_of(bl, start, len)?)?;
                    simd::dispatch(|| da.iter_mut().zip(&part).for_each(|(x, y)| *x += y));
                    db.extend(cpu_matmul(&e, &el.transpose(0, 1)?, &shared, &shared_at)?);
                }
                for (j, da) in da.chunks_exact_mut(d).enumerate() {
                    da.iter_mut().for_each(|x| *x *= share[j]);
                    let row = &av[j * d..][..d];
                    for &(p, w) in &self.targets[j] {
                        let (p, w) = (p as usize * d, w * g);
                        let db = &mut db[p..][..d];
                        for (k, da) in da.iter_mut().enumerate() {
                            *da -= w * bv[p + k];
                            db[k] -= w * row[k];
                        }
                    }
                }
                Ok((da, db))
            })
        })?;
        Ok((
            Some(Tensor::from_vec(da, a.shape(), a.device())?),
            Some(Tensor::from_vec(db, b.shape(), b.device())?),
        ))
    }
}

/// Matrix product on the host, into a fresh buffer.
fn cpu_matmul(
    a: &CpuStorage,
    al: &Layout,
    b: &CpuStorage,
    bl: &Layout,
) -> candle_core::Result<Vec<f32>> {
    match backend_matmul(a, al, b, bl)?.0 {
        CpuStorage::F32(v) => Ok(v),
        _ => Err(candle_core::Error::Msg("operands must be f32".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{distinct, normalize_rows};
    use candle_core::{Device, Var};

    fn view() -> (Tensor, Tensor) {
        let a = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[1f32, 1.], [0., 2.], [1., -1.]], &Device::Cpu).unwrap();
        (a, b)
    }

    fn nce(nodes: &[u32], tau: f64) -> Result<f64> {
        let (a, b) = view();
        let (ids, counts) = distinct(nodes);
        let w: Vec<f32> = counts.iter().map(|c| c / nodes.len() as f32).collect();
        let idx = Tensor::from_slice(&ids, ids.len(), &Device::Cpu)?;
        let a = normalize_rows(&a.index_select(&idx, 0)?)?;
        let loss = info_nce(&a, &normalize_rows(&b)?, &ids, &w, tau)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// Oracle 10.5 of the DiffMM specification.
    #[test]
    fn info_nce_matches_oracle() -> Result<()> {
        assert!((nce(&[0, 1, 2], 0.5)? - 1.265_747_698_1).abs() < 1e-6);
        assert!((nce(&[0, 1, 2], 0.1)? - 3.599_254_542_8).abs() < 1e-5);
        assert!((nce(&[0, 0], 0.5)? - 0.807_866_298_1).abs() < 1e-6);
        Ok(())
    }

    /// Several weighted targets and masked rows, against the plain composition; more rows than one tile.
    #[test]
    fn value_and_gradients_equal_plain_composition() -> Result<()> {
        let dev = Device::Cpu;
        let mut rng = crate::rng::stream(3, crate::rng::Purpose::Init, &[]);
        let (n, v, d, tau) = (7, TILE + 61, 16, 0.2f64);
        let a = Var::from_tensor(&crate::rng::normal(&mut rng, (n, d), 1.0, &dev)?)?;
        let b = Var::from_tensor(&crate::rng::normal(&mut rng, (v, d), 1.0, &dev)?)?;
        let mut targets: Vec<Vec<(u32, f32)>> = (0..n as u32)
            .map(|j| vec![(j * 150, 0.1 + j as f32 * 0.05), (v as u32 - 1, 0.3)])
            .collect();
        let mut masked: Vec<Vec<u32>> = (0..n as u32).map(|j| vec![j + 1, 1030 + j]).collect();
        // One anchor has no target, and nothing that is open either.
        targets[2].clear();
        masked[2] = (0..v as u32).collect();
        let an = normalize_rows(a.as_tensor())?;
        let bn = normalize_rows(b.as_tensor())?;
        let (mut hide, mut want) = (vec![0f32; n * v], vec![0f32; n * v]);
        for j in (0..n).filter(|&j| j != 2) {
            masked[j]
                .iter()
                .for_each(|&m| hide[j * v + m as usize] = -1e9);
            targets[j]
                .iter()
                .for_each(|&(t, w)| want[j * v + t as usize] += w);
        }
        let logits = (an.matmul(&bn.t()?)? / tau)?;
        let open = (&logits + Tensor::from_vec(hide, (n, v), &dev)?)?;
        let lse = open.exp()?.sum_keepdim(1)?.log()?;
        let want = Tensor::from_vec(want, (n, v), &dev)?;
        let slow = (lse.broadcast_sub(&logits)? * want)?.sum_all()?;
        let s = slow.to_scalar::<f32>()?;
        let gs = slow.backward()?;
        let op = CosineSoftmax {
            targets: targets.clone(),
            masked: masked.clone(),
            inv_tau: (1.0 / tau) as f32,
            kept: Mutex::new(None),
        };
        let fast = cosine_softmax(&an, &bn, targets, masked, tau)?;
        // What other devices compute, too.
        for fast in [fast, op.composed(&an, &bn)?] {
            let f = fast.to_scalar::<f32>()?;
            assert!((f - s).abs() < 1e-5 * s.abs(), "{f} {s}");
            // Twice the loss: a gradient is scaled by what comes after it.
            let gf = (fast * 2.0)?.backward()?;
            for var in [&a, &b] {
                let x = (gf.get(var.as_tensor()).expect("gradient") * 0.5)?;
                let y = gs.get(var.as_tensor()).expect("gradient");
                let d = (x - y)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(d < 1e-5, "{d}");
            }
        }
        Ok(())
    }

    #[test]
    fn rows_outside_the_view_and_cold_temperatures_are_refused() -> Result<()> {
        let (a, b) = view();
        let none = vec![Vec::new(); 3];
        let of = |target: u32, masked: u32, tau| {
            let targets = vec![vec![(target, 1.0)], vec![], vec![]];
            let mut hidden = none.clone();
            hidden[1].push(masked);
            cosine_softmax(
                &normalize_rows(&a)?,
                &normalize_rows(&b)?,
                targets,
                hidden,
                tau,
            )
        };
        assert!(of(2, 2, 0.5).is_ok());
        assert!(of(3, 2, 0.5).is_err() && of(2, 3, 0.5).is_err() && of(2, 2, 0.01).is_err());
        assert!(cosine_softmax(&a, &b, Vec::new(), none, 0.5).is_err());
        Ok(())
    }
}
