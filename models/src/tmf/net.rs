//! The language model with soft tokens of items, and the heads that read it.

use std::collections::{HashMap, HashSet};

use candle_core::{D, Device, Tensor};

use super::config::{Curriculum, Scope, SoftTokens, TmfConfig};
use super::fusion::{Fused, Fusion, Modality, modalities};
use super::graph::CoBehavior;
use super::prompt::{Phrases, Prompt, Symbol, titles, wording};
use crate::attention::Segments;
use crate::data::{Dataset, HistoryEvent};
use crate::error::{Error, Result};
use crate::layer::Linear;
use crate::llm::{Decoder, Llm, LlmConfig, Words};
use crate::ops::{self, index_tensor, pick};
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// Items fused at once when all are.
const FUSED_AT_ONCE: usize = 1024;

/// Soft tokens of some items, and of the events of some histories.
pub(super) struct Soft {
    /// `[rows, d_llm]`.
    pub(super) tokens: Tensor,
    /// First row of an item; all items in order when absent.
    items: Option<HashMap<u32, u32>>,
    /// First row of each history's first event, where events differ from items.
    events: Option<Vec<u32>>,
    /// The items of each history.
    histories: Vec<Vec<u32>>,
}

/// What one fusion pass over a batch gives.
pub(super) struct Batch {
    pub(super) soft: Soft,
    /// Item vectors of unit length, `[ids, D]`.
    pub(super) vectors: Tensor,
    /// Row of each item in `vectors`.
    pub(super) row: HashMap<u32, u32>,
    /// One soft token an item (their mean where there are several), `[ids, d_llm]`.
    pub(super) spoken: Tensor,
    pub(super) ids: Vec<u32>,
}

/// All parts.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) cfg: TmfConfig,
    pub(super) llm: Llm,
    /// Low-rank updates, or all weights of a model from scratch.
    pub(super) llm_params: Params,
    /// Everything else.
    pub(super) params: Params,
    pub(super) phrases: Phrases,
    pub(super) modalities: Vec<Modality>,
    pub(super) fusion: Fusion,
    /// Behaviours' tokens `[behaviours, d_llm]`.
    behaviors: Tensor,
    project: (Linear, Linear),
    query: Linear,
    /// Weight of the past items in a history's vector, and its logarithm for each behaviour.
    past: Option<(Tensor, Tensor)>,
    /// What the rows of a shelf's entry are moved along by how well its item fits, `[1, d_llm]`.
    fit: Option<Tensor>,
    /// Root mean square of the embedding table: soft tokens get the size of words.
    pub(super) scale: f64,
    slots: usize,
    dev: Device,
}

