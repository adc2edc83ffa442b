//! Distillation: any scorer, or a blend of several, into the one student.
//!
//! Per training example (a user's history, cut or sub-sampled) the student learns from:
//!
//! - the scores that the teachers give to all items, each row brought to mean zero and unit
//!   deviation, by mean squared difference (matching of logits: Ba & Caruana, NIPS 2014; Hinton et
//!   al., 2015). This carries what a teacher knows about items it does not put first, and for
//!   linear teachers such as EASE it is what keeps a student of 64 dimensions close to a matrix of
//!   N² weights;
//! - the items the user really had next;
//! - the teachers' top-K lists by rank: the r-th item has weight `exp(−r/λ)` (ranking distillation,
//!   Tang & Wang, KDD 2018). The student's softmax over all items is fitted to both. With
//!   `rank_decay = 1` these are the position weights of DLLM2Rec (arXiv 2405.00338);
//! - if asked, each teacher's softmax over its first items ([`crate::divergence`]).
//!
//! The learnt item features start from the teacher's item vectors or, where it has none, from the
//! leading directions of its scores ([`crate::spectrum`]); the scale of the untrained student's
//! scores is set by least squares. Items of the history are masked, as they are when recommending.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, HistoryEvent, Split};
use crate::divergence::{Distribution, distribution, divergence};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::ops;
use crate::params::{Adam, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose, Stream};
use crate::spectrum::{add_standardized, score_directions};
use crate::student::{GRAPH, ItemFeatures, LEAST_PRIOR, ModalitySpec, Student, StudentShape};
use crate::train::{EpochLosses, Learner, Monitor};

/// Shape of the student and weights of its losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// Width D of item and user vectors.
    pub dim: usize,
    /// Hidden width of the fusion tower.
    pub fusion_hidden: usize,
    /// Hidden width of an event in the user tower.
    pub event_hidden: usize,
    /// Hidden width of the readout.
    pub readout_hidden: usize,
    /// Half-lives of the heads in events, 0 for none. Absent: by whether the data has order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_lives: Option<Vec<f64>>,
    /// Events looked back on. Absent: the 95th percentile of training histories, 20 to 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// What the learnt `graph` features start from.
    pub start: GraphStart,
    /// What the untrained student's scores are multiplied with beyond the scale that is closest to
    /// the teachers'. Less than 1 leaves more to the users' own items.
    pub start_scale: f64,
    /// Adam's learning rate in the first epoch.
    pub lr: f64,
    /// What the learning rate is multiplied with after each epoch.
    pub lr_decay: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Examples per step; fewer where their scores for all items would exceed 256 MB.
    pub batch: usize,
    /// Examples drawn per user and epoch where the data has order.
    pub cuts: usize,
    /// Most examples of an epoch, drawn anew for each, 0 for all: what an epoch costs is examples
    /// times items, and all examples of many users are more than a student of fixed size needs.
    pub examples: usize,
    /// Share of the teacher in the ranking loss, 0 to 1; the rest are the user's own items.
    pub teacher_weight: f64,
    /// Weight of the mean squared difference between the student's scores and the teacher's
    /// standardised ones, over all items that are ranked.
    pub score_weight: f64,
    /// Length K of the teacher's list.
    pub teacher_items: usize,
    /// λ: how slowly the weight falls along the list.
    pub rank_decay: f64,
    /// Weight of the divergence of the student's softmax from each teacher's, over the teacher's
    /// first [`candidate_items`](Self::candidate_items).
    pub candidate_weight: f64,
    /// Items of that softmax.
    pub candidate_items: usize,
    /// Its temperature T.
    pub candidate_temperature: f64,
    /// Epochs whose examples differ; later ones meet the same examples, whose lessons are kept (in
    /// f16) and not asked for again. For teachers that are slow to ask. 0: always other examples.
    pub lesson_epochs: u64,
    /// Weight of `1 − cos` between the student's and the teacher's item vectors, where the teacher
    /// has some of the same width.
    pub align_weight: f64,
    /// Share of steps in which items lose modalities.
    pub drop_steps: f64,
    /// In such a step, the share of items shown without co-behaviour, as cold items are.
    pub drop_graph: f64,
    /// In such a step, the share of items that lose a content modality, each on its own.
    pub drop_content: f64,
    /// Dropout of event features.
    pub dropout: f64,
    /// Least share of a history kept when sub-sampling data without order.
    pub min_keep: f64,
    /// Share of examples with an empty history.
    pub empty: f64,
    /// Mask items of the history; false where users return to items.
    pub mask_history: bool,
}

