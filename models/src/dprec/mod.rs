//! DPRec: dual-perspective multi-level cross-modal recommendation with features of large models.
//!
//! After Li, Yu, Yu, Si, Ye, "Dual-Perspective Multi-Level Cross-Modal Recommendation Based on
//! Large Language Models", Journal of Computer Research and Development, DOI
//! 10.7544/issn1000-1239.202550040. **Only its abstract is public: this is a design that keeps the
//! abstract's promises, not a reproduction**, and no figure of the paper is compared with. Another
//! model of the same abbreviation ("Dual-Path Multimodal Recommendation", Yan et al., CIKM 2025) is
//! unrelated.
//!
//! | promise of the abstract | kept by | checked by |
//! |---|---|---|
//! | C1 features of large models instead of small, distorting encoders | item features as they are given, made usable by [`features`] | A1, A10 |
//! | C2 encode from a memory *and* an expansion perspective | two encoders and a gate | A2, A3, A9 |
//! | C3 align by more than a product with behaviour | the product is a baseline, [`config::Align::Product`] | A4, A8, A11 |
//! | C4 hypergraphs align modalities on several levels | item, concept and interest hyperedges | A5–A7 |
//! | C5 better than its peers on three data sets | `benches/experiments/dprec.sh` runs five | – |
//!
//! Everything below this line of promises is inferred from the works it builds on, or ours:
//! linear propagation and its depth from LightGCN and LGMRec; frozen neighbour graphs, their size,
//! the thinning of edges and the initial share of pictures from LATTICE and FREEDOM; attention over
//! modalities and the criticised product from MGCN; soft hyperedges with Gumbel noise from LGMRec.
//! Ours: what the two perspectives are, the whitening, the interest level and its factored form, the
//! losses on vectors from before the convolution, all weights.
//!
//! One step: content inputs → both encoders over all nodes → gate → hyperedges over all items →
//! vectors of the batch's nodes → losses. A batch's own pairs are hidden from everything it is scored
//! with (ours). Otherwise a user's mean of contents, interest and propagated vector would hold the very
//! item that has to be found, and the loss would fall by recognising it.
//!
//! Pairs are ranked by a softmax over cosines with every item of the batch (ours,
//! [`config::Loss::Softmax`]). The works' one negative a pair, by dot products, is `loss=bpr`: content
//! of unit length on top of much shorter id vectors learns worse by it.
//!
//! # Ablations
//!
//! | name | setting |
//! |---|---|
//! | A0 | defaults |
//! | A1 poor encoder | `feature_bits=8` |
//! | A2 memory only | `perspective=memory` |
//! | A3 expansion only | `perspective=expansion` |
//! | A4 product with behaviour | `align=product` |
//! | A5 without item level | `level_item=false` |
//! | A6 without concepts | `level_concept=false` |
//! | A7 without interests | `level_interest=false` |
//! | A8 pairwise contrast only | `align=pairwise` |
//! | A9 plain mean of the perspectives | `perspective=average` |
//! | A10 no whitening | `whiten=false` |
//! | A11 no alignment | `align=none` |

mod alignment;
pub mod config;
mod encoder;
pub mod features;
mod graphs;
mod hypergraph;
mod losses;
mod objective;
mod probe;

use candle_core::{Device, Tensor};

pub use config::DprecConfig;
use config::{Loss, Perspective};

use alignment::Alignment;
use encoder::{Encoder, Views, column};
use features::{Recipe, Transform};
use graphs::{Content, Graphs, Observed};
use objective::{Batch, Parts};

use crate::data::{Csr, Dataset, ModalityFeatures};
use crate::error::{Error, Result};
use crate::ops::{self, pick};
use crate::params::{Adam, Params, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose};
use crate::train::{EpochLosses, Learner, Monitor, factors, sample_triples_among};

/// Epochs after which the learning rate shrinks once.
const DECAY_EVERY: u64 = 50;

