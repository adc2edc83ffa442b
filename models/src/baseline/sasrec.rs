//! SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).
//!
//! One causal pass trains every position of a sequence against its next item, by softmax
//! cross-entropy over the whole catalogue (the paper samples one negative per position; the full
//! softmax is the stronger, now usual choice) or over shared sampled negatives for large ones.

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::factors::copy_scores;
use crate::graph::index_tensor;
use crate::layer::{LayerNorm, Linear, dropout};
use crate::ops;
use crate::params::{Adam, Params, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose, Stream};
use crate::train::{EpochLosses, Learner, Monitor};

/// Hyper-parameters of [`Sasrec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SasrecConfig {
    /// Width of item vectors and blocks.
    pub dim: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest sequence; earlier events are cut off.
    pub window: usize,
    /// Dropout of embeddings and block outputs.
    pub dropout: f64,
    /// Adam's learning rate.
    pub lr: f64,
    /// Sequences per step.
    pub batch: usize,
    /// Shared sampled negatives per step; 0 takes the whole catalogue.
    pub negatives: usize,
}

impl Default for SasrecConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            layers: 2,
            heads: 2,
            window: 50,
            dropout: 0.3,
            lr: 1e-3,
            batch: 128,
            negatives: 0,
        }
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
}

/// The network alone.
#[derive(Debug)]
struct Net {
    cfg: SasrecConfig,
    params: Params,
    items: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    last: LayerNorm,
    dev: Device,
}

impl Net {
    fn new(items: usize, cfg: SasrecConfig, seed: u64, dev: &Device) -> Result<Self> {
        if cfg.heads == 0 || !cfg.dim.is_multiple_of(cfg.heads) || cfg.window < 2 || cfg.batch == 0
        {
            return Err(Error::config(
                "sasrec needs dim divisible by heads, window at least 2 and batch at least 1",
            ));
        }
        let mut params = Params::default();
        let d = cfg.dim;
        let mut r = rng::stream(seed, Purpose::Init, &[]);
        let items = params.add("items", &rng::normal(&mut r, (items, d), 0.02, dev)?)?;
        let table = rng::normal(&mut r, (cfg.window, d), 0.02, dev)?;
        let positions = params.add("positions", &table)?;
        let blocks = (0..cfg.layers)
            .map(|k| {
                let name = |part: &str| format!("block.{k}.{part}");
                Ok(Block {
                    norm1: LayerNorm::new(&mut params, &name("norm1"), d, dev)?,
                    qkv: Linear::new(&mut params, &name("qkv"), d, 3 * d, seed, dev)?,
                    out: Linear::new(&mut params, &name("out"), d, d, seed, dev)?,
                    norm2: LayerNorm::new(&mut params, &name("norm2"), d, dev)?,
                    up: Linear::new(&mut params, &name("up"), d, 2 * d, seed, dev)?,
                    down: Linear::new(&mut params, &name("down"), 2 * d, d, seed, dev)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let last = LayerNorm::new(&mut params, "last", d, dev)?;
        Ok(Self {
            cfg,
            params,
            items,
            positions,
            blocks,
            last,
            dev: dev.clone(),
        })
    }

    /// States of sequences padded on the left to a common length, `[B, L, d]`.
    fn forward(&self, sequences: &[&[u32]], mut noise: Option<&mut Stream>) -> Result<Tensor> {
        let l = sequences.iter().map(|s| s.len()).max().unwrap_or(1).max(1);
        let (b, d, h) = (sequences.len(), self.cfg.dim, self.cfg.heads);
        let mut ids = vec![0u32; b * l];
        let mut real = vec![0f32; b * l];
        for (r, s) in sequences.iter().enumerate() {
            let at = r * l + l - s.len();
            ids[at..at + s.len()].copy_from_slice(s);
            real[at..at + s.len()].fill(1.0);
        }
        let rate = self.cfg.dropout;
        let e = self
            .items
            .index_select(&index_tensor(&ids, &self.dev)?, 0)?;
        // Positions count from the end of the window, so the newest event always has the last one.
        let p = self.positions.narrow(0, self.cfg.window - l, l)?;
        let mut x = e.reshape((b, l, d))?.broadcast_add(&p)?;
        x = dropout(&x, rate, noise.as_deref_mut())?;
        let mut hide = vec![0f32; b * l * l];
        for r in 0..b {
            for q in 0..l {
                for k in 0..l {
                    // A padded query sees itself, so that its softmax is defined.
                    let open = k <= q && real[r * l + k] > 0.0 || k == q;
                    hide[(r * l + q) * l + k] = if open { 0.0 } else { -1e9 };
                }
            }
        }
        let hide = Tensor::from_vec(hide, (b, 1, l, l), &self.dev)?;
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.norm1.forward(&x)?)?;
            let part = |k: usize| -> Result<Tensor> {
                Ok(qkv
                    .narrow(D::Minus1, k * d, d)?
                    .reshape((b, l, h, d / h))?
                    .transpose(1, 2)?
                    .contiguous()?)
            };
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            let logits = (q.matmul(&k.t()?.contiguous()?)? * ((d / h) as f64).powf(-0.5))?;
            let logits = logits.broadcast_add(&hide)?;
            let weights = candle_nn::ops::softmax(&logits, D::Minus1)?;
            let weights = dropout(&weights, rate, noise.as_deref_mut())?;
            let mixed = weights
                .matmul(&v)?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((b, l, d))?;
            let mixed = dropout(&block.out.forward(&mixed)?, rate, noise.as_deref_mut())?;
            x = (x + mixed)?;
            let y = block.up.forward(&block.norm2.forward(&x)?)?.relu()?;
            let y = dropout(&block.down.forward(&y)?, rate, noise.as_deref_mut())?;
            x = (x + y)?;
        }
        self.last.forward(&x)
    }

    fn window<'a>(&self, s: &'a [u32]) -> &'a [u32] {
        &s[s.len().saturating_sub(self.cfg.window)..]
    }
}

