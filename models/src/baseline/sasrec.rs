//! SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018).
//!
//! One causal pass trains every position of a sequence against its next item, by softmax
//! cross-entropy over the whole catalogue (the paper samples one negative per position; the full
//! softmax is the stronger, now usual choice) or over shared sampled negatives for large ones.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::attention::{Segments, causal_attention, last_states};
use crate::data::sequence::{TrainingWindows, Windows, newest};
use crate::data::{Dataset, HistoryEvent};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::factors::copy_scores;
use crate::layer::{LayerNorm, Linear, dropout};
use crate::ops::{self, pick};
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
    /// Longest sequence.
    pub window: usize,
    /// Whether events before the newest window are trained on.
    pub windows: Windows,
    /// Draw a new order of each user's events every epoch. Absent: where the data has no order, and a fixed
    /// one would be learnt by heart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle_events: Option<bool>,
    /// Whether inputs tell behaviours apart, by a learnt vector of each beside the item's (ours; the paper
    /// knows one behaviour).
    pub behaviors: bool,
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
            windows: Windows::Last,
            shuffle_events: None,
            behaviors: false,
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
    behaviors: Option<Tensor>,
    blocks: Vec<Block>,
    last: LayerNorm,
    dev: Device,
}

impl Net {
    fn new(
        items: usize,
        behaviors: usize,
        cfg: SasrecConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
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
        let behaviors = match cfg.behaviors {
            false => None,
            true => {
                let table = rng::normal(&mut r, (behaviors, d), 0.02, dev)?;
                Some(params.add("behaviors", &table)?)
            }
        };
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
            behaviors,
            blocks,
            last,
            dev: dev.clone(),
        })
    }

    /// States of the events of all sequences, packed as [`causal_attention`] wants them, `[R, d]`.
    fn forward(
        &self,
        sequences: &[&[HistoryEvent]],
        mut noise: Option<&mut Stream>,
    ) -> Result<(Tensor, Segments)> {
        let segments = Segments::new(sequences.iter().map(|s| s.len()));
        let (d, rate) = (self.cfg.dim, self.cfg.dropout);
        if segments.rows() == 0 {
            let none = Tensor::zeros((0, d), DType::F32, &self.dev)?;
            return Ok((none, segments));
        }
        let events = || sequences.iter().flat_map(|s| s.iter());
        let ids: Vec<u32> = events().map(|e| e.item).collect();
        // Positions count from the end of the window, so the newest event always has the last one.
        let at = segments.positions_from_the_end(self.cfg.window);
        let mut x = (pick(&self.items, &ids)? + pick(&self.positions, &at)?)?;
        if let Some(table) = &self.behaviors {
            let behaviors: Vec<u32> = events().map(|e| u32::from(e.behavior)).collect();
            x = (x + pick(table, &behaviors)?)?;
        }
        x = dropout(&x, rate, noise.as_deref_mut())?;
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.norm1.forward(&x)?)?;
            let part = |k: usize| qkv.narrow(1, k * d, d)?.contiguous();
            let mixed = causal_attention(
                (&part(0)?, &part(1)?, &part(2)?),
                &segments,
                self.cfg.heads,
                rate,
                noise.as_deref_mut(),
            )?;
            let mixed = dropout(&block.out.forward(&mixed)?, rate, noise.as_deref_mut())?;
            x = (x + mixed)?;
            let y = block.up.forward(&block.norm2.forward(&x)?)?.relu()?;
            let y = dropout(&block.down.forward(&y)?, rate, noise.as_deref_mut())?;
            x = (x + y)?;
        }
        Ok((self.last.forward(&x)?, segments))
    }
}

/// The network, its training sequences and its optimizer.
#[derive(Debug)]
pub struct Sasrec {
    net: Net,
    adam: Adam,
    seed: u64,
    num_items: usize,
    windows: TrainingWindows<HistoryEvent>,
}

impl Sasrec {
    /// A fresh model over the training sequences of `data`.
    ///
    /// # Errors
    /// A configuration out of range, or no user with two training events.
    pub fn new(data: &Dataset, cfg: SasrecConfig, seed: u64, dev: &Device) -> Result<Self> {
        let windows = TrainingWindows::new(data, 2, cfg.window, cfg.windows, cfg.shuffle_events)?;
        let net = Net::new(data.num_items(), data.behaviors.len(), cfg, seed, dev)?;
        let adam = Adam::new(&net.params, net.cfg.lr, 0.0)?;
        Ok(Self {
            net,
            adam,
            seed,
            num_items: data.num_items(),
            windows,
        })
    }