/// What the learnt `graph` features of the student start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphStart {
    /// A teacher's item vectors; from the teachers' scores if there are none.
    #[default]
    Vectors,
    /// The leading directions of the teachers' scores ([`score_directions`]).
    Scores,
    /// Noise.
    Random,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            fusion_hidden: 128,
            event_hidden: 256,
            readout_hidden: 256,
            half_lives: None,
            window: None,
            start: GraphStart::Vectors,
            start_scale: 1.0,
            lr: 1e-3,
            lr_decay: 0.97,
            weight_decay: 1e-4,
            batch: 256,
            cuts: 3,
            examples: 0,
            teacher_weight: 0.2,
            score_weight: 10.0,
            teacher_items: 100,
            rank_decay: 20.0,
            candidate_weight: 0.0,
            candidate_items: 20,
            candidate_temperature: 2.0,
            lesson_epochs: 0,
            align_weight: 0.1,
            drop_steps: 0.3,
            drop_graph: 0.5,
            drop_content: 0.2,
            dropout: 0.1,
            min_keep: 0.5,
            empty: 0.02,
            mask_history: true,
        }
    }
}

/// What a teacher says about one example: its best items with weights that sum to one.
pub type SoftTarget = Vec<(u32, f32)>;

/// What teachers say to a batch of examples.
pub struct Lessons {
    /// Rank-weighted best items per example.
    pub lists: Vec<SoftTarget>,
    /// `[B, N]`: the mean of the teachers' scores, each example's of mean zero and unit deviation
    /// over the items that a teacher ranks; 0 where none does.
    pub scores: Tensor,
    /// Per teacher and example, its distribution over its first items; nothing unless asked for.
    pub candidates: Vec<Vec<Distribution>>,
}

/// What was said to one example, to be kept.
#[derive(Debug, Clone)]
struct Lesson {
    list: SoftTarget,
    scores: Vec<f16>,
    candidates: Vec<Distribution>,
}

/// Most bytes of lessons that are kept.
const MOST_KEPT: usize = 2 << 30;

/// A blend of teachers: rank-weighted top-K lists and standardised scores.
pub struct Teachers {
    scorers: Vec<Box<dyn Scorer>>,
    top: usize,
    weights: Vec<f32>,
    /// Items and temperature of the candidate distributions, if they are wanted.
    candidates: Option<(usize, f64)>,
    /// Items without a training event, ascending. A teacher of interactions alone has nothing to
    /// say of them, and as nobody's target they would only teach the fusion tower to recognise
    /// items without co-behaviour and to bury them: they stay out of the losses.
    cold: Vec<u32>,
}

impl Teachers {
    /// A blend with equal shares. `cold` are the items without a training event, ascending.
    ///
    /// # Errors
    /// No teachers, teachers of different catalogues, or K of zero.
    pub fn new(scorers: Vec<Box<dyn Scorer>>, cfg: &DistillConfig, cold: Vec<u32>) -> Result<Self> {
        let (top, rank_decay) = (cfg.teacher_items, cfg.rank_decay);
        let Some(first) = scorers.first() else {
            return Err(Error::config("distillation needs at least one teacher"));
        };
        if scorers.iter().any(|s| s.num_items() != first.num_items()) {
            return Err(Error::config("the teachers know different catalogues"));
        }
        if !(cfg.start_scale > 0.0 && cfg.start_scale.is_finite()) {
            return Err(Error::config("start_scale must be positive"));
        }
        if top == 0 || rank_decay <= 0.0 {
            return Err(Error::config(
                "teacher_items and rank_decay must be positive",
            ));
        }
        if cfg.candidate_weight > 0.0
            && (cfg.candidate_items == 0 || cfg.candidate_temperature <= 0.0)
        {
            return Err(Error::config(
                "candidate_items and candidate_temperature must be positive",
            ));
        }
        let raw: Vec<f64> = (0..top).map(|r| (-(r as f64) / rank_decay).exp()).collect();
        let sum: f64 = raw.iter().sum::<f64>() * scorers.len() as f64;
        let weights = raw.iter().map(|w| (w / sum) as f32).collect();
        Ok(Self {
            scorers,
            top,
            weights,
            candidates: (cfg.candidate_weight > 0.0)
                .then_some((cfg.candidate_items, cfg.candidate_temperature)),
            cold,
        })
    }

