//! The fusion module: a vector of each modality, brought together into one item vector.
//!
//! Adapters, cross-modality attention (CMA) and all-modality self-attention (AMSA) are published
//! parts of TMF; their order, widths and formulas are ours, since the paper's could not be read.

use candle_core::{D, DType, Device, Tensor};

use super::config::{Cross, Scope, TmfConfig};
use crate::data::{Dataset, TokenFeatures};
use crate::error::Result;
use crate::layer::{LayerNorm, Linear, dropout};
use crate::ops::{index_tensor, pick};
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// Name of the modality of co-behaviour.
pub(super) const GRAPH: &str = "graph";

/// Tokens of an item read by the cross-attention, at most.
const MOST_TOKENS: usize = 50;

/// Frozen inputs of one modality.
#[derive(Debug, Clone)]
pub(super) struct Modality {
    pub(super) name: String,
    /// `[N, d_m]`, standardised, zero where missing.
    pub(super) values: Tensor,
    pub(super) present: Vec<bool>,
    /// Features by token, with the statistics that standardise them.
    tokens: Option<(TokenFeatures, crate::data::Standardization)>,
}

impl Modality {
    pub(super) fn dim(&self) -> Result<usize> {
        Ok(self.values.dim(1)?)
    }

    /// Standardised tokens of items `[n, T, d_m]` and where they are `[n, T]`.
    fn tokens(&self, ids: &[u32]) -> Result<Option<(Tensor, Vec<f32>)>> {
        let Some((tokens, norm)) = &self.tokens else {
            return Ok(None);
        };
        let (t, d) = (tokens.per_item.min(MOST_TOKENS), tokens.dim);
        let mut values = vec![0f32; ids.len() * t * d];
        let mut present = vec![0f32; ids.len() * t];
        for (row, &id) in ids.iter().enumerate() {
            for at in 0..t {
                let from = id as usize * tokens.per_item + at;
                if !tokens.present[from] {
                    continue;
                }
                present[row * t + at] = 1.0;
                let source = &tokens.values[from * d..][..d];
                let to = &mut values[(row * t + at) * d..][..d];
                for c in 0..d {
                    to[c] = (source[c].to_f32() - norm.mean[c]) * norm.inv_std[c];
                }
            }
        }
        let values = Tensor::from_vec(values, (ids.len(), t, d), self.values.device())?;
        Ok(Some((values, present)))
    }
}

