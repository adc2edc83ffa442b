//! TMF: triple modality fusion, which aligns images, text and co-behaviour with a language model.
//!
//! Ma, Li, Fan, Zhao, Xu, Cho, Kanumala, Nag, Kumar, Achan, arXiv 2410.12228. What could be read of
//! it is its abstract and what others report of its text, neither its equations nor its tables, and
//! no program of the authors was found. So this is a reading of it, not a reproduction:
//!
//! | part | evidence |
//! |---|---|
//! | a user's events with their behaviours as a text, of which a language model predicts the next item | published |
//! | frozen image, text and graph embeddings of items; special tokens for behaviours and items; low-rank updates of the language model | published |
//! | self-attention over all modalities (AMSA), attention across modalities (CMA), adapters into one space | published; order, widths and formulas ours ([`config::Cross`], [`config::Scope`] switch readings) |
//! | warm-up on words, then three levels of prompts | published; schedule and wording ours |
//! | form of the projector, candidates, ValidRatio and HitRate@1 | inferred from LLaRA (arXiv 2312.02445), on which the paper builds |
//! | graph encoder | inferred, see `graph.rs` |
//! | folds of users, scale of soft tokens, fits on the shelf, likelihood, letters, trie and vectors as scores, histories without shelf, alignment | ours |
//!
//! The published gains are relative, on private data, with a model of 7B parameters. Nothing here
//! can be compared with them.
//!
//! # Stages
//!
//! 0. The graph encoder learns from training rows and is frozen: once from all, and once without the users of
//!    each fold.
//! 1. Warm-up on prompts of words alone: low-rank updates of a pretrained model by its answers, or,
//!    from scratch, a small model by all of the text. With stage 0 it is the first epoch.
//! 2. All other epochs tune fusion and language model on the three levels; first, for a moment, the
//!    fusion alone. After a quarter of it ([`TmfConfig::whole_graph_first`]) a step's users are of one
//!    fold, seen through the graph that has not met them. Between prompts with a shelf come histories
//!    without one, in which every event is predicted from the state before it: they are cheap, and
//!    teach the vectors.
//!
//! # Vectors
//!
//! `score = cos(q, h)/τ_s` of a history's and an item's vector ranks a whole catalogue and is what a
//! student is taught by. `q = W_q s/|W_q s| + g·m/|m|`: s is the state at the end of the log, and m
//! the mean of the item vectors in it, each behaviour with a learnt weight. A small model trained from
//! scratch would otherwise spend most of its training on learning to average
//! ([`TmfConfig::past_vectors`]). The loss is a softmax over uniformly drawn items; their logits are
//! raised by log(N/K), as if all N were there.
//!
//! # Shelves
//!
//! The rows of a shelf's entry are moved along a learnt direction by how well its item fits the history: one
//! over its place by `q·h` ([`TmfConfig::shelf_fits`]). What is published leaves finding that
//! out to the language model, which one of the size trained here does not: its answers stay at chance.

pub mod answers;
pub mod config;
mod examples;
mod fusion;
mod graph;
mod net;
mod prompt;
mod scorer;

use candle_core::{Device, Tensor};

use config::Curriculum;
pub use config::TmfConfig;
use examples::{Example, Examples, Fold, Sequence};
use graph::CoBehavior;
use net::{Batch, Net};
use prompt::{Level, Prompt, Symbol, curriculum, groups};
pub use scorer::TmfScorer;

use crate::data::{Dataset, HistoryEvent};
use crate::error::{Error, Result};
use crate::llm::Words;
use crate::ops::{self, pick};
use crate::params::{
    Adam, Params, TensorMap, add_gradients, clip_gradients, gradients, restore_training,
    training_state,
};
use crate::rng::{self, Purpose, Stream};
use crate::train::{EpochLosses, Learner, Monitor};

/// Share of a stage in which the learning rate rises, and what it rises from and falls to.
const RISE: f64 = 0.05;
const FLOOR: f64 = 0.01;

/// Items of a step whose soft tokens are aligned with their titles.
const ALIGNED: usize = 128;