/// The model, its optimizer and its graphs.
///
/// While a batch is scored its own pairs are hidden, so a batch is never more than a quarter of them.
#[derive(Debug)]
pub struct Dprec {
    cfg: DprecConfig,
    seed: u64,
    dev: Device,
    graphs: Graphs,
    transforms: Vec<(String, Transform)>,
    params: Params,
    adam: Adam,
    encoder: Encoder,
    alignment: Alignment,
    /// Items with training rows, in order: negatives are drawn from them. One that cannot be right in
    /// training would only learn to rank low.
    trained: Vec<u32>,
    /// Which items have each channel (the id channel first), as columns `[n, 1]`.
    present: Vec<Tensor>,
    /// True groups to compare the concepts with.
    truth: Option<Vec<u32>>,
    /// Vectors of the epoch that just ended.
    finished: Option<(Tensor, Tensor)>,
}

impl Dprec {
    /// A fresh model for the training rows and features of `data`; without features it is the id
    /// channel with its graphs.
    ///
    /// # Errors
    /// A configuration out of range, or an attribute to probe that the data does not have.
    pub fn new(data: &Dataset, cfg: DprecConfig, seed: u64, dev: &Device) -> Result<Self> {
        cfg.check()?;
        let rows = data.train_rows();
        let mut trained = vec![false; data.num_items()];
        rows.indices
            .iter()
            .for_each(|&i| trained[i as usize] = true);
        let mut content = Vec::new();
        let mut transforms = Vec::new();
        for f in &data.features {
            let (c, t) = prepare(f, &trained, &cfg, seed, dev)?;
            content.push(c);
            transforms.push((f.name.clone(), t));
        }
        let truth = match cfg.probe_attribute.as_str() {
            "" => None,
            name => Some(groups(data, name)?),
        };
        let mut model = Self::build(rows, data.num_items(), content, cfg, seed, dev)?;
        model.transforms = transforms;
        model.truth = truth;
        Ok(model)
    }

    /// A fresh model over post-processed content.
    fn build(
        rows: Csr,
        items: usize,
        content: Vec<Content>,
        cfg: DprecConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let mut trained = rows.indices.clone();
        trained.sort_unstable();
        trained.dedup();
        let graphs = Graphs::new(rows, items, &content, &cfg, dev)?;
        let mut params = Params::default();
        let encoder = Encoder::new(&mut params, &graphs, &content, &cfg, seed, dev)?;
        let alignment = Alignment::new(&mut params, &cfg, content.len(), seed, dev)?;
        let present = graphs
            .has
            .iter()
            .map(|has| column(has.iter().map(|p| f32::from(u8::from(*p))).collect(), dev))
            .collect::<Result<Vec<_>>>()?;
        let adam = Adam::new(&params, cfg.lr, 0.0)?;
        Ok(Self {
            cfg,
            seed,
            dev: dev.clone(),
            graphs,
            transforms: Vec::new(),
            params,
            adam,
            encoder,
            alignment,
            trained,
            present,
            truth: None,
            finished: None,
        })
    }

    /// Triples per step: at most a quarter of the training pairs, because a batch's pairs are hidden
    /// while it is scored.
    fn batch(&self) -> usize {
        self.cfg
            .batch
            .min(self.graphs.rows.nnz().div_ceil(4))
            .max(1)
    }

    /// `Z_c` of all items.
    fn item_vectors(&self, views: &Views, seen: &Observed) -> Result<Vec<Tensor>> {
        let memory = match &views.memory {
            Some(m) => Some(m.narrow(0, self.graphs.users, self.graphs.items)?),
            None => None,
        };
        let open = Some(&seen.trained);
        self.encoder
            .mix(memory.as_ref(), views.items.as_ref(), open)
    }

    /// `Z^u_c` of the given users, or of all.
    fn user_vectors(&self, views: &Views, users: Option<&[u32]>) -> Result<Vec<Tensor>> {
        let select = |t: &Tensor| match users {
            Some(u) => pick(t, u),
            None => Ok(t.narrow(0, 0, self.graphs.users)?),
        };
        let of = |t: &Option<Tensor>| match t {
            Some(t) => select(t).map(Some),
            None => Ok(None),
        };
        let (memory, expansion) = (of(&views.memory)?, of(&views.users)?);
        self.encoder.mix(memory.as_ref(), expansion.as_ref(), None)
    }

