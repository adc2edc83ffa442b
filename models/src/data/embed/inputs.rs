//! What the encoder reads of each item.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::{FNV_START, fnv};
use crate::data::features;
use crate::data::table::{self, Table};
use crate::encoder::{Encoder, Output};
use crate::error::{Error, Result};

/// Endings of columns that hold no prose, whatever letters they contain.
const NO_TEXT: [&str; 8] = [
    "_id",
    "image",
    "img",
    "path",
    "url",
    "link",
    "date",
    "timestamp",
];

/// Texts in the order of feature rows; `None` where the item has none.
pub(super) struct Inputs {
    values: Vec<Option<String>>,
    columns: Vec<String>,
}

struct Items {
    path: PathBuf,
    header: Vec<String>,
    id: usize,
    rows: Vec<Vec<String>>,
}

impl Inputs {
    pub(super) fn read(dir: &Path, encoder: &Encoder, columns: Option<&[String]>) -> Result<Self> {
        let mut items = Items::read(dir)?;
        items.follow_rows(dir)?;
        match encoder {
            Encoder::Text(_) => items.texts(columns),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Items without input.
    pub(super) fn missing(&self) -> usize {
        self.values.iter().filter(|v| v.is_none()).count()
    }

    /// Hash of all inputs.
    pub(super) fn hash(&self) -> u64 {
        self.values.iter().fold(FNV_START, |h, v| match v {
            Some(v) => fnv(fnv(h, &[1]), format!("{}:{v}", v.len()).as_bytes()),
            None => fnv(h, &[0]),
        })
    }

    /// Encodes those of `range` that can be: their rows and, if there are any, their features.
    pub(super) fn encode(
        &self,
        range: Range<usize>,
        encoder: &Encoder,
        output: Output,
    ) -> Result<(Vec<usize>, Option<Tensor>)> {
        let given = range.filter_map(|row| Some((row, self.values[row].as_deref()?)));
        let (rows, features) = match encoder {
            Encoder::Text(encoder) => {
                let (rows, texts): (Vec<_>, Vec<_>) = given.unzip();
                if texts.is_empty() {
                    return Ok((rows, None));
                }
                (rows, encoder.encode(&texts, output)?)
            }
        };
        Ok((rows, Some(features)))
    }
}

impl Items {
    fn read(dir: &Path) -> Result<Self> {
        let path = table::find(dir, "items")?.ok_or_else(|| {
            Error::data(
                dir,
                0,
                "the folder has neither items.csv nor items.csv.gz, so there is nothing to embed",
            )
        })?;
        let mut table = Table::csv(&path)?;
        let id = table.require("item_id")?;
        let header = table.header.clone();
        let mut rows = Vec::new();
        while let Some((line, record)) = table.next()? {
            table::key(&path, line, "item_id", record.get(id).unwrap_or(""))?;
            rows.push(record.iter().map(|f| f.trim().to_owned()).collect());
        }
        if rows.is_empty() {
            return Err(Error::data(&path, 0, "the table has no rows"));
        }
        Ok(Self {
            path,
            header,
            id,
            rows,
        })
    }

    /// Puts items into the order of `features/ids.txt`, where it exists.
    fn follow_rows(&mut self, dir: &Path) -> Result<()> {
        let Some(ids) = features::read_ids(dir)? else {
            return Ok(());
        };
        let mut by_key: HashMap<String, Vec<String>> = std::mem::take(&mut self.rows)
            .into_iter()
            .map(|row| (row[self.id].clone(), row))
            .collect();
        self.rows = ids
            .keys()
            .map(|key| {
                by_key.remove(key).ok_or_else(|| {
                    Error::config(format!(
                        "features/ids.txt names {key:?}, which items.csv does not have"
                    ))
                })
            })
            .collect::<Result<_>>()?;
        Ok(())
    }

    fn column(&self, name: &str) -> Result<usize> {
        self.header.iter().position(|h| h == name).ok_or_else(|| {
            Error::data(
                &self.path,
                1,
                format!(
                    "no column {name:?}; the header has {}",
                    self.header.join(", ")
                ),
            )
        })
    }

    /// Whether most fields of a column hold words.
    fn is_text(&self, column: usize) -> bool {
        let name = self.header[column].to_lowercase();
        if column == self.id || NO_TEXT.iter().any(|end| name.ends_with(end)) {
            return false;
        }
        let filled = self
            .rows
            .iter()
            .map(|r| &r[column])
            .filter(|f| !f.is_empty());
        let (mut all, mut words) = (0usize, 0usize);
        for field in filled {
            all += 1;
            words += usize::from(field.chars().any(char::is_alphabetic));
        }
        2 * words > all
    }

    fn texts(&self, columns: Option<&[String]>) -> Result<Inputs> {
        let chosen: Vec<usize> = match columns {
            Some(names) => names
                .iter()
                .map(|n| self.column(n))
                .collect::<Result<_>>()?,
            None => {
                let title = self.header.iter().position(|h| h == "title");
                let others = (0..self.header.len()).filter(|c| Some(*c) != title);
                title
                    .into_iter()
                    .chain(others.filter(|c| self.is_text(*c)))
                    .collect()
            }
        };
        if chosen.is_empty() {
            return Err(Error::data(
                &self.path,
                1,
                "no column holds text; name the columns to read",
            ));
        }
        let text = |row: &Vec<String>| {
            let mut text = String::new();
            for field in chosen.iter().map(|&c| &row[c]).filter(|f| !f.is_empty()) {
                if !text.is_empty() {
                    text.push_str(if text.ends_with(['.', '!', '?', '。']) {
                        " "
                    } else {
                        ". "
                    });
                }
                // A list is read as words.
                text.push_str(&field.replace('|', ", "));
            }
            (!text.is_empty()).then_some(text)
        };
        Ok(Inputs {
            values: self.rows.iter().map(text).collect(),
            columns: chosen.iter().map(|&c| self.header[c].clone()).collect(),
        })
    }
}
