//! Co-behaviour as a modality: item vectors of a graph of behaviours, learnt before everything else and
//! then frozen.
//!
//! That embeddings of an item-behaviour graph are an input is published; their encoder,
//! [`BehaviorGraph`], is inferred from what the paper builds on.

use candle_core::{DType, Device, Tensor};

use super::config::TmfConfig;
use crate::baseline::behavior_graph::{BehaviorGraph, BehaviorGraphConfig};
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::eval::{EvalProtocol, evaluate};
use crate::factors::Factors;
use crate::graph::index_tensor;
use crate::train::{Monitor, factors};

/// Epochs between two looks at validation rows, and looks without improvement before the end.
const LOOK_EVERY: usize = 5;
const PATIENCE: usize = 2;

/// What co-behaviour says about items.
pub(super) struct CoBehavior {
    /// `[N, d]`, standardised, zero for items without any.
    pub(super) vectors: Tensor,
    /// Items that have any.
    pub(super) present: Vec<bool>,
    /// recall@20 of the encoder's own scores on validation rows.
    pub(super) recall: Option<f64>,
}

/// Learns co-behaviour from training rows alone; the epoch is chosen on validation rows.
///
/// # Errors
/// [`crate::Error::Interrupted`] when the monitor asks to stop.
pub(super) fn encode(
    data: &Dataset,
    cfg: &TmfConfig,
    seed: u64,
    dev: &Device,
    monitor: &mut Monitor<'_>,
) -> Result<CoBehavior> {
    let items = data.num_items();
    let mut present = vec![false; items];
    let rows = data.rows(&[Split::Train], None);
    rows.indices
        .iter()
        .for_each(|&i| present[i as usize] = true);
    if rows.nnz() == 0 {
        let vectors = Tensor::zeros((items, cfg.graph_dim), DType::F32, dev)?;
        return Ok(CoBehavior {
            vectors,
            present,
            recall: None,
        });
    }
    let of_graph = BehaviorGraphConfig {
        dim: cfg.graph_dim,
        layers: cfg.graph_layers,
        lr: cfg.graph_lr,
        batch: cfg.graph_batch,
        reg: cfg.graph_reg,
        behavior_weights: cfg.behavior_weights.clone(),
        transitions: cfg.transitions,
    };
    let mut graph = BehaviorGraph::new(data, of_graph, seed, dev)?;
    let mut best: Option<(f64, Tensor)> = None;
    let mut waited = 0;
    for epoch in 0..cfg.graph_epochs {
        graph.learn(epoch as u64, || monitor.check())?;
        if (epoch + 1) % LOOK_EVERY == 0 || epoch + 1 == cfg.graph_epochs {
            let (users, items) = graph.vectors()?;
            let scores = Factors::new(&factors(&users, &items)?)?;
            let report = evaluate(&scores, data, &EvalProtocol::valid())?;
            let value = report.metric("recall@20").unwrap_or(0.0);
            if best.as_ref().is_none_or(|(b, _)| value > *b) {
                best = Some((value, items));
                waited = 0;
            } else {
                waited += 1;
            }
            if waited >= PATIENCE {
                break;
            }
        }
    }
    let (recall, vectors) = match best {
        Some((value, items)) => (Some(value), items),
        None => (None, graph.vectors()?.1),
    };
    Ok(CoBehavior {
        vectors: standardised(&vectors, &present)?,
        present,
        recall,
    })
}

/// Columns of mean zero and unit deviation over the items that have any; zero rows for the others.
fn standardised(vectors: &Tensor, warm: &[bool]) -> Result<Tensor> {
    let dev = vectors.device();
    let ids: Vec<u32> = (0..warm.len() as u32)
        .filter(|&i| warm[i as usize])
        .collect();
    let known = vectors.index_select(&index_tensor(&ids, dev)?, 0)?;
    let mean = known.mean_keepdim(0)?;
    let std = known.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
    let has: Vec<f32> = warm.iter().map(|w| f32::from(u8::from(*w))).collect();
    let has = Tensor::from_vec(has, (warm.len(), 1), dev)?;
    let y = vectors
        .broadcast_sub(&mean)?
        .broadcast_div(&(std + 1e-6)?)?;
    Ok(y.broadcast_mul(&has)?)
}
