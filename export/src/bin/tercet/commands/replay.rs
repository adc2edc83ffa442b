//! `tercet evaluate --replay`

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use tercet_export::replay::Comparison;
use tercet_export::{ReplayOptions, ReplayReport, replay};

use super::shared;
use crate::output;

/// The JSON of `evaluate --replay`.
#[derive(Serialize)]
struct Report {
    model: String,
    source: &'static str,
    #[serde(flatten)]
    result: ReplayReport,
    seconds: f64,
}

/// Replays the held-out events of a data set against a bundle.
pub(super) fn run(
    bundle: &Path,
    data: &Path,
    target_behavior: Option<&String>,
    options: &ReplayOptions,
    json: bool,
) -> Result<()> {
    let started = Instant::now();
    let path = bundle;
    let bundle = shared::open_bundle(path)?;
    let mut load = shared::bundle_options(&bundle);
    // Features are the bundle's matter.
    load.modalities = Some(Vec::new());
    if target_behavior.is_some() {
        load.target_behavior = target_behavior.cloned();
    }
    let data = shared::open_data(data, &load)?;
    let result = replay(&bundle, &data, options)
        .with_context(|| format!("cannot replay with {}", path.display()))?;
    let card = &bundle.manifest().card;
    let report = Report {
        model: card["model"].as_str().unwrap_or("bundle").to_string(),
        source: "bundle",
        result,
        seconds: started.elapsed().as_secs_f64(),
    };
    if json {
        return output::json(&report);
    }
    let result = &report.result;
    println!(
        "{} (bundle), replay of {}: {} users, {} items, {:.1} s",
        report.model,
        result.split.name(),
        result.users,
        result.items,
        report.seconds
    );
    compare("all events", &result.all);
    compare("liked", &result.positive);
    println!(
        "{:.1} feedbacks an event, learnt in {:.0} us (median), {:.0} us (99 of 100); {}",
        result.feedbacks_per_event,
        result.micros_per_event.median,
        result.micros_per_event.p99,
        match result.restored {
            true => "forgetting restored every ranking",
            false => "FORGETTING DID NOT RESTORE A RANKING",
        }
    );
    Ok(())
}

fn compare(name: &str, c: &Comparison) {
    println!(
        "{name} ({}): gain {:+.2} % ± {:.2}",
        c.events,
        c.gain * 100.0,
        c.gain_error * 100.0
    );
    for (key, before) in &c.fixed {
        println!(
            "  {key:<10} static {before:.4}  adapted {:.4}",
            c.adapted[key]
        );
    }
}
