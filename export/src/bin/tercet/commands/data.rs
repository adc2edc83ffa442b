//! `tercet data …`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use tercet_models::data::import::{self, Format};
use tercet_models::data::inspect;
use tercet_models::data::perspectives::{self, PerspectivesConfig};
use tercet_models::data::synthetic::{self, SyntheticConfig};

use crate::output;

/// Verbs of `data`.
#[derive(Subcommand)]
pub(crate) enum Data {
    /// Write a synthetic data set with planted structure.
    Synth {
        /// What to write.
        #[arg(long, value_enum, default_value = "shop")]
        kind: KindArg,
        /// Folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Number of users.
        #[arg(long)]
        users: Option<usize>,
        /// Number of items, up to a million and more.
        #[arg(long)]
        items: Option<usize>,
        /// Seed of everything in it.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Print the counts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Counts of a data set folder.
    Inspect {
        /// Data set folder.
        #[arg(long)]
        data: PathBuf,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Convert a RecBole or MMRec folder.
    Import {
        /// Format of the source.
        #[arg(long, value_enum)]
        format: FormatArg,
        /// Source folder.
        #[arg(long)]
        from: PathBuf,
        /// Folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Print the counts as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Synthetic data sets.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KindArg {
    /// Style only in the images, kind only in the titles, circle only in co-behaviour.
    Shop,
    /// Groups in both modalities, cliques only in co-purchases, new items bought for their content.
    Perspectives,
}

/// Source formats.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FormatArg {
    /// Atomic files: `.inter`, `.item`, `.user`.
    Recbole,
    /// `.inter` with `x_label`, and `.npy` features.
    Mmrec,
}

pub(crate) fn run(verb: Data) -> Result<()> {
    match verb {
        Data::Synth {
            kind,
            out,
            users,
            items,
            seed,
            json,
        } => {
            match kind {
                KindArg::Shop => {
                    let default = SyntheticConfig::default();
                    let cfg = SyntheticConfig {
                        users: users.unwrap_or(default.users),
                        items: items.unwrap_or(default.items),
                        seed,
                        ..default
                    };
                    synthetic::write(&cfg, &out)?;
                }
                KindArg::Perspectives => {
                    let default = PerspectivesConfig::default();
                    let cfg = PerspectivesConfig {
                        users: users.unwrap_or(default.users),
                        items: items.unwrap_or(default.items),
                        seed,
                    };
                    perspectives::write(&cfg, &out)?;
                }
            }
            counts(&out, json)
        }
        Data::Inspect { data, json } => counts(&data, json),
        Data::Import {
            format,
            from,
            out,
            json,
        } => {
            let format = match format {
                FormatArg::Recbole => Format::RecBole,
                FormatArg::Mmrec => Format::MmRec,
            };
            import::import(format, &from, &out)
                .with_context(|| format!("cannot import {}", from.display()))?;
            counts(&out, json)
        }
    }
}

fn counts(dir: &std::path::Path, json: bool) -> Result<()> {
    let report = inspect::inspect(dir)?;
    if json {
        return output::json(&report);
    }
    println!(
        "{}: users {}, items {} (catalogue {}), rows {}, distinct pairs {}, sparsity {:.3} %{}",
        report.name,
        report.users,
        report.items,
        report.catalogue_items,
        report.rows,
        report.pairs,
        report.sparsity_percent,
        if report.ordered { ", ordered" } else { "" }
    );
    for s in &report.splits {
        let behavior = s.behavior.as_deref().unwrap_or("");
        println!(
            "  {:<6} {behavior:<10} rows {:>9}  users {:>7}  items {:>7}",
            s.split.name(),
            s.rows,
            s.users,
            s.items
        );
    }
    for f in &report.features {
        println!(
            "  features {} ({}): {} x {} {}, {} missing",
            f.name, f.kind, f.rows, f.dim, f.dtype, f.missing
        );
    }
    Ok(())
}
