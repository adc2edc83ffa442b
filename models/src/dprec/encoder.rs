//! The two perspectives and the gate between them.
//!
//! *Memory* repeats what was observed: the channels' vectors, propagated over the user-item graph
//! (linear layers and their mean, as LightGCN). *Expansion* reaches beyond observed edges: item
//! graphs of similar content and a graph of similar users. That these are the two perspectives is
//! our reading of the abstract. Channels stand side by side in one matrix, so that each sparse
//! matrix is passed once a layer.

use candle_core::{DType, Device, Tensor};

use super::config::{DprecConfig, Perspective};
use super::graphs::{Content, Graphs, Observed};
use crate::error::Result;
use crate::layer::{LayerNorm, Linear};
use crate::ops;
use crate::params::Params;
use crate::rng::{self, Purpose};

/// A column `[len, 1]` of numbers.
pub(super) fn column(values: Vec<f32>, dev: &Device) -> Result<Tensor> {
    let n = values.len();
    Ok(Tensor::from_vec(values, (n, 1), dev)?)
}

/// The channels of a matrix in which they stand side by side.
pub(super) fn channels(side_by_side: &Tensor, dim: usize) -> Result<Vec<Tensor>> {
    (0..side_by_side.dim(1)? / dim)
        .map(|c| Ok(side_by_side.narrow(1, c * dim, dim)?.contiguous()?))
        .collect()
}

/// `σ(l) m + (1 − σ(l)) y`, with the share of m forced to 0 where `open` is 0.
pub(super) fn gated(l: &Tensor, m: &Tensor, y: &Tensor, open: Option<&Tensor>) -> Result<Tensor> {
    let mut g = candle_nn::ops::sigmoid(l)?;
    if let Some(open) = open {
        g = g.broadcast_mul(open)?;
    }
    Ok((y + (g * (m - y)?)?)?)
}

/// One content modality: constant features and the way into the model's width.
#[derive(Debug)]
struct Input {
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: LayerNorm,
    /// `[n, 1]`: 1 where the item has it.
    present: Tensor,
}

/// Vectors of the two perspectives, before the gate.
pub(super) struct Views {
    /// Memory, `[m + n, C d]`, users first.
    pub(super) memory: Option<Tensor>,
    /// Expansion of users, `[m, C d]`.
    pub(super) users: Option<Tensor>,
    /// Expansion of items, `[n, C d]`.
    pub(super) items: Option<Tensor>,
}

/// The learnt part of both encoders and the gate.
#[derive(Debug)]
pub(super) struct Encoder {
    dim: usize,
    layers: usize,
    perspective: Perspective,
    pub(super) user_ids: Tensor,
    pub(super) item_ids: Tensor,
    inputs: Vec<Input>,
    /// Logits of the share of each content graph in the id channel's.
    graph_logits: Option<Tensor>,
    bank: Option<Tensor>,
    /// Per channel, for users and for items.
    user_gates: Vec<Linear>,
    item_gates: Vec<Linear>,
    /// The baseline `align = product`, per content channel.
    product: Vec<Linear>,
}

