//! What learning on the device is worth: held-out events replayed through the runtime, once by a
//! session that learns from the user and once by one that does not.
//!
//! For every user, both sessions record the training events. Then the held-out events come in order
//! of time. Before an event is recorded, each session ranks the items that the user has not met, and
//! the event's item is looked for among the best k; events of items that were met before are
//! recorded and not counted. The session that learns is then told what the user thought of the item,
//! and that the other items of its own list were skipped, as an app would that showed the list. The
//! user never saw that list: how people react to one another is not in a log, so this measures how
//! well feedback predicts what is chosen next, not how a list changes what is chosen.
//!
//! The latest training events are replayed in the same way without being counted, so that there is
//! something to learn from where few events are held out.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use serde::Serialize;
use tercet::{
    Bundle, Event, Feedback, MAX_HISTORY, Query, Recommendation, Session, SessionOptions,
};
use tercet_models::data::{Dataset, Interaction, Split};

use crate::error::{Error, Result};

/// How to replay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplayOptions {
    /// Rows that count: validation or test. Before test rows, validation rows are learned from.
    pub split: Split,
    /// Length of the lists, for the metrics.
    pub k: usize,
    /// Items that the app shows at a time: those not chosen are skipped. 0 for an app that tells
    /// nothing of what it showed.
    pub shown: usize,
    /// Training events per user, the latest, that are learned from without being counted.
    pub warm_up: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            split: Split::Test,
            k: 10,
            shown: 10,
            warm_up: 50,
        }
    }
}

/// Lists of both sessions over the same events.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Events that were looked for.
    pub events: usize,
    /// Metrics of the session that does not learn.
    #[serde(rename = "static")]
    pub fixed: BTreeMap<String, f64>,
    /// Metrics of the session that learns.
    pub adapted: BTreeMap<String, f64>,
    /// ndcg of the latter over that of the former, less 1.
    pub gain: f64,
    /// Standard error of `gain`, from the differences per event.
    pub gain_error: f64,
}

/// Outcome of [`replay`].
#[derive(Debug, Clone, Serialize)]
pub struct ReplayReport {
    /// Rows that counted.
    pub split: Split,
    /// Users with such rows.
    pub users: usize,
    /// Items of the bundle.
    pub items: usize,
    /// All events that count.
    #[serde(flatten)]
    pub all: Comparison,
    /// Those that the user liked.
    pub positive: Comparison,
    /// Feedbacks given per event, on average.
    pub feedbacks_per_event: f64,
    /// Time that learning from one event takes: its feedbacks, and the new vector to rank by.
    pub micros_per_event: Micros,
    /// Whether every session, made to forget, ranked as the one that never learned, to the bit.
    pub restored: bool,
}

/// Times per event, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Micros {
    /// Half of the events took no longer.
    pub median: f64,
    /// 99 of 100 events took no longer.
    pub p99: f64,
}

/// What an event says of its item, by the name of its behaviour: `dislike` and `skip` are what they
/// say, `neutral` says nothing, and everything else that people do with items is positive.
pub fn feedback_of(behavior: &str) -> Option<Feedback> {
    match behavior {
        "dislike" => Some(Feedback::Disliked),
        "skip" => Some(Feedback::Skipped),
        "neutral" => None,
        _ => Some(Feedback::Positive),
    }
}

/// Replays the held-out events of all users; see the [module](self).
///
/// # Errors
/// [`Error::Unsupported`] for training rows and lists of length 0; [`Error::Mismatch`] if no event
/// counts; whatever the runtime reports.
pub fn replay(bundle: &Bundle, data: &Dataset, options: &ReplayOptions) -> Result<ReplayReport> {
    if options.split == Split::Train || options.k == 0 {
        return Err(Error::Unsupported {
            reason: "replay counts validation or test rows, in lists of at least 1 item".into(),
        });
    }
    let mut tally = Tally::new(options.k);
    let mut users = 0;
    for user in 0..data.num_users() {
        let mut rows: Vec<&Interaction> = data
            .user_rows(user as u32)
            .iter()
            .filter(|row| row.split <= options.split)
            .collect();
        if rows.last().is_none() || rows.iter().all(|row| row.split != options.split) {
            continue;
        }
        // Where one behaviour is held out, its rows need not be the latest. Stable: in order of time.
        rows.sort_by_key(|row| row.split);
        users += 1;
        replay_user(bundle, data, &rows, options, &mut tally)?;
    }
    tally.report(bundle, options.split, users)
}

