//! Evaluation by ranking: queries, protocol, metrics, slices.
//!
//! A [`Scorer`] sees only what a device would: the history of a query. [`evaluate`] asks it for the
//! scores of a block of queries at a time, so memory is bounded by the block, not by the users.

pub mod metrics;

use std::collections::BTreeMap;

use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::split::user_rng;
pub use crate::data::{Dataset, HistoryEvent, Split};
use crate::error::{Error, Result};

/// Most scores held at once: 256 MB of `f32`.
const MAX_BLOCK: usize = 1 << 26;

/// What is asked of a model, and the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalQuery {
    /// Dense user id; models for known users may look it up, on-device models must not.
    pub user: u32,
    /// Past events, oldest first.
    pub history: Vec<HistoryEvent>,
    /// Items excluded from the ranking, ascending and distinct.
    pub mask: Vec<u32>,
    /// Items to be found, ascending and distinct. They may overlap `mask` where a user returns to an
    /// item; such a target counts in the denominators but cannot be found.
    pub targets: Vec<u32>,
}

/// Anything that can rank all items for a history.
pub trait Scorer: Sync {
    /// Number of items it scores.
    fn num_items(&self) -> usize;

    /// Writes a score for every query and item; higher is better.
    ///
    /// # Shapes
    ///
    /// `out` is `[queries.len() × num_items]`, row-major. Its content on entry is not defined.
    ///
    /// # Errors
    ///
    /// Whatever the model reports.
    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()>;

    /// Ranks a few candidates of each query (ascending ids), best first, where the model has another
    /// way to do so than by [`score`](Self::score): a language model asked about them, for example.
    /// An answer that names no candidate is an empty list.
    ///
    /// # Errors
    ///
    /// Whatever the model reports.
    fn rank_candidates(
        &self,
        _queries: &[EvalQuery],
        _candidates: &[Vec<u32>],
    ) -> Result<Option<Vec<Vec<u32>>>> {
        Ok(None)
    }
}

/// Which items a target competes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// All items that are not masked.
    #[default]
    Full,
    /// The targets and `n` others drawn without replacement from items that are neither masked, nor
    /// in the history, nor targets. Much easier than full ranking and not comparable with it.
    Sampled {
        /// Negatives per query.
        n: usize,
        /// Seed; each user has negatives of its own.
        seed: u64,
    },
}

/// What a test query may look back on. Validation queries always see the training rows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryRule {
    /// Training and validation rows where the data is ordered, has named behaviours, or had its
    /// validation part held out of train by Tercet; training rows only for published graph splits
    /// (TikTok, Baby), whose programs never load the validation part.
    #[default]
    Auto,
    /// Training rows.
    Train,
    /// Training and validation rows.
    TrainValid,
}

/// Which items are excluded from a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskRule {
    /// Nothing for published queries; items of the target behaviour where one is set and the data is
    /// ordered (a viewed item may still be bought); otherwise all items of the history.
    #[default]
    Auto,
    /// All items of the history.
    History,
    /// Items of the history with the target behaviour; all if none is set.
    TargetBehavior,
    /// Nothing.
    None,
}

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalProtocol {
    /// The split whose rows are the targets.
    pub split: Split,
    /// Cut-offs.
    pub ks: Vec<usize>,
    /// Full or sampled ranking.
    pub candidates: Candidates,
    /// What queries look back on.
    pub history: HistoryRule,
    /// What is excluded.
    pub mask: MaskRule,
    /// Whether to report slices as well.
    pub slices: bool,
    /// Queries scored at once; lowered where that many score rows would exceed 256 MB.
    pub batch: usize,
    /// Evaluates at most this many queries, evenly spaced.
    pub max_users: Option<usize>,
}

impl Default for EvalProtocol {
    fn default() -> Self {
        Self {
            split: Split::Test,
            ks: vec![10, 20],
            candidates: Candidates::Full,
            history: HistoryRule::Auto,
            mask: MaskRule::Auto,
            slices: false,
            batch: 256,
            max_users: None,
        }
    }
}

impl EvalProtocol {
    /// The default protocol on validation rows.
    pub fn valid() -> Self {
        Self {
            split: Split::Valid,
            ..Self::default()
        }
    }