/// The modalities of a data set's items, co-behaviour last.
pub(super) fn modalities(data: &Dataset, cfg: &TmfConfig, dev: &Device) -> Result<Vec<Modality>> {
    let mut out = data
        .features
        .iter()
        .map(|f| {
            let s = f.standardize();
            let x = Tensor::from_iter(f.values.iter().copied(), dev)?.reshape(f.values.dim())?;
            let has: Vec<f32> = f.present.iter().map(|p| f32::from(u8::from(*p))).collect();
            let x = x
                .broadcast_sub(&Tensor::from_vec(s.mean, f.dim(), dev)?)?
                .broadcast_mul(&Tensor::from_vec(s.inv_std, f.dim(), dev)?)?
                .broadcast_mul(&Tensor::from_vec(has, (f.present.len(), 1), dev)?)?;
            let by_token = (cfg.cross == Cross::Tokens)
                .then(|| f.tokens.as_ref().map(|t| (t.clone(), t.standardize())))
                .flatten();
            Ok(Modality {
                name: f.name.clone(),
                values: x,
                present: f.present.clone(),
                tokens: by_token,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    if cfg.graph {
        out.push(Modality {
            name: GRAPH.to_owned(),
            values: Tensor::zeros((data.num_items(), cfg.graph_dim), DType::F32, dev)?,
            present: vec![false; data.num_items()],
            tokens: None,
        });
    }
    Ok(out)
}

/// `Concat_h softmax(Q_h K_hᵀ/√d_h + mask) V_h · W_O`.
#[derive(Debug)]
struct MultiHead {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl MultiHead {
    fn new(p: &mut Params, name: &str, cfg: &TmfConfig, seed: u64, dev: &Device) -> Result<Self> {
        let mut linear =
            |part: &str| Linear::new(p, &format!("{name}.{part}"), cfg.dim, cfg.dim, seed, dev);
        Ok(Self {
            query: linear("query")?,
            key: linear("key")?,
            value: linear("value")?,
            out: linear("out")?,
            heads: cfg.heads,
        })
    }

    /// `q` `[n, A, D]`, `kv` `[n, T, D]`, `hide` `[n, 1, 1, T]` added to the scores.
    fn forward(&self, q: &Tensor, kv: &Tensor, hide: &Tensor) -> Result<Tensor> {
        let (n, asked, d) = q.dims3()?;
        let size = d / self.heads;
        let split = |x: Tensor| -> Result<Tensor> {
            let tokens = x.dim(1)?;
            let x = x.reshape((n, tokens, self.heads, size))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let (q, k) = (
            split(self.query.forward(q)?)?,
            split(self.key.forward(kv)?)?,
        );
        let v = split(self.value.forward(kv)?)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? * (size as f64).powf(-0.5))?;
        let weights = candle_nn::ops::softmax(&scores.broadcast_add(hide)?, D::Minus1)?;
        let y = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        self.out.forward(&y.reshape((n, asked, d))?)
    }
}

/// Pre-norm attention and feed-forward: `c = x + MHA(LN x; LN kv)`, `c + FFN(LN c)`.
#[derive(Debug)]
struct Block {
    norm: LayerNorm,
    attention: MultiHead,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    dropout: f64,
}

impl Block {
    fn new(p: &mut Params, name: &str, cfg: &TmfConfig, seed: u64, dev: &Device) -> Result<Self> {
        let d = cfg.dim;
        Ok(Self {
            norm: LayerNorm::new(p, &format!("{name}.norm"), d, dev)?,
            attention: MultiHead::new(p, name, cfg, seed, dev)?,
            norm2: LayerNorm::new(p, &format!("{name}.norm2"), d, dev)?,
            up: Linear::new(p, &format!("{name}.up"), d, 4 * d, seed, dev)?,
            down: Linear::new(p, &format!("{name}.down"), 4 * d, d, seed, dev)?,
            dropout: cfg.dropout,
        })
    }

    /// `x` `[n, A, D]` reads `kv` `[n, T, D]`, of which `seen` (1 or 0, n·T of them) may be read. A
    /// row that may read nothing keeps its own.
    fn forward(
        &self,
        x: &Tensor,
        kv: &Tensor,
        seen: &[f32],
        mut noise: Option<&mut Stream>,
    ) -> Result<Tensor> {
        let (n, tokens, _) = kv.dims3()?;
        let dev = x.device();
        let hide = seen.iter().map(|s| (s - 1.0) * 1e9).collect();
        let hide = Tensor::from_vec(hide, (n, 1, 1, tokens), dev)?;
        let any: Vec<f32> = seen
            .chunks(tokens)
            .map(|s| s.iter().copied().fold(0.0, f32::max))
            .collect();
        let any = Tensor::from_vec(any, (n, 1, 1), dev)?;
        let (q, kv) = (self.norm.forward(x)?, self.norm.forward(kv)?);
        let mixed = self.attention.forward(&q, &kv, &hide)?;
        let mixed = dropout(
            &mixed.broadcast_mul(&any)?,
            self.dropout,
            noise.as_deref_mut(),
        )?;
        let c = (x + mixed)?;
        let y = self.up.forward(&self.norm2.forward(&c)?)?.gelu_erf()?;
        let y = dropout(&self.down.forward(&y)?, self.dropout, noise)?;
        Ok((c + y)?)
    }
}

/// `LN(W₂ GELU(W₁ x + b₁) + b₂) + p`, or the vector of a missing modality.
#[derive(Debug)]
struct Adapter {
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    place: Tensor,
    missing: Tensor,
}

impl Adapter {
    fn new(
        p: &mut Params,
        name: &str,
        fan_in: usize,
        cfg: &TmfConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = cfg.dim;
        let mut vector = |part: &str| {
            let name = format!("{name}.{part}");
            let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(&name)]);
            p.add(name, &rng::normal(&mut r, d, 0.02, dev)?)
        };
        let (place, missing) = (vector("place")?, vector("missing")?);
        Ok(Self {
            up: Linear::new(p, &format!("{name}.up"), fan_in, d, seed, dev)?,
            down: Linear::new(p, &format!("{name}.down"), d, d, seed, dev)?,
            norm: LayerNorm::new(p, &format!("{name}.norm"), d, dev)?,
            place,
            missing,
        })
    }

    /// Any shape that ends with the modality's width.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.down.forward(&self.up.forward(x)?.gelu_erf()?)?;
        Ok(self.norm.forward(&y)?.broadcast_add(&self.place)?)
    }
}

/// Vectors of a batch of items before self-attention.
pub(super) struct Crossed {
    /// `[n, M, D]`.
    pub(super) rows: Tensor,
    /// Whether the modality is there, n·M.
    pub(super) seen: Vec<f32>,
}

/// What came out of self-attention.
pub(super) struct Fused {
    /// One row a modality, `[n, M, D]`, normalised.
    pub(super) rows: Tensor,
    /// Item vectors `[n, D]`, normalised.
    pub(super) pooled: Tensor,
}

/// The module's weights.
#[derive(Debug)]
pub(super) struct Fusion {
    adapters: Vec<Adapter>,
    cross: Vec<Block>,
    mixer: Option<Block>,
    behaviors: Tensor,
    positions: Tensor,
    pool: Linear,
    pool_query: Tensor,
    norm: LayerNorm,
    modality_dropout: f64,
    /// Whether a modality is co-behaviour.
    is_graph: Vec<bool>,
}

impl Fusion {
    pub(super) fn new(
        p: &mut Params,
        modalities: &[Modality],
        behaviors: usize,
        cfg: &TmfConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = cfg.dim;
        let name = |m: &Modality, part: &str| format!("fusion.{}.{part}", m.name);
        let adapters = modalities
            .iter()
            .map(|m| Adapter::new(p, &name(m, "adapter"), m.dim()?, cfg, seed, dev))
            .collect::<Result<_>>()?;
        // A single modality has nothing to read.
        let cross = match cfg.cross {
            Cross::Off => Vec::new(),
            _ if modalities.len() < 2 => Vec::new(),
            _ => modalities
                .iter()
                .map(|m| Block::new(p, &name(m, "cross"), cfg, seed, dev))
                .collect::<Result<_>>()?,
        };
        let mixer = match cfg.scope {
            Scope::Off => None,
            _ => Some(Block::new(p, "fusion.self", cfg, seed, dev)?),
        };
        let mut table = |name: &str, rows: usize| {
            let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
            let value = rng::normal(&mut r, (rows, d), 0.02, dev)?;
            // Only the self-attention over sequences reads these.
            match cfg.scope {
                Scope::Sequence => p.add(name, &value),
                _ => Ok(value),
            }
        };
        let positions = table("fusion.positions", cfg.window.max(cfg.sequence_window))?;
        let behaviors = table("fusion.behaviors", behaviors)?;
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("fusion.pool")]);
        let pool_query = rng::normal(&mut r, (d, 1), (d as f64).powf(-0.5), dev)?;
        Ok(Self {
            pool: Linear::new(p, "fusion.pool", d, d, seed, dev)?,
            pool_query: p.add("fusion.pool.query", &pool_query)?,
            norm: LayerNorm::new(p, "fusion.norm", d, dev)?,
            is_graph: modalities.iter().map(|m| m.name == GRAPH).collect(),
            modality_dropout: cfg.modality_dropout,
            adapters,
            cross,
            mixer,
            positions,
            behaviors,
        })
    }

    /// Which modalities of the items are shown; training hides some, never all of an item.
    fn shown(&self, modalities: &[Modality], ids: &[u32], noise: Option<&mut Stream>) -> Vec<f32> {
        let mut seen: Vec<f32> = ids
            .iter()
            .flat_map(|&i| modalities.iter().map(move |m| m.present[i as usize]))
            .map(|p| f32::from(u8::from(p)))
            .collect();
        if let Some(noise) = noise.filter(|_| self.modality_dropout > 0.0) {
            for row in seen.chunks_mut(modalities.len()) {
                let kept: Vec<f32> = row
                    .iter()
                    .map(|&s| {
                        let hidden = f64::from(rng::unit(noise)) < self.modality_dropout;
                        if hidden { 0.0 } else { s }
                    })
                    .collect();
                if kept.iter().any(|&s| s > 0.0) {
                    row.copy_from_slice(&kept);
                }
            }
        }
        seen
    }

    /// Adapters and cross-attention for the items `ids`.
    pub(super) fn crossed(
        &self,
        modalities: &[Modality],
        ids: &[u32],
        mut noise: Option<&mut Stream>,
    ) -> Result<Crossed> {
        let (n, m) = (ids.len(), modalities.len());
        let seen = self.shown(modalities, ids, noise.as_deref_mut());
        let dev = self.pool_query.device();
        let index = index_tensor(ids, dev)?;
        let column = |k: usize| seen.iter().skip(k).step_by(m).copied();
        let z = modalities
            .iter()
            .zip(&self.adapters)
            .enumerate()
            .map(|(k, (modality, adapter))| {
                let has = Tensor::from_iter(column(k), dev)?.reshape((n, 1))?;
                let z = adapter.forward(&modality.values.index_select(&index, 0)?)?;
                let none = (&adapter.missing + &adapter.place)?.unsqueeze(0)?;
                let none = none.broadcast_mul(&(1.0 - &has)?)?;
                Ok((z.broadcast_mul(&has)? + none)?.unsqueeze(1)?)
            })
            .collect::<Result<Vec<Tensor>>>()?;
        if self.cross.is_empty() {
            let rows = Tensor::cat(&z, 1)?;
            return Ok(Crossed { rows, seen });
        }
        let fine = modalities
            .iter()
            .zip(&self.adapters)
            .enumerate()
            .map(|(k, (modality, adapter))| {
                let Some((tokens, there)) = modality.tokens(ids)? else {
                    return Ok(None);
                };
                let per = there.len() / n.max(1);
                let has = column(k).flat_map(|s| std::iter::repeat_n(s, per));
                let there: Vec<f32> = there.iter().zip(has).map(|(t, s)| t * s).collect();
                Ok(Some((adapter.forward(&tokens)?, there)))
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = (0..m)
            .map(|k| {
                let others: Vec<usize> = (0..m).filter(|&o| o != k).collect();
                // Tokens, where any other modality has them; else the others' vectors.
                let tokens = others.iter().any(|&o| fine[o].is_some());
                let mut parts: Vec<(Tensor, Vec<f32>)> = Vec::new();
                for &o in &others {
                    match &fine[o] {
                        Some((t, there)) => parts.push((t.clone(), there.clone())),
                        None if tokens && self.is_graph[o] => {}
                        None => parts.push((z[o].clone(), column(o).collect())),
                    }
                }
                let kv: Vec<&Tensor> = parts.iter().map(|(t, _)| t).collect();
                let kv = Tensor::cat(&kv, 1)?;
                let readable: Vec<f32> = (0..n)
                    .flat_map(|row| {
                        parts.iter().flat_map(move |(_, there)| {
                            let per = there.len() / n;
                            there[row * per..][..per].iter().copied()
                        })
                    })
                    .collect();
                self.cross[k].forward(&z[k], &kv, &readable, noise.as_deref_mut())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Crossed {
            rows: Tensor::cat(&rows, 1)?,
            seen,
        })
    }

    /// Self-attention among the modalities of each item, and pooling.
    pub(super) fn fused(&self, c: &Crossed, noise: Option<&mut Stream>) -> Result<Fused> {
        let rows = match &self.mixer {
            Some(mixer) => mixer.forward(&c.rows, &c.rows, &c.seen, noise)?,
            None => c.rows.clone(),
        };
        self.pooled(&rows, &c.seen)
    }

    /// Self-attention among all modalities of all events of each history.
    ///
    /// `events` are, per history, the row of `c` and the behaviour of each event, oldest first, at
    /// most as many as there are positions. The result has a row for each event.
    pub(super) fn fused_sequences(
        &self,
        c: &Crossed,
        events: &[Vec<(u32, u8)>],
        noise: Option<&mut Stream>,
    ) -> Result<Fused> {
        let (_, m, d) = c.rows.dims3()?;
        let longest = events.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let b = events.len();
        let (mut rows, mut behaviors) = (vec![0u32; b * longest], vec![0u32; b * longest]);
        let mut positions = vec![0u32; b * longest];
        let mut seen = vec![0f32; b * longest * m];
        let mut kept = Vec::new();
        let window = self.positions.dim(0)?;
        for (at, events) in events.iter().enumerate() {
            for (t, &(row, behavior)) in events.iter().enumerate() {
                let slot = at * longest + t;
                rows[slot] = row;
                behaviors[slot] = u32::from(behavior);
                // Counted from the end, so that one more event moves nothing.
                positions[slot] = (window + t).saturating_sub(events.len()) as u32;
                seen[slot * m..][..m].copy_from_slice(&c.seen[row as usize * m..][..m]);
                kept.push(slot as u32);
            }
        }
        let told = (pick(&self.behaviors, &behaviors)? + pick(&self.positions, &positions)?)?;
        let x = pick(&c.rows, &rows)?.broadcast_add(&told.unsqueeze(1)?)?;
        let x = x.reshape((b, longest * m, d))?;
        let x = match &self.mixer {
            Some(mixer) => mixer.forward(&x, &x, &seen, noise)?,
            None => x,
        };
        let x = pick(&x.reshape((b * longest, m, d))?, &kept)?;
        let seen: Vec<f32> = kept
            .iter()
            .flat_map(|&s| seen[s as usize * m..][..m].iter().copied())
            .collect();
        self.pooled(&x, &seen)
    }

    /// `LN(Σ π_m H_m)` with `π = softmax(w·tanh(W H_m))` over the modalities that are there.
    fn pooled(&self, rows: &Tensor, seen: &[f32]) -> Result<Fused> {
        let (n, m, d) = rows.dims3()?;
        let hide = seen.iter().map(|s| (s - 1.0) * 1e9).collect();
        let hide = Tensor::from_vec(hide, (n, m, 1), rows.device())?;
        let a = self.pool.forward(rows)?.tanh()?.reshape((n * m, d))?;
        let a = a.matmul(&self.pool_query)?.reshape((n, m, 1))?;
        let share = candle_nn::ops::softmax(&(a + hide)?, 1)?;
        let pooled = rows.broadcast_mul(&share)?.sum(1)?;
        Ok(Fused {
            rows: self.norm.forward(rows)?,
            pooled: self.norm.forward(&pooled)?,
        })
    }
}

#[cfg(test)]
mod tests;
