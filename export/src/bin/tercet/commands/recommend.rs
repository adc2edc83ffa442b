//! `tercet recommend`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use tercet::{Event, Query, Recommendation, Recorded, Session, SessionOptions};

use super::shared;
use crate::output;

/// Options of `recommend`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle.
    #[arg(long)]
    bundle: PathBuf,
    /// What the user did, oldest first: `id` or `id:behavior`. Empty for a new user.
    #[arg(long, value_delimiter = ',', default_value = "")]
    history: Vec<String>,
    /// Items to recommend.
    #[arg(short, long, default_value_t = 10, value_parser = shared::positive)]
    k: usize,
    /// Further items to leave out.
    #[arg(long, value_delimiter = ',')]
    exclude: Vec<String>,
    /// Which items qualify, by the attributes of the bundle, as in
    /// `category in (tea, coffee) and not brand = "x y" and price <= 20`.
    #[arg(long, value_name = "EXPR", value_parser = tercet::Filter::parse)]
    filter: Option<tercet::Filter>,
    /// How much to avoid items that are alike: 0 ranks by score alone, 1 by difference alone.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = diversity)]
    diversity: f32,
    /// Name the items of the history that speak for each recommendation.
    #[arg(long)]
    explain: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// The JSON of `recommend` and `similar`.
#[derive(Serialize)]
pub(super) struct Answer {
    pub(super) items: Vec<Item>,
    /// Time of the answer, without opening the bundle.
    pub(super) micros: u128,
}

#[derive(Serialize)]
pub(super) struct Item {
    id: String,
    score: f32,
    because: Vec<Reason>,
    #[serde(skip)]
    title: Option<String>,
}

#[derive(Serialize)]
struct Reason {
    id: String,
    share: f32,
}

impl Answer {
    pub(super) fn new(bundle: &tercet::Bundle, top: Vec<Recommendation>, micros: u128) -> Self {
        let table = bundle.table();
        let titled = table.attributes().any(|a| a == "title");
        let items = top
            .into_iter()
            .map(|r| Item {
                title: if titled {
                    table
                        .attribute("title", r.row)
                        .ok()
                        .and_then(|t| t.first().map(|t| t.to_string()))
                } else {
                    None
                },
                id: r.item,
                score: r.score,
                because: r
                    .because
                    .into_iter()
                    .map(|b| Reason {
                        id: b.item,
                        share: b.share,
                    })
                    .collect(),
            })
            .collect();
        Self { items, micros }
    }

    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            return output::json(self);
        }
        for i in &self.items {
            let reasons: Vec<String> = i
                .because
                .iter()
                .map(|b| format!("{} {:.0} %", b.id, b.share * 100.0))
                .collect();
            let because = if reasons.is_empty() {
                String::new()
            } else {
                format!("  because of {}", reasons.join(", "))
            };
            println!(
                "{:<20} {:>9.4}  {}{because}",
                i.id,
                i.score,
                i.title.as_deref().unwrap_or("")
            );
        }
        eprintln!("{} µs", self.micros);
        Ok(())
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bundle = shared::open_bundle(&args.bundle)?;
    let events: Vec<&str> = args
        .history
        .iter()
        .map(|h| h.trim())
        .filter(|h| !h.is_empty())
        .collect();
    let options = SessionOptions::default().max_history(events.len().clamp(1, tercet::MAX_HISTORY));
    let mut session = Session::new(&bundle, options)?;
    let mut unknown = 0;
    for event in &events {
        let recorded = session
            .record(parse(&bundle, event)?)
            .with_context(|| format!("cannot use `{event}` of --history"))?;
        unknown += usize::from(recorded == Recorded::UnknownItem);
    }
    if unknown > 0 {
        eprintln!(
            "{unknown} of {} events name items that the bundle does not know",
            events.len()
        );
    }
    let mut query = Query::top(args.k)
        .exclude(args.exclude)
        .diversity(args.diversity)
        .explain(args.explain);
    if let Some(filter) = args.filter {
        query = query.filter(filter);
    }
    let started = Instant::now();
    let top = session.recommend(&query)?;
    let micros = started.elapsed().as_micros();
    Answer::new(&bundle, top, micros).print(args.json)
}

fn diversity(text: &str) -> Result<f32, String> {
    let x = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    x.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// `id:behavior` if that splits into a known behaviour, unless the whole is an item's id.
fn parse(bundle: &tercet::Bundle, text: &str) -> Result<Event> {
    let whole = bundle.table().find(text)?.is_some();
    match text.rsplit_once(':').filter(|_| !whole) {
        Some((item, behavior)) => Ok(Event::new(item).behavior(behavior)),
        None => Ok(Event::new(text)),
    }
}
