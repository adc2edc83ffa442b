//! `tercet inspect`

use std::path::PathBuf;

use anyhow::Result;

use super::shared;
use crate::output;

/// Options of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bundle.
    bundle: PathBuf,
    /// Print as JSON: the manifest, and bytes per file and tensor.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bundle = shared::open_bundle(&args.bundle)?;
    let report = tercet_export::inspect(&bundle)?;
    if args.json {
        return output::json(&report);
    }
    let m = &report.manifest;
    println!(
        "{} version {}, written {}",
        m.bundle_id, m.bundle_version, m.created
    );
    println!(
        "{} items × {} ({}), window {}, opset {}, {} bytes",
        m.items, m.dim, m.table.scheme, m.window, m.engine.opset, report.bytes
    );
    let modalities: Vec<String> = m
        .modalities
        .iter()
        .map(|m| format!("{} {}", m.name, m.dim))
        .collect();
    println!("modalities: {}", modalities.join(", "));
    println!("behaviours: {}", m.behaviors.join(", "));
    for (name, file) in &report.contents {
        println!("{:>12}  {name}", file.bytes);
        for t in &file.tensors {
            println!("{:>12}    {}", t.bytes, t.name);
        }
    }
    if !m.card.is_null() {
        println!("card: {}", serde_json::to_string_pretty(&m.card)?);
    }
    Ok(())
}
