//! What a host asks for and what it gets.

use crate::blend::{Explore, Freshness};
use crate::caps::{Cap, Limit};
use crate::diversity::DiversityMethod;
use crate::filter::Filter;
use crate::id::Row;
use crate::search::Effort;

/// A request for recommendations.
///
/// ```
/// use tercet::{Filter, Query};
/// let query = Query::top(10)
///     .exclude(["sku-3"])
///     .filter(Filter::not_in("category", ["adult"]))
///     .diversity(0.3)
///     .explain(true);
/// ```
#[derive(Debug, Clone)]
pub struct Query {
    pub(crate) k: usize,
    pub(crate) exclude: Vec<String>,
    pub(crate) include_seen: bool,
    pub(crate) explain: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) diversity: f32,
    pub(crate) method: DiversityMethod,
    pub(crate) pool: Option<usize>,
    pub(crate) caps: Vec<Cap>,
    pub(crate) popularity: f32,
    pub(crate) freshness: Vec<Freshness>,
    pub(crate) explore: Explore,
    pub(crate) effort: Effort,
}

impl Query {
    /// The best `k` items that the user has not met yet. `k` = 0 is refused when the query is
    /// used; a `k` larger than the table returns every item that qualifies.
    pub fn top(k: usize) -> Self {
        Query {
            k,
            exclude: Vec::new(),
            include_seen: false,
            explain: false,
            filter: None,
            diversity: 0.0,
            method: DiversityMethod::Mmr,
            pool: None,
            caps: Vec::new(),
            popularity: 0.0,
            freshness: Vec::new(),
            explore: Explore {
                temperature: 0.0,
                seed: 0,
            },
            effort: Effort::Default,
        }
    }

    /// Leaves out these items too. Keys that the table does not know are ignored.
    pub fn exclude<S: Into<String>>(mut self, keys: impl IntoIterator<Item = S>) -> Self {
        self.exclude.extend(keys.into_iter().map(Into::into));
        self
    }

    /// Whether items of the history may be recommended again; default no.
    pub fn include_seen(mut self, yes: bool) -> Self {
        self.include_seen = yes;
        self
    }

    /// Only items that pass `filter`; if called again, they must pass all. Filtering happens
    /// within the scan: `k` items are returned whenever so many qualify.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(match self.filter.take() {
            None => filter,
            Some(earlier) => Filter::all([earlier, filter]),
        });
        self
    }

    /// How much to avoid items that are alike: 0 (default) ranks by score alone, 1 looks after
    /// the first item only at how different the next one is. Other numbers are refused when
    /// the query is used.
    ///
    /// Chosen from the best [`pool`](Query::pool) items by maximal marginal relevance
    /// (Carbonell and Goldstein, SIGIR 1998), or as
    /// [`diversity_method`](Query::diversity_method) says: relevance is the score scaled to
    /// 0..1 over the pool, likeness the cosine of the item vectors, ties go to the lower row.
    /// Each [`Recommendation::score`] stays what it is, so scores no longer descend.
    pub fn diversity(mut self, lambda: f32) -> Self {
        self.diversity = lambda;
        self
    }

    /// How [`diversity`](Query::diversity) keeps items apart; default
    /// [`DiversityMethod::Mmr`].
    pub fn diversity_method(mut self, method: DiversityMethod) -> Self {
        self.method = method;
        self
    }

    /// How many of the best items [`diversity`](Query::diversity) and
    /// [`explore`](Query::explore) choose from, 1 to [`MAX_POOL`](crate::MAX_POOL); default 5k,
    /// at least 100. If `k` is larger, the others follow behind by score.
    pub fn pool(mut self, items: usize) -> Self {
        self.pool = Some(items);
        self
    }

    /// At most `items` recommended items per value of an attribute, as "three of a brand". An
    /// item with several values counts for each; items without a value are not limited. Places
    /// that a cap leaves empty go to the next best items that all caps allow, however far down,
    /// so `k` items are returned whenever the caps permit as many. Up to 16 caps; all must hold.
    pub fn cap(mut self, attribute: &str, items: usize) -> Self {
        self.caps.push(Cap {
            attribute: attribute.to_string(),
            limit: Limit::Count(items),
        });
        self
    }

    /// Caps calibrated to the history: a value of `attribute` that has the share p of this
    /// user's events gets at most ⌈k · (p + slack)⌉ places. With a slack of 0 the list can only
    /// repeat the history's mixture, with 1 nothing is capped; other numbers are refused when
    /// the query is used. An item's several values share its events in equal parts; a history
    /// without any value of the attribute caps nothing. Otherwise as [`cap`](Query::cap).
    pub fn calibrate(mut self, attribute: &str, slack: f32) -> Self {
        self.caps.push(Cap {
            attribute: attribute.to_string(),
            limit: Limit::History(slack),
        });
        self
    }

    /// Adds `weight` · σ · √(popularity / largest popularity) to every item's score, where σ is
    /// the standard deviation of this user's scores over the table (over 1024 evenly spaced
    /// rows). So a weight of 1 lifts the most popular item by one σ, and a negative one speaks
    /// for the unknown. Accepted are -100 to 100. [`Recommendation::score`] contains the term.
    pub fn popularity(mut self, weight: f32) -> Self {
        self.popularity = weight;
        self
    }

    /// Adds `weight` · σ · 2^(−age / `half_life`) to an item's score, where age is `now` less the
    /// item's value of `attribute`, a number in any unit of time as long as all three have the
    /// same; σ and weights as for [`popularity`](Query::popularity). Of several values the one
    /// with the larger effect counts; an item without a number gets nothing, one from the
    /// future counts as new. Can be given for several attributes.
    pub fn freshness(mut self, attribute: &str, now: f64, half_life: f64, weight: f32) -> Self {
        self.freshness.push(Freshness {
            attribute: attribute.to_string(),
            now,
            half_life,
            weight,
        });
        self
    }

    /// Shuffles the best [`pool`](Query::pool) items in favour of the better ones: as if drawn
    /// one by one with probabilities proportional to exp(score / (`temperature` · σ)), σ being
    /// the deviation of the scores in the pool. 0 (default) keeps the order, 0.1 swaps
    /// neighbours, 10 draws nearly evenly; accepted are 0 to 100.
    ///
    /// The same seed gives the same list: a host that wants a stable list for a day derives the
    /// seed from user and day. Diversity and caps then work on the shuffled scores; each
    /// [`Recommendation::score`] stays what it is.
    pub fn explore(mut self, temperature: f32, seed: u64) -> Self {
        self.explore = Explore { temperature, seed };
        self
    }

    /// How much of a partitioned table is looked at; without partitions it has no effect.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// Only rows whose bit is set: shorthand for a [`filter`](Query::filter) by
    /// [`Filter::available`].
    pub fn available(self, bitmap: &[u64]) -> Self {
        self.filter(Filter::available(bitmap))
    }

    /// Whether to fill [`Recommendation::because`] and [`Recommendation::modalities`]; default
    /// no.
    pub fn explain(mut self, yes: bool) -> Self {
        self.explain = yes;
        self
    }
}