    /// `full` or `sampled:N`.
    pub fn name(&self) -> String {
        match self.candidates {
            Candidates::Full => "full".to_owned(),
            Candidates::Sampled { n, .. } => format!("sampled:{n}"),
        }
    }
}

/// Metrics of a subset of queries or targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceReport {
    /// Queries in the slice.
    pub users: usize,
    /// Mean over these queries, by `name@k`.
    pub metrics: BTreeMap<String, f64>,
}

/// The outcome of [`evaluate`]; serialises to the fields of the command's JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// The split evaluated.
    pub split: Split,
    /// `full` or `sampled:N`.
    pub protocol: String,
    /// Queries evaluated: users with a target, or published queries.
    pub users: usize,
    /// Items in the catalogue.
    pub items: usize,
    /// Mean over queries, by `name@k`: recall, precision, ndcg, hit, mrr, and coverage, the share of
    /// the catalogue that occurs in any list. Where the model ranked sampled candidates itself,
    /// `valid@1`, `hit_valid@1` and `hit@1` too: the share of answers that name a candidate, and how
    /// many of these, and of all, name a target.
    pub metrics: BTreeMap<String, f64>,
    /// `items:cold` and `items:warm` (only targets without or with training rows, over the queries
    /// that have one), `items:0-2` and `items:>5` likewise by number of training rows;
    /// `items:cold_among_cold`, where cold targets compete with cold items alone, so that it shows
    /// what content says apart from how known and new items are weighed against each other (a model
    /// that scores all cold items alike gets what ties by id give); `history:…` by
    /// number of events. Empty unless asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slices: BTreeMap<String, SliceReport>,
}

impl EvalReport {
    /// A metric by its key, for example `recall@20`.
    pub fn metric(&self, key: &str) -> Option<f64> {
        self.metrics.get(key).copied()
    }
}

/// The queries of a protocol, in the order of users (or of `queries.csv`).
///
/// # Errors
///
/// [`Error::Config`] for the training split, an empty list of cut-offs, or a split without targets.
pub fn queries(data: &Dataset, protocol: &EvalProtocol) -> Result<Vec<EvalQuery>> {
    let split = protocol.split;
    if split == Split::Train {
        return Err(Error::config(
            "the training split has no queries; evaluate on valid or test",
        ));
    }
    let mut queries = match &data.queries {
        Some(rows) => published(data, protocol, rows),
        None => from_rows(data, protocol),
    };
    if queries.is_empty() {
        return Err(Error::config(format!(
            "the data has no {} rows to evaluate on{}",
            split.name(),
            match data.target_behavior {
                Some(b) => format!(" with behaviour {:?}", data.behaviors[b as usize]),
                None => String::new(),
            }
        )));
    }
    if let Some(limit) = protocol.max_users
        && limit < queries.len()
    {
        let all = queries.len();
        let mut at = 0;
        queries.retain(|_| {
            // Keeps exactly `limit` of `all`, evenly spaced.
            let keep = (at + 1) * limit / all > at * limit / all;
            at += 1;
            keep
        });
    }
    Ok(queries)
}

fn published(
    data: &Dataset,
    protocol: &EvalProtocol,
    rows: &[crate::data::QueryRow],
) -> Vec<EvalQuery> {
    rows.iter()
        .filter(|row| row.split == protocol.split)
        .map(|row| {
            let history: Vec<HistoryEvent> = row
                .history
                .iter()
                .map(|&item| HistoryEvent { item, behavior: 0 })
                .collect();
            let rule = match protocol.mask {
                MaskRule::Auto => MaskRule::None,
                rule => rule,
            };
            EvalQuery {
                user: row.user,
                mask: mask(data, &history, rule),
                history,
                targets: row.targets.clone(),
            }
        })
        .collect()
}

