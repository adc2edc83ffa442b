//! `tercet data …`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use tercet_models::Error;
use tercet_models::data::embed::{self, EmbedConfig};
use tercet_models::data::import::{self, Format};
use tercet_models::data::inspect;
use tercet_models::data::perspectives::{self, PerspectivesConfig};
use tercet_models::data::synthetic::{self, SyntheticConfig};
use tercet_models::encoder::{Encoder, ImageEncoder, Output, Pooling, TextEncoder};

use super::shared;
use crate::{interrupt, output};

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
        /// Only write, in the memory that the items take. Counting opens the data set, which takes
        /// some 90 bytes a row.
        #[arg(long, conflicts_with = "json")]
        no_counts: bool,
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
    /// Features of all items by a pretrained encoder; an interrupted run goes on where it stopped.
    ///
    /// Pictures are JPEG, PNG or WebP files inside the data folder: those that the column image of
    /// items.csv names, or, in a table without that column, images/<item_id>.jpg, .jpeg, .png or
    /// .webp. An item without a picture, or with one that cannot be read, becomes an absent row.
    Embed {
        /// Data set folder.
        #[arg(long)]
        data: PathBuf,
        /// What to read of an item.
        #[arg(long, value_enum)]
        modality: ModalityArg,
        /// Folder of the encoder: config.json, model.safetensors and, for text, tokenizer.json.
        #[arg(long)]
        model: PathBuf,
        /// Store this many tokens an item, longer inputs cut.
        #[arg(long, value_name = "N", value_parser = shared::positive, conflicts_with = "pooled")]
        tokens: Option<usize>,
        /// Store one vector an item (the default).
        #[arg(long)]
        pooled: bool,
        /// How a language model's states become one vector; the mean when absent.
        #[arg(long, value_enum, conflicts_with = "tokens")]
        pool: Option<PoolArg>,
        /// Cut texts to this many tokens, special ones included; the encoder's own limit when absent.
        #[arg(long, value_name = "N", value_parser = shared::positive, conflicts_with = "tokens")]
        max_tokens: Option<usize>,
        /// Columns of items.csv to join, in this order; title and all columns of words when absent.
        /// For pictures, the one with their paths.
        #[arg(long, value_delimiter = ',')]
        columns: Option<Vec<String>>,
        /// What a language model reads instead of joined columns, for example "Product: {title}. Brand:
        /// {brand}. Details: {description:60}. In one phrase, this product is for"; {name:60} is a
        /// column's first 60 words, and a sentence whose columns are empty is left out.
        #[arg(long, value_name = "TEXT", conflicts_with = "columns")]
        prompt: Option<String>,
        /// Name of the modality: features/NAME.safetensors.
        #[arg(long, value_name = "NAME")]
        out: String,
        /// Items of a forward pass.
        #[arg(long, default_value = "32", value_parser = shared::positive)]
        batch: usize,
        /// cpu, or cuda:N in a build with that feature.
        #[arg(long, default_value = "cpu")]
        device: String,
        /// Threads; all cores when absent.
        #[arg(long)]
        threads: Option<usize>,
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What an encoder reads.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ModalityArg {
    /// Title and other columns of words.
    Text,
    /// Pictures.
    Image,
}

/// From states of tokens to one vector.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PoolArg {
    /// Their mean.
    Mean,
    /// The state of the last token, which in a language model has seen all others.
    Last,
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
            no_counts,
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
            if no_counts {
                return Ok(());
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
        Data::Embed {
            data,
            modality,
            model,
            tokens,
            // The default, which may be said.
            pooled: _,
            pool,
            max_tokens,
            columns,
            prompt,
            out,
            batch,
            device,
            threads,
            json,
        } => {
            shared::threads(threads)?;
            let dev = tercet_models::run::device(&device)?;
            let refused = || format!("cannot use the encoder {}", model.display());
            let encoder = match modality {
                ModalityArg::Text => {
                    let mut encoder = TextEncoder::open(&model, &dev).with_context(refused)?;
                    if let Some(n) = tokens.or(max_tokens) {
                        encoder.set_max_tokens(n)?;
                    }
                    encoder.set_pooling(match pool {
                        None | Some(PoolArg::Mean) => Pooling::Mean,
                        Some(PoolArg::Last) => Pooling::Last,
                    });
                    Encoder::Text(Box::new(encoder))
                }
                ModalityArg::Image => {
                    if pool.is_some() || max_tokens.is_some() || prompt.is_some() {
                        return shared::wrong_use(
                            "--pool, --max-tokens and --prompt are for texts",
                        );
                    }
                    Encoder::Image(Box::new(
                        ImageEncoder::open(&model, &dev).with_context(refused)?,
                    ))
                }
            };
            let cfg = EmbedConfig {
                data,
                model,
                name: out,
                output: tokens.map_or(Output::Pooled, Output::Tokens),
                columns,
                prompt,
                batch,
            };
            embed_items(&cfg, &encoder, json)
        }
    }
}

fn embed_items(cfg: &EmbedConfig, encoder: &Encoder, json: bool) -> Result<()> {
    let stop = interrupt::flag()?;
    let report = embed::embed(cfg, encoder, &stop, true).map_err(|e| match e {
        Error::Interrupted => anyhow::anyhow!(
            "interrupted; what is finished is kept: repeat the same command to go on"
        ),
        other => other.into(),
    })?;
    if json {
        return output::json(&report);
    }
    let tokens = report.tokens.map(|n| format!(" x {n} tokens"));
    let columns = match report.columns.as_slice() {
        [] => String::new(),
        names => format!(", of columns {}", names.join(", ")),
    };
    println!(
        "{}: {} items{} x {}{columns}; {} embedded, {} absent, {} unreadable; {:.1} s",
        report.path.display(),
        report.items,
        tokens.unwrap_or_default(),
        report.dim,
        report.embedded,
        report.absent,
        report.unreadable,
        report.seconds
    );
    if report.cut > 0 {
        println!(
            "  {} texts are longer than the encoder reads and lost their end",
            report.cut
        );
    }
    for item in &report.first_unreadable {
        println!("  {} {}: {}", item.item, item.file, item.reason);
    }
    if report.unreadable > report.first_unreadable.len() {
        println!("  …");
    }
    Ok(())
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
