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
    /// Learn from feedback: rankings follow it.
    #[cfg_attr(feature = "mobile", uniffi(default = false))]
    pub adapt: bool,
}

/// What the user thinks of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Enum))]
pub enum Feedback {
    /// Chosen, bought, watched to the end, rated well: more like this.
    Positive,
    /// Shown and passed over: a little less like this.
    Skipped,
    /// Rejected: less like this, and not this item again.
    Disliked,
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
    /// How diversity keeps items apart.
    #[cfg_attr(feature = "mobile", uniffi(default = None))]
    pub method: Option<DiversityMethod>,
    /// How many of the best items diversity and exploration choose from; 0 is the default of 5 k,
    /// at least 100.
    #[cfg_attr(feature = "mobile", uniffi(default = 0))]
    pub pool: i32,
    /// At most so many items per value of an attribute.
    #[cfg_attr(feature = "mobile", uniffi(default = []))]
    pub caps: Vec<Cap>,
    /// Caps by the user's own mixture of values.
    #[cfg_attr(feature = "mobile", uniffi(default = []))]
    pub calibrations: Vec<Calibration>,
    /// What the most popular item gains over the least popular one, in standard deviations of
    /// the user's scores; negative speaks for the unknown. -100 to 100.
    #[cfg_attr(feature = "mobile", uniffi(default = 0.0))]
    pub popularity: f32,
    /// What new items gain.
    #[cfg_attr(feature = "mobile", uniffi(default = []))]
    pub freshness: Vec<Freshness>,
    /// Temperature of exploration, 0 to 100: 0 always gives the best, more gives others a chance.
    #[cfg_attr(feature = "mobile", uniffi(default = 0.0))]
    pub explore: f32,
    /// Seed of exploration: the same gives the same list.
    #[cfg_attr(feature = "mobile", uniffi(default = 0))]
    pub seed: i64,
    /// How many partitions of the table to look at; 0 is what the bundle proposes, -1 all that
    /// can matter. Tables without partitions are always searched as a whole.
    #[cfg_attr(feature = "mobile", uniffi(default = 0))]
    pub probes: i32,
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
            method: None,
            pool: 0,
            caps: Vec::new(),
            calibrations: Vec::new(),
            popularity: 0.0,
            freshness: Vec::new(),
            explore: 0.0,
            seed: 0,
            probes: 0,
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
            .diversity(self.diversity)
            .popularity(self.popularity)
            .explore(self.explore, self.seed.cast_unsigned());
        if let Some(method) = self.method {
            query = query.diversity_method(method.into());
        }
        for cap in &self.caps {
            query = query.cap(&cap.attribute, count("a cap", cap.items)?);
        }
        for c in &self.calibrations {
            query = query.calibrate(&c.attribute, c.slack);
        }
        for f in &self.freshness {
            query = query.freshness(&f.attribute, f.now, f.half_life, f.weight);
        }
        query = query.effort(match self.probes {
            0 => tercet::Effort::Default,
            -1 => tercet::Effort::Exact,
            n => tercet::Effort::Probes(count("probes", n)?),
        });
        if let Some(text) = &self.filter {
            query = query.filter(tercet::Filter::parse(text)?);
        }
        if self.pool != 0 {
            query = query.pool(count("pool", self.pool)?);
        }
        Ok(query)
    }
}

/// How diversity keeps items apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Enum))]
pub enum DiversityMethod {
    /// Maximal marginal relevance: an item by item trade of score against likeness. The default.
    Mmr,
    /// A determinantal point process: the list as a whole spans the most.
    Dpp,
}

impl From<DiversityMethod> for tercet::DiversityMethod {
    fn from(method: DiversityMethod) -> Self {
        match method {
            DiversityMethod::Mmr => tercet::DiversityMethod::Mmr,
            DiversityMethod::Dpp => tercet::DiversityMethod::Dpp,
        }
    }
}

/// At most so many items per value of an attribute, as three of a brand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Cap {
    /// The attribute.
    pub attribute: String,
    /// Items per value.
    pub items: i32,
}

/// A value gets its share of the user's history plus the slack, times k, rounded up.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Calibration {
    /// The attribute.
    pub attribute: String,
    /// 0 repeats the history's mixture, 1 caps nothing.
    pub slack: f32,
}

/// What new items gain: the weight, in standard deviations of the user's scores, halved per
/// half-life of age.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Freshness {
    /// The attribute that holds an item's time, a number.
    pub attribute: String,
    /// The present, in the unit of the attribute.
    pub now: f64,
    /// In the same unit.
    pub half_life: f64,
    /// -100 to 100.
    pub weight: f32,
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
    /// Up to three items of the history that carry this one's score; empty unless asked for.
    pub because: Vec<Because>,
    /// How much the item's vector rests on each modality, most first; empty unless asked for, and
    /// for items that the bundle does not tell of.
    pub modalities: Vec<ModalityShare>,
}

/// How much an item's vector rests on a modality.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct ModalityShare {
    /// Name of the modality.
    pub name: String,
    /// 0 to 1; the shares of an item add up to 1.
    pub share: f32,
}

/// An item of the history that carries a part of a recommended one's score.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Because {
    /// The app's own key.
    pub item: String,
    /// Share of all positive parts, 0 to 1.
    pub share: f32,
    /// What the recommended item's score loses without this event.
    pub contribution: f32,
}

impl From<tercet::Recommendation> for Recommendation {
    fn from(r: tercet::Recommendation) -> Self {
        let because = r.because.into_iter().map(|b| Because {
            item: b.item,
            share: b.share,
            contribution: b.contribution,
        });
        let modalities = r.modalities.into_iter().map(|m| ModalityShare {
            name: m.name,
            share: m.share,
        });
        Recommendation {
            modalities: modalities.collect(),
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

/// An item that the bundle does not hold, described by its features.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct NewItem {
    /// The app's own key.
    pub item: String,
    /// Raw features of any subset of the bundle's modalities, at least one.
    pub features: Vec<Feature>,
    /// Values for filters and caps.
    #[cfg_attr(feature = "mobile", uniffi(default = []))]
    pub attributes: Vec<AttributeValues>,
}

/// The feature of one modality.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct Feature {
    /// Name of the modality.
    pub modality: String,
    /// As many values as the modality has.
    pub values: Vec<f32>,
}

/// An item's values of one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct AttributeValues {
    /// Name of the attribute.
    pub attribute: String,
    /// One or more values.
    pub values: Vec<String>,
}

impl From<NewItem> for tercet::NewItem {
    fn from(new: NewItem) -> Self {
        let mut item = tercet::NewItem::new(new.item);
        for f in new.features {
            item = item.feature(f.modality, f.values);
        }
        for a in new.attributes {
            item = item.attribute(a.attribute, a.values);
        }
        item
    }
}

/// What became of an added item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Enum))]
pub enum Added {
    /// It is ranked from now on.
    Ranked,
    /// It is ranked in place of an earlier one with the same key.
    Replaced,
    /// The bundle holds it; nothing was changed, because the bundle knows more of it.
    InBundle,
}

/// An added item that the engine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mobile", derive(uniffi::Record))]
pub struct AddedItem {
    /// The app's own key.
    pub item: String,
    /// Whether it is ranked: not so one from a file that this bundle cannot place.
    pub ranked: bool,
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
    /// Names of the features that an added item may have.
    pub modalities: Vec<String>,
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
