//! What `POST /v1/recommend` reads and writes.
//!
//! ```json
//! {"history": ["sku-17", {"item": "sku-4", "behavior": "buy"}], "k": 10,
//!  "filter": "category != adult", "exclude": ["sku-3"]}
//! ```
//!
//! Histories are oldest first. `users`, a list of objects with a `history` each, takes the place
//! of `history` for many at once. The answer has a result for each user:
//!
//! ```json
//! {"bundle": {"id": "shop", "version": 7},
//!  "results": [{"items": [{"id": "sku-8", "score": 1.25}], "unknown": 0}]}
//! ```
//!
//! Events of items that the bundle does not know do not count; `unknown` tells how many they were.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tercet::{Bundle, Filter, Query, Recommendation, Row};

/// Most users in a request.
pub const MAX_USERS: usize = 256;
/// Most events in a history, and most excluded items.
pub const MAX_EVENTS: usize = 4096;
/// Most recommended items.
pub const MAX_K: usize = 1000;
/// Most recommended items with diversity, whose cost grows with their square.
pub const MAX_DIVERSE_K: usize = 100;

/// A request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    history: Option<Vec<Event>>,
    users: Option<Vec<User>>,
    #[serde(default = "ten")]
    k: usize,
    filter: Option<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    include_seen: bool,
    #[serde(default)]
    diversity: f32,
}

fn ten() -> usize {
    10
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    history: Vec<Event>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Event {
    Key(String),
    Behavior { item: String, behavior: String },
}

/// What all users of a request share: requests with equal settings can be ranked together.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    k: usize,
    filter: Option<Filter>,
    exclude: Vec<String>,
    include_seen: bool,
    diversity: f32,
}

impl Settings {
    pub(crate) fn query(&self) -> Query {
        let query = Query::top(self.k)
            .exclude(self.exclude.iter().cloned())
            .include_seen(self.include_seen)
            .diversity(self.diversity);
        match &self.filter {
            Some(filter) => query.filter(filter.clone()),
            None => query,
        }
    }
}

/// Rows and behavior ids, oldest first.
pub(crate) type History = Vec<(Row, i64)>;

/// A request, with its items looked up in a bundle.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) settings: Settings,
    pub(crate) histories: Vec<History>,
    /// Per history the events of items that the bundle does not know.
    pub(crate) unknown: Vec<usize>,
}

impl Parsed {
    /// # Errors
    /// What the client has to change.
    pub(crate) fn new(body: &[u8], bundle: &Bundle) -> Result<Self> {
        let request: Request = serde_json::from_slice(body).context("cannot read the request")?;
        let users: Vec<Vec<Event>> = match (request.history, request.users) {
            (Some(history), None) => vec![history],
            (None, Some(users)) => users.into_iter().map(|u| u.history).collect(),
            _ => bail!("a request has either `history` or `users`"),
        };
        ensure!(
            (1..=MAX_USERS).contains(&users.len()),
            "{} users, accepted are 1 to {MAX_USERS}",
            users.len()
        );
        let most = match request.diversity {
            0.0 => MAX_K,
            _ => MAX_DIVERSE_K,
        };
        ensure!(
            (1..=most).contains(&request.k),
            "k is {}, accepted are 1 to {most} with diversity {}",
            request.k,
            request.diversity
        );
        let longest = users.iter().map(Vec::len).max().unwrap_or(0);
        ensure!(
            longest.max(request.exclude.len()) <= MAX_EVENTS,
            "a history or `exclude` has more than {MAX_EVENTS} entries"
        );
        let settings = Settings {
            k: request.k,
            filter: request.filter.as_deref().map(Filter::parse).transpose()?,
            exclude: request.exclude,
            include_seen: request.include_seen,
            diversity: request.diversity,
        };
        let mut histories = Vec::with_capacity(users.len());
        let mut unknown = Vec::with_capacity(users.len());
        for events in &users {
            let mut history = Vec::with_capacity(events.len());
            for event in events {
                history.extend(event.find(bundle)?);
            }
            unknown.push(events.len() - history.len());
            histories.push(history);
        }
        Ok(Parsed {
            settings,
            histories,
            unknown,
        })
    }
}

impl Event {
    fn find(&self, bundle: &Bundle) -> Result<Option<(Row, i64)>> {
        let (item, behavior) = match self {
            Event::Key(item) => (item, 0),
            Event::Behavior { item, behavior } => {
                let id = bundle.manifest().behavior_id(behavior);
                let known = &bundle.manifest().behaviors;
                let id = id.with_context(|| format!("a behavior is not one of {known:?}"))?;
                (item, id)
            }
        };
        Ok(bundle.table().find(item)?.map(|row| (row, behavior)))
    }
}

/// The answer to a request.
#[derive(Debug, Serialize)]
pub(crate) struct Response<'a> {
    bundle: Version<'a>,
    results: Vec<Items<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Version<'a> {
    id: &'a str,
    version: u64,
}

#[derive(Debug, Serialize)]
struct Items<'a> {
    items: Vec<Item<'a>>,
    unknown: usize,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    id: &'a str,
    score: f32,
}

impl<'a> Version<'a> {
    pub(crate) fn of(bundle: &'a Bundle) -> Self {
        let manifest = bundle.manifest();
        Version {
            id: &manifest.bundle_id,
            version: manifest.bundle_version,
        }
    }
}

impl<'a> Response<'a> {
    pub(crate) fn new(
        bundle: &'a Bundle,
        lists: &'a [Vec<Recommendation>],
        unknown: &[usize],
    ) -> Self {
        let item = |r: &'a Recommendation| Item {
            id: &r.item,
            score: r.score,
        };
        let results = lists.iter().zip(unknown).map(|(list, &unknown)| Items {
            items: list.iter().map(item).collect(),
            unknown,
        });
        Response {
            bundle: Version::of(bundle),
            results: results.collect(),
        }
    }
}
