//! What a host asks for and what it gets.

use crate::id::Row;

/// A request for recommendations.
///
/// ```
/// use tercet::Query;
/// let query = Query::top(10).exclude(["sku-3"]).explain(true);
/// ```
#[derive(Debug, Clone)]
pub struct Query {
    pub(crate) k: usize,
    pub(crate) exclude: Vec<String>,
    pub(crate) include_seen: bool,
    pub(crate) explain: bool,
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