    /// Gumbel noise on the assignments of one training step.
    fn noise(&self, epoch: u64, step: u64) -> Result<Option<Vec<Tensor>>> {
        if self.cfg.gumbel == 0.0 || !self.cfg.levels()[1] {
            return Ok(None);
        }
        let mut r = rng::stream(self.seed, Purpose::Noise, &[epoch, step]);
        let shape = (self.graphs.items, self.cfg.concepts);
        let scale = self.cfg.gumbel as f32;
        let mut draw = || {
            let u = rng::unit(&mut r).max(1e-7);
            -(-u.ln()).max(1e-7).ln() * scale
        };
        let mut one = || -> Result<Tensor> {
            let v: Vec<f32> = (0..shape.0 * shape.1).map(|_| draw()).collect();
            Ok(Tensor::from_vec(v, shape, &self.dev)?)
        };
        Ok(Some(
            (0..self.encoder.channels())
                .map(|_| one())
                .collect::<Result<_>>()?,
        ))
    }

    /// Final vectors of all users and items, without noise and over all edges, with what the probes
    /// need of the items.
    fn finish(&self) -> Result<Finished> {
        let seen = &self.graphs.whole;
        let views = self.encoder.views(&self.graphs, seen)?;
        let z = self.item_vectors(&views, seen)?;
        let edges = self.alignment.hyperedges(seen, &z, &self.present, None)?;
        let o = self.alignment.items(&z, &self.present, &edges, None)?;
        let items = self.alignment.fuse(&o, &self.present)?.detach();
        let mut users = self.user_vectors(&views, None)?;
        if let Some(q) = &edges.interests
            && let Some(message) = self.alignment.user_message(q)?
        {
            for z in &mut users {
                *z = (&*z + &message)?;
            }
        }
        let users = self.alignment.fuse(&users, &seen.user_present)?.detach();
        // A softmax over cosines is trained without lengths, so there are none.
        let items = match self.cfg.loss {
            Loss::Bpr => items,
            Loss::Softmax => ops::normalize_rows(&items)?,
        };
        Ok(Finished {
            users,
            items,
            z,
            assignments: edges.assignments,
        })
    }

    /// Probes: do an item's modalities meet, are concepts spread, are they the true groups?
    fn probes(&self, f: &Finished) -> Result<EpochLosses> {
        let mut out = EpochLosses::new();
        let rows_of = |channels: &[usize]| -> Vec<u32> {
            (0..self.graphs.items)
                .filter(|&i| channels.iter().all(|&c| self.graphs.has[c][i]))
                .map(|i| i as u32)
                .collect()
        };
        if f.z.len() > 2 {
            let both = rows_of(&[1, 2]);
            if both.len() > 1 {
                let (a, b) = (pick(&f.z[1], &both)?, pick(&f.z[2], &both)?);
                out.push((
                    "modality_margin",
                    probe::modality_margin(&a, &b, self.seed)?,
                ));
            }
        }
        if !f.assignments.is_empty() {
            let (_, entropy) = losses::assignment_entropy(&f.assignments, &self.present)?;
            let most = (self.cfg.concepts.max(2) as f64).ln();
            out.push(("concept_entropy", scalar(&entropy)? / most));
        }
        if let Some(truth) = &self.truth {
            if !f.assignments.is_empty() {
                let h = hypergraph::present_sum(&f.assignments, &self.present)?;
                let found = probe::argmax_rows(&h)?;
                let nmi = probe::normalized_mutual_information(&found, truth);
                out.push(("nmi_concepts", nmi));
            }
            let k = truth.iter().max().map_or(1, |m| *m as usize + 1);
            let found = probe::clusters(&f.items, k, self.seed)?;
            let nmi = probe::normalized_mutual_information(&found, truth);
            out.push(("nmi_clusters", nmi));
        }
        Ok(out)
    }
}