/// The network, its training sequences and its optimizer.
#[derive(Debug)]
pub struct Sasrec {
    net: Net,
    adam: Adam,
    seed: u64,
    num_items: usize,
    /// Training events of each user, oldest first (file order where the data has none).
    sequences: Vec<Vec<u32>>,
}

impl Sasrec {
    /// A fresh model over the training sequences of `data`.
    ///
    /// # Errors
    /// A configuration out of range, or no user with two training events.
    pub fn new(data: &Dataset, cfg: SasrecConfig, seed: u64, dev: &Device) -> Result<Self> {
        let sequences: Vec<Vec<u32>> = (0..data.num_users() as u32)
            .map(|u| {
                data.history(u, Split::Valid)
                    .iter()
                    .map(|e| e.item)
                    .collect::<Vec<u32>>()
            })
            .filter(|s| s.len() >= 2)
            .collect();
        if sequences.is_empty() {
            return Err(Error::config(
                "sasrec needs users with at least two training events",
            ));
        }
        let net = Net::new(data.num_items(), cfg, seed, dev)?;
        let adam = Adam::new(&net.params, net.cfg.lr, 0.0)?;
        Ok(Self {
            net,
            adam,
            seed,
            num_items: data.num_items(),
            sequences,
        })
    }

    /// The scorer behind a run's inference tensors.
    pub fn scorer(
        tensors: &TensorMap,
        data: &Dataset,
        cfg: SasrecConfig,
        dev: &Device,
    ) -> Result<SasrecScorer> {
        let net = Net::new(data.num_items(), cfg, 0, dev)?;
        net.params.import("", tensors)?;
        let items_t = net.items.detach().t()?.contiguous()?;
        Ok(SasrecScorer { net, items_t })
    }

    fn loss(
        &self,
        batch: &[usize],
        noise: Option<&mut Stream>,
        negatives: &[u32],
    ) -> Result<Tensor> {
        let window = |s: &'_ [u32]| s.len().min(self.net.cfg.window + 1);
        let parts: Vec<&[u32]> = batch
            .iter()
            .map(|&k| {
                let s = &self.sequences[k];
                &s[s.len() - window(s)..]
            })
            .collect();
        let inputs: Vec<&[u32]> = parts.iter().map(|s| &s[..s.len() - 1]).collect();
        let states = self.net.forward(&inputs, noise)?;
        let (b, l, d) = states.dims3()?;
        let mut rows = Vec::new();
        let mut next = Vec::new();
        for (r, s) in parts.iter().enumerate() {
            let n = s.len() - 1;
            for k in 0..n {
                rows.push((r * l + l - n + k) as u32);
                next.push(s[k + 1]);
            }
        }
        let picked = states
            .reshape((b * l, d))?
            .index_select(&index_tensor(&rows, &self.net.dev)?, 0)?;
        let none = vec![Vec::new(); rows.len()];
        if negatives.is_empty() {
            let scores = picked.matmul(&self.net.items.t()?)?;
            let targets = next.iter().map(|&i| vec![(i, 1.0)]).collect();
            return ops::softmax_cross_entropy(&scores, targets, none);
        }
        // The candidates of all positions: the true next items and the shared negatives.
        let mut candidates: Vec<u32> = next.iter().chain(negatives).copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let table = self
            .net
            .items
            .index_select(&index_tensor(&candidates, &self.net.dev)?, 0)?;
        let scores = picked.matmul(&table.t()?)?;
        let targets = next
            .iter()
            .map(|i| {
                candidates
                    .binary_search(i)
                    .map_or_else(|_| Vec::new(), |k| vec![(k as u32, 1.0)])
            })
            .collect();
        ops::softmax_cross_entropy(&scores, targets, none)
    }
}