/// The model under training.
#[derive(Debug)]
pub struct Tmf<'a> {
    data: &'a Dataset,
    net: Net,
    adam: Adam,
    llm_adam: Adam,
    examples: Examples,
    /// Co-behaviour without the users of a fold each.
    folds: Vec<CoBehavior>,
    seed: u64,
    /// Epochs of the whole run: the curriculum spans those after the first.
    epochs: u64,
    dev: Device,
}

/// A prompt with a shelf, ready to be computed.
struct Question {
    example: Example,
    prompt: Prompt,
    answer: Vec<u32>,
}

/// Sums of losses and their number.
#[derive(Default)]
struct Means([(f64, f64); 4]);

impl Means {
    fn add(&mut self, at: usize, value: f64, weight: f64) {
        self.0[at].0 += value * weight;
        self.0[at].1 += weight;
    }

    fn report(&self) -> EpochLosses {
        ["answers", "vectors", "alignment", "histories"]
            .into_iter()
            .zip(self.0)
            .filter(|(_, (_, n))| *n > 0.0)
            .map(|(name, (sum, n))| (name, sum / n))
            .collect()
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

impl<'a> Tmf<'a> {
    /// A fresh model of `data`, to be trained for `epochs`.
    ///
    /// # Errors
    /// A configuration out of range, a language model that cannot be opened, or data without
    /// training events.
    pub fn new(
        data: &'a Dataset,
        cfg: TmfConfig,
        epochs: u64,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let net = Net::new(data, cfg, None, seed, dev)?;
        let (lr, decay) = (net.cfg.lr, net.cfg.weight_decay);
        Ok(Self {
            adam: Adam::new(&net.params, lr, decay)?,
            llm_adam: Adam::new(&net.llm_params, lr, 0.0)?,
            examples: Examples::new(data, &net.cfg)?,
            folds: Vec::new(),
            data,
            net,
            seed,
            epochs,
            dev: dev.clone(),
        })
    }

    /// The scorer behind a run's inference tensors.
    ///
    /// # Errors
    /// Tensors of another configuration or data set.
    pub fn scorer(
        tensors: &TensorMap,
        data: &Dataset,
        cfg: TmfConfig,
        dev: &Device,
    ) -> Result<TmfScorer> {
        let words = match &cfg.llm {
            Some(_) => None,
            None => {
                let json = tensor(tensors, "tokenizer.json")?.to_vec1::<u8>()?;
                Some(Words::from_json(&json, cfg.llm_vocabulary)?)
            }
        };
        let mut net = Net::new(data, cfg, words, 0, dev)?;
        restore(&mut net, tensors)?;
        TmfScorer::new(net, data.num_items())
    }

    fn level(&self, progress: f64, r: &mut Stream) -> Level {
        match self.net.cfg.curriculum {
            Curriculum::Words => Level::Words,
            Curriculum::Tokens => Level::Tokens,
            Curriculum::Levels => {
                let [words, both, _] = curriculum(progress);
                let x = f64::from(rng::unit(r));
                if x < words {
                    Level::Words
                } else if x < words + both {
                    Level::Both
                } else {
                    Level::Tokens
                }
            }
        }
    }

    fn question(
        &self,
        example: Example,
        fits: &[f32],
        level: Level,
        lettered: bool,
    ) -> Result<Question> {
        let phrases = &self.net.phrases;
        let mut prompt = phrases.log(&example.history, level);
        phrases.ask(&mut prompt, &example.shelf, fits, level, lettered);
        let target = example.target;
        let at = example.shelf.iter().position(|&i| i == target).unwrap_or(0);
        let answer = if lettered {
            vec![phrases.letter(at), self.net.llm.ends[0]]
        } else {
            phrases
                .answers(&self.net.llm, &example.shelf)?
                .0
                .swap_remove(at)
        };
        Ok(Question {
            example,
            prompt,
            answer,
        })
    }

    /// How well the items of shelves fit, by the vectors as they are now.
    fn fits(&self, examples: &[Example]) -> Result<Vec<Vec<f32>>> {
        let net = &self.net;
        let log = |e: &Example| net.phrases.log(&e.history, Level::Tokens);
        let logs: Vec<Prompt> = examples.iter().map(log).collect();
        let mut out = Vec::with_capacity(examples.len());
        for group in groups(&logs, net.cfg.tokens_at_once) {
            let (logs, examples) = (&logs[group.clone()], &examples[group]);
            let histories: Vec<&[HistoryEvent]> =
                examples.iter().map(|e| e.history.as_slice()).collect();
            let shelves: Vec<Vec<u32>> = examples.iter().map(|e| e.shelf.clone()).collect();
            let batch = net.batch(&histories, &shelves.concat(), None)?;
            let (soft, vectors) = (Some(&batch.soft), batch.vectors.detach());
            let row = |i: u32| batch.row[&i];
            let queries = net.history_vectors(logs, &histories, soft, &vectors, row)?;
            out.extend(Net::fits(&queries, &vectors, &shelves, row)?);
        }
        Ok(out)
    }

    /// Questions of a step, in groups of few enough tokens.
    fn questions(
        &self,
        epoch: u64,
        numbers: std::ops::Range<u64>,
        fold: Option<Fold>,
        level: Level,
    ) -> Result<Vec<Vec<Question>>> {
        let cfg = &self.net.cfg;
        let mut groups: Vec<Vec<Question>> = Vec::new();
        let mut tokens = usize::MAX;
        let draw = |n| self.examples.draw(cfg, self.seed, epoch, n, fold);
        let examples: Vec<Example> = numbers.clone().map(draw).collect();
        let fits = match level != Level::Words && self.net.tells_fits() {
            true => self.fits(&examples)?,
            false => vec![Vec::new(); examples.len()],
        };
        for (n, (example, fits)) in numbers.zip(examples.into_iter().zip(fits)) {
            let mut r = rng::stream(self.seed, Purpose::Candidates, &[epoch, n, 1]);
            let lettered = f64::from(rng::unit(&mut r)) < cfg.label_share;
            let q = self.question(example, &fits, level, lettered)?;
            let size = q.prompt.symbols.len() + q.answer.len();
            tokens = tokens.saturating_add(size);
            if tokens > cfg.tokens_at_once {
                groups.push(Vec::new());
                tokens = size;
            }
            if let Some(last) = groups.last_mut() {
                last.push(q);
            }
        }
        Ok(groups)
    }

    /// Mean over the questions of the mean `−log p` of their answers' tokens; with `whole`, of all
    /// tokens of the text. Also the states, and the row at which each prompt begins.
    fn answer_loss(
        &self,
        questions: &[Question],
        batch: Option<&Batch>,
        whole: bool,
        noise: &mut Stream,
    ) -> Result<(Tensor, Tensor, Vec<usize>)> {
        let prompts: Vec<Prompt> = questions.iter().map(|q| q.prompt.clone()).collect();
        let inputs: Vec<&[u32]> = questions
            .iter()
            .map(|q| &q.answer[..q.answer.len() - 1])
            .collect();
        let (embeds, segments) = self.net.embed(&prompts, &inputs, batch.map(|b| &b.soft))?;
        let decoder = &self.net.llm.decoder;
        let (hidden, _) = decoder.forward(&embeds, &segments, None, Some(noise))?;
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        let mut starts = Vec::with_capacity(questions.len());
        let mut start = 0;
        for (q, &length) in questions.iter().zip(segments.lengths()) {
            starts.push(start);
            let prompt = q.prompt.symbols.len();
            let answer = q.answer.iter().map(|&t| Symbol::Token(t));
            let text: Vec<Symbol> = q.prompt.symbols.iter().copied().chain(answer).collect();
            let first = if whole { 1 } else { prompt };
            let said: Vec<(usize, u32)> = text
                .iter()
                .enumerate()
                .skip(first)
                .filter_map(|(at, s)| match s {
                    Symbol::Token(t) => Some((start + at - 1, *t)),
                    _ => None,
                })
                .collect();
            let weight = 1.0 / (said.len() * questions.len()) as f32;
            for (row, token) in said {
                rows.push(row as u32);
                targets.push(vec![(token, weight)]);
            }
            start += length;
        }
        let states = pick(&hidden, &rows)?;
        let logits = decoder.logits(&states)?;
        let n = targets.len();
        let loss = ops::softmax_cross_entropy(&logits, targets, vec![Vec::new(); n])?;
        // The op averages over rows; the weights already do.
        Ok(((loss * n as f64)?, hidden, starts))
    }

    /// Softmax over drawn items and each row's own target, by the targets' weights.
    fn vector_loss(
        &self,
        queries: &Tensor,
        targets: &[(u32, f32)],
        negatives: &[u32],
        batch: &Batch,
    ) -> Result<Tensor> {
        let total: f32 = targets.iter().map(|t| t.1).sum();
        let scale = targets.len() as f32 / total.max(1e-6);
        let mut columns = negatives.to_vec();
        let mut extra: Vec<u32> = targets
            .iter()
            .map(|t| t.0)
            .filter(|t| negatives.binary_search(t).is_err())
            .collect();
        extra.sort_unstable();
        extra.dedup();
        columns.extend_from_slice(&extra);
        let drawn = negatives.len();
        let column = |item: u32| match negatives.binary_search(&item) {
            Ok(at) => at as u32,
            Err(_) => (drawn + extra.partition_point(|&e| e < item)) as u32,
        };
        let rows: Vec<u32> = columns.iter().map(|i| batch.row[i]).collect();
        let items = pick(&batch.vectors, &rows)?;
        let mut scores = (queries.matmul(&items.t()?)? / self.net.cfg.temperature)?;
        let all = self.examples.met();
        if drawn < all {
            let raise = (all as f32 / drawn as f32).ln();
            let mut raised = vec![raise; drawn];
            raised.resize(columns.len(), 0.0);
            scores =
                scores.broadcast_add(&Tensor::from_vec(raised, (1, columns.len()), &self.dev)?)?;
        }
        // Others' targets would be too frequent among the candidates.
        let closed = targets
            .iter()
            .map(|(t, _)| {
                let others = extra.iter().filter(|e| *e != t);
                others.map(|&e| column(e)).collect()
            })
            .collect();
        let targets = targets
            .iter()
            .map(|&(t, w)| vec![(column(t), w * scale)])
            .collect();
        ops::softmax_cross_entropy(&scores, targets, closed)
    }

    /// Gradients of a group of questions, their share of the step as a factor.
    fn ask(
        &self,
        questions: &[Question],
        level: Level,
        share: f64,
        negatives: &[u32],
        noise: &mut Stream,
        means: &mut Means,
    ) -> Result<TensorMap> {
        let cfg = &self.net.cfg;
        let histories: Vec<&[HistoryEvent]> = questions
            .iter()
            .map(|q| q.example.history.as_slice())
            .collect();
        let mut others = negatives.to_vec();
        others.extend(questions.iter().flat_map(|q| &q.example.shelf));
        let batch = self.net.batch(&histories, &others, Some(noise))?;
        let soft = (level != Level::Words).then_some(&batch);
        let (answers, hidden, starts) = self.answer_loss(questions, soft, false, noise)?;
        means.add(0, scalar(&answers)?, share);
        let mut loss = answers;
        if cfg.vector_weight > 0.0 {
            let rows: Vec<u32> = questions
                .iter()
                .zip(starts)
                .map(|(q, start)| (start + q.prompt.log_end()) as u32)
                .collect();
            let row = |i: u32| batch.row[&i];
            let (net, table) = (&self.net, &batch.vectors);
            let queries = net.queries(&hidden, &rows, &histories, table, row)?;
            let targets: Vec<(u32, f32)> =
                questions.iter().map(|q| (q.example.target, 1.0)).collect();
            let vectors = self.vector_loss(&queries, &targets, negatives, &batch)?;
            means.add(1, scalar(&vectors)?, share);
            loss = (loss + (vectors * cfg.vector_weight)?)?;
        }
        if cfg.align_weight > 0.0
            && level != Level::Words
            && let Some(aligned) = self.net.alignment(&batch, ALIGNED)?
        {
            means.add(2, scalar(&aligned)?, share);
            loss = (loss + (aligned * cfg.align_weight)?)?;
        }
        self.gradients(&(loss * share)?)
    }

    /// Gradients of a step of histories without shelf.
    fn follow(
        &self,
        sequences: &[Sequence],
        negatives: &[u32],
        noise: &mut Stream,
        means: &mut Means,
    ) -> Result<TensorMap> {
        let level = match self.net.cfg.curriculum {
            Curriculum::Words => Level::Words,
            _ => Level::Tokens,
        };
        let histories: Vec<&[HistoryEvent]> =
            sequences.iter().map(|s| s.events.as_slice()).collect();
        let mut others = negatives.to_vec();
        others.extend(
            sequences
                .iter()
                .flat_map(|s| s.targets.iter().map(|t| t.item)),
        );
        let batch = self.net.batch(&histories, &others, Some(noise))?;
        let prompts: Vec<Prompt> = histories
            .iter()
            .map(|h| self.net.phrases.log(h, level))
            .collect();
        let none: Vec<&[u32]> = vec![&[]; prompts.len()];
        let soft = (level != Level::Words).then_some(&batch.soft);
        let (embeds, segments) = self.net.embed(&prompts, &none, soft)?;
        let decoder = &self.net.llm.decoder;
        let (hidden, _) = decoder.forward(&embeds, &segments, None, Some(noise))?;
        let (mut rows, mut targets, mut pasts) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for ((s, p), &n) in sequences.iter().zip(&prompts).zip(segments.lengths()) {
            for t in &s.targets {
                rows.push((start + p.line_ends[t.known]) as u32);
                targets.push((t.item, t.weight));
                pasts.push(&s.events[..t.known]);
            }
            start += n;
        }
        let row = |i: u32| batch.row[&i];
        let queries = self
            .net
            .queries(&hidden, &rows, &pasts, &batch.vectors, row)?;
        let loss = self.vector_loss(&queries, &targets, negatives, &batch)?;
        means.add(3, scalar(&loss)?, 1.0);
        self.gradients(&loss)
    }

    fn gradients(&self, loss: &Tensor) -> Result<TensorMap> {
        let store = loss.backward()?;
        let mut grads = gradients(&self.net.params, &store);
        grads.extend(gradients(&self.net.llm_params, &store));
        Ok(grads)
    }

    /// One update at a place of 0 to 1 of a stage.
    fn update(&mut self, mut grads: TensorMap, place: f64, with_llm: bool) -> Result<()> {
        if !with_llm {
            grads.retain(|name, _| !name.starts_with("llm.") && !name.starts_with("lora."));
        }
        clip_gradients(&mut grads, 1.0, self.net.cfg.clip)?;
        let rate = if place < RISE {
            FLOOR + (1.0 - FLOOR) * place / RISE
        } else {
            let fall = (place - RISE) / (1.0 - RISE);
            FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * fall).cos())
        };
        self.adam.set_lr(self.net.cfg.lr * rate);
        self.llm_adam.set_lr(self.net.cfg.lr * rate);
        self.adam.step_named(grads.clone())?;
        self.llm_adam.step_named(grads)
    }