fn from_rows(data: &Dataset, protocol: &EvalProtocol) -> Vec<EvalQuery> {
    let with_valid = match protocol.history {
        HistoryRule::Auto => data.ordered || data.valid_from_train || data.behaviors.len() > 1,
        HistoryRule::Train => false,
        HistoryRule::TrainValid => true,
    };
    let upto = if protocol.split == Split::Test && with_valid {
        Split::Test
    } else {
        Split::Valid
    };
    let rule = match protocol.mask {
        MaskRule::Auto if data.target_behavior.is_some() && data.ordered => {
            MaskRule::TargetBehavior
        }
        MaskRule::Auto => MaskRule::History,
        rule => rule,
    };
    (0..data.num_users() as u32)
        .filter_map(|user| {
            let mut targets: Vec<u32> = data
                .user_rows(user)
                .iter()
                .filter(|row| row.split == protocol.split && data.is_target(row.behavior))
                .map(|row| row.item)
                .collect();
            if targets.is_empty() {
                return None;
            }
            targets.sort_unstable();
            targets.dedup();
            let history = data.history(user, upto);
            Some(EvalQuery {
                user,
                mask: mask(data, &history, rule),
                history,
                targets,
            })
        })
        .collect()
}

fn mask(data: &Dataset, history: &[HistoryEvent], rule: MaskRule) -> Vec<u32> {
    let mut mask: Vec<u32> = match rule {
        MaskRule::None => Vec::new(),
        MaskRule::TargetBehavior => history
            .iter()
            .filter(|e| data.is_target(e.behavior))
            .map(|e| e.item)
            .collect(),
        MaskRule::History | MaskRule::Auto => history.iter().map(|e| e.item).collect(),
    };
    mask.sort_unstable();
    mask.dedup();
    mask
}

/// What a model ranked for one query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankedList {
    /// The user.
    pub user: u32,
    /// Items to find.
    pub targets: Vec<u32>,
    /// Items, best first, as many as the largest cut-off; empty for an answer that names none.
    pub items: Vec<u32>,
}

/// Ranks items for every query of the protocol and averages the metrics.
///
/// # Errors
///
/// [`Error::Config`] as for [`queries`], or if the scorer has another number of items than the data;
/// [`Error::Scores`] if a score is NaN; whatever the scorer reports.
pub fn evaluate(
    scorer: &dyn Scorer,
    data: &Dataset,
    protocol: &EvalProtocol,
) -> Result<EvalReport> {
    Ok(evaluate_with_lists(scorer, data, protocol)?.0)
}

/// [`evaluate`], and the lists that its metrics are of, in the order of [`queries`].
///
/// # Errors
///
/// As for [`evaluate`].
pub fn evaluate_with_lists(
    scorer: &dyn Scorer,
    data: &Dataset,
    protocol: &EvalProtocol,
) -> Result<(EvalReport, Vec<RankedList>)> {
    let items = data.num_items();
    if scorer.num_items() != items {
        return Err(Error::config(format!(
            "the model ranks {} items, but the data has {items}; was it trained on other data?",
            scorer.num_items()
        )));
    }
    if protocol.ks.is_empty() || protocol.ks.contains(&0) || protocol.batch == 0 {
        return Err(Error::config("cut-offs (k) and the batch must be positive"));
    }
    let queries = queries(data, protocol)?;
    let trained = if protocol.slices {
        training_rows(data)
    } else {
        Vec::new()
    };
    let cold: Vec<u32> = (0..trained.len() as u32)
        .filter(|&i| trained[i as usize] == 0)
        .collect();
    let Ranked {
        lists: ranked,
        cold: ranked_cold,
        answered,
    } = rank(scorer, &queries, protocol, items, &cold)?;

    let all: Vec<(&[u32], &[u32])> = queries
        .iter()
        .zip(&ranked)
        .map(|(q, r)| (r.as_slice(), q.targets.as_slice()))
        .collect();
    let mut metrics = means(&all, &protocol.ks);
    for &k in &protocol.ks {
        let mut shown = vec![false; items];
        for list in &ranked {
            for &item in list.iter().take(k) {
                shown[item as usize] = true;
            }
        }
        let count = shown.iter().filter(|s| **s).count();
        metrics.insert(format!("coverage@{k}"), count as f64 / items as f64);
    }
    if answered {
        answer_metrics(&all, &mut metrics);
    }
    let slices = if protocol.slices {
        slices(&trained, &queries, &ranked, &ranked_cold, &protocol.ks)
    } else {
        BTreeMap::new()
    };
    let report = EvalReport {
        split: protocol.split,
        protocol: protocol.name(),
        users: queries.len(),
        items,
        metrics,
        slices,
    };
    let lists = queries.into_iter().zip(ranked);
    let lists = lists.map(|(q, items)| RankedList {
        user: q.user,
        targets: q.targets,
        items,
    });
    Ok((report, lists.collect()))
}

