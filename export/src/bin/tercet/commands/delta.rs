//! `tercet delta`

use std::path::PathBuf;

use anyhow::{Context, Result};
use tercet::store::write_delta;

use super::shared;
use crate::output;

/// Options of `delta`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle that devices have.
    old: PathBuf,
    /// Bundle that they are to have, signed.
    new: PathBuf,
    /// Folder to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let (old, new) = (
        shared::open_bundle(&args.old)?,
        shared::open_bundle(&args.new)?,
    );
    let report = write_delta(&old, &new, &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    if args.json {
        return output::json(&report);
    }
    println!(
        "{}: {} items inserted, {} changed, {} deleted, {} left; {} bytes of {}",
        args.out.display(),
        report.inserted,
        report.changed,
        report.deleted,
        report.same,
        report.bytes,
        report.bundle_bytes
    );
    Ok(())
}