impl Learner for Sasrec {
    fn steps_per_epoch(&self) -> u64 {
        self.sequences.len().div_ceil(self.net.cfg.batch) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        rng::shuffle(
            &mut rng::stream(self.seed, Purpose::Shuffle, &[epoch]),
            &mut order,
        );
        let (mut total, mut n) = (0.0, 0usize);
        for (k, batch) in order.chunks(self.net.cfg.batch).enumerate() {
            let mut noise = rng::stream(self.seed, Purpose::Dropout, &[epoch, k as u64]);
            let mut draw = rng::stream(self.seed, Purpose::Negatives, &[epoch, k as u64]);
            let negatives: Vec<u32> = (0..self.net.cfg.negatives)
                .map(|_| rng::below(&mut draw, self.num_items) as u32)
                .collect();
            let loss = self.loss(batch, Some(&mut noise), &negatives)?;
            self.adam.step(&loss.backward()?)?;
            total += f64::from(loss.to_scalar::<f32>()?);
            n += 1;
            monitor.step()?;
        }
        Ok(vec![("loss", total / n.max(1) as f64)])
    }

    fn inference(&self) -> Result<TensorMap> {
        let mut out = TensorMap::new();
        self.net.params.export("", &mut out)?;
        // Copies: the scorer of this epoch must not change with the next one.
        out.into_iter().map(|(k, v)| Ok((k, v.copy()?))).collect()
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.net.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.net.params, &mut self.adam, from)
    }
}

/// A trained network that scores histories.
#[derive(Debug)]
pub struct SasrecScorer {
    net: Net,
    items_t: Tensor,
}

impl Scorer for SasrecScorer {
    fn num_items(&self) -> usize {
        self.items_t.dims()[1]
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        let n = self.num_items();
        // Sequences of like length together waste less padding; a few at a time bound memory.
        for (queries, out) in queries.chunks(64).zip(out.chunks_mut(64 * n)) {
            let histories: Vec<Vec<u32>> = queries
                .iter()
                .map(|q| q.history.iter().map(|e| e.item).collect())
                .collect();
            let windows: Vec<&[u32]> = histories.iter().map(|h| self.net.window(h)).collect();
            let states = self.net.forward(&windows, None)?;
            let l = states.dim(1)?;
            let last = states.narrow(1, l - 1, 1)?.squeeze(1)?.contiguous()?;
            copy_scores(&last.matmul(&self.items_t)?, out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(dropout: f64) -> Result<Net> {
        let cfg = SasrecConfig {
            dim: 8,
            window: 6,
            dropout,
            ..Default::default()
        };
        Net::new(5, cfg, 3, &Device::Cpu)
    }

    #[test]
    fn attention_is_causal_and_padding_changes_nothing() -> Result<()> {
        let net = net(0.0)?;
        let full = net.forward(&[&[1, 2, 3]], None)?.to_vec3::<f32>()?;
        // Another last item leaves the earlier states as they were.
        let other = net.forward(&[&[1, 2, 4]], None)?.to_vec3::<f32>()?;
        let both = net
            .forward(&[&[1, 2, 3], &[0, 4, 2, 1, 3]], None)?
            .to_vec3::<f32>()?;
        for i in 0..8 {
            assert!((full[0][1][i] - other[0][1][i]).abs() < 1e-6);
            assert!((full[0][2][i] - both[0][4][i]).abs() < 1e-5);
        }
        assert_ne!(full[0][2], other[0][2]);
        Ok(())
    }

    #[test]
    fn every_variable_gets_a_gradient() -> Result<()> {
        let net = net(0.0)?;
        let adam = Adam::new(&net.params, 1e-3, 0.0)?;
        let sequences = vec![vec![0, 1, 2, 3, 4, 0, 2], vec![3, 1]];
        let m = Sasrec {
            net,
            adam,
            seed: 0,
            num_items: 5,
            sequences,
        };
        for negatives in [&[][..], &[0, 3]] {
            let g = m.loss(&[0, 1], None, negatives)?.backward()?;
            for (name, v) in m.net.params.iter() {
                let g = g
                    .get(v.as_tensor())
                    .unwrap_or_else(|| panic!("{name} has no gradient"));
                assert!(g.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "{name}");
            }
        }
        Ok(())
    }
}
