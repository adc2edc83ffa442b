//! `tercet distill`

use std::path::PathBuf;

use anyhow::{Context, Result};
use tercet_models::distill::Distiller;
use tercet_models::run::{self, RunConfig, TrainedRun};
use tercet_models::train::{RunOptions, train};

use super::shared::{self, Protocol, Training};
use crate::interrupt;

/// Options of `distill`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Trained run to learn from; several are blended with equal shares.
    #[arg(long, required = true)]
    teacher: Vec<PathBuf>,
    /// Data set folder the teachers were trained on.
    #[arg(long)]
    data: PathBuf,
    /// Run folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Modalities of the student, by name; those of the data set when absent.
    #[arg(long, value_delimiter = ',')]
    modalities: Option<Vec<String>>,
    #[command(flatten)]
    training: Training,
    #[command(flatten)]
    protocol: Protocol,
}

pub(crate) fn run(args: Args) -> Result<()> {
    shared::threads(args.training.threads)?;
    let mut spec = RunConfig::new("student")?;
    spec.train.metric = "ndcg@20".into();
    let dev = run::device(&args.training.device)?;
    let teachers = args
        .teacher
        .iter()
        .map(|p| {
            TrainedRun::open_teacher(p, &dev)
                .with_context(|| format!("cannot use the teacher {}", p.display()))
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(first) = teachers.first() {
        spec.target_behavior
            .clone_from(&first.config.target_behavior);
    }
    if args.modalities.is_some() {
        spec.modalities.clone_from(&args.modalities);
    }
    args.training.apply(&mut spec)?;
    let data = shared::open_data(&args.data, &spec.load_options())?;
    let scorers = teachers
        .iter()
        .map(|t| t.scorer(&data, &dev))
        .collect::<Result<Vec<_>, _>>()?;
    let vectors = teachers.iter().find_map(TrainedRun::item_vectors);
    let mut learner = Distiller::new(&data, spec.parse()?, scorers, vectors, spec.seed, &dev)?;
    let options = RunOptions {
        out: args.out.clone(),
        mode: spec.mode,
        resume: args.training.resume,
        stop: interrupt::flag()?,
        progress: true,
        protocol: args.protocol.parse()?,
    };
    let report = train(&mut learner, &data, &spec, &options, &dev)
        .map_err(|e| shared::explain_stop(e, &args.out))?;
    let names: Vec<String> = teachers.iter().map(|t| t.config.model.clone()).collect();
    run::write_json(
        &args.out.join("teachers.json"),
        &serde_json::json!({ "models": names, "data": data.name }),
    )?;
    shared::print_report(&report, args.training.json)
}
