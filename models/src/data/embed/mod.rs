//! Features of a data set's items by a pretrained encoder: `features/<name>.safetensors`.
//!
//! # Input
//!
//! Rows follow `features/ids.txt` where it exists, else the lines of `items.csv`. An item's text is
//! its title, then the other columns that hold words, with a full stop between. Its picture is the
//! file that the column `image` names by a path from the data folder; in a table without that
//! column, `images/<item_id>.jpg`, `.jpeg`, `.png` or `.webp`. A path that leaves the folder, or an
//! address, is refused.
//!
//! Items without input become absent rows, and so do items whose picture cannot be read, which are
//! counted and the first of them named.
//!
//! # Interruption
//!
//! Rows are appended to `features/<name>.safetensors.partial`, whose header holds a hash of the
//! encoder and of every input. A later run with the same header goes on after the last whole batch
//! and writes the same bytes; one with another header starts anew.

mod inputs;
mod partial;
mod prompt;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::encoder::{Encoder, Output};
use crate::error::{Error, Result};
use inputs::Inputs;
use partial::{Partial, Rows};

/// What to embed and where to.
#[derive(Debug, Clone)]
pub struct EmbedConfig {
    /// Data set folder.
    pub data: PathBuf,
    /// Folder of the encoder; its files' hash is part of the partial file.
    pub model: PathBuf,
    /// Name of the modality, for example `text_minilm`.
    pub name: String,
    /// One vector an item, or so many tokens.
    pub output: Output,
    /// The columns to join, in this order; `None` chooses. Pictures have one.
    pub columns: Option<Vec<String>>,
    /// Instead of joined columns, a text with `{column}` or, for its first 60 words, `{column:60}`
    /// where an item's fields go. A sentence whose columns are all empty is left out.
    pub prompt: Option<String>,
    /// Items of a forward pass.
    pub batch: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbedReport {
    /// The modality.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Columns of `items.csv` that were read.
    pub columns: Vec<String>,
    /// Rows.
    pub items: usize,
    /// Tokens of an item, where it is so stored.
    pub tokens: Option<usize>,
    /// Columns of a row.
    pub dim: usize,
    /// Items with features.
    pub embedded: usize,
    /// Items without input: their rows are absent.
    pub absent: usize,
    /// Items whose picture cannot be read: their rows are absent too.
    pub unreadable: usize,
    /// The first of them.
    pub first_unreadable: Vec<UnreadableItem>,
    /// Texts of this run that were longer than the encoder reads and lost their end.
    pub cut: usize,
    /// Items taken over from an interrupted run.
    pub resumed: usize,
    /// Wall time of this run.
    pub seconds: f64,
}

/// An item whose picture cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadableItem {
    /// Its key.
    pub item: String,
    /// The file, from the data folder.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// Unreadable items that a report names.
const NAMED: usize = 5;

/// Embeds all items.
///
/// # Errors
///
/// [`Error::Interrupted`] if `stop` was set (what is finished is kept), [`Error::Config`] for a name
/// or column that cannot be, [`Error::Feature`] if the modality exists already, [`Error::Numeric`] if
/// the encoder gives a value that is not finite, and errors of reading and writing.
pub fn embed(
    cfg: &EmbedConfig,
    encoder: &Encoder,
    stop: &AtomicBool,
    progress: bool,
) -> Result<EmbedReport> {
    let start = Instant::now();
    check_name(&cfg.name)?;
    if cfg.batch == 0 || cfg.output == Output::Tokens(0) {
        return Err(Error::config("batch and tokens must be at least 1"));
    }
    let folder = cfg.data.join("features");
    let path = folder.join(format!("{}.safetensors", cfg.name));
    for extension in ["safetensors", "npy"] {
        for stem in [cfg.name.clone(), format!("{}_feat", cfg.name)] {
            let taken = folder.join(format!("{stem}.{extension}"));
            if taken.exists() {
                return Err(Error::feature(
                    taken,
                    "the modality exists already; remove the file or choose another name",
                ));
            }
        }
    }
    let inputs = Inputs::read(cfg, encoder)?;
    let rows = Rows {
        items: inputs.len(),
        tokens: match cfg.output {
            Output::Pooled => None,
            Output::Tokens(n) => Some(n),
        },
        dim: encoder.dim(),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let source = format!(
        "{:016x}-{:016x}-{:?}-{:?}-{}-{}",
        hash_folder(&cfg.model)?,
        inputs.hash(encoder),
        encoder.max_tokens(),
        encoder.pooling(),
        cfg.batch,
        env!("CARGO_PKG_VERSION"),
    );
    let mut file = Partial::open(&path, rows, &source, cfg.batch)?;
    let resumed = file.done();
    let bar = bar(inputs.len() as u64, progress);
    bar.set_position(resumed as u64);
    bar.reset_eta();
    while file.done() < inputs.len() {
        if stop.load(Ordering::Relaxed) {
            file.flush()?;
            bar.abandon();
            return Err(Error::Interrupted);
        }
        let from = file.done();
        let to = (from + cfg.batch).min(inputs.len());
        let (which, states) = inputs.encode(from..to, encoder, cfg.output)?;
        let mut values = vec![0f32; (to - from) * rows.width()];
        if let Some(states) = states {
            let states = host(&states)?;
            for (&item, row) in which.iter().zip(states.chunks_exact(rows.width())) {
                if row.iter().any(|x| !x.is_finite()) {
                    return Err(Error::Numeric {
                        reason: format!(
                            "the encoder gives a value that is not finite for row {item}; are these its weights?"
                        ),
                    });
                }
                values[(item - from) * rows.width()..][..rows.width()].copy_from_slice(row);
            }
        }
        file.append(&values)?;
        bar.set_position(file.done() as u64);
    }
    let present = file.finish()?;
    bar.finish_and_clear();
    let (unreadable, first_unreadable) = match encoder {
        Encoder::Text(_) => (0, Vec::new()),
        Encoder::Image(encoder) => inputs.unreadable(&present, encoder, NAMED),
    };
    let embedded = present.iter().filter(|p| **p).count();
    Ok(EmbedReport {
        name: cfg.name.clone(),
        path,
        columns: inputs.columns().to_vec(),
        items: rows.items,
        tokens: rows.tokens,
        dim: rows.dim,
        embedded,
        absent: rows.items - embedded - unreadable,
        unreadable,
        first_unreadable,
        cut: match encoder {
            Encoder::Text(encoder) => encoder.texts_cut(),
            Encoder::Image(_) => 0,
        },
        resumed,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn bar(items: u64, show: bool) -> ProgressBar {
    if !show {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(items);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} items, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}

fn host(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?)
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 100 || !name.chars().all(plain) || name.ends_with("_feat") {
        return Err(Error::config(format!(
            "{name:?} cannot name a modality; letters, digits, _ and - can, without _feat at the end"
        )));
    }
    Ok(())
}

/// FNV-1a, continued.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Hash of names and contents of the files of a folder.
fn hash_folder(folder: &Path) -> Result<u64> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = FNV_START;
    for path in files {
        if let Some(name) = path.file_name() {
            hash = fnv(hash, name.as_encoded_bytes());
        }
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        let mut source = std::io::BufReader::with_capacity(1 << 20, file);
        loop {
            let chunk = std::io::BufRead::fill_buf(&mut source).map_err(|e| Error::io(&path, e))?;
            if chunk.is_empty() {
                break;
            }
            hash = fnv(hash, chunk);
            let read = chunk.len();
            std::io::BufRead::consume(&mut source, read);
        }
    }
    Ok(hash)
}

#[cfg(test)]
mod tests;