/// One recommended item.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Recommendation {
    /// The app's own key.
    pub item: String,
    /// Row in the table of this bundle version.
    pub row: Row,
    /// user vector · item vector + bias, and what the query adds for popularity and freshness;
    /// higher is better. Comparable within one result only. Without a user tower: the item's
    /// popularity. For a household: see [`Together`](crate::Together).
    pub score: f32,
    /// Up to three items of the history that carried the score; empty unless asked for.
    pub because: Vec<Because>,
    /// How much of the item's vector rests on each modality, largest first; empty unless asked
    /// for, or if the bundle does not tell.
    pub modalities: Vec<ModalityShare>,
}

/// A history item that carried the score of the recommended one.
///
/// The contribution of a history item j to a recommended item i is what i would lose if the
/// user tower had never seen the events of j: (u − u₋ⱼ) · vᵢ, with the user vector u of the
/// whole history and u₋ⱼ of the history without j. It is measured by running the tower again,
/// so it holds for any tower; contributions need not add up to the score, because events
/// interact within the tower. The latest 64 different items that the tower looks at are
/// examined. Without a user tower (popular items for a new user) nothing carried a score, and
/// the list is empty.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Because {
    /// Key of the history item.
    pub item: String,
    /// Its part in the sum of all positive contributions, 0 to 1. Negative ones are not listed.
    pub share: f32,
    /// The contribution itself, in units of [`Recommendation::score`].
    pub contribution: f32,
    /// Whose history: the index among the sessions of a household, else 0.
    pub member: usize,
}

/// How much of an item's vector rests on one modality.
///
/// Measured when the bundle was written: the fusion tower runs again as if the item lacked the
/// modality, and the distance by which its vector moves is taken as a share of the sum over all
/// modalities. It says what the item is recognised by, for whichever user;
/// [`Session::modality_contributions`](crate::Session::modality_contributions) gives one user's
/// numbers where the host has the item's features.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModalityShare {
    /// Name of the modality in the manifest.
    pub name: String,
    /// 0 to 1, exact to 1/255.
    pub share: f32,
}

/// Result of ranking given candidates.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Ranking {
    /// The known candidates, best first, each once.
    pub ranked: Vec<Recommendation>,
    /// Candidates that the table does not know, in the order given.
    pub unknown: Vec<String>,
}