    /// The scorer behind a run's inference tensors.
    pub fn scorer(
        tensors: &TensorMap,
        data: &Dataset,
        cfg: SasrecConfig,
        dev: &Device,
    ) -> Result<SasrecScorer> {
        let net = Net::new(data.num_items(), data.behaviors.len(), cfg, 0, dev)?;
        net.params.import("", tensors)?;
        let items_t = net.items.detach().t()?.contiguous()?;
        Ok(SasrecScorer { net, items_t })
    }

    fn loss(
        &self,
        batch: &[&[HistoryEvent]],
        noise: Option<&mut Stream>,
        negatives: &[u32],
    ) -> Result<Tensor> {
        let inputs: Vec<&[HistoryEvent]> = batch.iter().map(|w| &w[..w.len() - 1]).collect();
        let next = batch.iter().flat_map(|w| w[1..].iter().map(|e| e.item));
        let next: Vec<u32> = next.collect();
        let (picked, _) = self.net.forward(&inputs, noise)?;
        let none = vec![Vec::new(); next.len()];
        if negatives.is_empty() {
            let scores = picked.matmul(&self.net.items.t()?)?;
            let targets = next.iter().map(|&i| vec![(i, 1.0)]).collect();
            return ops::softmax_cross_entropy(&scores, targets, none);
        }
        // The candidates of all positions: the true next items and the shared negatives.
        let mut candidates: Vec<u32> = next.iter().chain(negatives).copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let table = pick(&self.net.items, &candidates)?;
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
        self.windows.number().div_ceil(self.net.cfg.batch) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let sequences = self.windows.of_epoch(self.seed, epoch);
        let mut order = self.windows.cut(&sequences);
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
        let windows: Vec<&[HistoryEvent]> = queries
            .iter()
            .map(|q| newest(&q.history, self.net.cfg.window))
            .collect();
        let (states, segments) = self.net.forward(&windows, None)?;
        let last = last_states(&states, &segments)?;
        copy_scores(&last.matmul(&self.items_t)?, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(behaviors: bool) -> Result<Net> {
        let cfg = SasrecConfig {
            dim: 8,
            window: 6,
            behaviors,
            dropout: 0.0,
            ..Default::default()
        };
        Net::new(5, 2, cfg, 3, &Device::Cpu)
    }

    fn events(items: &[u32], behavior: u8) -> Vec<HistoryEvent> {
        let event = |&item| HistoryEvent { item, behavior };
        items.iter().map(event).collect()
    }

    #[test]
    fn attention_is_causal_and_neighbours_change_nothing() -> Result<()> {
        let net = net(false)?;
        let states = |s: &[&[u32]]| -> Result<Vec<Vec<f32>>> {
            let s: Vec<Vec<HistoryEvent>> = s.iter().map(|s| events(s, 0)).collect();
            let s: Vec<&[HistoryEvent]> = s.iter().map(Vec::as_slice).collect();
            Ok(net.forward(&s, None)?.0.to_vec2::<f32>()?)
        };
        let full = states(&[&[1, 2, 3]])?;
        // Another last item leaves the earlier states as they were.
        let other = states(&[&[1, 2, 4]])?;
        let both = states(&[&[0, 4, 2, 1, 3], &[], &[1, 2, 3]])?;
        for i in 0..8 {
            assert!((full[1][i] - other[1][i]).abs() < 1e-6);
            assert!((full[2][i] - both[7][i]).abs() < 1e-5);
        }
        assert_ne!(full[2], other[2]);
        Ok(())
    }

    #[test]
    fn behaviours_are_told_apart_only_when_asked_to() -> Result<()> {
        for told in [false, true] {
            let net = net(told)?;
            let state = |behavior| -> Result<Vec<Vec<f32>>> {
                let events = events(&[1, 2], behavior);
                Ok(net.forward(&[&events], None)?.0.to_vec2::<f32>()?)
            };
            assert_eq!(state(0)? != state(1)?, told);
        }
        Ok(())
    }

    #[test]
    fn every_variable_gets_a_gradient() -> Result<()> {
        let net = net(true)?;
        let adam = Adam::new(&net.params, 1e-3, 0.0)?;
        let sequences = vec![events(&[0, 1, 2, 3, 4, 0, 2], 0), events(&[3, 1], 1)];
        let m = Sasrec {
            net,
            adam,
            seed: 0,
            num_items: 5,
            windows: TrainingWindows {
                sequences,
                inputs: 6,
                which: Windows::Last,
                shuffled: false,
            },
        };
        for negatives in [&[][..], &[0, 3]] {
            let g = m
                .loss(&m.windows.cut(&m.windows.sequences), None, negatives)?
                .backward()?;
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