fn replay_user(
    bundle: &Bundle,
    data: &Dataset,
    rows: &[&Interaction],
    options: &ReplayOptions,
    tally: &mut Tally,
) -> Result<()> {
    let settings = SessionOptions::default().max_history(MAX_HISTORY);
    let mut fixed = Session::new(bundle, settings)?;
    let mut learning = Session::new(bundle, settings.adapt(true))?;
    let trained = rows.iter().filter(|row| row.split == Split::Train).count();
    let query = Query::top(options.k.max(options.shown));
    let mut met = HashSet::new();
    for (at, row) in rows.iter().enumerate() {
        let item = data.items.key(row.item);
        let behavior = data.behaviors[usize::from(row.behavior)].as_str();
        let known = bundle.manifest().behavior_id(behavior).is_some();
        let event = match known {
            true => Event::new(item).behavior(behavior),
            false => Event::new(item),
        };
        let new = met.insert(row.item);
        if at + options.warm_up < trained {
            fixed.record(event.clone())?;
            learning.record(event)?;
            continue;
        }
        let feedback = feedback_of(behavior);
        // Vectors follow a history step by step; at the same steps, they have the same bits.
        fixed.user_vector()?;
        learning.user_vector()?;
        let list = if new {
            learning.recommend(&query)?
        } else {
            Vec::new()
        };
        if new && row.split == options.split {
            let plain = fixed.recommend(&Query::top(options.k))?;
            let liked = feedback == Some(Feedback::Positive);
            tally.count(place(&plain, item), place(&list, item), liked);
        }
        fixed.record(event.clone())?;
        learning.record(event)?;
        // The tower's work is the same in both sessions: only what learning adds is timed.
        fixed.user_vector()?;
        learning.user_vector()?;
        let started = Instant::now();
        let time = (data.ordered && row.time > 0).then_some(row.time);
        for shown in list.iter().take(options.shown).filter(|r| r.item != item) {
            learning.feedback(&shown.item, Feedback::Skipped, time)?;
            tally.feedbacks += 1;
        }
        if let Some(feedback) = feedback {
            learning.feedback(item, feedback, time)?;
            tally.feedbacks += 1;
        }
        learning.ranking_vector()?;
        tally.micros.push(started.elapsed().as_secs_f64() * 1e6);
    }
    learning.forget_feedback()?;
    tally.restored &= bits(&learning.recommend(&query)?) == bits(&fixed.recommend(&query)?);
    Ok(())
}

/// Place of `item` in a list, from 0.
fn place(list: &[Recommendation], item: &str) -> Option<usize> {
    list.iter().position(|r| r.item == item)
}

fn bits(list: &[Recommendation]) -> Vec<(u32, u32)> {
    list.iter().map(|r| (r.row, r.score.to_bits())).collect()
}

/// Where the item of an event was found, from 0.
struct Found {
    fixed: Option<usize>,
    adapted: Option<usize>,
    liked: bool,
}

/// Places found so far.
struct Tally {
    k: usize,
    places: Vec<Found>,
    micros: Vec<f64>,
    feedbacks: usize,
    restored: bool,
}

impl Tally {
    fn new(k: usize) -> Self {
        Self {
            k,
            places: Vec::new(),
            micros: Vec::new(),
            feedbacks: 0,
            restored: true,
        }
    }

    /// Counts an event; places beyond k are misses.
    fn count(&mut self, fixed: Option<usize>, adapted: Option<usize>, liked: bool) {
        let within = |place: Option<usize>| place.filter(|&p| p < self.k);
        self.places.push(Found {
            fixed: within(fixed),
            adapted: within(adapted),
            liked,
        });
    }

