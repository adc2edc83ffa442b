//! `tercet bench`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use tercet::{Bundle, Effort, Event, Query, Scheme, Search, Session, SessionOptions};

use super::shared;
use crate::output;

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle.
    bundle: PathBuf,
    /// Repetitions of each measurement.
    #[arg(long, default_value_t = 50, value_parser = shared::positive)]
    runs: usize,
    /// Items to recommend.
    #[arg(short, long, default_value_t = 10, value_parser = shared::positive)]
    k: usize,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    kernel: &'static str,
    items: usize,
    dim: usize,
    table: Scheme,
    k: usize,
    /// Opening the bundle with its files in the page cache.
    open: Timing,
    /// A fresh session's first answer: loading the user tower, running it, ranking.
    first_recommendation: Timing,
    /// An event recorded and k items recommended, by length of the history.
    recommend: Vec<Recommend>,
    /// Ranking alone: the best k of the whole table for one user vector.
    scan: Scan,
}

#[derive(Serialize)]
struct Recommend {
    history: usize,
    #[serde(flatten)]
    time: Timing,
}

#[derive(Serialize)]
struct Scan {
    #[serde(flatten)]
    time: Timing,
    gigabytes_per_second: f64,
}

/// Microseconds of wall time.
#[derive(Serialize, Clone, Copy)]
struct Timing {
    median_micros: f64,
    p95_micros: f64,
}

fn time(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<Timing> {
    let mut micros = Vec::with_capacity(runs);
    for _ in 0..runs {
        let started = Instant::now();
        f()?;
        micros.push(started.elapsed().as_secs_f64() * 1e6);
    }
    micros.sort_unstable_by(f64::total_cmp);
    Ok(Timing {
        median_micros: micros[runs / 2],
        p95_micros: micros[(runs * 95 / 100).min(runs - 1)],
    })
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bundle = shared::open_bundle(&args.bundle)?;
    // What is timed must be right.
    tercet_export::verify(&bundle, None)
        .with_context(|| format!("{} must not be used", args.bundle.display()))?;
    let table = bundle.table();
    let items = table.len();
    let query = Query::top(args.k);
    let key = |i: usize| table.key((i % items) as u32).map(str::to_string);

    let open = time(args.runs, || {
        Bundle::open(&args.bundle)?;
        Ok(())
    })?;
    let first_recommendation = time(args.runs.min(10), || {
        let mut session = Session::new(&bundle, SessionOptions::default())?;
        session.record(Event::new(key(0)?))?;
        session.recommend(&query)?;
        Ok(())
    })?;
    let mut recommend = Vec::new();
    let window = bundle.manifest().window;
    let mut lengths = vec![1, 10, window];
    lengths.sort_unstable();
    lengths.dedup();
    for history in lengths {
        let options = SessionOptions::default().max_history(history);
        let mut session = Session::new(&bundle, options)?;
        let mut next = 0;
        for _ in 0..history {
            session.record(Event::new(key(next)?))?;
            next += 7;
        }
        let expected = args.k.min(items - history.min(items));
        anyhow::ensure!(
            session.recommend(&query)?.len() >= expected,
            "fewer recommendations than items that are left"
        );
        let time = time(args.runs, || {
            session.record(Event::new(key(next)?))?;
            next += 7;
            session.recommend(&query)?;
            Ok(())
        })?;
        recommend.push(Recommend { history, time });
    }

    let user = table.vector(0)?;
    // The whole table, also where a query would look at some of its partitions.
    let search = Search::top(args.k).effort(Effort::Exact);
    let best = table.search(&user, &search)?;
    let least = best.last().map_or(f32::NEG_INFINITY, |s| s.score);
    let better = (0..items as u32)
        .map(|row| table.score(&user, row))
        .filter(|s| s.as_ref().is_ok_and(|s| *s > least + 1e-3 * least.abs()))
        .count();
    anyhow::ensure!(
        better < args.k.min(items),
        "the scan missed {} better items",
        better + 1 - best.len()
    );
    let time = time(args.runs, || {
        table.search(&user, &search)?;
        Ok(())
    })?;
    let row_bytes = table.scheme().scan_bytes(table.dim());
    let gigabytes_per_second = (items * row_bytes) as f64 / time.median_micros / 1e3;
    let report = Report {
        kernel: tercet::kernel::active().name(),
        items,
        dim: table.dim(),
        table: table.scheme(),
        k: args.k,
        open,
        first_recommendation,
        recommend,
        scan: Scan {
            time,
            gigabytes_per_second,
        },
    };
    if args.json {
        return output::json(&report);
    }
    println!(
        "the best {} of {items} items × {} ({}), kernel {}",
        args.k, report.dim, report.table, report.kernel
    );
    println!("{:<24}{:>12}{:>12}", "µs", "median", "p95");
    let row = |name: &str, t: Timing| {
        println!("{name:<24}{:>12.1}{:>12.1}", t.median_micros, t.p95_micros);
    };
    row("open", report.open);
    row("first recommendation", report.first_recommendation);
    for r in &report.recommend {
        row(&format!("recommend, history {}", r.history), r.time);
    }
    row("scan", report.scan.time);
    println!("scan: {:.2} GB/s", report.scan.gigabytes_per_second);
    Ok(())
}