    /// Stages 0 and 1.
    fn warm_up(&mut self, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let mut recall = None;
        if self.net.cfg.graph {
            let cfg = &self.net.cfg;
            let co = graph::encode(self.data, cfg, self.seed, &self.dev, monitor)?;
            self.net.set_graph(&co.whole);
            self.folds = co.folds;
            recall = co.recall.map(|r| ("graph_recall@20", r));
        }
        let mut means = Means::default();
        let (steps, size) = (self.net.cfg.warmup_steps as u64, self.net.cfg.batch as u64);
        let whole = self.net.cfg.llm.is_none();
        let shown = self.steps_per_epoch();
        for step in 0..steps {
            let mut noise = rng::stream(self.seed, Purpose::Dropout, &[0, step]);
            let groups = self.questions(0, step * size..(step + 1) * size, None, Level::Words)?;
            let mut grads = TensorMap::new();
            for group in groups {
                let share = group.len() as f64 / size as f64;
                let (loss, _, _) = self.answer_loss(&group, None, whole, &mut noise)?;
                means.add(0, scalar(&loss)?, share);
                add_gradients(&mut grads, self.gradients(&(loss * share)?)?)?;
            }
            self.update(grads, step as f64 / steps as f64, true)?;
            if step < shown {
                monitor.step()?;
            } else {
                monitor.check()?;
            }
        }
        self.net.follow_words()?;
        let mut report = means.report();
        report.extend(recall);
        Ok(report)
    }

