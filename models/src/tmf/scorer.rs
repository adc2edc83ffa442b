//! Scoring with a trained model: the catalogue by vectors, a few candidates by what is written.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, Tensor};

use super::answers::named;
use super::config::{Curriculum, Scoring, TmfConfig};
use super::net::{Net, Soft};
use super::prompt::{Level, Prompt, Trie, groups};
use crate::attention::Segments;
use crate::data::HistoryEvent;
use crate::data::sequence::newest;
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::llm::{Kv, Past, best};
use crate::ops::{distinct, pick};
use crate::rng::{self, Purpose};

/// Longest free answer, in tokens.
const MOST_WRITTEN: usize = 32;

/// A trained model with the vectors and soft tokens of all items, computed once.
pub struct TmfScorer {
    pub(super) net: Net,
    /// `[N, D]`, and transposed.
    pub(super) vectors: Tensor,
    vectors_t: Tensor,
    /// `[N·slots, d_llm]`.
    pub(super) tokens: Tensor,
    items: usize,
}

/// Computed prompts: their last states and what continues them.
struct Asked {
    /// State at the end of each prompt, `[n, d_llm]`.
    last: Tensor,
    kv: Kv,
    ranges: Vec<Range<usize>>,
}

impl TmfScorer {
    pub(super) fn new(net: Net, items: usize) -> Result<Self> {
        let (vectors, tokens) = net.catalogue(items)?;
        Ok(Self {
            vectors_t: vectors.t()?.contiguous()?,
            vectors,
            tokens,
            items,
            net,
        })
    }

    fn cfg(&self) -> &TmfConfig {
        &self.net.cfg
    }

    /// What prompts look like at the end of tuning.
    fn level(&self) -> Level {
        match self.cfg().curriculum {
            Curriculum::Words => Level::Words,
            _ => Level::Tokens,
        }
    }

    fn soft(&self, histories: &[&[HistoryEvent]]) -> Result<Option<Soft>> {
        match self.level() {
            Level::Words => Ok(None),
            _ => self.net.soft_of_all(&self.tokens, histories).map(Some),
        }
    }

    /// Vectors of histories, of unit length over the temperature, `[n, D]`.
    pub(super) fn queries(&self, histories: &[&[HistoryEvent]]) -> Result<Tensor> {
        let log = |h: &&[HistoryEvent]| self.net.phrases.log(h, self.level());
        let logs: Vec<Prompt> = histories.iter().map(log).collect();
        let mut out = Vec::new();
        for group in groups(&logs, self.cfg().tokens_at_once) {
            let (logs, histories) = (&logs[group.clone()], &histories[group]);
            let seen: Vec<u32> = histories
                .iter()
                .flat_map(|h| h.iter().map(|e| e.item))
                .collect();
            let (seen, _) = distinct(&seen);
            let row: HashMap<u32, u32> = seen.iter().zip(0..).map(|(&i, r)| (i, r)).collect();
            let vectors = match seen.is_empty() {
                true => self.vectors.narrow(0, 0, 1)?,
                false => pick(&self.vectors, &seen)?,
            };
            let soft = self.soft(histories)?;
            let soft = soft.as_ref();
            let vectors =
                (self.net).history_vectors(logs, histories, soft, &vectors, |i| row[&i])?;
            out.push(vectors);
        }
        Ok((Tensor::cat(&out, 0)? / self.cfg().temperature)?)
    }

    /// Computes whole prompts, to be continued. `queries` are the vectors of the histories where a shelf
    /// tells how well its items fit them.
    fn ask(
        &self,
        histories: &[&[HistoryEvent]],
        queries: Option<&Tensor>,
        shelves: &[Vec<u32>],
        lettered: bool,
    ) -> Result<Asked> {
        let fits = match queries {
            Some(queries) => Net::fits(queries, &self.vectors, shelves, |i| i)?,
            None => vec![Vec::new(); shelves.len()],
        };
        let level = self.level();
        let phrases = &self.net.phrases;
        let prompts: Vec<Prompt> = histories
            .iter()
            .zip(shelves.iter().zip(&fits))
            .map(|(h, (shelf, fits))| {
                let mut p = phrases.log(h, level);
                phrases.ask(&mut p, shelf, fits, level, lettered);
                p
            })
            .collect();
        let none: Vec<&[u32]> = vec![&[]; prompts.len()];
        let soft = self.soft(histories)?;
        let (embeds, segments) = self.net.embed(&prompts, &none, soft.as_ref())?;
        let decoder = &self.net.llm.decoder;
        let (hidden, kv) = decoder.forward(&embeds, &segments, None, None)?;
        let hidden = hidden.detach();
        let mut start = 0;
        let mut ranges = Vec::with_capacity(prompts.len());
        for &n in segments.lengths() {
            ranges.push(start..start + n);
            start += n;
        }
        let last: Vec<u32> = ranges.iter().map(|r| r.end as u32 - 1).collect();
        Ok(Asked {
            last: pick(&hidden, &last)?,
            kv,
            ranges,
        })
    }

