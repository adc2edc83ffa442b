//! What the exact rearrangements of the item encoder save.

use std::collections::HashMap;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::batch::Batch;
use super::loss::online_distillation;
use super::{Net, Odmt, OdmtConfig};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::ops::index_tensor;
use crate::params::gradients;
use crate::rng::{self, Purpose};
use crate::train::{Learner, Mode};

/// What a training step costs in one arrangement.
#[derive(Debug, Clone, PartialEq)]
pub struct StepCost {
    /// Each distinct item is encoded once, not in every slot of the batch.
    pub distinct: bool,
    /// The last block of the item encoder computes the tokens that are read, not all.
    pub trimmed: bool,
    /// Loss and gradients of a micro-batch, the median over the micro-batches.
    pub seconds: f64,
    /// The loss of the first micro-batch, without dropout: the same in every arrangement but for
    /// rounding.
    pub loss: f64,
}

/// Times the steps of the first `steps` micro-batches of an epoch in the four arrangements, the one in
/// use last.
///
/// # Errors
/// As [`Odmt::new`]; [`Error::Config`](crate::Error) if two arrangements disagree on a loss.
pub fn step_costs(
    data: &Dataset,
    cfg: OdmtConfig,
    seed: u64,
    steps: usize,
    dev: &Device,
) -> Result<Vec<StepCost>> {
    let mut model = Odmt::new(data, cfg, Mode::Honest, seed, dev)?;
    let mut order = model.windows.cut(&model.windows.sequences);
    rng::shuffle(&mut rng::stream(seed, Purpose::Shuffle, &[0]), &mut order);
    let batches: Vec<(Batch, Slots)> = order
        .chunks(model.cfg.batch)
        .take(steps.min(model.steps_per_epoch() as usize))
        .map(|w| {
            let batch = Batch::new(w, &model.log_popularity, model.mask_own);
            (batch, Slots::new(w))
        })
        .collect();
    let distillation = model.distillation(1);
    let mut costs: Vec<StepCost> = Vec::new();
    for (distinct, trimmed) in [(false, false), (true, false), (false, true), (true, true)] {
        model.net.items.trim = trimmed;
        let net = &model.net;
        let mut seconds = Vec::with_capacity(batches.len());
        let mut first = None;
        for (batch, slots) in &batches {
            let start = Instant::now();
            let items = if distinct {
                net.items.encode(&batch.items, None)?
            } else {
                slots.encode(net)?
            };
            let logits = net.logits_of(&items, batch, None)?;
            let (loss, parts) = online_distillation(&logits, &batch.candidates, &distillation)?;
            gradients(&net.params, &loss.backward()?);
            seconds.push(start.elapsed().as_secs_f64());
            first.get_or_insert(parts.cross_entropy);
        }
        seconds.sort_by(f64::total_cmp);
        let cost = StepCost {
            distinct,
            trimmed,
            seconds: seconds[seconds.len() / 2],
            loss: first.unwrap_or(f64::NAN),
        };
        if let Some(other) = costs.first()
            && (cost.loss - other.loss).abs() > 1e-5 * other.loss.abs()
        {
            return Err(Error::config(format!(
                "the arrangements of odmt disagree: {cost:?}, {other:?}"
            )));
        }
        costs.push(cost);
    }
    Ok(costs)
}

/// Every event of a micro-batch, as the published program encodes them.
struct Slots {
    items: Vec<u32>,
    /// Where each distinct item occurs first, in the order of [`Batch`].
    first: Vec<u32>,
}

impl Slots {
    fn new(windows: &[&[u32]]) -> Self {
        let items: Vec<u32> = windows.concat();
        let mut seen = HashMap::new();
        let mut first = Vec::new();
        for (at, &item) in items.iter().enumerate() {
            seen.entry(item).or_insert_with(|| first.push(at as u32));
        }
        Self { items, first }
    }

    fn encode(&self, net: &Net) -> Result<Vec<Tensor>> {
        let all = net.items.encode(&self.items, None)?;
        let first = index_tensor(&self.first, all[0].device())?;
        all.iter().map(|e| Ok(e.index_select(&first, 0)?)).collect()
    }
}