impl Net {
    /// A fresh net. `words` is the tokenizer of an earlier run of a model from scratch.
    pub(super) fn new(
        data: &Dataset,
        cfg: TmfConfig,
        words: Option<Words>,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        cfg.check()?;
        let mut llm_params = Params::default();
        let llm = match &cfg.llm {
            Some(folder) => {
                let mut llm = Llm::open(folder, dev)?;
                llm.decoder
                    .add_lora(&mut llm_params, "lora.", &cfg.lora, seed)?;
                llm
            }
            None => {
                let words = match words {
                    Some(words) => words,
                    None => {
                        let texts = [wording(data), titles(data)].concat();
                        Words::train(texts.iter().map(String::as_str), cfg.llm_vocabulary)?
                    }
                };
                let config =
                    LlmConfig::small(words.len(), cfg.llm_dim, cfg.llm_layers, cfg.llm_context);
                let decoder = Decoder::random(config, &mut llm_params, "llm.", seed, dev)?;
                Llm {
                    decoder,
                    words,
                    ends: vec![0],
                }
            }
        };
        let modalities = modalities(data, &cfg, dev)?;
        if modalities.is_empty() {
            return Err(Error::config(
                "tmf needs at least one modality: features in the data set, or `graph`",
            ));
        }
        let slots = match cfg.soft_tokens {
            SoftTokens::Pooled => 1,
            SoftTokens::Each => modalities.len(),
        };
        let phrases = Phrases::new(
            data,
            &llm,
            cfg.title_tokens,
            u8::try_from(slots).map_err(|_| Error::config("too many modalities"))?,
            cfg.behavior_tokens,
        )?;
        let mut params = Params::default();
        let fusion = Fusion::new(
            &mut params,
            &modalities,
            data.behaviors.len(),
            &cfg,
            seed,
            dev,
        )?;
        let (d, wide) = (cfg.dim, llm.decoder.config().hidden_size);
        let mut linear =
            |name: &str, a: usize, b: usize| Linear::new(&mut params, name, a, b, seed, dev);
        let project = (
            linear("project.up", d, wide)?,
            linear("project.down", wide, wide)?,
        );
        let query = linear("query", wide, d)?;
        let zero = Tensor::zeros((data.behaviors.len(), wide), candle_core::DType::F32, dev)?;
        let behaviors = params.add("behaviors", &zero)?;
        let past = match cfg.past_vectors && cfg.curriculum != Curriculum::Words {
            true => {
                let weight = Tensor::full(2f32, 1, dev)?;
                let each = zero.narrow(1, 0, 1)?.contiguous()?;
                Some((
                    params.add("past.weight", &weight)?,
                    params.add("past.behaviors", &each)?,
                ))
            }
            false => None,
        };
        let fit = match cfg.shelf_fits && cfg.curriculum != Curriculum::Words {
            true => {
                // A pretrained model must still be able to read the words that are moved.
                let size = if cfg.llm.is_some() { 0.1 } else { 1.0 };
                let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("shelf.fit")]);
                Some(params.add("shelf.fit", &rng::normal(&mut r, (1, wide), size, dev)?)?)
            }
            false => None,
        };
        let mut net = Self {
            cfg,
            llm,
            llm_params,
            params,
            phrases,
            modalities,
            fusion,
            behaviors,
            project,
            query,
            past,
            fit,
            scale: 1.0,
            slots,
            dev: dev.clone(),
        };
        net.follow_words()?;
        Ok(net)
    }

    /// Starts what depends on the embedding table from it: the tokens of behaviours as the mean of a
    /// plain word's, and the size of soft tokens.
    pub(super) fn follow_words(&mut self) -> Result<()> {
        self.scale = self.llm.decoder.word_size()?;
        let rows = (0..self.behaviors.dim(0)?)
            .map(|b| {
                let words = self.llm.decoder.embed(self.phrases.behavior_words(b))?;
                Ok(words.mean_keepdim(0)?.detach())
            })
            .collect::<Result<Vec<_>>>()?;
        self.params.set("behaviors", &Tensor::cat(&rows, 0)?)
    }

    /// Co-behaviour of the items, where it is a modality.
    pub(super) fn graph(&self) -> Option<CoBehavior> {
        let last = self.modalities.last().filter(|_| self.cfg.graph)?;
        Some(CoBehavior {
            vectors: last.values.clone(),
            present: last.present.clone(),
        })
    }

    /// Sets what [`Self::graph`] gives.
    pub(super) fn set_graph(&mut self, graph: &CoBehavior) {
        if let Some(last) = self.modalities.last_mut().filter(|_| self.cfg.graph) {
            last.values = graph.vectors.clone();
            last.present.clone_from(&graph.present);
        }
    }

    /// `s·u/rms(u)`, `u = W₂ GELU(W₁ h)`, one row a slot.
    fn speak(&self, fused: &Fused) -> Result<Tensor> {
        let h = match self.cfg.soft_tokens {
            SoftTokens::Pooled => fused.pooled.clone(),
            SoftTokens::Each => {
                let (n, m, d) = fused.rows.dims3()?;
                fused.rows.reshape((n * m, d))?
            }
        };
        let u = self.project.0.forward(&h)?.gelu_erf()?;
        let u = self.project.1.forward(&u)?;
        let rms = (u.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        Ok((u.broadcast_div(&rms)? * self.scale)?)
    }

    /// Fuses the items of some histories and others, each distinct one once.
    pub(super) fn batch(
        &self,
        histories: &[&[HistoryEvent]],
        others: &[u32],
        mut noise: Option<&mut Stream>,
    ) -> Result<Batch> {
        let past = histories.iter().flat_map(|h| h.iter().map(|e| e.item));
        let all: Vec<u32> = past.chain(others.iter().copied()).collect();
        let (ids, _) = ops::distinct(&all);
        let row: HashMap<u32, u32> = ids.iter().zip(0..).map(|(&i, r)| (i, r)).collect();
        let crossed = self
            .fusion
            .crossed(&self.modalities, &ids, noise.as_deref_mut())?;
        let fused = self.fusion.fused(&crossed, noise.as_deref_mut())?;
        let mut tokens = self.speak(&fused)?;
        let wide = tokens.dim(1)?;
        let spoken = tokens.reshape((ids.len(), self.slots, wide))?.mean(1)?;
        let slots = self.slots as u32;
        let mut events = None;
        if self.cfg.scope == Scope::Sequence && histories.iter().any(|h| !h.is_empty()) {
            let seen: Vec<Vec<(u32, u8)>> = histories
                .iter()
                .map(|h| h.iter().map(|e| (row[&e.item], e.behavior)).collect())
                .collect();
            let mixed = self.fusion.fused_sequences(&crossed, &seen, noise)?;
            let mut at = tokens.dim(0)? as u32;
            tokens = Tensor::cat(&[tokens, self.speak(&mixed)?], 0)?;
            let mut starts = Vec::with_capacity(histories.len());
            for h in histories {
                starts.push(at);
                at += h.len() as u32 * slots;
            }
            events = Some(starts);
        }
        let soft = Soft {
            tokens,
            items: Some(row.iter().map(|(&i, &r)| (i, r * slots)).collect()),
            events,
            histories: items_of(histories),
        };
        Ok(Batch {
            vectors: ops::normalize_rows(&fused.pooled)?,
            soft,
            row,
            spoken,
            ids,
        })
    }

    /// Vectors of unit length `[N, D]` and soft tokens `[N·slots, d_llm]` of all items.
    pub(super) fn catalogue(&self, items: usize) -> Result<(Tensor, Tensor)> {
        let ids: Vec<u32> = (0..items as u32).collect();
        let (mut vectors, mut tokens) = (Vec::new(), Vec::new());
        for ids in ids.chunks(FUSED_AT_ONCE) {
            let crossed = self.fusion.crossed(&self.modalities, ids, None)?;
            let fused = self.fusion.fused(&crossed, None)?;
            vectors.push(ops::normalize_rows(&fused.pooled)?.detach());
            tokens.push(self.speak(&fused)?.detach());
        }
        Ok((Tensor::cat(&vectors, 0)?, Tensor::cat(&tokens, 0)?))
    }

    /// Soft tokens for some histories, from those of all items.
    pub(super) fn soft_of_all(
        &self,
        tokens: &Tensor,
        histories: &[&[HistoryEvent]],
    ) -> Result<Soft> {
        if self.cfg.scope == Scope::Sequence {
            // Events depend on their history: only the candidates could come from the table.
            let mut soft = self.batch(histories, &[], None)?.soft;
            if let Some(starts) = &mut soft.events {
                let before = tokens.dim(0)? as u32;
                starts.iter_mut().for_each(|s| *s += before);
            }
            soft.tokens = Tensor::cat(&[tokens, &soft.tokens], 0)?;
            soft.items = None;
            return Ok(soft);
        }
        Ok(Soft {
            tokens: tokens.clone(),
            items: None,
            events: None,
            histories: items_of(histories),
        })
    }

    /// Rows of embeddings of prompts, each followed by tokens of an answer. Prompt p belongs to
    /// history p of `soft`. Gradients reach the table where it is trained, the tokens of behaviours
    /// and the soft tokens.
    pub(super) fn embed(
        &self,
        prompts: &[Prompt],
        answers: &[&[u32]],
        soft: Option<&Soft>,
    ) -> Result<(Tensor, Segments)> {
        let slots = self.slots as u32;
        let mut tokens = Places::default();
        let mut soft_rows = Places::default();
        let mut wanted = Vec::new();
        let mut fits = Vec::new();
        let mut lengths = Vec::with_capacity(prompts.len());
        for (p, (prompt, answer)) in prompts.iter().zip(answers).enumerate() {
            fits.extend(prompt.fits.iter().map(|&(at, x)| (wanted.len() + at, x)));
            lengths.push(prompt.symbols.len() + answer.len());
            let answer = answer.iter().map(|&t| Symbol::Token(t));
            for symbol in prompt.symbols.iter().copied().chain(answer) {
                wanted.push(match symbol {
                    Symbol::Token(t) => Source::Token(tokens.place(t)),
                    Symbol::Behavior(b) => Source::Behavior(u32::from(b)),
                    Symbol::Item { .. } | Symbol::Event { .. } => {
                        let soft = soft.ok_or_else(|| {
                            Error::config("a prompt with soft tokens without their vectors")
                        })?;
                        let row = match symbol {
                            Symbol::Item { item, slot } => {
                                soft.item(item, slots)? + u32::from(slot)
                            }
                            Symbol::Event { at, slot } => {
                                soft.event(p, at, slots)? + u32::from(slot)
                            }
                            _ => 0,
                        };
                        Source::Soft(soft_rows.place(row))
                    }
                });
            }
        }
        let mut parts = vec![
            self.llm.decoder.embed(&tokens.order)?,
            self.behaviors.clone(),
        ];
        if let Some(soft) = soft.filter(|_| !soft_rows.order.is_empty()) {
            let used = index_tensor(&soft_rows.order, &self.dev)?;
            parts.push(soft.tokens.index_select(&used, 0)?);
        }
        let first = tokens.order.len() as u32;
        let second = first + self.behaviors.dim(0)? as u32;
        let rows: Vec<u32> = wanted
            .into_iter()
            .map(|s| match s {
                Source::Token(r) => r,
                Source::Behavior(r) => first + r,
                Source::Soft(r) => second + r,
            })
            .collect();
        let source = Tensor::cat(&parts, 0)?;
        let mut embeds = pick(&source, &rows)?;
        if let (Some(direction), false) = (&self.fit, fits.is_empty()) {
            let mut column = vec![0f32; rows.len()];
            fits.iter().for_each(|&(row, x)| column[row] = x);
            let column = Tensor::from_vec(column, (rows.len(), 1), &self.dev)?;
            embeds = (embeds + (column.matmul(direction)? * self.scale)?)?;
        }
        Ok((embeds, Segments::new(lengths)))
    }

    /// Whether the entries of a shelf tell how well their item fits.
    pub(super) fn tells_fits(&self) -> bool {
        self.fit.is_some()
    }

    /// How well each item of a shelf fits the history of the same place: one over its place when the shelf is
    /// ordered by the product of their vectors. `row` gives an item's row of `vectors`.
    pub(super) fn fits(
        queries: &Tensor,
        vectors: &Tensor,
        shelves: &[Vec<u32>],
        row: impl Fn(u32) -> u32,
    ) -> Result<Vec<Vec<f32>>> {
        let compare = |(q, shelf): (usize, &Vec<u32>)| {
            if shelf.is_empty() {
                return Ok(Vec::new());
            }
            let rows: Vec<u32> = shelf.iter().map(|&item| row(item)).collect();
            let items = pick(vectors, &rows)?;
            let fits = items.matmul(&queries.narrow(0, q, 1)?.t()?)?;
            let fits = fits.flatten_all()?.to_vec1::<f32>()?;
            let place = |fit: &f32| 1 + fits.iter().filter(|x| *x > fit).count();
            Ok(fits.iter().map(|fit| 1.0 / place(fit) as f32).collect())
        };
        shelves.iter().enumerate().map(compare).collect()
    }

    /// Vectors of unit length of histories, by their logs alone, without noise and without gradients.
    pub(super) fn history_vectors(
        &self,
        logs: &[Prompt],
        histories: &[&[HistoryEvent]],
        soft: Option<&Soft>,
        vectors: &Tensor,
        row: impl Fn(u32) -> u32,
    ) -> Result<Tensor> {
        let none: Vec<&[u32]> = vec![&[]; logs.len()];
        let (embeds, segments) = self.embed(logs, &none, soft)?;
        let (hidden, _) = (self.llm.decoder).forward(&embeds.detach(), &segments, None, None)?;
        let mut start = 0;
        let mut ends = Vec::with_capacity(logs.len());
        for (log, &n) in logs.iter().zip(segments.lengths()) {
            ends.push((start + log.log_end()) as u32);
            start += n;
        }
        let told = self.queries(&hidden.detach(), &ends, histories, vectors, row)?;
        Ok(told.detach())
    }

    /// Vectors of unit length of histories: from the states at the ends of their logs, and from the
    /// vectors of the items in them. `row` gives an item's row of `vectors`.
    ///
    /// # Shapes
    /// `hidden` `[R, d_llm]`, `rows` and `pasts` of length n; the result is `[n, D]`.
    pub(super) fn queries(
        &self,
        hidden: &Tensor,
        rows: &[u32],
        pasts: &[&[HistoryEvent]],
        vectors: &Tensor,
        row: impl Fn(u32) -> u32,
    ) -> Result<Tensor> {
        let states = pick(hidden, rows)?;
        let told = ops::normalize_rows(&self.query.forward(&states)?)?;
        let Some((weight, each)) = &self.past else {
            return Ok(told);
        };
        let (n, items, kinds) = (pasts.len(), vectors.dim(0)?, each.dim(0)?);
        let mut share = vec![vec![0f32; n * items]; kinds];
        for (q, past) in pasts.iter().enumerate() {
            for e in *past {
                let kind = match self.cfg.behavior_tokens {
                    true => e.behavior as usize,
                    false => 0,
                };
                share[kind][q * items + row(e.item) as usize] += 1.0 / past.len() as f32;
            }
        }
        let factors = each.exp()?;
        let mut mean = told.zeros_like()?;
        for (b, share) in share.into_iter().enumerate() {
            if share.iter().all(|x| *x == 0.0) {
                continue;
            }
            // Constant on the left: no gradient of it is computed.
            let share = Tensor::from_vec(share, (n, items), &self.dev)?;
            let part = ops::input_linear(&share, vectors)?;
            mean = (mean + part.broadcast_mul(&factors.narrow(0, b, 1)?)?)?;
        }
        let mean = ops::normalize_rows(&mean)?;
        ops::normalize_rows(&(told + mean.broadcast_mul(weight)?)?)
    }

    /// Symmetric contrast of soft tokens with the mean embeddings of their titles' tokens.
    pub(super) fn alignment(&self, batch: &Batch, most: usize) -> Result<Option<Tensor>> {
        let mut titles = HashSet::new();
        let rows: Vec<u32> = (0..batch.ids.len() as u32)
            .filter(|&r| {
                let title = self.phrases.title(batch.ids[r as usize]);
                !title.is_empty() && titles.insert(title)
            })
            .take(most)
            .collect();
        if rows.len() < 2 {
            return Ok(None);
        }
        let said = rows
            .iter()
            .map(|&r| {
                let title = self.phrases.title(batch.ids[r as usize]);
                Ok(self.llm.decoder.embed(title)?.mean_keepdim(0)?.detach())
            })
            .collect::<Result<Vec<_>>>()?;
        let said = ops::normalize_rows(&Tensor::cat(&said, 0)?)?;
        let soft = pick(&batch.spoken, &rows)?;
        let soft = ops::normalize_rows(&soft)?;
        let n = rows.len();
        let positive: Vec<u32> = (0..n as u32).collect();
        let weight = vec![1.0 / n as f32; n];
        let a = ops::info_nce(&soft, &said, &positive, &weight, ALIGN_TEMPERATURE)?;
        let b = ops::info_nce(&said, &soft, &positive, &weight, ALIGN_TEMPERATURE)?;
        Ok(Some(((a + b)? * 0.5)?))
    }
}