    /// Lets a step see its users as test rows' are seen: by a graph that has not met what is to be predicted.
    fn hide(&mut self, with_shelf: bool, order: &mut Stream) -> Option<Fold> {
        let of = self.folds.len();
        let fold = (of > 0).then(|| self.examples.fold(of, with_shelf, order))?;
        self.net.set_graph(&self.folds[fold.number]);
        Some(fold)
    }

    /// An epoch of stage 2.
    fn tune(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<Means> {
        let whole = self.net.graph();
        let means = self.tune_by_folds(epoch, monitor);
        if let Some(whole) = &whole {
            self.net.set_graph(whole);
        }
        means
    }

    fn tune_by_folds(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<Means> {
        let cfg = self.net.cfg.clone();
        let asked = cfg.examples.div_ceil(cfg.batch);
        let followed = cfg.sequences.div_ceil(cfg.sequence_batch);
        let mut plan = vec![true; asked];
        plan.resize(asked + followed, false);
        let mut order = rng::stream(self.seed, Purpose::Shuffle, &[epoch]);
        rng::shuffle(&mut order, &mut plan);
        let total = (self.epochs.saturating_sub(1).max(1) * plan.len() as u64) as f64;
        let before = (epoch - 1) * plan.len() as u64;
        let last_only = cfg.scope == config::Scope::Sequence;
        let mut means = Means::default();
        let (mut question, mut sequence) = (0u64, 0u64);
        for (step, with_shelf) in (0u64..).zip(plan) {
            let place = (before + step) as f64 / total;
            let mut noise = rng::stream(self.seed, Purpose::Dropout, &[epoch, step]);
            let negatives = self
                .examples
                .negatives(cfg.negatives, self.seed, epoch, step);
            let mut grads = TensorMap::new();
            let fold = match place < cfg.whole_graph_first {
                true => None,
                false => self.hide(with_shelf, &mut order),
            };
            if with_shelf {
                let level = self.level(place, &mut order);
                let numbers = question..question + cfg.batch as u64;
                question = numbers.end;
                for group in self.questions(epoch, numbers, fold, level)? {
                    let share = group.len() as f64 / cfg.batch as f64;
                    let part =
                        self.ask(&group, level, share, &negatives, &mut noise, &mut means)?;
                    add_gradients(&mut grads, part)?;
                }
            } else {
                let numbers = sequence..sequence + cfg.sequence_batch as u64;
                sequence = numbers.end;
                let draw = |n| {
                    let (examples, seed) = (&self.examples, self.seed);
                    examples.sequence(&cfg, seed, epoch, n, fold, last_only)
                };
                let sequences: Vec<Sequence> = numbers.map(draw).collect();
                grads = self.follow(&sequences, &negatives, &mut noise, &mut means)?;
            }
            self.update(grads, place, place >= cfg.fusion_first)?;
            monitor.step()?;
        }
        Ok(means)
    }

    fn graph_state(&self, out: &mut TensorMap) -> Result<()> {
        if let Some(whole) = self.net.graph() {
            put_graph(out, "graph", &whole)?;
        }
        let scale = Tensor::from_vec(vec![self.net.scale], 1, &Device::Cpu)?;
        out.insert("soft_token_scale".into(), scale);
        Ok(())
    }
}

fn tensor<'t>(tensors: &'t TensorMap, name: &str) -> Result<&'t Tensor> {
    tensors.get(name).ok_or_else(|| {
        Error::config(format!(
            "tensor `{name}` is missing from the run; was it trained with other settings?"
        ))
    })
}

