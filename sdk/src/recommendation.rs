//! What a host asks for and what it gets.

use crate::filter::Filter;
use crate::id::Row;

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
    pub(crate) pool: Option<usize>,
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
            pool: None,
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
    /// Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over the best
    /// [`pool`](Query::pool) items: relevance is the score scaled to 0..1 over the pool,
    /// likeness the cosine of the item vectors, ties go to the lower row. Each
    /// [`Recommendation::score`] stays what it is, so scores no longer descend.
    pub fn diversity(mut self, lambda: f32) -> Self {
        self.diversity = lambda;
        self
    }

    /// How many of the best items [`diversity`](Query::diversity) chooses from, 1 to
    /// [`MAX_POOL`](crate::MAX_POOL); default 5k, at least 100. If `k` is larger, the others
    /// follow behind by score.
    pub fn pool(mut self, items: usize) -> Self {
        self.pool = Some(items);
        self
    }

    /// Whether to fill [`Recommendation::because`]; default no.
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
    /// user vector · item vector + bias; higher is better. Comparable within one result only.
    /// Without a user tower: the item's popularity.
    pub score: f32,
    /// Up to three items of the history that lie closest to this one; empty unless asked for.
    pub because: Vec<Because>,
}

/// A history item that is similar to the recommended one.
///
/// This is similarity evidence, not a decomposition of the score: the inner product of the two
/// item vectors, as a share of the sum over all history items with a positive one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Because {
    /// Key of the history item.
    pub item: String,
    /// Share of the positive similarity, 0 to 1.
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
