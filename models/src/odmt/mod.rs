//! ODMT: online distillation-enhanced multi-modal transformer for sequential recommendation.
//!
//! Ji, Liu, Zhang, Wei, Ni, Wang, ACM MM 2023 (arXiv 2308.04067). Written from the paper's public
//! description and the behaviour of the published program, which its authors call little tested.
//!
//! Each item becomes one vector per *branch*: an id branch and one for each modality. The item
//! encoder (IMT) is a small transformer over frozen feature tokens and one id token; by default the
//! modalities do not see the id. Each branch has a user encoder of its own, like SASRec, and is
//! trained by softmax over the items of its micro-batch, less the logarithm of their popularity.
//! Branches teach each other: the id branch each modality, the mean of all branches the id branch.
//! Scoring uses that mean.
//!
//! | topic | paper (as far as public) | published program | here |
//! |---|---|---|---|
//! | distillation | mutual, divergence | cross-entropy in one direction, gradient into both sides | as the program; `kd_detach`, `kd_symmetric` |
//! | id mask | id-aware | released setting cuts the id off | as the program; `id_mask = "open"` |
//! | heads of the item encoder | – | tied to its layers | apart |
//! | popularity correction | not visible | in training only | as the program |
//! | weight decay | – | every variable | as the program |
//! | last epoch | – | never evaluated | evaluated |
//! | history of a query | – | newest 15 events are masked | all events are masked |
//! | slots | – | every slot encoded | each distinct item once; copies share a dropout mask |
//! | modalities | text and image | both | those of the data set, at least one |
//! | missing features | – | zeros | hidden from other tokens; a learnt vector stands in their branch |
//!
//! The last two rows, windows over whole histories, standardised features, principal components for
//! id tables of another width than the features, own items as candidates where evaluation does
//! not exclude them ([`OdmtConfig::mask_own`]), and a new order every epoch for events that have none
//! ([`OdmtConfig::shuffle_events`]) are ours. `parity` mode switches windows, standardisation, own items and
//! order to what the program does.
//!
//! Published settings: `dim` and `id_dim` 768, `lr` 1e-4, `micro_batches` 2, `batch` 128, `window`
//! 12, and
//!
//! | data | `tau` | `alpha` | `id_init` | epochs |
//! |---|--:|--:|---|--:|
//! | Arts | 0.3 | 20 | mean | 31 |
//! | Office | 0.4 | 40 | mean | 30 |
//! | H&M | 0.5 | 60 | mean | 30 |
//! | Stream | 0.5 | 50 | text | 40 |
//!
//! The paper's tables could not be read, and its data sets are not all public, so no published
//! number is repeated here.
//!
//! Exact rearrangements: distinct items once; only the tokens that are read out in the last block
//! of the item encoder; sequences without padding; copies of an item as weights in the softmax;
//! one pass for all losses and their gradient; no gradient towards frozen features.

mod batch;
mod block;
pub mod config;
mod cost;
mod imt;
mod loss;
mod start;
mod user;

use candle_core::{Device, Tensor};

use batch::{Batch, log_popularity};
pub use config::OdmtConfig;
pub use cost::{StepCost, step_costs};
use imt::{Frozen, ItemEncoder};
use loss::{Distillation, MOST_SETS, Parts, online_distillation};
use user::UserEncoder;

use crate::attention::{Segments, last_states};
use crate::data::Dataset;
use crate::data::sequence::{TrainingWindows, newest};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::factors::copy_scores;
use crate::params::{
    Adam, Params, TensorMap, add_gradients, clip_gradients, gradients, restore_training,
    training_state,
};
use crate::rng::{self, Purpose, Stream};
use crate::train::{EpochLosses, Learner, Mode, Monitor};

/// Items encoded at once when all are.
const ENCODED_AT_ONCE: usize = 2048;

/// Prefix of the item vectors of a branch in a run's tensors.
const ITEMS: &str = "items.";

/// Prefix of a branch's user encoder.
const USER: &str = "user.";

/// Item encoder and user encoders.
#[derive(Debug)]
struct Net {
    params: Params,
    items: ItemEncoder,
    /// Names of the branches: `id`, then the modalities.
    branches: Vec<String>,
    users: Vec<UserEncoder>,
}