/// Training rows per item.
fn training_rows(data: &Dataset) -> Vec<u32> {
    let mut rows = vec![0; data.num_items()];
    for row in &data.interactions {
        if row.split == Split::Train {
            rows[row.item as usize] += 1;
        }
    }
    rows
}

/// The best items of each query, best first, as many as the largest cut-off.
struct Ranked {
    lists: Vec<Vec<u32>>,
    /// Of cold items alone; empty for a query without a cold target.
    cold: Vec<Vec<u32>>,
    /// Whether the model ranked the candidates itself.
    answered: bool,
}

/// `valid@1`, the share of queries whose answer names a candidate, and `hit_valid@1`, the hits at
/// the first place among those; `hit@1` counts answers that name none as misses.
fn answer_metrics(lists: &[(&[u32], &[u32])], metrics: &mut BTreeMap<String, f64>) {
    let valid = lists.iter().filter(|(r, _)| !r.is_empty());
    let (mut named, mut hits) = (0usize, 0.0);
    for (ranked, targets) in valid {
        named += 1;
        hits += metrics::hit_at(ranked, targets, 1);
    }
    metrics.insert("valid@1".into(), named as f64 / lists.len().max(1) as f64);
    metrics.insert("hit_valid@1".into(), hits / named.max(1) as f64);
    metrics.insert("hit@1".into(), hits / lists.len().max(1) as f64);
}

fn rank(
    scorer: &dyn Scorer,
    queries: &[EvalQuery],
    protocol: &EvalProtocol,
    items: usize,
    cold: &[u32],
) -> Result<Ranked> {
    let k = protocol.ks.iter().copied().max().unwrap_or(0).min(items);
    let batch = protocol.batch.min(MAX_BLOCK / items.max(1)).max(1);
    let mut scores = vec![0f32; batch.min(queries.len()) * items];
    let mut ranked = Ranked {
        lists: Vec::with_capacity(queries.len()),
        cold: Vec::with_capacity(queries.len()),
        answered: false,
    };
    let is_cold = |t: &u32| cold.binary_search(t).is_ok();
    for block in queries.chunks(batch) {
        if let Candidates::Sampled { n, seed } = protocol.candidates {
            let shelves: Vec<Vec<u32>> = block.iter().map(|q| sample(q, items, n, seed)).collect();
            if let Some(lists) = scorer.rank_candidates(block, &shelves)? {
                for (mut list, shelf) in lists.into_iter().zip(&shelves) {
                    list.retain(|i| shelf.binary_search(i).is_ok());
                    list.truncate(k);
                    ranked.lists.push(list);
                    ranked.cold.push(Vec::new());
                }
                ranked.answered = true;
                continue;
            }
        }
        let scores = &mut scores[..block.len() * items];
        scorer.score(block, scores)?;
        let lists: Vec<(Vec<u32>, Vec<u32>)> = block
            .par_iter()
            .zip(scores.par_chunks(items))
            .map(|(query, row)| {
                let list = match protocol.candidates {
                    Candidates::Full => metrics::top_k(row, &query.mask, k),
                    Candidates::Sampled { n, seed } => {
                        metrics::top_k_of(row, &sample(query, items, n, seed), k)
                    }
                };
                let among_cold = if query.targets.iter().any(is_cold) {
                    let open = |i: &u32| query.mask.binary_search(i).is_err();
                    let open: Vec<u32> = cold.iter().copied().filter(open).collect();
                    metrics::top_k_of(row, &open, k)
                } else {
                    Ok(Vec::new())
                };
                list.and_then(|list| Ok((list, among_cold?)))
                    .map_err(|item| Error::Scores {
                        reason: format!(
                            "the score of item {item} for user {} is NaN; the model has diverged",
                            query.user
                        ),
                    })
            })
            .collect::<Result<_>>()?;
        for (list, among_cold) in lists {
            ranked.lists.push(list);
            ranked.cold.push(among_cold);
        }
    }
    Ok(ranked)
}