/// What [`Dprec::finish`] yields.
struct Finished {
    users: Tensor,
    items: Tensor,
    z: Vec<Tensor>,
    assignments: Vec<Tensor>,
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

/// Post-processes one modality, fitted on items with training interactions.
fn prepare(
    f: &ModalityFeatures,
    trained: &[bool],
    cfg: &DprecConfig,
    seed: u64,
    dev: &Device,
) -> Result<(Content, Transform)> {
    let (transform, features) = if cfg.feature_bits > 0 {
        let t = Transform::random_signs_of(f.dim(), cfg.feature_bits, seed);
        let x = t.apply_signs(&f.values, &f.present, dev)?;
        (t, x)
    } else {
        let fit_on: Vec<bool> = trained
            .iter()
            .zip(&f.present)
            .map(|(t, p)| *t && *p)
            .collect();
        let t = if cfg.whiten {
            let recipe = Recipe {
                remove: cfg.whiten_remove,
                keep: cfg.whiten_width,
                seed,
            };
            Transform::fit(&f.values, &fit_on, recipe)?
        } else {
            Transform::unit_rows(f.dim())
        };
        let x = t.apply(&f.values, &f.present, dev)?;
        (t, x)
    };
    // What has no direction left says nothing and counts as missing.
    let norms = features.sqr()?.sum(1)?.to_vec1::<f32>()?;
    let content = Content {
        name: f.name.clone(),
        is_image: f.kind == "image",
        features,
        present: norms.iter().map(|n| *n > 0.0).collect(),
    };
    Ok((content, transform))
}

/// The first value of an item attribute as dense labels; items without one share a label.
fn groups(data: &Dataset, name: &str) -> Result<Vec<u32>> {
    let attribute = (data.attributes.iter().find(|a| a.name == name)).ok_or_else(|| {
        let known: Vec<&str> = data.attributes.iter().map(|a| a.name.as_str()).collect();
        Error::config(format!(
            "probe_attribute: items have no attribute `{name}`, only [{}]",
            known.join(", ")
        ))
    })?;
    let mut labels = std::collections::BTreeMap::new();
    Ok(attribute
        .values
        .iter()
        .map(|v| {
            let next = labels.len() as u32;
            *labels
                .entry(v.first().map_or("", String::as_str))
                .or_insert(next)
        })
        .collect())
}

impl Learner for Dprec {
    fn steps_per_epoch(&self) -> u64 {
        self.graphs.rows.nnz().div_ceil(self.batch()) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let cfg = &self.cfg;
        let decay = cfg.lr_decay.powi((epoch / DECAY_EVERY) as i32);
        self.adam.set_lr(cfg.lr * decay);
        let ramp = match cfg.ramp {
            0 => 1.0,
            r => ((epoch + 1) as f64 / r as f64).min(1.0),
        };
        if cfg.perspective != Perspective::Expansion {
            self.graphs.thin(cfg.keep_rate, self.seed, epoch);
        }
        let triples = sample_triples_among(&self.trained, &self.graphs.rows, self.seed, epoch);
        let mut sum = Parts::default();
        let mut n = 0u64;
        let batch = self.batch();
        for part in triples.chunks(batch) {
            let batch = Batch::new(part);
            let noise = self.noise(epoch, n)?;
            let (loss, parts) = self.objective(&batch, noise.as_deref(), ramp)?;
            self.adam.step(&loss.backward()?)?;
            sum.ranking += parts.ranking;
            sum.item += parts.item;
            sum.concept += parts.concept;
            sum.interest += parts.interest;
            sum.perspective += parts.perspective;
            n += 1;
            monitor.step()?;
        }
        let n = n.max(1) as f64;
        let mut out = vec![
            ("loss_ranking", sum.ranking / n),
            ("loss_item", sum.item / n),
            ("loss_concept", sum.concept / n),
            ("loss_interest", sum.interest / n),
            ("loss_perspective", sum.perspective / n),
        ];
        let finished = self.finish()?;
        out.extend(self.probes(&finished)?);
        self.finished = Some((finished.users, finished.items));
        Ok(out)
    }

    fn inference(&self) -> Result<TensorMap> {
        let (users, items) = match &self.finished {
            Some(f) => f.clone(),
            None => {
                let f = self.finish()?;
                (f.users, f.items)
            }
        };
        let mut out = factors(&users, &items)?;
        for (name, t) in &self.transforms {
            t.export(name, &mut out)?;
        }
        Ok(out)
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        self.finished = None;
        restore_training(&self.params, &mut self.adam, from)
    }
}

#[cfg(test)]
mod tests;
