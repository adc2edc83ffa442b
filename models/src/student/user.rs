//! History of item vectors → user vector.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::StudentShape;
use crate::data::HistoryEvent;
use crate::error::Result;
use crate::graph::{Propagation, SparseMatrix};
use crate::layer::{self, Linear};
use crate::ops::pick;
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// A gated, decayed mean per head over all events, read out by a small network:
///
/// `x_j = v_{i_j} + e_{b_j}`, `f_j = x_j + relu(x_j W₁ + b₁) W₂ₕ`, `g_j = σ(x_j W_g + b_g)`,
/// `S_h = Σ_j γ_h^{age_j} g_jh f_jh`, `z_h = Σ_j γ_h^{age_j} g_jh`, `m_h = S_h/(z_h+c_h)`,
/// `r = [m_1 … m_H, ln(1+n)/4]`,
/// `u = Σ_h a_h ⊙ m_h + r W_s + relu(r W_a + b_a) W_b + b`,
///
/// where `age_j` counts the events after j. One more event multiplies every `S_h` and `z_h` by `γ_h`
/// and adds one term: the cost does not depend on the history's length, and the result is that of
/// the full pass.
///
/// `c_h` is the weight that a history needs to be taken at its word ([`StudentShape::prior`]). A
/// mean of many events is shorter than that of a few, since they agree in less: without `c_h` the
/// terms that do not depend on the history would outvote those that do where most is known.
///
/// With no events `r` is zero, so `b` (with the readout's biases) is the
/// learnt prior.
///
/// The item vectors pass straight through, so that an untrained tower gives the mean of the
/// history: a good recommender as soon as the vectors are, and where item-to-item neighbourhoods
/// end, training begins. That path has no matrix and hence loses nothing to rounding.
#[derive(Debug)]
pub struct UserTower {
    heads: usize,
    dim: usize,
    decays: Vec<f32>,
    prior: Vec<f64>,
    behaviors: Tensor,
    hidden: Linear,
    value: Tensor,
    gate: Linear,
    direct: Tensor,
    skip: Tensor,
    mix: Linear,
    out: Linear,
    dev: Device,
}

/// A history as the readout meets it: per head the weighted sum of events `[B, D]` and the sum of
/// the weights `[B, 1]`, and `ln(1+n)/4` `[B, 1]`.
pub(crate) struct Pooled {
    sums: Vec<Tensor>,
    weights: Vec<Tensor>,
    counts: Tensor,
}

impl Pooled {
    /// Per head the mean weight of a history.
    pub(crate) fn mean_weights(&self) -> Result<Vec<f64>> {
        let mean = |w: &Tensor| Ok(f64::from(w.mean_all()?.to_scalar::<f32>()?));
        self.weights.iter().map(mean).collect()
    }
}

