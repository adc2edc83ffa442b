//! `tercet verify`

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::shared;
use crate::output;

/// Options of `verify`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle.
    bundle: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bundle = shared::open_bundle(&args.bundle)?;
    let report = tercet_export::verify(&bundle, None)
        .with_context(|| format!("{} must not be used", args.bundle.display()))?;
    if args.json {
        return output::json(&report);
    }
    println!("{} files are those of the manifest", report.files);
    match report.probe {
        Some((found, expected)) => println!("the probe found {found} of {expected} items"),
        None => println!("the bundle has no probe"),
    }
    Ok(())
}
