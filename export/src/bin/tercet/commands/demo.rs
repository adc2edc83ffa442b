//! `tercet demo`: the main job on an embedded default.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use serde::Serialize;
use tercet::{Bundle, Event, Query, Session, SessionOptions};
use tercet_export::{BundleScorer, ExportOptions, Provenance};
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::synthetic::{self, SyntheticConfig};
use tercet_models::data::{Dataset, FitOn, LoadOptions};
use tercet_models::distill::Distiller;
use tercet_models::eval::{EvalProtocol, EvalReport, Scorer, SliceReport, evaluate};
use tercet_models::run::{self, RunConfig, TrainedRun};
use tercet_models::student::Student;
use tercet_models::train::{RunOptions, train};

use super::shared;
use crate::{interrupt, output};

/// Options of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for the shop, the runs and the bundle; what an earlier demo left there is replaced.
    #[arg(long, default_value = "tercet-demo")]
    out: PathBuf,
    /// Seed of the shop and of every training.
    #[arg(long, default_value_t = 17)]
    seed: u64,
    /// Teacher: ease, bpr, lightgcn, sasrec, diffmm or tmf.
    #[arg(long, default_value = "diffmm")]
    model: String,
    /// Threads; all cores when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Metrics of one stage on test rows.
#[derive(Serialize)]
struct Stage {
    model: String,
    metrics: BTreeMap<String, f64>,
    /// Items without a single training row, which only content can find.
    #[serde(skip_serializing_if = "Option::is_none")]
    cold: Option<BTreeMap<String, f64>>,
    seconds: f64,
}

#[derive(Serialize)]
struct BundleStage {
    metrics: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cold: Option<BTreeMap<String, f64>>,
    path: PathBuf,
    bytes: u64,
}

#[derive(Serialize)]
struct Recommended {
    id: String,
    title: String,
    score: f32,
    because: Vec<String>,
}

/// The JSON of `demo`.
#[derive(Serialize)]
struct Report {
    popularity: Stage,
    teacher: Stage,
    student: Stage,
    /// The student's recall@20 when its fusion tower does not see one modality.
    student_without: BTreeMap<String, f64>,
    bundle: BundleStage,
    history: Vec<String>,
    recommendations: Vec<Recommended>,
    seconds: f64,
}

const MARK: &str = "demo.json";