/// Gain of untrained weights beside the direct path.
const QUIET: f64 = 0.01;
impl UserTower {
    pub(super) fn new(
        shape: &StudentShape,
        params: &mut Params,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let (d, e, heads) = (shape.dim, shape.event_hidden, shape.half_lives.len());
        let width = heads * d + 1;
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("user.behaviors")]);
        let table = rng::normal(&mut r, (shape.behaviors.len(), d), 0.02, dev)?;
        let mut quiet = |name: &str, a: usize, b: usize| {
            let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
            params.add(name, &(rng::xavier_uniform(&mut r, a, b, dev)? * QUIET)?)
        };
        let value = quiet("user.value.weight", e, heads * d)?;
        let skip = quiet("user.skip.weight", width, d)?;
        let direct = Tensor::full(1.0 / heads as f32, (heads, d), dev)?;
        let direct = params.add("user.direct", &direct)?;
        Ok(Self {
            heads,
            dim: d,
            decays: shape.decays(),
            prior: shape.prior(),
            behaviors: params.add("user.behaviors", &table)?,
            hidden: Linear::new(params, "user.hidden", d, e, seed, dev)?,
            value,
            gate: Linear::with_gain(params, "user.gate", d, heads, QUIET, seed, dev)?,
            direct,
            skip,
            mix: Linear::new(params, "user.mix", width, shape.readout_hidden, seed, dev)?,
            out: Linear::with_gain(
                params,
                "user.out",
                shape.readout_hidden,
                d,
                QUIET,
                seed,
                dev,
            )?,
            dev: dev.clone(),
        })
    }

    /// Starts an untrained tower: `c_h` of the heads, and a factor of the direct path.
    pub(crate) fn start(&mut self, params: &Params, prior: &[f64], factor: f64) -> Result<()> {
        self.prior = prior.to_vec();
        params.set("user.direct", &(&self.direct * factor)?)
    }

    /// The same tower without gradients.
    pub fn detached(&self) -> Result<Self> {
        let linear = |l: &Linear| -> Result<Linear> {
            Ok(Linear {
                weight: l.weight.copy()?.detach(),
                bias: l.bias.copy()?.detach(),
            })
        };
        Ok(Self {
            heads: self.heads,
            dim: self.dim,
            decays: self.decays.clone(),
            prior: self.prior.clone(),
            behaviors: self.behaviors.copy()?.detach(),
            hidden: linear(&self.hidden)?,
            value: self.value.copy()?.detach(),
            gate: linear(&self.gate)?,
            direct: self.direct.copy()?.detach(),
            skip: self.skip.copy()?.detach(),
            mix: linear(&self.mix)?,
            out: linear(&self.out)?,
            dev: self.dev.clone(),
        })
    }

    /// User vectors `[B, D]` of histories (oldest first) over item vectors `items` `[N, D]`.
    ///
    /// What depends only on an item and its behaviour is computed once per distinct pair; the
    /// decayed sums are sparse products. `noise` switches on dropout of the event features.
    pub fn forward(
        &self,
        items: &Tensor,
        histories: &[&[HistoryEvent]],
        noise: Option<(&mut Stream, f64)>,
    ) -> Result<Tensor> {
        let pooled = self.pool(items, histories, noise)?;
        self.user_vectors(&pooled, &self.prior)
    }

    /// The part of [`forward`](Self::forward) up to the sums over events.
    pub(crate) fn pool(
        &self,
        items: &Tensor,
        histories: &[&[HistoryEvent]],
        noise: Option<(&mut Stream, f64)>,
    ) -> Result<Pooled> {
        let b = histories.len();
        let mut index: HashMap<(u32, u8), u32> = HashMap::new();
        let mut pairs: Vec<HistoryEvent> = Vec::new();
        let mut cells: Vec<(u32, u32, u32)> = Vec::new();
        for (r, h) in histories.iter().enumerate() {
            for (k, e) in h.iter().enumerate() {
                let at = *index.entry((e.item, e.behavior)).or_insert_with(|| {
                    pairs.push(*e);
                    pairs.len() as u32 - 1
                });
                cells.push((r as u32, at, (h.len() - 1 - k) as u32));
            }
        }
        let counts: Vec<f32> = histories
            .iter()
            .map(|h| (1.0 + h.len() as f32).ln() / 4.0)
            .collect();
        let counts = Tensor::from_vec(counts, (b, 1), &self.dev)?;
        let width = self.heads * self.dim;
        if pairs.is_empty() {
            let zeros = |d| Tensor::zeros((b, d), candle_core::DType::F32, &self.dev);
            return Ok(Pooled {
                sums: vec![zeros(self.dim)?; self.heads],
                weights: vec![zeros(1)?; self.heads],
                counts,
            });
        }
        let ids: Vec<u32> = pairs.iter().map(|e| e.item).collect();
        let kinds: Vec<u32> = pairs.iter().map(|e| u32::from(e.behavior)).collect();
        let x = (pick(items, &ids)? + pick(&self.behaviors, &kinds)?)?;
        let mut f = self.hidden.forward(&x)?.relu()?;
        if let Some((rng, rate)) = noise {
            f = layer::dropout(&f, rate, Some(rng))?;
        }
        let f = f.matmul(&self.value)?;
        let g = candle_nn::ops::sigmoid(&self.gate.forward(&x)?)?;
        let n = pairs.len();
        let weighted = f
            .reshape((n, self.heads, self.dim))?
            .broadcast_add(&x.unsqueeze(1)?)?
            .broadcast_mul(&g.unsqueeze(2)?)?
            .reshape((n, width))?;
        // Heads of equal decay share one sparse product.
        let mut found: Vec<Option<(Tensor, Tensor)>> = vec![None; self.heads];
        for head in 0..self.heads {
            if found[head].is_some() {
                continue;
            }
            let decay = self.decays[head];
            let same: Vec<usize> = (head..self.heads)
                .filter(|&h| self.decays[h] == decay)
                .collect();
            let entries: Vec<(u32, u32, f32)> = cells
                .iter()
                .map(|&(r, c, age)| (r, c, decay.powi(age as i32)))
                .collect();
            let pool = Propagation::new(SparseMatrix::from_entries(b, n, &entries)?);
            let mut columns = Vec::with_capacity(same.len() * 2);
            for &h in &same {
                columns.push(weighted.narrow(1, h * self.dim, self.dim)?);
            }
            for &h in &same {
                columns.push(g.narrow(1, h, 1)?);
            }
            let pooled = pool.apply(&Tensor::cat(&columns, 1)?)?;
            for (k, &h) in same.iter().enumerate() {
                let sum = pooled.narrow(1, k * self.dim, self.dim)?;
                let weight = pooled.narrow(1, same.len() * self.dim + k, 1)?;
                found[h] = Some((sum, weight));
            }
        }
        let (sums, weights) = found.into_iter().flatten().unzip();
        Ok(Pooled {
            sums,
            weights,
            counts,
        })
    }

    /// The rest of it, `[B, D]`, for given `c_h`.
    pub(crate) fn user_vectors(&self, pooled: &Pooled, prior: &[f64]) -> Result<Tensor> {
        self.read_out(&self.means(pooled, prior)?)
    }

    /// r, `[B, H·D + 1]`.
    pub(super) fn means(&self, pooled: &Pooled, prior: &[f64]) -> Result<Tensor> {
        let heads = pooled.sums.iter().zip(&pooled.weights).zip(prior);
        let mut parts = heads
            .map(|((sum, weight), c)| Ok(sum.broadcast_div(&(weight + *c)?)?))
            .collect::<Result<Vec<_>>>()?;
        parts.push(pooled.counts.clone());
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn read_out(&self, r: &Tensor) -> Result<Tensor> {
        let means = r.narrow(1, 0, self.heads * self.dim)?;
        let direct = means
            .reshape((r.dim(0)?, self.heads, self.dim))?
            .broadcast_mul(&self.direct)?
            .sum(1)?;
        let mixed = self.out.forward(&self.mix.forward(r)?.relu()?)?;
        Ok(((direct + r.matmul(&self.skip)?)? + mixed)?)
    }
}