impl Net {
    fn new(
        cfg: &OdmtConfig,
        ids: &Tensor,
        features: Vec<Frozen>,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let mut branches = vec!["id".to_string()];
        branches.extend(features.iter().map(|f| f.name.clone()));
        if branches.len() >= MOST_SETS {
            return Err(Error::config(format!(
                "odmt takes at most {} modalities; choose some with --modalities",
                MOST_SETS - 2
            )));
        }
        let mut params = Params::default();
        let items = ItemEncoder::new(&mut params, cfg, ids, features, seed, dev)?;
        let users = branches
            .iter()
            .map(|b| UserEncoder::new(&mut params, &format!("{USER}{b}"), cfg, seed, dev))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            params,
            items,
            branches,
            users,
        })
    }

    /// Raw scores of every input event of a micro-batch against its items, `[R, branches, U]`.
    fn logits(&self, batch: &Batch, mut noise: Option<&mut Stream>) -> Result<Tensor> {
        let items = self.items.encode(&batch.items, noise.as_deref_mut())?;
        self.logits_of(&items, batch, noise)
    }

    /// The same, of items that are encoded already.
    fn logits_of(
        &self,
        items: &[Tensor],
        batch: &Batch,
        mut noise: Option<&mut Stream>,
    ) -> Result<Tensor> {
        let scores = items
            .iter()
            .zip(&self.users)
            .map(|(e, user)| {
                let u = user.forward(e, &batch.events, &batch.segments, noise.as_deref_mut())?;
                Ok(u.matmul(&e.t()?)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&scores, 1)?)
    }

    fn loss(
        &self,
        batch: &Batch,
        distillation: &Distillation,
        noise: Option<&mut Stream>,
    ) -> Result<(Tensor, Parts)> {
        let logits = self.logits(batch, noise)?;
        online_distillation(&logits, &batch.candidates, distillation)
    }

    /// Vectors of all items, `[N, D]` for each branch.
    fn all_items(&self) -> Result<Vec<Tensor>> {
        let ids: Vec<u32> = (0..self.items.num_items()? as u32).collect();
        let mut parts = vec![Vec::new(); self.branches.len()];
        for ids in ids.chunks(ENCODED_AT_ONCE) {
            for (part, e) in parts.iter_mut().zip(self.items.encode(ids, None)?) {
                part.push(e.detach());
            }
        }
        parts.iter().map(|p| Ok(Tensor::cat(p, 0)?)).collect()
    }
}

/// The networks, their optimizer and the training sequences.
#[derive(Debug)]
pub struct Odmt {
    cfg: OdmtConfig,
    net: Net,
    adam: Adam,
    seed: u64,
    windows: TrainingWindows,
    log_popularity: Vec<f32>,
    mask_own: bool,
}

impl Odmt {
    /// A fresh model for the training sequences and features of `data`.
    ///
    /// # Errors
    /// A configuration out of range, a data set without features, or no user with two training
    /// events.
    pub fn new(
        data: &Dataset,
        cfg: OdmtConfig,
        mode: Mode,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let cfg = cfg.for_mode(mode);
        cfg.check()?;
        if data.features.is_empty() {
            return Err(Error::config(
                "odmt needs at least one modality: put a matrix into the data set's `features` folder, or choose sasrec",
            ));
        }
        let windows = TrainingWindows::new(
            data,
            cfg.min_events,
            cfg.window,
            cfg.windows,
            cfg.shuffle_events,
        )?
        .of_items();
        let features = data
            .features
            .iter()
            .map(|f| Frozen::new(f, cfg.standardize))
            .collect::<Result<Vec<_>>>()?;
        let kinds: Vec<String> = data.features.iter().map(|f| f.kind.clone()).collect();
        let ids = start::id_table(&cfg, data.num_items(), &features, &kinds, seed, dev)?;
        let net = Net::new(&cfg, &ids, features, seed, dev)?;
        let adam = Adam::new(&net.params, cfg.lr, cfg.weight_decay)?;
        Ok(Self {
            mask_own: cfg.mask_own.unwrap_or(data.queries.is_none()),
            log_popularity: log_popularity(&windows.counts(data.num_items())),
            cfg,
            net,
            adam,
            seed,
            windows,
        })
    }

    /// The scorer behind a run's inference tensors.
    ///
    /// # Errors
    /// Tensors of another model or shape, or `score_by` that names no branch.
    pub fn scorer(tensors: &TensorMap, cfg: &OdmtConfig, dev: &Device) -> Result<OdmtScorer> {
        let mut names: Vec<&str> = tensors
            .keys()
            .filter_map(|k| k.strip_prefix(ITEMS))
            .collect();
        names.sort_unstable();
        if let Some(only) = &cfg.score_by {
            if !names.contains(&only.as_str()) {
                return Err(Error::config(format!(
                    "score_by = {only:?} is no branch; choose one of {}",
                    names.join(", ")
                )));
            }
            names.retain(|n| n == only);
        }
        if names.is_empty() {
            return Err(Error::config("the run holds no item vectors of odmt"));
        }
        let mut users = Vec::with_capacity(names.len());
        let mut items = Vec::with_capacity(names.len());
        for name in &names {
            let mut params = Params::default();
            let user = UserEncoder::new(&mut params, &format!("{USER}{name}"), cfg, 0, dev)?;
            params.import("", tensors)?;
            users.push(user);
            items.push(tensors[&format!("{ITEMS}{name}")].clone());
        }
        Ok(OdmtScorer {
            window: cfg.window,
            users,
            all_t: side_by_side(&items)?,
            items,
        })
    }