pub(crate) fn run(args: Args) -> Result<()> {
    shared::threads(args.threads)?;
    let started = Instant::now();
    let dev = Device::Cpu;
    let stop = interrupt::flag()?;
    prepare(&args.out)?;
    let say = |text: &str| {
        if !args.json {
            println!("{text}");
        }
    };

    say(
        "1/5 synthetic shop: style shows only in images, kind only in titles, circle only in who buys what",
    );
    let folder = args.out.join("shop");
    synthetic::write(
        &SyntheticConfig {
            seed: args.seed,
            ..SyntheticConfig::default()
        },
        &folder,
    )?;
    let data = shared::open_data(&folder, &LoadOptions::default())?;
    let clock = Instant::now();
    let popularity = Popularity::fit(&data, FitOn::TrainValid);
    let popularity = stage("popularity", &measure(&popularity, &data)?, clock);

    say(&format!("2/5 teacher: {}", args.model));
    let clock = Instant::now();
    let options = |out: &Path, mode| RunOptions {
        out: out.to_path_buf(),
        mode,
        resume: false,
        stop: stop.clone(),
        progress: true,
        protocol: EvalProtocol::default(),
    };
    let mut spec = RunConfig::new(&args.model)?;
    spec.seed = args.seed;
    if args.model == "diffmm" {
        // The shop is a thousandth of a real catalogue: a smaller denoiser and larger steps.
        for s in [
            "hidden=128",
            "lr=5e-3",
            "standardize=true",
            "train.epochs=12",
        ] {
            spec.set(s)?;
        }
    }
    if args.model == "tmf" {
        // A language model of about a million weights, trained on the shop's titles.
        for s in [
            "train.epochs=6",
            "train.eval_every=2",
            "warmup_steps=60",
            "examples=80",
            "sequences=1000",
        ] {
            spec.set(s)?;
        }
    }
    let path = args.out.join("teacher");
    let mut learner = run::learner(&spec, &data, &dev)?;
    train(
        learner.as_mut(),
        &data,
        &spec,
        &options(&path, spec.mode),
        &dev,
    )
    .map_err(|e| shared::explain_stop(e, &path))?;
    drop(learner);
    let trained = TrainedRun::open_teacher(&path, &dev)?;
    let teacher = stage(
        &args.model,
        &measure(trained.scorer(&data, &dev)?.as_ref(), &data)?,
        clock,
    );

    say("3/5 student: towers for items and histories, taught by the teacher's scores");
    let clock = Instant::now();
    let mut spec = RunConfig::new("student")?;
    spec.seed = args.seed;
    for s in [
        "train.metric=ndcg@20",
        "train.epochs=18",
        "train.patience=5",
        "lr=2e-3",
        // The shop sells many new items: most of what the towers see in training looks new.
        "drop_steps=0.5",
        "drop_graph=0.8",
        "drop_content=0.1",
    ] {
        spec.set(s)?;
    }
    if args.model == "tmf" {
        // A language model is slow to ask: each user is a lesson or two, and remembered.
        for s in ["lesson_epochs=2", "cuts=1", "candidate_weight=0.5"] {
            spec.set(s)?;
        }
    }
    let path = args.out.join("student");
    let scorers = vec![trained.scorer(&data, &dev)?];
    let mut learner = Distiller::new(
        &data,
        spec.parse()?,
        scorers,
        trained.item_vectors(),
        spec.seed,
        &dev,
    )?;
    train(&mut learner, &data, &spec, &options(&path, spec.mode), &dev)
        .map_err(|e| shared::explain_stop(e, &path))?;
    let student = Student::load(&TrainedRun::open(&path, &dev)?.tensors, &dev)?;
    let teachers = serde_json::json!({ "models": [args.model], "data": data.name });
    run::write_json(&path.join("teachers.json"), &teachers)?;
    let student_stage = stage("student", &measure(&student.scorer(&data)?, &data)?, clock);
    let mut student_without = BTreeMap::new();
    for m in &student.shape.modalities {
        let blind = student.scorer_seeing(&data, |name| name != m.name)?;
        let recall = measure(&blind, &data)?.metric("recall@20").unwrap_or(0.0);
        student_without.insert(m.name.clone(), recall);
    }

    say("4/5 bundle: int8 item table and int8 towers, opened and measured through the runtime");
    let dest = args.out.join("shop.tercet");
    let packed = tercet_export::export(
        &student,
        &data,
        &Provenance {
            command: Some(shared::command_line()),
            ..Provenance::of_run(&path)?
        },
        &ExportOptions::default(),
        &dest,
    )?;
    let bundle = Bundle::open(&dest)?;
    let quantized = measure(&BundleScorer::new(&bundle, &data)?, &data)?;

    say("5/5 a user nobody has seen, offline");
    let (history, recommendations) = newcomer(&bundle, &data)?;
    let report = Report {
        popularity,
        teacher,
        student: student_stage,
        student_without,
        bundle: BundleStage {
            cold: cold(&quantized),
            metrics: quantized.metrics,
            path: dest,
            bytes: packed.bytes,
        },
        history,
        recommendations,
        seconds: started.elapsed().as_secs_f64(),
    };
    run::write_json(&args.out.join(MARK), &report)?;
    if args.json {
        return output::json(&report);
    }
    print(&report);
    Ok(())
}

/// Clears what an earlier demo left, and nothing else.
fn prepare(out: &Path) -> Result<()> {
    let ours = ["shop", "teacher", "student", "shop.tercet", MARK];
    if out.exists() {
        for entry in fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))? {
            let name = entry?.file_name();
            anyhow::ensure!(
                ours.iter().any(|o| name == *o),
                "{} holds `{}`, which is not of a demo; choose another folder with --out",
                out.display(),
                name.display()
            );
        }
        fs::remove_dir_all(out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))
}

