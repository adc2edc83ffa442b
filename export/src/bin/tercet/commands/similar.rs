//! `tercet similar`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use tercet::{Session, SessionOptions};

use super::recommend::Answer;
use super::shared;

/// Options of `similar`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle.
    #[arg(long)]
    bundle: PathBuf,
    /// The item to compare with.
    #[arg(long)]
    item: String,
    /// Items to list.
    #[arg(short, long, default_value_t = 10, value_parser = shared::positive)]
    k: usize,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bundle = shared::open_bundle(&args.bundle)?;
    let session = Session::new(&bundle, SessionOptions::default())?;
    let started = Instant::now();
    let top = session
        .similar(&args.item, args.k)
        .with_context(|| format!("cannot compare with `{}`", args.item))?;
    let micros = started.elapsed().as_micros();
    Answer::new(&bundle, top, micros).print(args.json)
}