fn put_graph(out: &mut TensorMap, name: &str, graph: &CoBehavior) -> Result<()> {
    let present: Vec<u8> = graph.present.iter().map(|&p| u8::from(p)).collect();
    let n = present.len();
    out.insert(format!("{name}.values"), graph.vectors.copy()?);
    let present = Tensor::from_vec(present, n, &Device::Cpu)?;
    out.insert(format!("{name}.present"), present);
    Ok(())
}

/// What [`put_graph`] gave, of as many items as the net has.
fn graph_of(tensors: &TensorMap, name: &str, net: &Net) -> Result<CoBehavior> {
    let vectors = tensor(tensors, &format!("{name}.values"))?;
    let present = tensor(tensors, &format!("{name}.present"))?.to_vec1::<u8>()?;
    let fits = net.modalities.last().map(|m| m.values.dims()) == Some(vectors.dims());
    if !fits || vectors.dims().first() != Some(&present.len()) {
        return Err(Error::config(
            "the run's co-behaviour is of another catalogue; give the data it was trained on",
        ));
    }
    Ok(CoBehavior {
        vectors: vectors.clone(),
        present: present.iter().map(|&p| p != 0).collect(),
    })
}

fn fold_name(number: usize) -> String {
    format!("graph.fold{number}")
}

