//! Converts RecBole atomic files and MMRec folders into a data set folder.
//!
//! Converters write a temporary sibling and rename it, so that a folder is either complete or absent.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::table::{self, Table};
use super::{Dataset, LoadOptions};
use crate::error::{Error, Result};

/// A foreign format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `*.inter` and optionally `*.item`, `*.user`: tab-separated, header fields `name:type` with
    /// types `token`, `token_seq`, `float`, `float_seq`.
    RecBole,
    /// `*.inter` (tab-separated, `userID`, `itemID`, `x_label` 0/1/2 for train/valid/test, optionally
    /// `rating` and `timestamp`) and `image_feat.npy`, `text_feat.npy`, ….
    MmRec,
}

impl Format {
    /// The format of that name: `recbole` or `mmrec`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "recbole" => Some(Self::RecBole),
            "mmrec" => Some(Self::MmRec),
            _ => None,
        }
    }
}

/// Converts the folder `from` into the new data set folder `to`, and opens the result as a check.
///
/// # Errors
///
/// [`Error::Data`], [`Error::Feature`] or [`Error::Io`] if the source cannot be used or `to` exists
/// and is not an empty folder. Then `to` is left as it was.
pub fn import(format: Format, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    write_folder(to, |dir| {
        match format {
            Format::RecBole => recbole(from, dir)?,
            Format::MmRec => mmrec(from, dir)?,
        }
        Dataset::open(dir, &LoadOptions::default()).map(drop)
    })
}

/// Lets `fill` write into a temporary sibling of `dir` and renames it.
pub(super) fn write_folder(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let taken = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(dir, e)),
    };
    if taken {
        return Err(Error::io(
            dir,
            std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "the folder is not empty; remove it or choose another",
            ),
        ));
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let temporary = tempfile::Builder::new()
        .prefix(".tercet-")
        .tempdir_in(parent)
        .map_err(|e| Error::io(parent, e))?;
    // The temporary folder itself is private to its owner; the one inside has ordinary rights.
    let inner = temporary.path().join("data");
    std::fs::create_dir(&inner).map_err(|e| Error::io(&inner, e))?;
    fill(&inner)?;
    if dir.is_dir() {
        std::fs::remove_dir(dir).map_err(|e| Error::io(dir, e))?;
    }
    std::fs::rename(&inner, dir).map_err(|e| Error::io(dir, e))
}

/// The only file of `dir` that ends in `extension`.
fn only(dir: &Path, extension: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > 1 {
        return Err(Error::data(
            dir,
            0,
            format!(
                "{} files end in .{extension}; leave the one to import",
                found.len()
            ),
        ));
    }
    Ok(found.pop())
}

fn required(dir: &Path, extension: &str) -> Result<PathBuf> {
    only(dir, extension)?
        .ok_or_else(|| Error::data(dir, 0, format!("no file ends in .{extension}")))
}

type Writer = csv::Writer<GzEncoder<BufWriter<File>>>;

fn writer(path: &Path) -> Result<Writer> {
    let file = File::create(path).map_err(|e| Error::io(path, e))?;
    Ok(csv::Writer::from_writer(GzEncoder::new(
        BufWriter::new(file),
        Compression::default(),
    )))
}

fn put(out: &mut Writer, path: &Path, fields: &[&str]) -> Result<()> {
    out.write_record(fields)
        .map_err(|e| Error::data(path, 0, e.to_string()))
}

fn finish(out: Writer, path: &Path) -> Result<()> {
    let gz = out
        .into_inner()
        .map_err(|e| Error::io(path, e.into_error()))?;
    let mut file = gz.finish().map_err(|e| Error::io(path, e))?;
    file.flush().map_err(|e| Error::io(path, e))
}

/// A RecBole column: its name without the type, and whether it is a sequence.
fn atomic(header: &str) -> (String, bool) {
    match header.split_once(':') {
        Some((name, kind)) => (name.to_owned(), kind.ends_with("_seq")),
        None => (header.to_owned(), false),
    }
}

