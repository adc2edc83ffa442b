//! Training examples: what a user did, what came next, and what else was on the shelf.

use super::config::TmfConfig;
use crate::data::{Dataset, HistoryEvent, Split};
use crate::error::{Error, Result};
use crate::rng::{self, Purpose, Stream};

/// Events that come before the first one to be predicted with a shelf.
const EARLIER: usize = 3;

/// A history and what came next.
#[derive(Debug, Clone)]
pub(super) struct Example {
    pub(super) history: Vec<HistoryEvent>,
    pub(super) target: u32,
    /// Candidates in their order, the target among them.
    pub(super) shelf: Vec<u32>,
}

/// Consecutive events, of which some are to be predicted from those before.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) events: Vec<HistoryEvent>,
    /// What is to be predicted.
    pub(super) targets: Vec<Target>,
}

/// An item to be predicted from the first `known` events of a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) known: usize,
    pub(super) item: u32,
    pub(super) weight: f32,
}

/// One of several groups of users.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fold {
    pub(super) number: usize,
    pub(super) of: usize,
}

impl Fold {
    fn of_user(user: u32, of: usize) -> Self {
        let number = user as usize % of;
        Self { number, of }
    }

    pub(super) fn holds(self, user: u32) -> bool {
        Self::of_user(user, self.of).number == self.number
    }
}

/// Where examples come from: training rows alone.
#[derive(Debug)]
pub(super) struct Examples {
    histories: Vec<Vec<HistoryEvent>>,
    /// (user, position) of what can be predicted with a shelf.
    asked: Vec<(u32, u32)>,
    /// (user, end) of what can be predicted without.
    ends: Vec<(u32, u32)>,
    ordered: bool,
    /// Items with training rows, ascending: shelves and negatives are drawn from them. One that cannot be
    /// right in training would only teach that what nobody has met is never right.
    met: Vec<u32>,
    /// Weight of each behaviour as something to predict.
    weights: Vec<f32>,
}

/// One of the places, of a user of the fold: there is one, if [`Examples::fold`] gave the fold.
fn drawn(places: &[(u32, u32)], fold: Option<Fold>, r: &mut Stream) -> (u32, u32) {
    loop {
        let (user, at) = places[rng::below(r, places.len())];
        if fold.is_none_or(|f| f.holds(user)) {
            return (user, at);
        }
    }
}

impl Examples {
    pub(super) fn new(data: &Dataset, cfg: &TmfConfig) -> Result<Self> {
        let histories: Vec<Vec<HistoryEvent>> = (0..data.num_users() as u32)
            .map(|u| data.history(u, Split::Valid))
            .collect();
        let is_target: Vec<bool> = (0..data.behaviors.len())
            .map(|b| data.is_target(b as u8))
            .collect();
        let find = |earlier: usize| {
            let mut found = Vec::new();
            for (u, events) in histories.iter().enumerate() {
                for (at, e) in events.iter().enumerate() {
                    let before = if data.ordered { at } else { events.len() - 1 };
                    if before >= earlier && is_target[e.behavior as usize] {
                        found.push((u as u32, at as u32));
                    }
                }
            }
            found
        };
        let ends = find(1);
        if ends.is_empty() {
            return Err(Error::config(
                "tmf needs users with training events before one of the behaviour to predict",
            ));
        }
        let asked = find(EARLIER);
        let mut met: Vec<u32> = histories.iter().flatten().map(|e| e.item).collect();
        met.sort_unstable();
        met.dedup();
        Ok(Self {
            asked: if asked.is_empty() {
                ends.clone()
            } else {
                asked
            },
            ends,
            histories,
            ordered: data.ordered,
            met,
            weights: data
                .behaviors
                .iter()
                .zip(&is_target)
                .map(|(name, &target)| cfg.behavior_weight(name, target) as f32)
                .collect(),
        })
    }

