//! The learnt part of the hypergraph and the fusion of channels into one vector.

use candle_core::{Device, Tensor};

use super::config::{Align, DprecConfig};
use super::graphs::Observed;
use super::hypergraph::{assign, concepts, interest_messages, interest_sources, item_level};
use crate::error::Result;
use crate::layer::{LayerNorm, Linear};
use crate::ops::{self, pick};
use crate::params::Params;
use crate::rng::{self, Purpose};

/// `LN(x W)`: how a level's message enters a node.
#[derive(Debug)]
struct Level {
    weight: Tensor,
    norm: LayerNorm,
}

impl Level {
    fn new(params: &mut Params, name: &str, dim: usize, seed: u64, dev: &Device) -> Result<Self> {
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let w = rng::xavier_uniform(&mut r, dim, dim, dev)?;
        Ok(Self {
            weight: params.add(format!("{name}.weight"), &w)?,
            norm: LayerNorm::new(params, &format!("{name}.norm"), dim, dev)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&x.matmul(&self.weight)?)
    }
}

/// The hyperedges of one forward pass, from the items' vectors before the convolution.
pub(super) struct Hyperedges {
    /// Assignments to concepts, `[n, K]` per channel.
    pub(super) assignments: Vec<Tensor>,
    /// Concept vectors over all channels, `[K, d]`.
    concepts: Option<Tensor>,
    /// Interests: means of `Z_c / √d_i` over the channel nodes of a user's items, `[m, d]`.
    pub(super) interests: Option<Tensor>,
    /// What users send back, `[n, d]`.
    messages: Option<Tensor>,
}

/// Learnt parts; what is switched off does not exist.
#[derive(Debug)]
pub(super) struct Alignment {
    temperature: f64,
    item: Option<Level>,
    concept: Option<(Level, Tensor)>,
    interest: Option<(Level, Level)>,
    mix: Option<Tensor>,
    scale: Option<Tensor>,
    /// Query of the attention over content channels.
    attention: Option<(Linear, Tensor)>,
}

impl Alignment {
    pub(super) fn new(
        params: &mut Params,
        cfg: &DprecConfig,
        content_channels: usize,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = cfg.dim;
        let [item, concept, interest] = cfg.levels();
        let level = |params: &mut Params, name: &str| Level::new(params, name, d, seed, dev);
        let item = match item {
            true => Some(level(params, "level.item")?),
            false => None,
        };
        let concept = match concept {
            true => {
                let l = level(params, "level.concept")?;
                let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("prototypes")]);
                let p = rng::normal(&mut r, (cfg.concepts, d), 1.0 / (d as f64).sqrt(), dev)?;
                Some((l, params.add("prototypes", &p)?))
            }
            false => None,
        };
        let interest = match interest {
            true => Some((
                level(params, "level.interest")?,
                level(params, "level.user")?,
            )),
            false => None,
        };
        let active = cfg.levels().iter().filter(|l| **l).count();
        let mix = match active {
            0 | 1 => None,
            n => Some(params.add(
                "level_mix",
                &Tensor::zeros(n, candle_core::DType::F32, dev)?,
            )?),
        };
        let scale = match active {
            0 => None,
            _ => Some(params.add(
                "level_scale",
                &Tensor::full(cfg.message_scale as f32, 1, dev)?,
            )?),
        };
        let attention = if content_channels > 1 && cfg.align != Align::None {
            let map = Linear::new(params, "attention", d, d, seed, dev)?;
            let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("attention.query")]);
            let query = rng::xavier_uniform(&mut r, d, 1, dev)?;
            Some((map, params.add("attention.query", &query)?))
        } else {
            None
        };
        Ok(Self {
            temperature: cfg.concept_temperature,
            item,
            concept,
            interest,
            mix,
            scale,
            attention,
        })
    }

    /// Assignments, concepts and interests of the items' vectors `z` `[n, d]` per channel.
    pub(super) fn hyperedges(
        &self,
        seen: &Observed,
        z: &[Tensor],
        present: &[Tensor],
        noise: Option<&[Tensor]>,
    ) -> Result<Hyperedges> {
        let mut out = Hyperedges {
            assignments: Vec::new(),
            concepts: None,
            interests: None,
            messages: None,
        };
        if let Some((_, prototypes)) = &self.concept {
            for (c, z) in z.iter().enumerate() {
                let noise = noise.map(|n| &n[c]);
                let h = assign(z, prototypes, self.temperature, noise)?;
                out.assignments.push(h);
            }
            out.concepts = Some(concepts(&out.assignments, z, present)?);
        }
        if self.interest.is_some() {
            let sources = interest_sources(z, present, &seen.inverse_root_degree)?;
            let sums = seen.user_sum.apply(&sources)?;
            let interests = sums.broadcast_mul(&seen.per_node)?;
            out.messages = Some(interest_messages(seen, &interests)?);
            out.interests = Some(interests);
        }
        Ok(out)
    }

    /// The weights of the levels that are on, in the order item, concept, interest.
    fn weights(&self) -> Result<Option<Vec<Tensor>>> {
        let Some(scale) = &self.scale else {
            return Ok(None);
        };
        Ok(Some(match &self.mix {
            None => vec![scale.clone()],
            Some(mix) => {
                let w = candle_nn::ops::softmax(mix, 0)?.broadcast_mul(scale)?;
                (0..w.dim(0)?)
                    .map(|k| w.narrow(0, k, 1))
                    .collect::<candle_core::Result<_>>()?
            }
        }))
    }

    /// `O_c` of the given items, or of all.
    ///
    /// # Shapes
    /// `z`, `present`: all n items per channel; the result has one row per id in `rows`.
    pub(super) fn items(
        &self,
        z: &[Tensor],
        present: &[Tensor],
        edges: &Hyperedges,
        rows: Option<&[u32]>,
    ) -> Result<Vec<Tensor>> {
        let select = |t: &Tensor| match rows {
            Some(r) => pick(t, r),
            None => Ok(t.clone()),
        };
        let mut z = z.iter().map(select).collect::<Result<Vec<_>>>()?;
        let Some(weights) = self.weights()? else {
            return Ok(z);
        };
        let mut weights = weights.iter();
        let mut shared: Option<Tensor> = None;
        let mut own: Vec<Tensor> = Vec::new();
        if let (Some(level), Some(w)) =
            (&self.item, self.item.as_ref().and_then(|_| weights.next()))
        {
            let present = present.iter().map(select).collect::<Result<Vec<_>>>()?;
            let message = level.forward(&item_level(&z, &present)?)?;
            shared = Some(message.broadcast_mul(w)?);
        }
        if let (Some((level, _)), Some(c)) = (&self.concept, &edges.concepts)
            && let Some(w) = weights.next()
        {
            for h in &edges.assignments {
                let message = level.forward(&select(h)?.matmul(c)?)?;
                own.push(message.broadcast_mul(w)?);
            }
        }
        if let (Some((level, _)), Some(sent)) = (&self.interest, &edges.messages)
            && let Some(w) = weights.next()
        {
            let message = level.forward(&select(sent)?)?.broadcast_mul(w)?;
            shared = Some(match shared {
                Some(s) => (s + message)?,
                None => message,
            });
        }
        for (c, z) in z.iter_mut().enumerate() {
            if let Some(s) = &shared {
                *z = (&*z + s)?;
            }
            if let Some(o) = own.get(c) {
                *z = (&*z + o)?;
            }
        }
        Ok(z)
    }

    /// What the interest level adds to users with the given interests `[B, d]`, if it is on.
    pub(super) fn user_message(&self, interests: &Tensor) -> Result<Option<Tensor>> {
        let (Some((_, level)), Some(weights)) = (&self.interest, self.weights()?) else {
            return Ok(None);
        };
        // The interest level is the last of those that are on.
        Ok(match weights.last() {
            Some(w) => Some(level.forward(interests)?.broadcast_mul(w)?),
            None => None,
        })
    }

    /// `O_id + n(Σ_c a_c O_c)` with attention a over the content channels that are present.
    ///
    /// # Shapes
    /// `o` `[B, d]` per channel, `present` `[B, 1]` per channel; the result is `[B, d]`.
    pub(super) fn fuse(&self, o: &[Tensor], present: &[Tensor]) -> Result<Tensor> {
        let (id, content) = (&o[0], &o[1..]);
        if content.is_empty() {
            return Ok(id.clone());
        }
        let mut sum: Option<Tensor> = None;
        let shares = match &self.attention {
            None => present[1..].to_vec(),
            Some((map, query)) => {
                let scores = content
                    .iter()
                    .map(|x| Ok(map.forward(x)?.tanh()?.matmul(query)?))
                    .collect::<Result<Vec<_>>>()?;
                attend(&scores, &present[1..])?
            }
        };
        for (x, a) in content.iter().zip(&shares) {
            let term = x.broadcast_mul(a)?;
            sum = Some(match sum {
                Some(s) => (s + term)?,
                None => term,
            });
        }
        Ok(match sum {
            Some(s) => (id + ops::normalize_rows(&s)?)?,
            None => id.clone(),
        })
    }
}

/// Softmax over channels per node, absent channels with share 0.
///
/// # Shapes
/// `scores` and `present` are `[B, 1]` per channel, as is the result.
pub(super) fn attend(scores: &[Tensor], present: &[Tensor]) -> Result<Vec<Tensor>> {
    let present = Tensor::cat(present, 1)?;
    let closed = ((&present - 1.0)? * 1e9)?;
    let shares = candle_nn::ops::softmax(&(Tensor::cat(scores, 1)? + closed)?, 1)?;
    let shares = (shares * present)?;
    (0..scores.len())
        .map(|c| Ok(shares.narrow(1, c, 1)?.contiguous()?))
        .collect()
}
