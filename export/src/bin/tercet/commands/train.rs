//! `tercet train`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tercet_models::run::{self, RunConfig};
use tercet_models::train::{Mode, RunOptions, train};

use super::shared::{self, Protocol, Training};
use crate::interrupt;

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    Honest,
    Parity,
}

/// Options of `train`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// popularity, ease, bpr, lightgcn, behavior-graph, sasrec, diffmm, dprec, odmt or tmf.
    #[arg(long)]
    model: String,
    /// Data set folder.
    #[arg(long)]
    data: PathBuf,
    /// Run folder to write.
    #[arg(long)]
    out: PathBuf,
    /// honest: select on validation. parity: select on test, to compare with published numbers only.
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Modalities to load, by name; all when absent.
    #[arg(long, value_delimiter = ',')]
    modalities: Option<Vec<String>>,
    /// The behaviour to predict; all when absent.
    #[arg(long)]
    target_behavior: Option<String>,
    #[command(flatten)]
    training: Training,
    #[command(flatten)]
    protocol: Protocol,
}

pub(crate) fn run(args: Args) -> Result<()> {
    shared::threads(args.training.threads)?;
    let mut spec = RunConfig::new(&args.model)?;
    args.training.apply(&mut spec)?;
    match args.mode {
        Some(ModeArg::Honest) => spec.mode = Mode::Honest,
        Some(ModeArg::Parity) => spec.mode = Mode::Parity,
        None => {}
    }
    if args.modalities.is_some() {
        spec.modalities = args.modalities;
    }
    if args.target_behavior.is_some() {
        spec.target_behavior = args.target_behavior;
    }
    if spec.mode == Mode::Parity {
        // The published programs train for a fixed number of epochs.
        spec.train.patience = 0;
    }
    if spec.model == "ease" && args.training.epochs.is_none() {
        let grid = spec.parse::<tercet_models::baseline::closed_form::EaseGridConfig>()?;
        spec.train.epochs = grid.lambda.len() as u64;
    }
    let dev = run::device(&args.training.device)?;
    let data = shared::open_data(&args.data, &spec.load_options())?;
    let options = RunOptions {
        out: args.out.clone(),
        mode: spec.mode,
        resume: args.training.resume,
        stop: interrupt::flag()?,
        progress: true,
        protocol: args.protocol.parse()?,
    };
    let mut learner = run::learner(&spec, &data, &dev)
        .with_context(|| format!("cannot train {} on {}", spec.model, args.data.display()))?;
    let report = train(learner.as_mut(), &data, &spec, &options, &dev)
        .map_err(|e| shared::explain_stop(e, &args.out))?;
    shared::print_report(&report, args.training.json)
}