impl Encoder {
    pub(super) fn new(
        params: &mut Params,
        graphs: &Graphs,
        content: &[Content],
        cfg: &DprecConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = cfg.dim;
        let stream = |name: &str| rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let table = |params: &mut Params, name: &str, n: usize| -> Result<Tensor> {
            let t = rng::xavier_uniform(&mut stream(name), n, d, dev)?;
            params.add(name, &t)
        };
        let user_ids = table(params, "user_ids", graphs.users)?;
        let item_ids = table(params, "item_ids", graphs.items)?;
        let mut inputs = Vec::with_capacity(content.len());
        for c in content {
            let key = format!("content.{}", c.name);
            let width = c.features.dim(1)?;
            let w = rng::xavier_uniform(&mut stream(&key), width, d, dev)?;
            let norm = LayerNorm::new(params, &format!("{key}.norm"), d, dev)?;
            params.set(
                &format!("{key}.norm.gain"),
                &Tensor::full(cfg.content_gain as f32, d, dev)?,
            )?;
            inputs.push(Input {
                features: c.features.clone(),
                weight: params.add(format!("{key}.weight"), &w)?,
                bias: params.add(format!("{key}.bias"), &Tensor::zeros(d, DType::F32, dev)?)?,
                norm,
                present: column(
                    c.present.iter().map(|p| f32::from(u8::from(*p))).collect(),
                    dev,
                )?,
            });
        }
        let expands = cfg.perspective != Perspective::Memory;
        let graph_logits = if expands && content.len() > 1 {
            // Pictures start with a tenth (FREEDOM's weight), the other modalities share the rest.
            let images = content.iter().filter(|c| c.is_image).count();
            let others = content.len() - images;
            let share = |c: &Content| match (c.is_image, images, others) {
                (_, 0, _) | (_, _, 0) => 1.0 / content.len() as f32,
                (true, n, _) => 0.1 / n as f32,
                (false, _, n) => 0.9 / n as f32,
            };
            let logits: Vec<f32> = content.iter().map(|c| share(c).ln()).collect();
            let t = Tensor::from_vec(logits, content.len(), dev)?;
            Some(params.add("graph_logits", &t)?)
        } else {
            None
        };
        let bank = if cfg.memory_bank > 0 && cfg.perspective != Perspective::Expansion {
            Some(table(params, "memory_bank", cfg.memory_bank)?)
        } else {
            None
        };
        let names: Vec<&str> = std::iter::once("id")
            .chain(content.iter().map(|c| c.name.as_str()))
            .collect();
        let (mut user_gates, mut item_gates) = (Vec::new(), Vec::new());
        if cfg.perspective == Perspective::Gate {
            for n in &names {
                let (u, i) = (format!("gate.user.{n}"), format!("gate.item.{n}"));
                user_gates.push(Linear::new(params, &u, 2 * d, d, seed, dev)?);
                item_gates.push(Linear::new(params, &i, 2 * d, d, seed, dev)?);
            }
        }
        let product = if cfg.align == super::config::Align::Product {
            names[1..]
                .iter()
                .map(|n| Linear::new(params, &format!("product.{n}"), d, d, seed, dev))
                .collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        Ok(Self {
            dim: d,
            layers: cfg.memory_layers,
            perspective: cfg.perspective,
            user_ids,
            item_ids,
            inputs,
            graph_logits,
            bank,
            user_gates,
            item_gates,
            product,
        })
    }

    /// Channels: id and the modalities.
    pub(super) fn channels(&self) -> usize {
        1 + self.inputs.len()
    }

    /// `X_c` of the content channels, `[n, d]` each, zero where missing.
    pub(super) fn content(&self, ids: &Tensor) -> Result<Vec<Tensor>> {
        self.inputs
            .iter()
            .enumerate()
            .map(|(c, input)| {
                let x = ops::input_linear(&input.features, &input.weight)?;
                let mut x = input.norm.forward(&x.broadcast_add(&input.bias)?)?;
                if let Some(gate) = self.product.get(c) {
                    x = (candle_nn::ops::sigmoid(&gate.forward(&x)?)? * ids)?;
                }
                Ok(x.broadcast_mul(&input.present)?)
            })
            .collect()
    }

    /// Means over each user's items of the content channels, which stand side by side.
    fn user_means(&self, seen: &Observed, items: &Tensor) -> Result<Vec<Tensor>> {
        let sums = channels(&seen.user_sum.apply(items)?, self.dim)?;
        sums.iter()
            .zip(&seen.per_user[1..])
            .map(|(s, share)| Ok(s.broadcast_mul(share)?))
            .collect()
    }

    /// Both perspectives of all nodes, by the interactions seen.
    pub(super) fn views(&self, graphs: &Graphs, seen: &Observed) -> Result<Views> {
        // Ids without a training row have learnt nothing: their items are what content makes of them.
        let ids = self.item_ids.broadcast_mul(&graphs.whole.trained)?;
        let x = self.content(&ids)?;
        let items: Vec<&Tensor> = std::iter::once(&ids).chain(&x).collect();
        let memory = match self.perspective {
            Perspective::Expansion => None,
            _ => Some(self.memory(seen, &x, &items)?),
        };
        let (mut users, mut expanded) = (None, None);
        if self.perspective != Perspective::Memory {
            let (u, i) = self.expansion(graphs, seen, &ids, &x)?;
            (users, expanded) = (Some(u), Some(i));
        }
        Ok(Views {
            memory,
            users,
            items: expanded,
        })
    }

    fn memory(&self, seen: &Observed, x: &[Tensor], items: &[&Tensor]) -> Result<Tensor> {
        let means = match x {
            [] => Vec::new(),
            _ => self.user_means(seen, &Tensor::cat(x, 1)?)?,
        };
        let users: Vec<&Tensor> = std::iter::once(&self.user_ids).chain(&means).collect();
        let start = Tensor::cat(&[Tensor::cat(&users, 1)?, Tensor::cat(items, 1)?], 0)?;
        let sum = seen.adjacency.layer_sum(&start, self.layers)?;
        let memory = (sum / (self.layers + 1) as f64)?;
        match &self.bank {
            None => Ok(memory),
            Some(bank) => {
                let (nodes, width) = memory.dims2()?;
                let flat = memory.reshape((nodes * width / self.dim, self.dim))?;
                let read = (&flat + (read_bank(&flat, bank)? * 0.5)?)?;
                Ok(read.reshape((nodes, width))?)
            }
        }
    }

    fn expansion(
        &self,
        graphs: &Graphs,
        seen: &Observed,
        ids: &Tensor,
        x: &[Tensor],
    ) -> Result<(Tensor, Tensor)> {
        let d = self.dim;
        let shares = match &self.graph_logits {
            Some(l) => Some(candle_nn::ops::softmax(l, 0)?),
            None => None,
        };
        let mut items = vec![ids.clone()];
        for (c, (graph, x)) in graphs.item_graphs.iter().zip(x).enumerate() {
            let both = graph.apply(&Tensor::cat(&[x, ids], 1)?)?;
            items.push((x + both.narrow(1, 0, d)?.contiguous()?)?);
            let mut id = both.narrow(1, d, d)?.contiguous()?;
            if let Some(s) = &shares {
                id = id.broadcast_mul(&s.narrow(0, c, 1)?)?;
            }
            items[0] = (&items[0] + id)?;
        }
        let mut users = vec![self.user_ids.clone()];
        if items.len() > 1 {
            users.extend(self.user_means(seen, &Tensor::cat(&items[1..], 1)?)?);
        }
        let mut users = Tensor::cat(&users, 1)?;
        if let Some(graph) = &graphs.user_graph {
            users = (&users + graph.apply(&users)?)?;
        }
        Ok((users, Tensor::cat(&items, 1)?))
    }

    /// `Z_c` of rows of both perspectives, one tensor a channel: of users or, with the column `open` that
    /// is 0 for items whose memory is empty, of items.
    pub(super) fn mix(
        &self,
        memory: Option<&Tensor>,
        expansion: Option<&Tensor>,
        open: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let split = |t: Option<&Tensor>| match t {
            Some(t) => channels(t, self.dim),
            None => Ok(Vec::new()),
        };
        let (m, y) = (split(memory)?, split(expansion)?);
        match self.perspective {
            Perspective::Memory => Ok(m),
            Perspective::Expansion => Ok(y),
            Perspective::Average => m
                .iter()
                .zip(&y)
                .map(|(m, y)| Ok(((m + y)? * 0.5)?))
                .collect(),
            Perspective::Gate => {
                let gates = match open {
                    None => &self.user_gates,
                    Some(_) => &self.item_gates,
                };
                m.iter()
                    .zip(&y)
                    .zip(gates)
                    .map(|((m, y), gate)| {
                        let l = gate.forward(&Tensor::cat(&[m, y], 1)?)?;
                        gated(&l, m, y, open)
                    })
                    .collect()
            }
        }
    }
}

/// `softmax(x Bᵀ/√d) B`: what an addressed memory answers.
pub(super) fn read_bank(x: &Tensor, bank: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / (bank.dim(1)? as f64).sqrt();
    let weights = candle_nn::ops::softmax(&(x.matmul(&bank.t()?)? * scale)?, 1)?;
    Ok(weights.matmul(bank)?)
}