    fn compare(&self, count: impl Fn(bool) -> bool) -> Comparison {
        let events: Vec<&Found> = self.places.iter().filter(|p| count(p.liked)).collect();
        let n = events.len().max(1) as f64;
        // One item is looked for, so the ideal gain is 1 and recall is the hit rate.
        let gain = |place: Option<usize>| place.map_or(0.0, |p| 1.0 / (p as f64 + 2.0).log2());
        let metrics = |side: fn(&Found) -> Option<usize>| {
            let places = || events.iter().map(|e| side(e));
            let hits = places().flatten().count() as f64;
            let reciprocal: f64 = places().flatten().map(|p| 1.0 / (p as f64 + 1.0)).sum();
            let k = self.k;
            BTreeMap::from([
                (format!("hit@{k}"), hits / n),
                (format!("mrr@{k}"), reciprocal / n),
                (format!("ndcg@{k}"), places().map(gain).sum::<f64>() / n),
            ])
        };
        let (fixed, adapted) = (metrics(|e| e.fixed), metrics(|e| e.adapted));
        let name = format!("ndcg@{}", self.k);
        let (before, after) = (fixed[&name], adapted[&name]);
        let mean = after - before;
        let squares = events
            .iter()
            .map(|e| (gain(e.adapted) - gain(e.fixed) - mean).powi(2))
            .sum::<f64>();
        let relative = |x: f64| if before > 0.0 { x / before } else { 0.0 };
        Comparison {
            events: events.len(),
            gain: relative(mean),
            gain_error: relative((squares / n / n).sqrt()),
            fixed,
            adapted,
        }
    }

    fn report(mut self, bundle: &Bundle, split: Split, users: usize) -> Result<ReplayReport> {
        if self.places.is_empty() {
            return Err(Error::Mismatch {
                reason: format!("no {} row is a user's first event of an item", split.name()),
            });
        }
        self.micros.sort_by(f64::total_cmp);
        let quantile = |share: f64| self.micros[((self.micros.len() - 1) as f64 * share) as usize];
        Ok(ReplayReport {
            split,
            users,
            items: bundle.table().len(),
            all: self.compare(|_| true),
            positive: self.compare(|liked| liked),
            feedbacks_per_event: self.feedbacks as f64 / self.micros.len() as f64,
            micros_per_event: Micros {
                median: quantile(0.5),
                p99: quantile(0.99),
            },
            restored: self.restored,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Static at places 1 and 3 of 10 and twice not at all, adapted at 1, 1, 7 and not at all:
    /// ndcg 1, 1/2, 0, 0 against 1, 1, 1/3, 0.
    #[test]
    fn metrics_by_hand() {
        let mut tally = Tally::new(10);
        tally.count(Some(0), Some(0), true);
        tally.count(Some(2), Some(0), false);
        tally.count(None, Some(6), true);
        tally.count(Some(10), None, true);
        let all = tally.compare(|_| true);
        assert_eq!(all.events, 4);
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        close(all.fixed["ndcg@10"], 1.5 / 4.0);
        close(all.adapted["ndcg@10"], (7.0 / 3.0) / 4.0);
        close(all.fixed["hit@10"], 2.0 / 4.0);
        close(all.adapted["mrr@10"], (2.0 + 1.0 / 7.0) / 4.0);
        close(all.gain, (7.0 / 3.0) / 1.5 - 1.0);
        // Differences 0, 1/2, 1/3, 0 around their mean 5/24.
        let mean = 5.0f64 / 24.0;
        let squares = [0.0, 0.5, 1.0 / 3.0, 0.0].map(|d: f64| (d - mean).powi(2));
        let error = (squares.iter().sum::<f64>() / 16.0).sqrt() / (1.5 / 4.0);
        close(all.gain_error, error);
        let liked = tally.compare(|liked| liked);
        assert_eq!(liked.events, 3);
        close(liked.fixed["ndcg@10"], 1.0 / 3.0);
    }

    #[test]
    fn behaviours_say_what_they_are_called() {
        assert_eq!(feedback_of("dislike"), Some(Feedback::Disliked));
        assert_eq!(feedback_of("skip"), Some(Feedback::Skipped));
        assert_eq!(feedback_of("neutral"), None);
        for positive in ["any", "view", "buy", "like"] {
            assert_eq!(feedback_of(positive), Some(Feedback::Positive));
        }
    }
}
