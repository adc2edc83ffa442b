//! `tercet recommend`

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use tercet::{
    DiversityMethod, Effort, Event, Filter, Query, Recommendation, Recorded, Session,
    SessionOptions, Together, recommend_together,
};

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
    /// How --diversity keeps items apart.
    #[arg(long, value_enum, default_value = "mmr")]
    diversity_method: Method,
    /// At most N items per value of an attribute, as in `brand=2`; can be repeated.
    #[arg(long, value_name = "ATTR=N", value_parser = pair::<usize>)]
    cap: Vec<(String, usize)>,
    /// Places per value of an attribute as in the history, plus a slack of 0 to 1, as in
    /// `category=0.1`; can be repeated.
    #[arg(long, value_name = "ATTR=SLACK", value_parser = pair::<f32>)]
    calibrate: Vec<(String, f32)>,
    /// Lift popular items by so many standard deviations of the user's scores; negative numbers
    /// speak for the unknown.
    #[arg(
        long,
        value_name = "WEIGHT",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    popularity: f32,
    /// Lift new items by so many standard deviations, half of it an item of the half-life's
    /// age: attribute, present time, half-life and weight, as in `year,2026,3,0.5`.
    #[arg(long, value_name = "ATTR,NOW,HALF-LIFE,WEIGHT", value_parser = freshness)]
    freshness: Vec<(String, f64, f64, f32)>,
    /// Shuffle the best items in favour of the better ones: 0 keeps the order, 10 is nearly even.
    #[arg(long, value_name = "TEMPERATURE", default_value_t = 0.0)]
    explore: f32,
    /// Seed of --explore.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File with the ids of the items that are available, one a line.
    #[arg(long, value_name = "FILE")]
    available: Option<PathBuf>,
    /// Partitions to look at, or `exact`, in a bundle with partitions.
    #[arg(long, value_name = "N|exact", value_parser = effort)]
    probes: Option<Effort>,
    /// History of a further member of the household; can be repeated.
    #[arg(long = "together", value_name = "HISTORY")]
    together: Vec<String>,
    /// How a household's opinions become one.
    #[arg(long, value_enum, default_value = "average")]
    together_by: Rule,
    /// Name the items of the history that carried each score, and the modalities that the item
    /// is recognised by.
    #[arg(long)]
    explain: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Mmr,
    Dpp,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rule {
    Average,
    LeastMisery,
}

fn pair<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text.rsplit_once('=').ok_or("expected ATTRIBUTE=NUMBER")?;
    let value = value.trim().parse().map_err(|e: T::Err| e.to_string())?;
    Ok((name.trim().to_string(), value))
}

fn freshness(text: &str) -> Result<(String, f64, f64, f32), String> {
    let mut parts = text.rsplitn(4, ',').map(str::trim);
    let mut number = || -> Result<f64, String> {
        let part = parts
            .next()
            .ok_or("expected ATTRIBUTE,NOW,HALF-LIFE,WEIGHT")?;
        part.parse().map_err(|e| format!("`{part}`: {e}"))
    };
    let (weight, half_life, now) = (number()?, number()?, number()?);
    let name = parts
        .next()
        .ok_or("expected ATTRIBUTE,NOW,HALF-LIFE,WEIGHT")?;
    Ok((name.to_string(), now, half_life, weight as f32))
}

fn effort(text: &str) -> Result<Effort, String> {
    match text {
        "exact" => Ok(Effort::Exact),
        n => shared::positive(n).map(Effort::Probes),
    }
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modalities: Vec<Modality>,
    #[serde(skip)]
    title: Option<String>,
}

#[derive(Serialize)]
struct Reason {
    id: String,
    share: f32,
    contribution: f32,
    member: usize,
}

#[derive(Serialize)]
struct Modality {
    name: String,
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
                        contribution: b.contribution,
                        member: b.member,
                    })
                    .collect(),
                modalities: r
                    .modalities
                    .into_iter()
                    .map(|m| Modality {
                        name: m.name,
                        share: m.share,
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
            let known: Vec<String> = i
                .modalities
                .iter()
                .map(|m| format!("{} {:.0} %", m.name, m.share * 100.0))
                .collect();
            let known = if known.is_empty() {
                String::new()
            } else {
                format!("  known by {}", known.join(", "))
            };
            println!(
                "{:<20} {:>9.4}  {}{because}{known}",
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
    let mut members = vec![open(&bundle, &args.history)?];
    for history in &args.together {
        let history: Vec<String> = history.split(',').map(String::from).collect();
        members.push(open(&bundle, &history)?);
    }
    let mut query = Query::top(args.k)
        .exclude(args.exclude)
        .diversity(args.diversity)
        .diversity_method(match args.diversity_method {
            Method::Mmr => DiversityMethod::Mmr,
            Method::Dpp => DiversityMethod::Dpp,
        })
        .popularity(args.popularity)
        .explore(args.explore, args.seed)
        .effort(args.probes.unwrap_or_default())
        .explain(args.explain);
    if let Some(filter) = args.filter {
        query = query.filter(filter);
    }
    if let Some(path) = &args.available {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let keys = text.lines().map(str::trim).filter(|key| !key.is_empty());
        query = query.filter(Filter::items(keys));
    }
    for (attribute, items) in &args.cap {
        query = query.cap(attribute, *items);
    }
    for (attribute, slack) in &args.calibrate {
        query = query.calibrate(attribute, *slack);
    }
    for (attribute, now, half_life, weight) in &args.freshness {
        query = query.freshness(attribute, *now, *half_life, *weight);
    }
    let started = Instant::now();
    let top = match members.as_mut_slice() {
        [session] => session.recommend(&query)?,
        several => {
            let rule = match args.together_by {
                Rule::Average => Together::Average,
                Rule::LeastMisery => Together::LeastMisery,
            };
            let mut members: Vec<(&mut Session, f32)> =
                several.iter_mut().map(|s| (s, 1.0)).collect();
            recommend_together(&mut members, rule, &query)?
        }
    };
    let micros = started.elapsed().as_micros();
    Answer::new(&bundle, top, micros).print(args.json)
}

/// A session with the events of one history.
fn open(bundle: &tercet::Bundle, history: &[String]) -> Result<Session> {
    let events = history.iter().map(|h| h.trim()).filter(|h| !h.is_empty());
    let events: Vec<&str> = events.collect();
    let options = SessionOptions::default().max_history(events.len().clamp(1, tercet::MAX_HISTORY));
    let mut session = Session::new(bundle, options)?;
    let mut unknown = 0;
    for event in &events {
        let recorded = session
            .record(parse(bundle, event)?)
            .with_context(|| format!("cannot use `{event}` of the history"))?;
        unknown += usize::from(recorded == Recorded::UnknownItem);
    }
    if unknown > 0 {
        eprintln!(
            "{unknown} of {} events name items that the bundle does not know",
            events.len()
        );
    }
    Ok(session)
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