fn recbole(from: &Path, to: &Path) -> Result<()> {
    let path = required(from, "inter")?;
    let mut table = Table::tsv(&path)?;
    table.header = table.header.iter().map(|h| atomic(h).0).collect();
    let user = table.require("user_id")?;
    let item = table.require("item_id")?;
    let mut columns = vec![(user, "user_id"), (item, "item_id")];
    for name in ["rating", "value", "timestamp", "position", "behavior"] {
        if let Some(c) = table.column(name) {
            columns.push((c, name));
        }
    }
    // `value` and `rating` are the same thing to a data set.
    if columns.iter().any(|c| c.1 == "value") {
        columns.retain(|c| c.1 != "rating");
    }
    let out_path = to.join("interactions.csv.gz");
    let mut out = writer(&out_path)?;
    let names: Vec<&str> = columns.iter().map(|c| c.1).collect();
    put(&mut out, &out_path, &names)?;
    let mut used: Vec<String> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    while let Some((line, record)) = table.next()? {
        let key = table::key(&path, line, "item_id", record.get(item).unwrap_or(""))?;
        if !seen.contains(key) {
            seen.insert(key.to_owned());
            used.push(key.to_owned());
        }
        let fields: Vec<&str> = columns
            .iter()
            .map(|&(c, _)| record.get(c).unwrap_or(""))
            .collect();
        put(&mut out, &out_path, &fields)?;
    }
    finish(out, &out_path)?;

    if let Some(path) = only(from, "item")? {
        side(&path, &to.join("items.csv.gz"), "item_id", &used)?;
    }
    if let Some(path) = only(from, "user")? {
        side(&path, &to.join("users.csv.gz"), "user_id", &[])?;
    }
    Ok(())
}

/// `.item` or `.user`: the first column whose name contains "title" becomes `title`, sequences become
/// lists, and the keys of `also` that have no row get an empty one.
fn side(path: &Path, out_path: &Path, id: &str, also: &[String]) -> Result<()> {
    let mut table = Table::tsv(path)?;
    let columns: Vec<(String, bool)> = table.header.iter().map(|h| atomic(h)).collect();
    table.header = columns.iter().map(|c| c.0.clone()).collect();
    let id_column = table.require(id)?;
    let title = table.column("title").or_else(|| {
        table
            .header
            .iter()
            .position(|h| id == "item_id" && h.contains("title"))
    });
    let mut out = writer(out_path)?;
    let names: Vec<&str> = (0..columns.len())
        .map(|c| {
            if Some(c) == title {
                "title"
            } else {
                columns[c].0.as_str()
            }
        })
        .collect();
    put(&mut out, out_path, &names)?;
    let mut known: HashSet<String> = HashSet::new();
    while let Some((line, record)) = table.next()? {
        let key = table::key(path, line, id, record.get(id_column).unwrap_or(""))?;
        known.insert(key.to_owned());
        let fields: Vec<String> = (0..columns.len())
            .map(|c| {
                let text = record.get(c).unwrap_or("");
                if columns[c].1 && Some(c) != title {
                    text.split_whitespace().collect::<Vec<_>>().join("|")
                } else {
                    text.to_owned()
                }
            })
            .collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        put(&mut out, out_path, &fields)?;
    }
    for key in also.iter().filter(|key| !known.contains(*key)) {
        let fields: Vec<&str> = (0..columns.len())
            .map(|c| if c == id_column { key.as_str() } else { "" })
            .collect();
        put(&mut out, out_path, &fields)?;
    }
    finish(out, out_path)
}

fn mmrec(from: &Path, to: &Path) -> Result<()> {
    let path = required(from, "inter")?;
    let mut table = Table::tsv(&path)?;
    let user = table.require("userID")?;
    let item = table.require("itemID")?;
    let label = table.require("x_label")?;
    let mut columns = vec![(user, "user_id"), (item, "item_id"), (label, "split")];
    for name in ["rating", "timestamp"] {
        if let Some(c) = table.column(name) {
            columns.push((c, name));
        }
    }
    let out_path = to.join("interactions.csv.gz");
    let mut out = writer(&out_path)?;
    let names: Vec<&str> = columns.iter().map(|c| c.1).collect();
    put(&mut out, &out_path, &names)?;
    while let Some((line, record)) = table.next()? {
        let fields: Vec<&str> = columns
            .iter()
            .map(|&(c, _)| {
                let text = record.get(c).unwrap_or("").trim();
                if c != label {
                    return Ok(text);
                }
                match text {
                    "0" => Ok("train"),
                    "1" => Ok("valid"),
                    "2" => Ok("test"),
                    other => Err(Error::data(
                        &path,
                        line,
                        format!("x_label {other:?} is none of 0, 1, 2"),
                    )),
                }
            })
            .collect::<Result<_>>()?;
        put(&mut out, &out_path, &fields)?;
    }
    finish(out, &out_path)?;

    let features = to.join("features");
    for entry in std::fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let source = entry.map_err(|e| Error::io(from, e))?.path();
        let Some(name) = source.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        if !name.ends_with("_feat.npy") {
            continue;
        }
        std::fs::create_dir_all(&features).map_err(|e| Error::io(&features, e))?;
        std::fs::copy(&source, features.join(name)).map_err(|e| Error::io(&source, e))?;
    }
    Ok(())
}
