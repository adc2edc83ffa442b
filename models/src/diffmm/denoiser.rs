//! The per-modality denoiser of user rows, its loss, and exact generation in hidden space.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::DiffMmConfig;
use super::schedule::{Schedule, time_embedding};
use crate::data::Csr;
use crate::error::Result;
use crate::graph::{Propagation, SparseMatrix};
use crate::params::{Adam, Params, TensorMap};
use crate::rng::{self, Purpose};
use crate::simd;

/// `I → H → I` network that restores a user's interaction row from a noised copy.
///
/// `h = tanh(x W_x + e(t) W_τ + b₁)`, `y = h W₂ + b₂`, with `e(t)` an affine map of the step
/// embedding. Both large weights have a row for each item, `W_x` `[I, H]` and `w2` `[I, H + 1]`, so
/// that what belongs to a clean row is a sum of rows; the last column of `w2` is `b₂`, the weight of
/// a hidden unit that is always one.
#[derive(Debug)]
pub struct Denoiser {
    items: usize,
    params: Params,
    adam: Adam,
    w_step: Tensor,
    b_step: Tensor,
    w_x: Tensor,
    w_tau: Tensor,
    b1: Tensor,
    w2: Tensor,
    dev: Device,
}

impl Denoiser {
    /// A freshly initialised denoiser; `index` separates the streams of the modalities.
    pub fn new(
        items: usize,
        cfg: &DiffMmConfig,
        index: usize,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let (h, e) = (cfg.hidden, cfg.time_width);
        let mut params = Params::default();
        let mut rng = rng::stream(seed, Purpose::Init, &[0xD1FF, index as u64]);
        let std = |fan_in: usize, fan_out: usize| (2.0 / (fan_in + fan_out) as f64).sqrt();
        let w_step = params.add("w_step", &rng::normal(&mut rng, (e, e), std(e, e), dev)?)?;
        let b_step = params.add("b_step", &rng::normal(&mut rng, e, 1e-3, dev)?)?;
        let s1 = std(items + e, h);
        let w_x = params.add("w_x", &rng::normal(&mut rng, (items, h), s1, dev)?)?;
        let w_tau = params.add("w_tau", &rng::normal(&mut rng, (e, h), s1, dev)?)?;
        let b1 = params.add("b1", &rng::normal(&mut rng, h, 1e-3, dev)?)?;
        let w2 = rng::normal(&mut rng, (h, items), std(h, items), dev)?;
        let b2 = rng::normal(&mut rng, (1, items), 1e-3, dev)?;
        let w2 = params.add("w2", &Tensor::cat(&[w2, b2], 0)?.t()?.contiguous()?)?;
        let adam = Adam::new(&params, cfg.lr, 0.0)?;
        Ok(Self {
            items,
            params,
            adam,
            w_step,
            b_step,
            w_x,
            w_tau,
            b1,
            w2,
            dev: dev.clone(),
        })
    }

    /// Trainable variables.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Affine map of the step embeddings, `e(t)`, and the embeddings, one row a step.
    fn step_embedding(&self, steps: &[usize]) -> Result<(Tensor, Tensor)> {
        let width = self.w_step.dim(0)?;
        let raw: Vec<f32> = steps
            .iter()
            .flat_map(|&t| time_embedding(t, width))
            .collect();
        let raw = Tensor::from_vec(raw, (steps.len(), width), &self.dev)?;
        let e = raw.matmul(&self.w_step)?.broadcast_add(&self.b_step)?;
        Ok((e, raw))
    }

    /// Contribution of the diffusion steps to the hidden layer, `e(t) W_τ + b₁`, one row a step.
    fn step_bias(&self, steps: &[usize]) -> Result<Tensor> {
        let (e, _) = self.step_embedding(steps)?;
        Ok(e.matmul(&self.w_tau)?.broadcast_add(&self.b1)?)
    }

    /// Restored rows for corrupted rows `x` `[B, I]` at the given steps.
    pub fn forward(&self, x: &Tensor, steps: &[usize]) -> Result<Tensor> {
        let h = (x.matmul(&self.w_x)? + self.step_bias(steps)?)?.tanh()?;
        Ok(with_one(&h)?.matmul(&self.w2.t()?)?)
    }