/// The targets and `n` negatives, ascending. Where fewer items are eligible, all of them.
fn sample(query: &EvalQuery, items: usize, n: usize, seed: u64) -> Vec<u32> {
    let mut taken: Vec<u32> = query.history.iter().map(|e| e.item).collect();
    taken.extend_from_slice(&query.mask);
    taken.extend_from_slice(&query.targets);
    taken.sort_unstable();
    taken.dedup();
    // A target in the mask stays unreachable, as in full ranking.
    let mut candidates: Vec<u32> = query
        .targets
        .iter()
        .copied()
        .filter(|t| query.mask.binary_search(t).is_err())
        .collect();
    let eligible = items - taken.len();
    let n = n.min(eligible);
    let mut rng = user_rng(seed, query.user);
    // Floyd's algorithm over ranks among the eligible items, then ranks to ids.
    let mut chosen = std::collections::BTreeSet::new();
    for j in eligible - n..eligible {
        let t = rng.random_range(0..=j);
        if !chosen.insert(t) {
            chosen.insert(j);
        }
    }
    let mut skipped = 0;
    for rank in chosen {
        while skipped < taken.len() && taken[skipped] as usize <= rank + skipped {
            skipped += 1;
        }
        candidates.push((rank + skipped) as u32);
    }
    candidates.sort_unstable();
    candidates
}

/// Mean of each metric over (ranked, targets) pairs.
fn means(lists: &[(&[u32], &[u32])], ks: &[usize]) -> BTreeMap<String, f64> {
    type Metric = fn(&[u32], &[u32], usize) -> f64;
    const METRICS: [(&str, Metric); 5] = [
        ("recall", metrics::recall_at),
        ("precision", metrics::precision_at),
        ("ndcg", metrics::ndcg_at),
        ("hit", metrics::hit_at),
        ("mrr", metrics::mrr_at),
    ];
    let mut out = BTreeMap::new();
    for &k in ks {
        for (name, metric) in METRICS {
            let sum: f64 = lists.iter().map(|(r, t)| metric(r, t, k)).sum();
            out.insert(format!("{name}@{k}"), sum / lists.len().max(1) as f64);
        }
    }
    out
}

/// Upper ends of the history slices; the last is open.
const HISTORY: [(&str, usize); 7] = [
    ("history:0", 0),
    ("history:1-2", 2),
    ("history:3-5", 5),
    ("history:6-10", 10),
    ("history:11-20", 20),
    ("history:21-50", 50),
    ("history:>50", usize::MAX),
];

fn slices(
    trained: &[u32],
    queries: &[EvalQuery],
    ranked: &[Vec<u32>],
    ranked_cold: &[Vec<u32>],
    ks: &[usize],
) -> BTreeMap<String, SliceReport> {
    let mut out = BTreeMap::new();
    let mut report = |name: &str, lists: Vec<(&[u32], &[u32])>| {
        if !lists.is_empty() {
            out.insert(
                name.to_owned(),
                SliceReport {
                    users: lists.len(),
                    metrics: means(&lists, ks),
                },
            );
        }
    };
    const ALL: u32 = u32::MAX;
    for (name, rows, ranked) in [
        ("items:cold", 0..=0, ranked),
        ("items:cold_among_cold", 0..=0, ranked_cold),
        ("items:warm", 1..=ALL, ranked),
        ("items:0-2", 0..=2, ranked),
        ("items:>5", 6..=ALL, ranked),
    ] {
        let targets: Vec<Vec<u32>> = queries
            .iter()
            .map(|q| {
                q.targets
                    .iter()
                    .copied()
                    .filter(|&t| rows.contains(&trained[t as usize]))
                    .collect()
            })
            .collect();
        report(
            name,
            ranked
                .iter()
                .zip(&targets)
                .filter(|(_, t)| !t.is_empty())
                .map(|(r, t)| (r.as_slice(), t.as_slice()))
                .collect(),
        );
    }
    let mut low = 0;
    for (name, high) in HISTORY {
        report(
            name,
            queries
                .iter()
                .zip(ranked)
                .filter(|(q, _)| (low..=high).contains(&q.history.len()))
                .map(|(q, r)| (r.as_slice(), q.targets.as_slice()))
                .collect(),
        );
        low = high.saturating_add(1);
    }
    out
}
