//! Values that cross the border. Signed integers only: Kotlin's unsigned types give methods
//! names that Java cannot call.

#![deny(unsafe_code)]

use crate::error::{HostError, Result};

/// How to open a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Options {
    /// Copy the item table to memory instead of mapping it. A mapped file that is cut short
    /// in place ends the process; a copied one cannot. Costs the table's size in memory.
    #[cfg_attr(feature = "mobile", uniffi(default = false))]
    pub copy: bool,
    /// Hash every file and check every row before anything else: once after a download.
    #[cfg_attr(feature = "mobile", uniffi(default = false))]
    pub verify: bool,
    /// Most events kept, 1 to 4096; 0 is the default of 512.
    #[cfg_attr(feature = "mobile", uniffi(default = 0))]
    pub max_history: i32,
}

/// A request for recommendations. Only `k` must be given.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Query {
    /// How many items. More than there are is not an error.
    pub k: i32,
    /// Which items qualify, as `category not in (adult) and price <= 20`.
    #[cfg_attr(feature = "mobile", uniffi(default = None))]
    pub filter: Option<String>,
    /// How much to avoid items that are alike, 0 to 1.
    #[cfg_attr(feature = "mobile", uniffi(default = 0.0))]
    pub diversity: f32,
    /// How many of the best items diversity chooses from; 0 is the default of 5 k, at least 100.
    #[cfg_attr(feature = "mobile", uniffi(default = 0))]
    pub pool: i32,
    /// Items to leave out. Unknown ones are ignored.
    #[cfg_attr(feature = "mobile", uniffi(default = []))]
    pub exclude: Vec<String>,
    /// Whether items of the history may come again.
    #[cfg_attr(feature = "mobile", uniffi(default = false))]
    pub include_seen: bool,
    /// Whether to say which items of the history are closest to each result.
    #[cfg_attr(feature = "mobile", uniffi(default = false))]
    pub explain: bool,
}

impl Query {
    /// The best `k` items that the user has not met yet.
    pub fn top(k: i32) -> Self {
        Query {
            k,
            filter: None,
            diversity: 0.0,
            pool: 0,
            exclude: Vec::new(),
            include_seen: false,
            explain: false,
        }
    }

    /// The runtime's own query.
    pub(crate) fn build(self) -> Result<tercet::Query> {
        let mut query = tercet::Query::top(count("k", self.k)?)
            .exclude(self.exclude)
            .include_seen(self.include_seen)
            .explain(self.explain)
            .diversity(self.diversity);
        if let Some(text) = &self.filter {
            query = query.filter(tercet::Filter::parse(text)?);
        }
        if self.pool != 0 {
            query = query.pool(count("pool", self.pool)?);
        }
        Ok(query)
    }
}

/// A host's signed number as a count.
pub(crate) fn count(name: &str, value: i32) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| HostError::argument(format!("{name} is {value}, a negative number")))
}

/// One recommended item.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Recommendation {
    /// The app's own key.
    pub item: String,
    /// Higher is better; comparable within one result only.
    pub score: f32,
    /// Up to three items of the history that lie closest to this one; empty unless asked for.
    pub because: Vec<Because>,
}

/// An item of the history that is similar to the recommended one.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Because {
    /// The app's own key.
    pub item: String,
    /// Share of all positive similarity, 0 to 1.
    pub share: f32,
}

impl From<tercet::Recommendation> for Recommendation {
    fn from(r: tercet::Recommendation) -> Self {
        let because = r.because.into_iter().map(|b| Because {
            item: b.item,
            share: b.share,
        });
        Recommendation {
            because: because.collect(),
            item: r.item,
            score: r.score,
        }
    }
}

/// Given candidates, ranked for the user.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Ranking {
    /// The known ones, best first, each once.
    pub ranked: Vec<Recommendation>,
    /// Those that the bundle does not know, in the order given.
    pub unknown: Vec<String>,
}

/// Something the user did with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Event {
    /// The app's own key.
    pub item: String,
    /// Name from the bundle's vocabulary; `any` if not given.
    #[cfg_attr(feature = "mobile", uniffi(default = None))]
    pub behavior: Option<String>,
    /// Seconds since 1970-01-01 UTC.
    #[cfg_attr(feature = "mobile", uniffi(default = None))]
    pub timestamp: Option<i64>,
}

/// What a bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Info {
    /// Stable name of this line of bundles.
    pub bundle_id: String,
    /// Grows with every release.
    pub bundle_version: i64,
    /// Time of writing, RFC 3339.
    pub created: String,
    /// Time after which it should not be used, RFC 3339.
    pub expires: Option<String>,
    /// Number of items.
    pub items: i64,
    /// Values per vector.
    pub dim: i32,
    /// Events that the user tower looks at.
    pub window: i32,
    /// Names that events may carry; the first is `any`.
    pub behaviors: Vec<String>,
    /// Columns that filters may use.
    pub attributes: Vec<String>,
    /// Whether recommendations follow the history. Without a tower they follow popularity.
    pub personal: bool,
    /// The model card, as JSON.
    pub card: String,
}

/// Outcome of the bundle's own health check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Probe {
    /// Expected items among the recommendations.
    pub found: i32,
    /// Items expected.
    pub expected: i32,
    /// Whether that is good enough.
    pub passed: bool,
}