    /// One Adam step on the loss of a batch; returns the loss.
    pub fn train_step(&mut self, batch: &NoisyBatch, target: &LossTarget<'_>) -> Result<f64> {
        let (loss, grads) = self.gradients(batch, target)?;
        self.adam.step_named(grads)?;
        Ok(loss)
    }

    /// Loss and gradients by parameter name.
    ///
    /// `mean_b w(t_b) · mse_b + λ0 · mean_b ‖y_b F − x0_b Q‖² / d`, with the backward written out. The
    /// restored rows `y = h W₂ᵀ` never exist, nor does their gradient
    /// `K (y − x0) + S Fᵀ`, where `K` holds `2 w(t_b) / (B I)` and `S` is what the second term gives:
    /// everything wanted of them is a product of `h` with `W₂ᵀW₂`, of `W₂` with `hᵀKh`, or
    /// sparse. Where a batch has about as many rows as there are hidden units, that makes one
    /// and a half products as wide as the catalogue of three, and no tensor of that width is left.
    fn gradients(&self, batch: &NoisyBatch, target: &LossTarget<'_>) -> Result<(f64, TensorMap)> {
        let (w_x, w_tau, w2) = (self.w_x.detach(), self.w_tau.detach(), self.w2.detach());
        let (rows, hidden) = (batch.steps.len(), w_x.dim(1)?);
        let (e, raw) = self.step_embedding(&batch.steps)?;
        let e = e.detach();
        let bias = e.matmul(&w_tau)?.broadcast_add(&self.b1.detach())?;
        let h = (batch.x.matmul(&w_x)? + bias)?.tanh()?;
        let h1 = with_one(&h)?;

        let observed = batch.observed_matrix(self.items)?;
        let known = observed.apply(&w2)?;
        let restored = h1.matmul(&gram(&w2)?)?;
        let weight: Vec<f32> = batch
            .steps
            .iter()
            .map(|&t| target.schedule.loss_weight[t] as f32)
            .collect();
        let weight =
            (Tensor::from_vec(weight, (rows, 1), &self.dev)? / (rows * self.items) as f64)?;
        // ‖y − x0‖² = h W₂ᵀW₂ hᵀ − 2 Σ_observed y + |observed|
        let gap = (restored - &known)?;
        let counts: Vec<f32> = batch.observed.iter().map(|o| o.len() as f32).collect();
        let counts = Tensor::from_vec(counts, (rows, 1), &self.dev)?;
        let error = ((&h1 * (&gap - known)?)?.sum_keepdim(1)? + counts)?;
        let mut loss = f64::from((error * &weight)?.sum_all()?.to_scalar::<f32>()?);
        let k = (weight * 2.0)?;
        let kh = h1.broadcast_mul(&k)?;
        let mut dh = gap.broadcast_mul(&k)?;
        let mut dw2 = (w2.matmul(&h1.t()?.matmul(&kh)?)? - observed.transposed().apply(&kh)?)?;
        if let Some(f) = target.features {
            let image = w2.t()?.matmul(f)?;
            let gap = (h1.matmul(&image)? - observed.apply(target.item_ids)?)?;
            let msi = f64::from(gap.sqr()?.mean_all()?.to_scalar::<f32>()?);
            loss += target.msi_weight * msi;
            let s = (gap * (2.0 * target.msi_weight / (rows * f.dim(1)?) as f64))?;
            dh = (dh + s.matmul(&image.t()?)?)?;
            dw2 = (dw2 + f.matmul(&s.t()?.matmul(&h1)?)?)?;
        }
        let dpre = (dh.narrow(1, 0, hidden)? * (1.0 - h.sqr()?)?)?;
        let de = dpre.matmul(&w_tau.t()?)?;
        let grads = [
            ("w2", dw2),
            ("w_x", batch.x.t()?.matmul(&dpre)?),
            ("w_tau", e.t()?.matmul(&dpre)?),
            ("b1", dpre.sum(0)?),
            ("w_step", raw.t()?.matmul(&de)?),
            ("b_step", de.sum(0)?),
        ];
        let grads = grads.into_iter().map(|(n, g)| (n.to_string(), g)).collect();
        Ok((loss, grads))
    }