    /// Items that a query does not rank: those it masks, and the cold ones. They do not overlap,
    /// because a history is made of training events.
    fn masked(&self, query: &EvalQuery) -> Vec<u32> {
        query.mask.iter().chain(&self.cold).copied().collect()
    }

    /// What the teachers say to a batch of queries, without the items each query masks.
    pub fn targets(&self, queries: &[EvalQuery]) -> Result<Lessons> {
        let n = self.scorers.first().map_or(0, |s| s.num_items());
        let mut lists: Vec<SoftTarget> = vec![Vec::new(); queries.len()];
        let mut standard = vec![0f32; queries.len() * n];
        let share = 1.0 / self.scorers.len() as f64;
        let mut candidates = Vec::new();
        for scorer in &self.scorers {
            let mut scores = vec![0f32; queries.len() * n];
            scorer.score(queries, &mut scores)?;
            let said: Vec<Distribution> = lists
                .par_iter_mut()
                .zip(standard.par_chunks_mut(n))
                .zip(scores.par_chunks_mut(n))
                .zip(queries)
                .map(|(((list, standard), row), q)| {
                    q.mask
                        .iter()
                        .chain(&self.cold)
                        .for_each(|&i| row[i as usize] = f32::NEG_INFINITY);
                    add_standardized(standard, row, share);
                    let order = |&a: &u32, &b: &u32| {
                        row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b))
                    };
                    let mut ids: Vec<u32> = (0..n as u32).collect();
                    let k = self.top.min(n);
                    if k < n {
                        ids.select_nth_unstable_by(k - 1, order);
                        ids.truncate(k);
                    }
                    ids.sort_unstable_by(order);
                    let open = ids.iter().filter(|&&i| row[i as usize].is_finite());
                    let ranked: Vec<u32> = open.copied().collect();
                    list.extend(ranked.iter().zip(&self.weights).map(|(&i, &w)| (i, w)));
                    self.candidates.map_or_else(Vec::new, |(most, t)| {
                        let first = &ranked[..most.min(ranked.len())];
                        let scores: Vec<f32> = first.iter().map(|&i| row[i as usize]).collect();
                        distribution(first, &scores, t)
                    })
                })
                .collect();
            if self.candidates.is_some() {
                candidates.push(said);
            }
        }
        Ok(Lessons {
            lists,
            scores: Tensor::from_vec(standard, (queries.len(), n), &Device::Cpu)?,
            candidates,
        })
    }
}

/// The student under training.
pub struct Distiller<'a> {
    data: &'a Dataset,
    cfg: DistillConfig,
    seed: u64,
    student: Student,
    features: ItemFeatures,
    adam: Adam,
    teachers: Teachers,
    /// Row-normalised item vectors of the first teacher, where widths agree.
    anchor: Option<Tensor>,
    histories: Vec<Vec<HistoryEvent>>,
    users: Vec<u32>,
    /// Lessons by user, epoch and cut.
    kept: HashMap<(u32, u64, u64), Lesson>,
}

/// `[B, N]`: 1 for items that are ranked, 0 for masked ones; and the number of ones.
fn ranked_items(masked: &[Vec<u32>], n: usize, dev: &Device) -> Result<(Tensor, usize)> {
    let mut ranked = vec![1f32; masked.len() * n];
    for (row, masked) in ranked.chunks_mut(n).zip(masked) {
        masked.iter().for_each(|&i| row[i as usize] = 0.0);
    }
    let count = ranked.iter().filter(|&&x| x > 0.0).count();
    Ok((Tensor::from_vec(ranked, (masked.len(), n), dev)?, count))
}

/// Mean squared difference of two score matrices `[B, N]` over the items that are not masked.
fn score_gap(scores: &Tensor, wanted: &Tensor, masked: &[Vec<u32>]) -> Result<Tensor> {
    let (ranked, count) = ranked_items(masked, scores.dim(1)?, scores.device())?;
    let gap = ((scores - wanted.to_device(scores.device())?)? * ranked)?;
    Ok((gap.sqr()?.sum_all()? / count.max(1) as f64)?)
}