/// What [`Tmf::graph_state`] gave.
fn restore_graph(net: &mut Net, tensors: &TensorMap) -> Result<()> {
    if net.cfg.graph {
        let whole = graph_of(tensors, "graph", net)?;
        net.set_graph(&whole);
    }
    let scale = tensor(tensors, "soft_token_scale")?.to_vec1::<f64>()?;
    net.scale = scale.first().copied().unwrap_or(1.0);
    Ok(())
}

fn restore(net: &mut Net, tensors: &TensorMap) -> Result<()> {
    net.params.import("", tensors)?;
    net.llm_params.import("", tensors)?;
    restore_graph(net, tensors)
}

fn copies(params: &Params, out: &mut TensorMap) -> Result<()> {
    for (name, var) in params.iter() {
        out.insert(name.to_owned(), var.as_tensor().detach().copy()?);
    }
    Ok(())
}

impl Learner for Tmf<'_> {
    fn steps_per_epoch(&self) -> u64 {
        let cfg = &self.net.cfg;
        (cfg.examples.div_ceil(cfg.batch) + cfg.sequences.div_ceil(cfg.sequence_batch)) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        match epoch {
            0 => self.warm_up(monitor),
            _ => Ok(self.tune(epoch, monitor)?.report()),
        }
    }

    fn inference(&self) -> Result<TensorMap> {
        let mut out = TensorMap::new();
        copies(&self.net.params, &mut out)?;
        copies(&self.net.llm_params, &mut out)?;
        self.graph_state(&mut out)?;
        if self.net.cfg.llm.is_none() {
            let json = self.net.llm.words.to_json()?;
            let n = json.len();
            out.insert(
                "tokenizer.json".into(),
                Tensor::from_vec(json, n, &Device::Cpu)?,
            );
        }
        let (vectors, _) = self.net.catalogue(self.data.num_items())?;
        out.insert("item_vectors".into(), vectors);
        Ok(out)
    }

    fn export_state(&self) -> Result<TensorMap> {
        let mut out = training_state(&self.net.params, &self.adam)?;
        for (name, t) in training_state(&self.net.llm_params, &self.llm_adam)? {
            out.insert(format!("language.{name}"), t);
        }
        self.graph_state(&mut out)?;
        for (number, fold) in self.folds.iter().enumerate() {
            put_graph(&mut out, &fold_name(number), fold)?;
        }
        Ok(out)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.net.params, &mut self.adam, from)?;
        let language: TensorMap = from
            .iter()
            .filter_map(|(k, t)| Some((k.strip_prefix("language.")?.to_owned(), t.clone())))
            .collect();
        restore_training(&self.net.llm_params, &mut self.llm_adam, &language)?;
        restore_graph(&mut self.net, from)?;
        self.folds = (0..)
            .map(fold_name)
            .take_while(|name| from.contains_key(&format!("{name}.values")))
            .map(|name| graph_of(from, &name, &self.net))
            .collect::<Result<_>>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