    /// Reverse chain over all steps from the clean row, then the `k` best items of each user,
    /// best first, ties to the lower item.
    ///
    /// The state of the chain is kept as its image under the first layer: with a linear output
    /// layer the item-wide state never has to exist, and the result is the same up to rounding.
    pub fn generate(&self, rows: &Csr, schedule: &Schedule, k: usize) -> Result<Vec<Vec<u32>>> {
        let users = rows.rows();
        // [H + 1, H]: hidden → restored row → first layer
        let image = self.w2.t()?.matmul(&self.w_x)?.detach();
        let all_steps: Vec<usize> = (0..schedule.steps()).collect();
        let bias = self.step_bias(&all_steps)?.detach();
        let w_x = self.w_x.flatten_all()?.to_vec1::<f32>()?;
        let width = self.w_x.dim(1)?;
        let mut out = Vec::with_capacity(users);
        const BLOCK: usize = 512;
        for start in (0..users).step_by(BLOCK) {
            let n = BLOCK.min(users - start);
            let clean: Vec<(u32, u32, f32)> = (0..n)
                .flat_map(|r| {
                    rows.row((start + r) as u32)
                        .iter()
                        .map(move |&i| (r as u32, i, 1.0))
                })
                .collect();
            let clean = SparseMatrix::from_entries(n, self.items, &clean)?;
            let mut g = Tensor::from_vec(clean.matmul_slice(&w_x, width), (n, width), &self.dev)?;
            let mut h = g.clone();
            for t in (0..schedule.steps()).rev() {
                h = tanh_no_grad(&g.broadcast_add(&bias.narrow(0, t, 1)?)?)?;
                if t > 0 {
                    let x0 = with_one(&h)?.matmul(&image)?;
                    g = ((x0 * schedule.posterior_x0[t])? + (g * schedule.posterior_xt[t])?)?;
                }
            }
            out.extend(self.top_items(&h, n, k)?);
        }
        Ok(out)
    }

    /// Best items of `h W₂ + b₂`, tile by tile over the items.
    fn top_items(&self, h: &Tensor, n: usize, k: usize) -> Result<Vec<Vec<u32>>> {
        const TILE: usize = 2048;
        let h = with_one(h)?;
        let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(k + 1); n];
        for start in (0..self.items).step_by(TILE) {
            let len = TILE.min(self.items - start);
            let y = h.matmul(&self.w2.narrow(0, start, len)?.t()?)?;
            let y = y.flatten_all()?.to_vec1::<f32>()?;
            best.par_iter_mut()
                .zip(y.par_chunks(len))
                .for_each(|(best, row)| {
                    for (j, &s) in row.iter().enumerate() {
                        // Strictly greater keeps the lower item on ties.
                        if best.len() < k || s > best[best.len() - 1].0 {
                            let at = best.partition_point(|&(b, _)| b >= s);
                            best.insert(at, (s, (start + j) as u32));
                            best.truncate(k);
                        }
                    }
                });
        }
        Ok(best
            .into_iter()
            .map(|b| b.into_iter().map(|(_, i)| i).collect())
            .collect())
    }

    /// Parameters and optimizer state, for a checkpoint.
    pub fn export(&self, prefix: &str, out: &mut TensorMap) -> Result<()> {
        self.params.export(prefix, out)?;
        self.adam.export(&format!("{prefix}adam."), out)
    }

    /// Restores what [`Denoiser::export`] wrote.
    pub fn import(&mut self, prefix: &str, from: &TensorMap) -> Result<()> {
        self.params.import(prefix, from)?;
        self.adam.import(&format!("{prefix}adam."), from)
    }
}

fn tanh_no_grad(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok(x.tanh()?);
    }
    let mut v = x.flatten_all()?.to_vec1::<f32>()?;
    simd::dispatch(|| {
        v.iter_mut()
            .for_each(|x| *x = 1.0 - 2.0 / (simd::exp(2.0 * *x) + 1.0));
    });
    Ok(Tensor::from_vec(v, x.shape(), x.device())?)
}

/// Corrupted rows of a batch of users, ready for the network.
#[derive(Debug)]
pub struct NoisyBatch {
    /// `[B, I]`: noised row with dropout (kept entries scaled by `1/(1−p)`).
    pub x: Tensor,
    /// Diffusion step of each row.
    pub steps: Vec<usize>,
    /// Observed items of each row.
    pub observed: Vec<Vec<u32>>,
}