/// Whole histories of at most [`START_USERS`] users, drawn with the seed.
fn start_queries(
    histories: &[Vec<HistoryEvent>],
    users: &[u32],
    window: usize,
    seed: u64,
) -> Vec<EvalQuery> {
    let mut drawn = users.to_vec();
    let mut r = rng::stream(seed, Purpose::Shuffle, &[rng::name_hash("start")]);
    rng::shuffle(&mut r, &mut drawn);
    drawn.truncate(START_USERS);
    let query = |user: u32| {
        let events = &histories[user as usize];
        EvalQuery {
            user,
            history: events[events.len().saturating_sub(window)..].to_vec(),
            mask: Vec::new(),
            targets: Vec::new(),
        }
    };
    drawn.into_iter().map(query).collect()
}

/// Examples of an epoch, of `all` that there are.
fn epoch_examples(cfg: &DistillConfig, all: usize) -> usize {
    match cfg.examples {
        0 => all,
        most => all.min(most),
    }
}

/// Enough histories to span the directions of a score matrix.
const START_USERS: usize = 20_000;

/// [`StudentShape::prior`] as a share of the mean weight of a head's events. Of 0, 0.25, 0.4 and
/// 0.5 tried on MovieLens-1M's validation rows, 0.25 was best and 0 worst.
const PRIOR: f64 = 0.25;

/// One training example.
struct Example {
    query: EvalQuery,
    hard: SoftTarget,
}