fn measure(scorer: &dyn Scorer, data: &Dataset) -> Result<EvalReport> {
    let protocol = EvalProtocol {
        slices: true,
        ..EvalProtocol::default()
    };
    Ok(evaluate(scorer, data, &protocol)?)
}

fn cold(report: &EvalReport) -> Option<BTreeMap<String, f64>> {
    let slice: Option<&SliceReport> = report.slices.get("items:cold");
    slice.map(|s| s.metrics.clone())
}

fn stage(model: &str, report: &EvalReport, clock: Instant) -> Stage {
    Stage {
        model: model.to_string(),
        metrics: report.metrics.clone(),
        cold: cold(report),
        seconds: clock.elapsed().as_secs_f64(),
    }
}

/// A session that starts from nothing: three purchases of one kind of taste, then recommendations.
fn newcomer(bundle: &Bundle, data: &Dataset) -> Result<(Vec<String>, Vec<Recommended>)> {
    let title = |key: &str| -> String {
        let titles = data.titles.as_deref().unwrap_or_default();
        let id = data.items.get(key).and_then(|i| titles.get(i as usize));
        id.cloned().unwrap_or_default()
    };
    // The items most like a popular one stand for a person with a clear taste.
    let counts = data.popularity();
    let first =
        (0..counts.len() as u32).max_by_key(|&i| (counts[i as usize], std::cmp::Reverse(i)));
    let first = data
        .items
        .key(first.context("the shop is empty")?)
        .to_string();
    let mut session = Session::new(bundle, SessionOptions::default())?;
    let mut history = vec![first.clone()];
    history.extend(session.similar(&first, 2)?.into_iter().map(|r| r.item));
    for key in &history {
        session.record(Event::new(key.as_str()).behavior("buy"))?;
    }
    let top = session.recommend(&Query::top(5).explain(true))?;
    let recommendations = top
        .into_iter()
        .map(|r| Recommended {
            title: title(&r.item),
            score: r.score,
            because: r.because.iter().map(|b| title(&b.item)).collect(),
            id: r.item,
        })
        .collect();
    Ok((
        history
            .iter()
            .map(|k| format!("{k} {}", title(k)))
            .collect(),
        recommendations,
    ))
}

fn print(report: &Report) {
    println!("\non test rows of the shop:");
    output::metric_table(&[
        ("popularity", &report.popularity.metrics),
        (report.teacher.model.as_str(), &report.teacher.metrics),
        ("student", &report.student.metrics),
        ("int8 bundle", &report.bundle.metrics),
    ]);
    if report.student.cold.is_some() {
        let recall = |cold: &Option<BTreeMap<String, f64>>| {
            let recall = cold.as_ref().and_then(|c| c.get("recall@20"));
            recall.copied().unwrap_or(0.0)
        };
        println!(
            "cold items, recall@20: {} {:.4}, student {:.4}, int8 bundle {:.4}",
            report.teacher.model,
            recall(&report.teacher.cold),
            recall(&report.student.cold),
            recall(&report.bundle.cold)
        );
    }
    for (name, recall) in &report.student_without {
        println!("student that does not see {name}: recall@20 {recall:.4}");
    }
    println!("\nhistory:");
    report.history.iter().for_each(|h| println!("  {h}"));
    println!("recommended:");
    for r in &report.recommendations {
        println!(
            "  {} {} ({:.2}) because of {}",
            r.id,
            r.title,
            r.score,
            r.because.join("; ")
        );
    }
    println!(
        "\nbundle: {} ({:.0} kB), {:.0} s in all",
        report.bundle.path.display(),
        report.bundle.bytes as f64 / 1e3,
        report.seconds
    );
    println!(
        "next: tercet recommend --bundle {} --history ID,ID --explain",
        report.bundle.path.display()
    );
}