impl NoisyBatch {
    /// Draws steps, noise and dropout for the given users. Every number depends only on
    /// `(seed, modality, epoch, user)`.
    #[allow(clippy::too_many_arguments)]
    pub fn draw(
        users: &[u32],
        rows: &Csr,
        items: usize,
        schedule: &Schedule,
        dropout: f64,
        key: (u64, u64, u64),
        dev: &Device,
    ) -> Result<Self> {
        use rand::Rng;
        use rand_distr::{Distribution, StandardNormal};
        let (seed, modality, epoch) = key;
        let stream = |p: Purpose, u: u32| rng::stream(seed, p, &[modality, epoch, u64::from(u)]);
        let steps: Vec<usize> = users
            .iter()
            .map(|&u| rng::below(&mut stream(Purpose::Noise, u), schedule.steps()))
            .collect();
        let scale = (1.0 / (1.0 - dropout)) as f32;
        // A byte per entry decides what is kept, to 1/256: exact for the published rate of 0.5.
        let drop_below = (dropout * 256.0).round() as u16;
        let mut x = vec![0f32; users.len() * items];
        x.par_chunks_mut(items.max(1))
            .zip(users.par_iter())
            .zip(steps.par_iter())
            .for_each(|((row, &u), &t)| {
                let (signal, noise) = schedule.mix(t);
                let mut draw = stream(Purpose::Dropout, u);
                for &i in rows.row(u) {
                    row[i as usize] = signal;
                }
                for chunk in row.chunks_mut(8) {
                    let keep = draw.next_u64().to_le_bytes();
                    for (x, k) in chunk.iter_mut().zip(keep) {
                        // Dropped entries need no noise: they are zero either way.
                        *x = if u16::from(k) < drop_below {
                            0.0
                        } else {
                            let e: f32 = StandardNormal.sample(&mut draw);
                            (*x + noise * e) * scale
                        };
                    }
                }
            });
        Ok(Self {
            x: Tensor::from_vec(x, (users.len(), items), dev)?,
            steps,
            observed: users.iter().map(|&u| rows.row(u).to_vec()).collect(),
        })
    }

    /// Which items the clean rows have, `[B, I]`.
    fn observed_matrix(&self, items: usize) -> Result<Propagation> {
        let entries: Vec<(u32, u32, f32)> = self
            .observed
            .iter()
            .enumerate()
            .flat_map(|(r, obs)| obs.iter().map(move |&i| (r as u32, i, 1.0)))
            .collect();
        let m = SparseMatrix::from_entries(self.observed.len(), items, &entries)?;
        Ok(Propagation::new(m))
    }
}

/// What the restored rows are compared with.
#[derive(Debug)]
pub struct LossTarget<'a> {
    /// The schedule, for the loss weights.
    pub schedule: &'a Schedule,
    /// Projected features `[I, d]` (raw, detached) of the denoiser's modality, or none without
    /// modality-aware signal injection.
    pub features: Option<&'a Tensor>,
    /// Item id table `[I, d]`, detached.
    pub item_ids: &'a Tensor,
    /// λ0.
    pub msi_weight: f64,
}

/// `[h, 1]`: the hidden layer and the unit that carries the bias of the output.
fn with_one(h: &Tensor) -> Result<Tensor> {
    let one = Tensor::ones((h.dim(0)?, 1), h.dtype(), h.device())?;
    Ok(Tensor::cat(&[h, &one], 1)?)
}