/// Temperature of the alignment of soft tokens with titles.
const ALIGN_TEMPERATURE: f64 = 0.07;

fn items_of(histories: &[&[HistoryEvent]]) -> Vec<Vec<u32>> {
    histories
        .iter()
        .map(|h| h.iter().map(|e| e.item).collect())
        .collect()
}

enum Source {
    Token(u32),
    Behavior(u32),
    Soft(u32),
}

/// Distinct numbers in first-seen order.
#[derive(Default)]
struct Places {
    order: Vec<u32>,
    at: HashMap<u32, u32>,
}

impl Places {
    fn place(&mut self, x: u32) -> u32 {
        *self.at.entry(x).or_insert_with(|| {
            self.order.push(x);
            self.order.len() as u32 - 1
        })
    }
}

impl Soft {
    fn item(&self, item: u32, slots: u32) -> Result<u32> {
        match &self.items {
            None => Ok(item * slots),
            Some(rows) => rows
                .get(&item)
                .copied()
                .ok_or_else(|| Error::config(format!("item {item} has no soft token"))),
        }
    }

    fn event(&self, history: usize, at: u32, slots: u32) -> Result<u32> {
        match &self.events {
            Some(starts) => Ok(starts[history] + at * slots),
            None => self.item(self.histories[history][at as usize], slots),
        }
    }
}