impl<'a> Distiller<'a> {
    /// A fresh student of `data`, taught by `scorers`. `item_vectors` `[N, d]` of a teacher start
    /// the learnt item features.
    ///
    /// # Errors
    /// A configuration out of range, or teachers of another catalogue.
    pub fn new(
        data: &'a Dataset,
        cfg: DistillConfig,
        scorers: Vec<Box<dyn Scorer>>,
        item_vectors: Option<&Tensor>,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let n = data.num_items();
        if scorers.iter().any(|s| s.num_items() != n) {
            return Err(Error::config(
                "a teacher knows another catalogue than the data set",
            ));
        }
        let histories: Vec<Vec<HistoryEvent>> = (0..data.num_users() as u32)
            .map(|u| data.history(u, Split::Valid))
            .collect();
        let users: Vec<u32> = (0..histories.len() as u32)
            .filter(|&u| !histories[u as usize].is_empty())
            .collect();
        if users.is_empty() {
            return Err(Error::config("there are no training events to distil on"));
        }
        let window = cfg.window.unwrap_or_else(|| {
            let mut lengths: Vec<usize> =
                users.iter().map(|&u| histories[u as usize].len()).collect();
            lengths.sort_unstable();
            lengths[(lengths.len() - 1) * 95 / 100]
                .next_multiple_of(10)
                .clamp(20, 512)
        });
        let half_lives = cfg.half_lives.clone().unwrap_or_else(|| {
            if data.ordered {
                vec![0.0, 16.0, 4.0, 0.5]
            } else {
                vec![0.0, 0.0]
            }
        });
        let vectors = item_vectors.filter(|t| t.dims().first() == Some(&n));
        let start = match (cfg.start, vectors) {
            (GraphStart::Vectors, Some(t)) => Some(t.to_device(dev)?.detach()),
            (GraphStart::Random, _) => None,
            _ if users.len().min(n) < cfg.dim => None,
            _ => {
                let queries = start_queries(&histories, &users, window, seed);
                Some(score_directions(&scorers, &queries, cfg.dim, seed)?.to_device(dev)?)
            }
        };
        let mut warm = vec![false; n];
        histories
            .iter()
            .flatten()
            .for_each(|e| warm[e.item as usize] = true);
        let cold = (0..n as u32).filter(|&i| !warm[i as usize]).collect();
        let cuts = if data.ordered { cfg.cuts.max(1) } else { 1 };
        let lessons = cfg.lesson_epochs as usize * epoch_examples(&cfg, users.len() * cuts);
        if lessons.saturating_mul(2 * n) > MOST_KEPT {
            return Err(Error::config(format!(
                "{lessons} lessons about {n} items are too many to keep; lower lesson_epochs or cuts"
            )));
        }
        let teachers = Teachers::new(scorers, &cfg, cold)?;
        let (graph, anchor) = match start {
            Some(t) => {
                let taught = cfg.start == GraphStart::Vectors && vectors.is_some();
                let anchor = if taught && t.dim(1)? == cfg.dim {
                    Some(ops::normalize_rows(&t)?.detach())
                } else {
                    None
                };
                // Scaled to one root-mean-square, so that learning rates mean the same everywhere.
                let rms = t.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt().max(1e-6);
                ((t * f64::from(0.3 / rms))?, anchor)
            }
            None => {
                let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(GRAPH)]);
                (rng::normal(&mut r, (n, cfg.dim), 0.1, dev)?, None)
            }
        };
        let mut modalities: Vec<ModalitySpec> = data
            .features
            .iter()
            .map(|f| ModalitySpec {
                name: f.name.clone(),
                dim: f.dim(),
            })
            .collect();
        modalities.push(ModalitySpec {
            name: GRAPH.into(),
            dim: graph.dim(1)?,
        });
        let shape = StudentShape {
            dim: cfg.dim,
            modalities,
            fusion_hidden: cfg.fusion_hidden,
            behaviors: data.behaviors.clone(),
            window,
            event_hidden: cfg.event_hidden,
            half_lives,
            readout_hidden: cfg.readout_hidden,
            prior: Vec::new(),
        };
        let student = Student::new(shape, data, &graph, &warm, seed, dev)?;
        let features = student.features(data)?;
        let adam = Adam::new(&student.params, cfg.lr, cfg.weight_decay)?;
        let mut distiller = Self {
            data,
            cfg,
            seed,
            student,
            features,
            adam,
            teachers,
            anchor,
            histories,
            users,
            kept: HashMap::new(),
        };
        distiller.calibrate()?;
        Ok(distiller)
    }

    /// Sets c of the user tower's heads, and brings the untrained student's scores to the scale of
    /// the teachers' by least squares. Finding the scale by gradient steps would first ruin the item
    /// vectors it starts from.
    fn calibrate(&mut self) -> Result<()> {
        let users = &self.users[..self.users.len().min(self.batch())];
        let queries: Vec<EvalQuery> = users
            .iter()
            .map(|&user| EvalQuery {
                // What a teacher says of past items, which the student is made of, counts too.
                mask: Vec::new(),
                ..self.example(user, 0, 0).query
            })
            .collect();
        let wanted = self.teachers.targets(&queries)?.scores;
        let items = self
            .student
            .item_vectors(&self.features, self.features.present())?
            .detach();
        let wanted = wanted.to_device(items.device())?;
        let histories: Vec<&[HistoryEvent]> =
            queries.iter().map(|q| q.history.as_slice()).collect();
        let pooled = self.student.user.pool(&items, &histories, None)?;
        let prior = pooled.mean_weights()?.into_iter();
        let prior: Vec<f64> = prior.map(|w| (w * PRIOR).max(LEAST_PRIOR)).collect();
        let scores = self.student.user.user_vectors(&pooled, &prior)?;
        let masked: Vec<Vec<u32>> = queries.iter().map(|q| self.teachers.masked(q)).collect();
        let (ranked, _) = ranked_items(&masked, items.dim(0)?, items.device())?;
        let scores = (scores.matmul(&items.t()?)? * ranked)?;
        let along = (&scores * wanted)?.sum_all()?.to_scalar::<f32>()?;
        let square = scores.sqr()?.sum_all()?.to_scalar::<f32>()?;
        let factor = f64::from(along / square);
        let factor = if factor.is_finite() && factor > 0.0 {
            factor * self.cfg.start_scale
        } else {
            1.0
        };
        self.student
            .user
            .start(&self.student.params, &prior, factor)?;
        self.student.shape.prior = prior;
        Ok(())
    }

    /// The shape of the student.
    pub fn shape(&self) -> &StudentShape {
        &self.student.shape
    }

    fn example(&self, user: u32, epoch: u64, cut: u64) -> Example {
        let mut r = rng::stream(self.seed, Purpose::History, &[epoch, u64::from(user), cut]);
        let events = &self.histories[user as usize];
        let n = events.len();
        let empty = f64::from(rng::unit(&mut r)) < self.cfg.empty;
        let (mut history, held): (Vec<HistoryEvent>, Vec<HistoryEvent>) = if self.data.ordered {
            let at = rng::below(&mut r, n);
            let start = if empty { at } else { 0 };
            (events[start..at].to_vec(), vec![events[at]])
        } else {
            let mut mixed = events.clone();
            rng::shuffle(&mut r, &mut mixed);
            let share =
                self.cfg.min_keep + (1.0 - self.cfg.min_keep) * f64::from(rng::unit(&mut r));
            let kept = if empty {
                0
            } else {
                ((n as f64 * share) as usize).min(n.saturating_sub(1))
            };
            let held = mixed.split_off(kept);
            (mixed, held)
        };
        let window = self.student.shape.window;
        history.drain(..history.len().saturating_sub(window));
        let mut mask: Vec<u32> = Vec::new();
        if self.cfg.mask_history {
            mask = history
                .iter()
                .filter(|e| self.data.is_target(e.behavior))
                .map(|e| e.item)
                .collect();
            mask.sort_unstable();
            mask.dedup();
        }
        let mut targets: Vec<u32> = held
            .iter()
            .filter(|e| self.data.is_target(e.behavior))
            .map(|e| e.item)
            .filter(|i| mask.binary_search(i).is_err())
            .collect();
        targets.sort_unstable();
        targets.dedup();
        let share = 1.0 / targets.len().max(1) as f32;
        let hard = targets.iter().map(|&i| (i, share)).collect();
        Example {
            query: EvalQuery {
                user,
                history,
                mask,
                targets,
            },
            hard,
        }
    }

    /// Presence masks of a step in which items lose modalities.
    fn dropped(&self, r: &mut Stream) -> Result<Vec<Tensor>> {
        let names = self
            .student
            .shape
            .modalities
            .iter()
            .map(|m| m.name == GRAPH);
        self.features
            .present()
            .iter()
            .zip(names)
            .map(|(p, is_graph)| {
                let rate = if is_graph {
                    self.cfg.drop_graph
                } else {
                    self.cfg.drop_content
                } as f32;
                let keep: Vec<f32> = (0..p.elem_count())
                    .map(|_| if rng::unit(r) < rate { 0.0 } else { 1.0 })
                    .collect();
                Ok((p * Tensor::from_vec(keep, p.shape(), p.device())?)?)
            })
            .collect()
    }

    fn loss(&self, batch: &[Example], lessons: Lessons, r: &mut Stream) -> Result<Tensor> {
        let drop = f64::from(rng::unit(r)) < self.cfg.drop_steps;
        let v = if drop {
            self.student
                .item_vectors(&self.features, &self.dropped(r)?)?
        } else {
            self.student
                .item_vectors(&self.features, self.features.present())?
        };
        let histories: Vec<&[HistoryEvent]> =
            batch.iter().map(|e| e.query.history.as_slice()).collect();
        let noise = (self.cfg.dropout > 0.0).then_some((&mut *r, self.cfg.dropout));
        let u = self.student.user.forward(&v, &histories, noise)?;
        let scores = u.matmul(&v.t()?)?;
        let a = self.cfg.teacher_weight as f32;
        let targets = batch
            .iter()
            .zip(lessons.lists)
            .map(|(e, soft)| {
                // Without held-out items the teacher speaks alone.
                let a = if e.hard.is_empty() { 1.0 } else { a };
                let hard = e.hard.iter().map(|&(i, w)| (i, (1.0 - a) * w));
                hard.chain(soft.into_iter().map(|(i, w)| (i, a * w)))
                    .filter(|t| t.1 > 0.0)
                    .collect()
            })
            .collect();
        let masked: Vec<Vec<u32>> = batch
            .iter()
            .map(|e| self.teachers.masked(&e.query))
            .collect();
        let mut loss = scores.zeros_like()?.sum_all()?;
        if self.cfg.score_weight > 0.0 {
            let gap = score_gap(&scores, &lessons.scores, &masked)?;
            loss = (loss + (gap * self.cfg.score_weight)?)?;
        }
        loss = (loss + ops::softmax_cross_entropy(&scores, targets, masked)?)?;
        for said in &lessons.candidates {
            let weight = self.cfg.candidate_weight / lessons.candidates.len() as f64;
            let gap = divergence(&scores, said, self.cfg.candidate_temperature)?;
            loss = (loss + (gap * weight)?)?;
        }
        if let (Some(anchor), true) = (&self.anchor, self.cfg.align_weight > 0.0) {
            let cos = (ops::normalize_rows(&v)? * anchor)?.sum(1)?;
            let warm = &self.student.graph_present;
            let total = warm.sum_all()?.to_scalar::<f32>()?.max(1.0);
            let gap = ((1.0 - cos)? * warm)?.sum_all()?;
            loss = (loss + (gap * (self.cfg.align_weight / f64::from(total)))?)?;
        }
        Ok(loss)
    }

    /// What the teachers say to a batch, asked for or remembered.
    fn lessons(&mut self, keys: &[(u32, u64, u64)], queries: &[EvalQuery]) -> Result<Lessons> {
        if self.cfg.lesson_epochs == 0 {
            return self.teachers.targets(queries);
        }
        let n = self.data.num_items();
        let new: Vec<usize> = (0..keys.len())
            .filter(|&k| !self.kept.contains_key(&keys[k]))
            .collect();
        if !new.is_empty() {
            let asked: Vec<EvalQuery> = new.iter().map(|&k| queries[k].clone()).collect();
            let said = self.teachers.targets(&asked)?;
            let scores = said.scores.to_vec2::<f32>()?;
            for (at, ((&k, list), row)) in new.iter().zip(said.lists).zip(scores).enumerate() {
                let lesson = Lesson {
                    list,
                    scores: row.into_iter().map(f16::from_f32).collect(),
                    candidates: said.candidates.iter().map(|c| c[at].clone()).collect(),
                };
                self.kept.insert(keys[k], lesson);
            }
        }
        let kept: Vec<&Lesson> = keys.iter().filter_map(|k| self.kept.get(k)).collect();
        let scores: Vec<f32> = kept
            .iter()
            .flat_map(|l| l.scores.iter().map(|x| x.to_f32()))
            .collect();
        let teachers = kept.first().map_or(0, |l| l.candidates.len());
        Ok(Lessons {
            lists: kept.iter().map(|l| l.list.clone()).collect(),
            scores: Tensor::from_vec(scores, (kept.len(), n), &Device::Cpu)?,
            candidates: (0..teachers)
                .map(|t| kept.iter().map(|l| l.candidates[t].clone()).collect())
                .collect(),
        })
    }

    fn examples_per_epoch(&self) -> usize {
        epoch_examples(&self.cfg, self.users.len() * self.cuts() as usize)
    }

    fn batch(&self) -> usize {
        const MOST_SCORES: usize = 1 << 26;
        let fits = MOST_SCORES / self.data.num_items().max(1);
        self.cfg.batch.min(fits).max(1)
    }

    fn cuts(&self) -> u64 {
        if self.data.ordered {
            self.cfg.cuts.max(1) as u64
        } else {
            1
        }
    }
}

