//! `tercet evaluate`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use tercet_export::{BundleScorer, ReplayOptions};
use tercet_models::data::{Dataset, Split};
use tercet_models::eval::{EvalProtocol, EvalReport, RankedList, Scorer, evaluate_with_lists};
use tercet_models::run::{self, TrainedRun};

use super::replay;
use super::shared::{self, Protocol};
use crate::output;

#[derive(Clone, Copy, ValueEnum)]
enum SplitArg {
    Valid,
    Test,
}

/// Options of `evaluate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Trained run.
    #[arg(long, required_unless_present = "bundle", conflicts_with = "bundle")]
    run: Option<PathBuf>,
    /// Bundle, evaluated through the runtime as on a device.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Data set folder.
    #[arg(long)]
    data: PathBuf,
    /// Rows to find.
    #[arg(long, value_enum, default_value = "test")]
    split: SplitArg,
    /// Report cold and warm items and lengths of history apart.
    #[arg(long)]
    slices: bool,
    /// The behaviour to predict; that of the run when absent.
    #[arg(long)]
    target_behavior: Option<String>,
    /// Override a setting of the run that scoring reads, such as `score_by=id` of odmt or `scoring=label`
    /// of tmf. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "bundle")]
    set: Vec<String>,
    /// Replay held-out events in order of time, with and without learning from the user on the
    /// device: next-event ranking by a session, the first of the cut-offs.
    #[arg(long, conflicts_with_all = ["run", "slices", "set", "max_users"])]
    replay: bool,
    /// Items that the replayed app shows at a time; those not chosen are told as skipped. 0: it
    /// tells nothing of them.
    #[arg(long, requires = "replay", default_value_t = 10)]
    shown: usize,
    /// Training events per user that are learned from before the first one that counts.
    #[arg(long, requires = "replay", default_value_t = 50)]
    warm_up: usize,
    /// Write what was ranked, a line of JSON for each query: user, targets and items by their keys.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    lists: Option<PathBuf>,
    #[command(flatten)]
    protocol: Protocol,
    /// cpu, or cuda:N in a build with that feature.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads; all cores when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// The JSON of `evaluate`.
#[derive(Serialize)]
struct Report {
    model: String,
    source: &'static str,
    #[serde(flatten)]
    result: EvalReport,
    seconds: f64,
}

/// A line of `--lists`.
#[derive(Serialize)]
struct ListLine<'a> {
    user: &'a str,
    targets: Vec<&'a str>,
    items: Vec<&'a str>,
}

fn write_lists(path: &Path, file: File, data: &Dataset, lists: &[RankedList]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut out = BufWriter::new(file);
    let keys = |items: &[u32]| items.iter().map(|&i| data.items.key(i)).collect();
    for list in lists {
        let line = ListLine {
            user: data.users.key(list.user),
            targets: keys(&list.targets),
            items: keys(&list.items),
        };
        serde_json::to_writer(&mut out, &line).with_context(cannot)?;
        out.write_all(b"\n").with_context(cannot)?;
    }
    out.flush().with_context(cannot)
}

pub(crate) fn run(args: Args) -> Result<()> {
    shared::threads(args.threads)?;
    let protocol = EvalProtocol {
        split: match args.split {
            SplitArg::Valid => Split::Valid,
            SplitArg::Test => Split::Test,
        },
        slices: args.slices,
        ..args.protocol.parse()?
    };
    if let (true, Some(bundle)) = (args.replay, &args.bundle) {
        let mut options = ReplayOptions::default();
        options.split = protocol.split;
        options.k = protocol.ks.first().copied().unwrap_or(options.k);
        options.shown = args.shown;
        options.warm_up = args.warm_up;
        let target = args.target_behavior.as_ref();
        return replay::run(bundle, &args.data, target, &options, args.json);
    }
    let started = Instant::now();
    // Opened before anything is computed: a path that cannot be written must not cost an evaluation.
    let file = match &args.lists {
        Some(path) => {
            let file = File::create(path);
            Some((
                path,
                file.with_context(|| format!("cannot write {}", path.display()))?,
            ))
        }
        None => None,
    };
    let ranked = |scorer: &dyn Scorer, data: &Dataset| -> Result<EvalReport> {
        let (report, lists) = evaluate_with_lists(scorer, data, &protocol)?;
        if let Some((path, file)) = file {
            write_lists(path, file, data, &lists)?;
        }
        Ok(report)
    };
    let (model, source, result) = if let Some(path) = &args.run {
        let dev = run::device(&args.device)?;
        let mut trained = TrainedRun::open(path, &dev)
            .with_context(|| format!("cannot open the run {}", path.display()))?;
        for s in &args.set {
            trained.config.set(s)?;
        }
        let mut options = trained.config.load_options();
        if args.target_behavior.is_some() {
            options.target_behavior.clone_from(&args.target_behavior);
        }
        let data = shared::open_data(&args.data, &options)?;
        let scorer = trained.scorer(&data, &dev)?;
        (
            trained.config.model.clone(),
            "run",
            ranked(scorer.as_ref(), &data)?,
        )
    } else if let Some(path) = &args.bundle {
        let bundle = shared::open_bundle(path)?;
        let mut options = shared::bundle_options(&bundle);
        if args.target_behavior.is_some() {
            options.target_behavior.clone_from(&args.target_behavior);
        }
        let data = shared::open_data(&args.data, &options)?;
        let scorer = BundleScorer::new(&bundle, &data)
            .with_context(|| format!("cannot evaluate {}", path.display()))?;
        if scorer.unknown_items() > 0 {
            eprintln!(
                "the bundle lacks {} items of the data",
                scorer.unknown_items()
            );
        }
        let card = &bundle.manifest().card;
        let model = card["model"].as_str().unwrap_or("bundle").to_string();
        (model, "bundle", ranked(&scorer, &data)?)
    } else {
        return shared::wrong_use("give --run or --bundle");
    };
    let report = Report {
        model,
        source,
        result,
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&report);
    }
    println!(
        "{} ({}) on {}: {} users, {} items, {:.1} s",
        report.model,
        report.source,
        report.result.split.name(),
        report.result.users,
        report.result.items,
        report.seconds
    );
    output::metric_table(&[("all", &report.result.metrics)]);
    let slices: Vec<(&str, _)> = report
        .result
        .slices
        .iter()
        .map(|(name, s)| (name.as_str(), &s.metrics))
        .collect();
    if !slices.is_empty() {
        output::metric_table(&slices);
    }
    Ok(())
}
