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
    /// Public key that must have signed it: a .pub file or its line of base64.
    #[arg(long)]
    key: Option<String>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(key) = &args.key {
        tercet::store::check_signature(&args.bundle, &shared::public_key(key)?)
            .with_context(|| format!("{} must not be used", args.bundle.display()))?;
    }
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