impl Learner for Distiller<'_> {
    fn steps_per_epoch(&self) -> u64 {
        self.examples_per_epoch().div_ceil(self.batch()) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let mut order: Vec<(u32, u64)> = (0..self.cuts())
            .flat_map(|c| self.users.iter().map(move |&u| (u, c)))
            .collect();
        self.adam
            .set_lr(self.cfg.lr * self.cfg.lr_decay.powf(epoch as f64));
        let drawn = match self.cfg.lesson_epochs {
            0 => epoch,
            n => epoch % n,
        };
        if self.examples_per_epoch() < order.len() {
            let mut r = rng::stream(self.seed, Purpose::Shuffle, &[drawn, 3]);
            rng::shuffle(&mut r, &mut order);
            order.truncate(self.examples_per_epoch());
        }
        rng::shuffle(
            &mut rng::stream(self.seed, Purpose::Shuffle, &[epoch, 2]),
            &mut order,
        );
        let (mut total, mut n) = (0.0, 0usize);
        for (k, batch) in order.chunks(self.batch()).enumerate() {
            let keys: Vec<(u32, u64, u64)> = batch.iter().map(|&(u, c)| (u, drawn, c)).collect();
            let examples: Vec<Example> = keys
                .iter()
                .map(|&(u, e, c)| self.example(u, e, c))
                .collect();
            let queries: Vec<EvalQuery> = examples.iter().map(|e| e.query.clone()).collect();
            let lessons = self.lessons(&keys, &queries)?;
            let mut r = rng::stream(self.seed, Purpose::Dropout, &[epoch, k as u64, 2]);
            let loss = self.loss(&examples, lessons, &mut r)?;
            self.adam.step(&loss.backward()?)?;
            total += f64::from(loss.to_scalar::<f32>()?);
            n += 1;
            monitor.step()?;
        }
        Ok(vec![("loss", total / n.max(1) as f64)])
    }

    fn inference(&self) -> Result<TensorMap> {
        self.student.export()
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.student.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.student.params, &mut self.adam, from)
    }
}