    /// The events before one of a user, oldest first; without order, all others, shuffled.
    fn before(&self, user: u32, at: u32, r: &mut Stream) -> Vec<HistoryEvent> {
        let events = &self.histories[user as usize];
        if self.ordered {
            return events[..at as usize].to_vec();
        }
        let mut others = events.clone();
        others.remove(at as usize);
        rng::shuffle(r, &mut others);
        others
    }

    /// A fold with something to predict, as often as it has some.
    pub(super) fn fold(&self, of: usize, with_shelf: bool, r: &mut Stream) -> Fold {
        let from = if with_shelf { &self.asked } else { &self.ends };
        let (user, _) = from[rng::below(r, from.len())];
        Fold::of_user(user, of)
    }

    /// The n-th example of an epoch, of a user of the fold.
    pub(super) fn draw(
        &self,
        cfg: &TmfConfig,
        seed: u64,
        epoch: u64,
        n: u64,
        fold: Option<Fold>,
    ) -> Example {
        let mut r = rng::stream(seed, Purpose::History, &[epoch, n, 1]);
        let (user, at) = drawn(&self.asked, fold, &mut r);
        let target = self.histories[user as usize][at as usize].item;
        let mut history = self.before(user, at, &mut r);
        if !cfg.keep_target {
            history.retain(|e| e.item != target);
        }
        history.drain(..history.len().saturating_sub(cfg.window));
        let mut c = rng::stream(seed, Purpose::Candidates, &[epoch, n]);
        let mut taken: Vec<u32> = history.iter().map(|e| e.item).collect();
        taken.push(target);
        taken.sort_unstable();
        taken.dedup();
        let mut shelf = vec![target];
        // What is taken is in training rows too.
        let others = self.met.len() - taken.len();
        while shelf.len() < cfg.candidates.min(others + 1) {
            let item = self.met[rng::below(&mut c, self.met.len())];
            if taken.binary_search(&item).is_err() && !shelf.contains(&item) {
                shelf.push(item);
            }
        }
        rng::shuffle(&mut c, &mut shelf);
        Example {
            history,
            target,
            shelf,
        }
    }

    /// The n-th sequence of an epoch, of a user of the fold: the last event is one of those to predict, those
    /// before it teach by the weights of their behaviours. `last_only` predicts the last event alone, for encoders in
    /// which an event sees later ones.
    pub(super) fn sequence(
        &self,
        cfg: &TmfConfig,
        seed: u64,
        epoch: u64,
        n: u64,
        fold: Option<Fold>,
        last_only: bool,
    ) -> Sequence {
        let mut r = rng::stream(seed, Purpose::History, &[epoch, n, 2]);
        let (user, at) = drawn(&self.ends, fold, &mut r);
        let last = self.histories[user as usize][at as usize];
        let mut events = self.before(user, at, &mut r);
        let cut = events.len().saturating_sub(cfg.sequence_window);
        events.drain(..cut);
        let target = |known: usize, e: HistoryEvent| Target {
            known,
            item: e.item,
            weight: self.weights[e.behavior as usize],
        };
        let mut targets: Vec<Target> = events
            .iter()
            .enumerate()
            // Before the first event of a cut window there was something.
            .filter(|(k, _)| *k > 0 || cut == 0)
            .map(|(k, e)| target(k, *e))
            .collect();
        if last_only {
            targets.clear();
        }
        targets.push(target(events.len(), last));
        Sequence { events, targets }
    }

    /// Uniform distinct items with training rows, ascending; all of them where there are not more.
    pub(super) fn negatives(&self, most: usize, seed: u64, epoch: u64, step: u64) -> Vec<u32> {
        if self.met.len() <= most {
            return self.met.clone();
        }
        let mut r = rng::stream(seed, Purpose::Negatives, &[epoch, step]);
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < most {
            chosen.insert(self.met[rng::below(&mut r, self.met.len())]);
        }
        chosen.into_iter().collect()
    }

    /// How many items have training rows.
    pub(super) fn met(&self) -> usize {
        self.met.len()
    }
}
