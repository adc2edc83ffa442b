//! `tercet export`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tercet_export::onnx::Weights;
use tercet_export::{ExportOptions, ExportReport, Provenance, Scheme, SigningKey, export};
use tercet_models::eval::EvalProtocol;
use tercet_models::run::{self, TrainedRun};
use tercet_models::student::Student;

use super::shared;
use crate::output;

#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    F32,
    F16,
    Int8,
}

#[derive(Clone, Copy, ValueEnum)]
enum TableArg {
    F32,
    F16,
    Int8,
    Int4,
    TwoStage,
}

/// Options of `export`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folder of a distilled student.
    #[arg(long)]
    student: PathBuf,
    /// Data set folder it was distilled on.
    #[arg(long)]
    data: PathBuf,
    /// Bundle to write, conventionally NAME.tercet; an older bundle there is replaced.
    #[arg(long)]
    out: PathBuf,
    /// Number format of item vectors. `two-stage` finds candidates by half of the 8 bits.
    #[arg(long, value_enum, default_value = "int8")]
    table: TableArg,
    /// Add 4 more bits a value, which finalists alone are scored with: int8 and two-stage.
    #[arg(long)]
    tail: bool,
    /// Store rows in so many partitions of similar items, of which a search looks at some: for
    /// catalogs of several 100,000 items, four times the root of their number.
    #[arg(long, value_name = "N", value_parser = shared::positive)]
    partitions: Option<usize>,
    /// Partitions that a search looks at unless it says otherwise; as many as find 98 % of the
    /// best 100 when absent.
    #[arg(long, value_name = "N", value_parser = shared::positive, requires = "partitions")]
    probes: Option<usize>,
    /// Number format of the towers' weights.
    #[arg(long, value_enum, default_value = "int8")]
    towers: FormatArg,
    /// Stable name of this line of bundles; the file name of --out when absent.
    #[arg(long)]
    bundle_id: Option<String>,
    /// Version; one more than that of the bundle being replaced when absent, else 1.
    #[arg(long)]
    bundle_version: Option<u64>,
    /// Folder of sharded item vectors, as `examples/spark/embed_catalogue.py` writes them: the table
    /// then holds their items, which are at least those of the data.
    #[arg(long, value_name = "DIR")]
    shards: Option<PathBuf>,
    /// Share of the first 20 places that items without a training event get at least, if they have
    /// content; never more than their share of the catalogue. 0 leaves them where their scores put
    /// them, which is rarely in sight.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = shared::share)]
    cold_share: f64,
    /// Measure the metrics of the model card on at most so many users, evenly spaced. Full ranking
    /// costs users times items.
    #[arg(long, value_name = "N", value_parser = shared::positive)]
    max_users: Option<usize>,
    /// Sign with this secret key, of `tercet key new` or of minisign. The password of an encrypted
    /// one is taken from the environment variable TERCET_KEY_PASSWORD.
    #[arg(long, value_name = "KEYFILE")]
    sign: Option<PathBuf>,
    /// Threads; all cores when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    shared::threads(args.threads)?;
    let key = args.sign.as_deref();
    let key = key.map(|path| {
        SigningKey::load(path, || std::env::var(shared::PASSWORD).ok())
            .context("cannot sign with this key; is it encrypted and TERCET_KEY_PASSWORD set?")
    });
    let key = key.transpose()?;
    let dev = run::device("cpu")?;
    let trained = TrainedRun::open(&args.student, &dev)
        .with_context(|| format!("cannot open the run {}", args.student.display()))?;
    anyhow::ensure!(
        trained.config.model == "student",
        "{} holds a run of `{}`; distil a student from it first: tercet distill --teacher {} …",
        args.student.display(),
        trained.config.model,
        args.student.display()
    );
    let data = shared::open_data(&args.data, &trained.config.load_options())?;
    let student = Student::load(&trained.tensors, &dev)
        .with_context(|| format!("cannot use the student {}", args.student.display()))?;
    let mut provenance = Provenance::of_run(&args.student)?;
    provenance.seed = Some(trained.config.seed);
    provenance.command = Some(shared::command_line());
    let options = ExportOptions {
        table: match args.table {
            TableArg::F32 => Scheme::F32,
            TableArg::F16 => Scheme::F16,
            TableArg::Int8 => Scheme::Int8,
            TableArg::Int4 => Scheme::Int4,
            TableArg::TwoStage => Scheme::TwoStage,
        },
        tail: args.tail,
        partitions: args.partitions,
        probes: args.probes,
        towers: match args.towers {
            FormatArg::F32 => Weights::F32,
            FormatArg::F16 => Weights::F16,
            FormatArg::Int8 => Weights::Int8,
        },
        bundle_id: args.bundle_id,
        bundle_version: args.bundle_version,
        shards: args.shards,
        cold_share: args.cold_share,
        protocol: EvalProtocol {
            max_users: args.max_users,
            ..EvalProtocol::valid()
        },
        ..ExportOptions::default()
    };
    let report = export(&student, &data, &provenance, &options, &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    if let Some(key) = key {
        key.sign(&args.out)
            .with_context(|| format!("{} was written but not signed", args.out.display()))?;
    }
    for a in &report.skipped_attributes {
        eprintln!("left out attribute `{}`: {}", a.name, a.reason);
    }
    if args.json {
        return output::json(&report);
    }
    print(&report);
    Ok(())
}

fn print(r: &ExportReport) {
    println!(
        "{} {} version {}: {} items × {}, table {}, towers {}, {} bytes, {:.1} s",
        r.path.display(),
        r.bundle_id,
        r.bundle_version,
        r.items,
        r.dim,
        r.table,
        r.towers.name(),
        r.bytes,
        r.seconds
    );
    for (name, bytes) in &r.files {
        println!("  {name:<26} {bytes:>12}");
    }
    let p = &r.parity;
    for (what, d) in [
        ("table", &p.table),
        ("users", &p.users),
        ("items", &p.items),
    ] {
        println!(
            "  {what:<8} mean cosine {:.6}, least {:.6}, largest difference {:.2e}",
            d.mean_cosine, d.min_cosine, d.max_abs
        );
    }
    println!(
        "  best 20: {:.3} shared with the student, {:.3} found by the scan",
        p.top_overlap, p.scan_overlap
    );
    let q = &r.quality;
    print!("  recall@{} {:.4} against full precision", q.k, q.recall);
    match (q.probes, q.recall_probing) {
        (Some(probes), Some(recall)) => println!(", {recall:.4} with {probes} probes"),
        _ => println!(),
    }
    if r.cold.bias > 0.0 {
        println!(
            "  {} cold items: {:.4} is added to their scores, for {:.1} % of the first places",
            r.cold.items,
            r.cold.bias,
            100.0 * r.cold.share
        );
    }
    if r.users > 0 {
        output::metric_table(&[("student", &r.student), ("bundle", &r.metrics)]);
    }
}