    fn distillation(&self, epoch: u64) -> Distillation {
        Distillation::new(
            self.net.branches.len(),
            self.cfg.distillation_weight(epoch),
            self.cfg.tau,
            self.cfg.kd_detach,
            self.cfg.kd_symmetric,
        )
    }
}

/// Item vectors of all branches, so that one product gives the mean of their scores.
///
/// # Shapes
/// `[N, D]` for each branch; the result is `[branches · D, N]`.
fn side_by_side(items: &[Tensor]) -> Result<Tensor> {
    let share = 1.0 / items.len() as f64;
    Ok((Tensor::cat(items, 1)?.t()?.contiguous()? * share)?)
}

impl Learner for Odmt {
    fn steps_per_epoch(&self) -> u64 {
        self.windows.number().div_ceil(self.cfg.batch) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let sequences = self.windows.of_epoch(self.seed, epoch);
        let mut order = self.windows.cut(&sequences);
        rng::shuffle(
            &mut rng::stream(self.seed, Purpose::Shuffle, &[epoch]),
            &mut order,
        );
        let distillation = self.distillation(epoch + 1);
        let (mut ce, mut kd, mut norm) = (0.0, 0.0, 0.0);
        let (mut parts, mut steps) = (0usize, 0usize);
        for step in order.chunks(self.cfg.batch * self.cfg.micro_batches) {
            let mut sum = TensorMap::new();
            let first = parts;
            for windows in step.chunks(self.cfg.batch) {
                let batch = Batch::new(windows, &self.log_popularity, self.mask_own);
                let key = [epoch, parts as u64];
                let mut noise = rng::stream(self.seed, Purpose::Dropout, &key);
                let (loss, part) = self.net.loss(&batch, &distillation, Some(&mut noise))?;
                add_gradients(&mut sum, gradients(&self.net.params, &loss.backward()?))?;
                ce += part.cross_entropy;
                kd += part.distillation;
                parts += 1;
                monitor.step()?;
            }
            let share = 1.0 / (parts - first) as f64;
            norm += clip_gradients(&mut sum, share, self.cfg.clip)?;
            self.adam.step_named(sum)?;
            steps += 1;
        }
        let n = parts.max(1) as f64;
        Ok(vec![
            ("loss_next_item", ce / n),
            ("loss_distillation", kd / n),
            ("distillation_weight", distillation.weight),
            ("gradient_norm", norm / steps.max(1) as f64),
        ])
    }

    fn inference(&self) -> Result<TensorMap> {
        let mut out = TensorMap::new();
        self.net.params.export("", &mut out)?;
        out.retain(|name, _| name.starts_with(USER));
        // Copies: the scorer of this epoch must not change with the next one.
        let mut out = out
            .into_iter()
            .map(|(k, v)| Ok((k, v.copy()?)))
            .collect::<Result<TensorMap>>()?;
        for (name, items) in self.net.branches.iter().zip(self.net.all_items()?) {
            out.insert(format!("{ITEMS}{name}"), items);
        }
        Ok(out)
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.net.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.net.params, &mut self.adam, from)
    }
}

/// Trained user encoders and the vectors of all items: scores histories by the mean of branches.
#[derive(Debug)]
pub struct OdmtScorer {
    window: usize,
    users: Vec<UserEncoder>,
    /// Per branch `[N, D]`.
    items: Vec<Tensor>,
    /// `[branches · D, N]`, over the number of branches.
    all_t: Tensor,
}

impl Scorer for OdmtScorer {
    fn num_items(&self) -> usize {
        self.all_t.dims()[1]
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        let mut events = Vec::new();
        let segments = Segments::new(queries.iter().map(|q| {
            let history: Vec<u32> = q.history.iter().map(|e| e.item).collect();
            let seen = newest(&history, self.window);
            events.extend_from_slice(seen);
            seen.len()
        }));
        if events.is_empty() {
            // Nothing is known: no item is better than another.
            out.fill(0.0);
            return Ok(());
        }
        let users = self
            .users
            .iter()
            .zip(&self.items)
            .map(|(user, items)| {
                last_states(&user.forward(items, &events, &segments, None)?, &segments)
            })
            .collect::<Result<Vec<_>>>()?;
        copy_scores(&Tensor::cat(&users, 1)?.matmul(&self.all_t)?, out)
    }
}

#[cfg(test)]
mod tests;