/// `wᵀ w` of a `w` `[I, C]`: on the host the upper half only, by blocks of columns, and its mirror image.
fn gram(w: &Tensor) -> Result<Tensor> {
    let columns = w.dim(1)?;
    let wt = w.t()?;
    if !w.device().is_cpu() {
        return Ok(wt.matmul(w)?);
    }
    const BLOCKS: usize = 5;
    let block = columns.div_ceil(BLOCKS);
    let mut right: Vec<Tensor> = Vec::with_capacity(BLOCKS);
    let mut rows = Vec::with_capacity(BLOCKS);
    for start in (0..columns).step_by(block) {
        let len = block.min(columns - start);
        let left = right
            .iter()
            .enumerate()
            .map(|(b, above)| above.narrow(1, start - b * block, len)?.t());
        let mut row = left.collect::<candle_core::Result<Vec<_>>>()?;
        let own = wt
            .narrow(0, start, len)?
            .matmul(&w.narrow(1, start, columns - start)?)?;
        row.push(own.clone());
        rows.push(Tensor::cat(&row, 1)?);
        right.push(own);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tiny network of oracle 10.6, weights given row-major as `[out, in]`.
    fn tiny() -> Result<Denoiser> {
        let dev = Device::Cpu;
        let cfg = DiffMmConfig {
            hidden: 2,
            time_width: 2,
            ..Default::default()
        };
        let d = Denoiser::new(3, &cfg, 0, 0, &dev)?;
        let mut map = TensorMap::new();
        let mut put = |n: &str, v: &[f32], shape: (usize, usize)| -> Result<()> {
            map.insert(
                n.into(),
                Tensor::from_slice(v, shape, &dev)?.t()?.contiguous()?,
            );
            Ok(())
        };
        put("w_step", &[1., 0.5, -0.5, 1.], (2, 2))?;
        put("w_x", &[0.1, -0.2, 0.3, 0.2, 0.1, -0.1], (2, 3))?;
        put("w_tau", &[0.05, -0.1, 0., 0.3], (2, 2))?;
        let w2 = [[1f32, 0.5, 0.0], [-0.5, 0.25, 0.1], [0.2, -1.0, -0.1]];
        map.insert("b_step".into(), Tensor::new(&[0f32, 0.1], &dev)?);
        map.insert("b1".into(), Tensor::new(&[0.01f32, -0.02], &dev)?);
        map.insert("w2".into(), Tensor::new(&w2, &dev)?);
        d.params.import("", &map)?;
        Ok(d)
    }

    fn row(items: &[u32]) -> Csr {
        Csr {
            offsets: vec![0, items.len()],
            indices: items.to_vec(),
        }
    }

    fn close(got: &[f32], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-6, "{got:?} {want:?}");
        }
    }

    #[test]
    fn forward_matches_oracle() -> Result<()> {
        let d = tiny()?;
        let x = Tensor::new(&[[1f32, 0., 1.], [1., 0., 1.], [1., 0., 1.]], &Device::Cpu)?;
        let y = d.forward(&x, &[0, 1, 4])?.to_vec2::<f32>()?;
        close(&y[0], &[0.4421278171, -0.1410532487, 0.0324021118]);
        close(&y[1], &[0.5092512861, -0.0175273576, -0.2997659708]);
        close(&y[2], &[0.3630669719, -0.0910294467, -0.0064954919]);
        Ok(())
    }

    #[test]
    fn hidden_space_chain_equals_item_space_chain() -> Result<()> {
        let d = tiny()?;
        let s = Schedule::new(5, 0.1, 1e-4, 0.02)?;
        let mut x = Tensor::new(&[[1f32, 0., 1.]], &Device::Cpu)?;
        for t in (0..5).rev() {
            let y = d.forward(&x, &[t])?;
            x = ((y * s.posterior_x0[t])? + (x * s.posterior_xt[t])?)?;
        }
        let x = x.to_vec2::<f32>()?.remove(0);
        close(&x, &[-0.0253110348, 0.088111006, -0.051064282]);
        assert_eq!(d.generate(&row(&[0, 2]), &s, 1)?, vec![vec![1]]);
        assert_eq!(d.generate(&row(&[0, 2]), &s, 3)?, vec![vec![1, 0, 2]]);
        Ok(())
    }

    #[test]
    fn loss_matches_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let s = Schedule::new(5, 0.1, 1e-4, 0.02)?;
        let f1 = Tensor::new(&[[3f32, 4.], [1., 0.], [0., 2.], [-1., -1.]], &dev)?;
        let q = Tensor::new(&[[1f32, 2.], [0., -1.], [0.5, 0.5], [-1., 0.]], &dev)?;
        // No hidden unit has a say, so the restored row is the bias.
        let cfg = DiffMmConfig {
            hidden: 2,
            time_width: 2,
            ..Default::default()
        };
        let d = Denoiser::new(4, &cfg, 0, 0, &dev)?;
        let y = [0.9f32, 0.1, 0.2, 0.7];
        let w2 = Tensor::new(&y.map(|y| [0.0, 0.0, y]), &dev)?;
        let mut map = TensorMap::new();
        d.params.export("", &mut map)?;
        map.insert("w2".into(), w2);
        d.params.import("", &map)?;
        for (t, msi, want) in [
            (0, false, 0.0375),
            (1, false, 312.233_790_150_4),
            (4, false, 5.605_745_659_7),
            (1, true, 312.538_790_150_4),
        ] {
            let batch = NoisyBatch {
                x: Tensor::new(&[y], &dev)?,
                steps: vec![t],
                observed: vec![vec![0, 3]],
            };
            let target = LossTarget {
                schedule: &s,
                features: msi.then_some(&f1),
                item_ids: &q,
                msi_weight: 0.1,
            };
            let (got, grads) = d.gradients(&batch, &target)?;
            let want: f64 = want;
            assert!((got - want).abs() < 2e-6 * want.max(1.0), "{got} {want}");
            if !msi {
                // 2 w (y − x0) / I
                let g = grads["w2"]
                    .narrow(1, 2, 1)?
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let w = s.loss_weight[t];
                let want: Vec<f64> = [-0.1, 0.1, 0.2, -0.3].iter().map(|d| w * d / 2.0).collect();
                for (a, b) in g.iter().zip(&want) {
                    assert!((f64::from(*a) - b).abs() < 1e-5 * w, "{a} {b}");
                }
            }
        }
        Ok(())
    }

    /// The written-out backward against candle's, over plain tensor operations.
    #[test]
    fn every_gradient_equals_the_generic_backward() -> Result<()> {
        let dev = Device::Cpu;
        let d = tiny()?;
        let s = Schedule::new(5, 0.1, 1e-4, 0.02)?;
        let x = Tensor::new(&[[2f32, 0.1, 2.], [0.0, 1.9, 0.2]], &dev)?;
        let batch = NoisyBatch {
            x: x.clone(),
            steps: vec![3, 0],
            observed: vec![vec![0, 2], vec![1]],
        };
        let x0 = Tensor::new(&[[1f32, 0., 1.], [0., 1., 0.]], &dev)?;
        let f = Tensor::new(&[[1f32, 0.5], [0.2, 0.3], [0.4, -1.0]], &dev)?;
        let q = Tensor::new(&[[0.3f32, 0.1], [-0.2, 0.8], [0.9, 0.4]], &dev)?;
        for features in [None, Some(&f)] {
            let target = LossTarget {
                schedule: &s,
                features,
                item_ids: &q,
                msi_weight: 0.7,
            };
            let (loss, grads) = d.gradients(&batch, &target)?;
            let y = d.forward(&x, &batch.steps)?;
            let w = Tensor::new(&[s.loss_weight[3] as f32, s.loss_weight[0] as f32], &dev)?;
            let mut plain = ((&y - &x0)?.sqr()?.mean(1)? * w)?.mean_all()?;
            if features.is_some() {
                let gap = (y.matmul(&f)? - x0.matmul(&q)?)?.sqr()?.mean_all()?;
                plain = (plain + (gap * 0.7)?)?;
            }
            let value = f64::from(plain.to_scalar::<f32>()?);
            assert!((loss - value).abs() < 1e-5 * value.abs(), "{loss} {value}");
            let generic = plain.backward()?;
            for (name, v) in d.params.iter() {
                let a = &grads[name];
                let b = generic
                    .get(v.as_tensor())
                    .unwrap_or_else(|| panic!("{name} has no gradient"));
                let size = b.abs()?.max_all()?.to_scalar::<f32>()?;
                let gap = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(size > 0.0 && gap < 1e-4 * size, "{name}: {gap} of {size}");
            }
        }
        Ok(())
    }

    #[test]
    fn corruption_has_the_scheduled_size() -> Result<()> {
        let s = Schedule::new(5, 0.1, 1e-4, 0.02)?;
        let items = 4000;
        let rows = row(&[7]);
        let b = NoisyBatch::draw(&[0], &rows, items, &s, 0.5, (5, 0, 0), &Device::Cpu)?;
        let x = b.x.to_vec2::<f32>()?.remove(0);
        let zero = x.iter().filter(|v| **v == 0.0).count();
        assert!((1800..2200).contains(&zero), "{zero} dropped of {items}");
        let (_, noise) = s.mix(b.steps[0]);
        let kept: Vec<f32> = x
            .iter()
            .enumerate()
            .filter(|(i, v)| *i != 7 && **v != 0.0)
            .map(|(_, v)| v / 2.0)
            .collect();
        let var = kept.iter().map(|v| v * v).sum::<f32>() / kept.len() as f32;
        assert!((var.sqrt() / noise - 1.0).abs() < 0.1, "{}", var.sqrt());
        Ok(())
    }
}