    /// `Σ log p(tᵢ | prompt, t<ᵢ) / length^β` of every answer of every prompt, the prompts computed
    /// once and shared by their answers.
    fn likelihoods(&self, asked: &Asked, answers: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f64>>> {
        let decoder = &self.net.llm.decoder;
        // The first token of every answer follows the last state of the prompt.
        let mut states = asked.last.clone();
        let (mut tokens, mut lengths, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        for (p, answers) in answers.iter().enumerate() {
            for answer in answers.iter().filter(|a| a.len() > 1) {
                tokens.extend_from_slice(&answer[..answer.len() - 1]);
                lengths.push(answer.len() - 1);
                ranges.push(asked.ranges[p].clone());
            }
        }
        if !tokens.is_empty() {
            let past = Past {
                kv: &asked.kv,
                ranges: &ranges,
            };
            let embeds = decoder.embed(&tokens)?;
            let segments = Segments::new(lengths);
            let (hidden, _) = decoder.forward(&embeds, &segments, Some(past), None)?;
            states = Tensor::cat(&[states, hidden.detach()], 0)?;
        }
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        let mut next = answers.len() as u32;
        for (p, answers) in answers.iter().enumerate() {
            for answer in answers {
                for (at, &token) in answer.iter().enumerate() {
                    rows.push(if at == 0 {
                        p as u32
                    } else {
                        next - 1 + at as u32
                    });
                    targets.push(token);
                }
                next += answer.len().saturating_sub(1) as u32;
            }
        }
        let dev = states.device();
        let logs = candle_nn::ops::log_softmax(&decoder.logits(&states)?, D::Minus1)?;
        let picked = pick(&logs, &rows)?
            .gather(&Tensor::from_slice(&targets, (targets.len(), 1), dev)?, 1)?;
        let picked = picked.flatten_all()?.to_vec1::<f32>()?;
        let mut picked = picked.into_iter();
        Ok(answers
            .iter()
            .map(|answers| {
                answers
                    .iter()
                    .map(|answer| {
                        let part = picked.by_ref().take(answer.len());
                        let sum: f64 = part.map(f64::from).sum();
                        sum / (answer.len() as f64).powf(self.cfg().length_power)
                    })
                    .collect()
            })
            .collect())
    }

    /// Scores of the candidates of each query.
    pub(super) fn by_titles(
        &self,
        histories: &[&[HistoryEvent]],
        queries: Option<&Tensor>,
        shelves: &[Vec<u32>],
    ) -> Result<Vec<Vec<f64>>> {
        let asked = self.ask(histories, queries, shelves, false)?;
        let answers = shelves
            .iter()
            .map(|s| Ok(self.net.phrases.answers(&self.net.llm, s)?.0))
            .collect::<Result<Vec<_>>>()?;
        self.likelihoods(&asked, &answers)
    }

    /// Log-probabilities of the letters among one another.
    fn by_letters(
        &self,
        histories: &[&[HistoryEvent]],
        queries: Option<&Tensor>,
        shelves: &[Vec<u32>],
    ) -> Result<Vec<Vec<f64>>> {
        let asked = self.ask(histories, queries, shelves, true)?;
        let logits = self.net.llm.decoder.logits(&asked.last)?.to_vec2::<f32>()?;
        Ok(logits
            .iter()
            .zip(shelves)
            .map(|(row, shelf)| {
                let raw: Vec<f64> = (0..shelf.len())
                    .map(|at| f64::from(row[self.net.phrases.letter(at) as usize]))
                    .collect();
                let most = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = raw.iter().map(|x| (x - most).exp()).sum();
                raw.iter().map(|x| x - most - sum.ln()).collect()
            })
            .collect())
    }

    /// What is written for each query: the candidate it names.
    fn written(
        &self,
        histories: &[&[HistoryEvent]],
        queries: Option<&Tensor>,
        shelves: &[Vec<u32>],
    ) -> Result<Vec<Option<u32>>> {
        let asked = self.ask(histories, queries, shelves, false)?;
        let llm = &self.net.llm;
        shelves
            .iter()
            .enumerate()
            .map(|(p, shelf)| {
                let kv = asked.kv.narrow(asked.ranges[p].clone())?;
                let last = asked.last.narrow(0, p, 1)?;
                let (answers, titles) = self.net.phrases.answers(llm, shelf)?;
                let at = if self.cfg().scoring == Scoring::Trie {
                    let trie = Trie::new(&answers);
                    let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
                    let choose = |written: &[u32], scores: &[f32]| trie.choose(written, scores);
                    let written = llm.greedy_after(kv, &last, longest, choose)?;
                    trie.answer(&written, llm.ends[0])
                } else {
                    let choose = |_: &[u32], scores: &[f32]| best(scores);
                    let written = llm.greedy_after(kv, &last, MOST_WRITTEN, choose)?;
                    named(&llm.words.decode(&written)?, &titles, self.cfg().match_rule)
                };
                Ok(at.map(|at| shelf[at]))
            })
            .collect()
    }

    /// Candidates of one query in an order of their own, the same in every run.
    fn shelf(&self, query: &EvalQuery, candidates: &[u32], turn: u64) -> Vec<u32> {
        let mut shelf = candidates.to_vec();
        let parts = [u64::from(query.user), turn];
        let mut r = rng::stream(0, Purpose::Candidates, &parts);
        rng::shuffle(&mut r, &mut shelf);
        shelf
    }

    /// Candidates of some queries, best first; written answers give the one that they name.
    fn rank(&self, queries: &[EvalQuery], candidates: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let cfg = self.cfg();
        let histories: Vec<&[HistoryEvent]> = queries
            .iter()
            .map(|q| newest(&q.history, cfg.window))
            .collect();
        let shelves = |turn: u64| -> Vec<Vec<u32>> {
            let each = queries.iter().zip(candidates);
            each.map(|(q, c)| self.shelf(q, c, turn)).collect()
        };
        let turns = match cfg.scoring {
            Scoring::Label => cfg.label_shuffles as u64,
            _ => 1,
        };
        let vectors = match self.net.tells_fits() {
            true => Some(self.queries(&histories)?),
            false => None,
        };
        let vectors = vectors.as_ref();
        if matches!(cfg.scoring, Scoring::Free | Scoring::Trie) {
            let written = self.written(&histories, vectors, &shelves(0))?;
            return Ok(written.into_iter().map(Vec::from_iter).collect());
        }
        let mut totals: Vec<Vec<f64>> = candidates.iter().map(|c| vec![0.0; c.len()]).collect();
        for turn in 0..turns {
            let shelves = shelves(turn);
            let scores = match cfg.scoring {
                Scoring::Label => self.by_letters(&histories, vectors, &shelves)?,
                _ => self.by_titles(&histories, vectors, &shelves)?,
            };
            for (q, (shelf, scores)) in shelves.iter().zip(scores).enumerate() {
                for (item, score) in shelf.iter().zip(scores) {
                    if let Ok(at) = candidates[q].binary_search(item) {
                        totals[q][at] += score;
                    }
                }
            }
        }
        Ok(candidates
            .iter()
            .zip(totals)
            .map(|(items, scores)| {
                let mut order: Vec<usize> = (0..items.len()).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                order.into_iter().map(|at| items[at]).collect()
            })
            .collect())
    }
}

impl Scorer for TmfScorer {
    fn num_items(&self) -> usize {
        self.items
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        if self.cfg().scoring != Scoring::Vector {
            return Err(Error::config(
                "only `scoring=vector` scores a whole catalogue; give the others a few candidates, as `--protocol sampled:19` does",
            ));
        }
        let histories: Vec<&[HistoryEvent]> = queries
            .iter()
            .map(|q| newest(&q.history, self.cfg().sequence_window))
            .collect();
        let scores = self.queries(&histories)?.matmul(&self.vectors_t)?;
        crate::factors::copy_scores(&scores, out)
    }

    fn rank_candidates(
        &self,
        queries: &[EvalQuery],
        candidates: &[Vec<u32>],
    ) -> Result<Option<Vec<Vec<u32>>>> {
        let cfg = self.cfg();
        if cfg.scoring == Scoring::Vector {
            return Ok(None);
        }
        let most = candidates.iter().map(Vec::len).max().unwrap_or(0);
        if cfg.scoring == Scoring::Label && most > 26 {
            return Err(Error::config(format!(
                "{most} candidates, but there are 26 letters; use `--protocol sampled:25` or less"
            )));
        }
        // Prompts of this many queries fit one pass; lengths differ little.
        let line = 4 + cfg.title_tokens;
        let each = (cfg.window + 2 * most) * line + 60;
        let at_once = (cfg.tokens_at_once / each).max(1);
        let mut out = Vec::with_capacity(queries.len());
        for (queries, candidates) in queries.chunks(at_once).zip(candidates.chunks(at_once)) {
            out.extend(self.rank(queries, candidates)?);
        }
        Ok(Some(out))
    }
}
