//! What the encoder reads of each item.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use candle_core::Tensor;
use rayon::prelude::*;

use super::prompt::Prompt;
use super::{EmbedConfig, FNV_START, UnreadableItem, fnv};
use crate::data::features;
use crate::data::table::{self, Table};
use crate::encoder::{Encoder, ImageEncoder, Output, Pixels, picture};
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

/// Column of `items.csv` that holds the path of a picture.
const PICTURE: &str = "image";

/// Folder of pictures named by item, and the endings that are looked for.
const PICTURES: &str = "images";
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Texts, or paths of pictures from the data folder, in the order of feature rows; `None` where the
/// item has none.
pub(super) struct Inputs {
    dir: PathBuf,
    keys: Vec<String>,
    values: Vec<Option<String>>,
    columns: Vec<String>,
}

struct Items {
    dir: PathBuf,
    path: PathBuf,
    header: Vec<String>,
    id: usize,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    fields: Vec<String>,
}

impl Inputs {
    pub(super) fn read(cfg: &EmbedConfig, encoder: &Encoder) -> Result<Self> {
        let mut items = Items::read(&cfg.data)?;
        items.follow_rows(&cfg.data)?;
        let columns = cfg.columns.as_deref();
        match (encoder, &cfg.prompt) {
            (Encoder::Text(_), Some(prompt)) => items.prompts(prompt),
            (Encoder::Text(_), None) => items.texts(columns),
            (Encoder::Image(_), _) => items.pictures(columns),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Hash of all inputs; of pictures, of their bytes.
    pub(super) fn hash(&self, encoder: &Encoder) -> u64 {
        let hash = |value: &Option<String>| match (value, encoder) {
            (None, _) => fnv(FNV_START, &[0]),
            (Some(text), Encoder::Text(_)) => fnv(fnv(FNV_START, &[1]), text.as_bytes()),
            (Some(path), Encoder::Image(_)) => match picture::bytes(&self.dir.join(path)) {
                Ok(bytes) => fnv(fnv(FNV_START, &[2]), &bytes),
                Err(e) => fnv(fnv(FNV_START, &[3]), e.to_string().as_bytes()),
            },
        };
        let each: Vec<u64> = self.values.par_iter().map(hash).collect();
        each.into_iter()
            .fold(FNV_START, |h, one| fnv(h, &one.to_le_bytes()))
    }

    /// Encodes those of `range` that can be: their rows and, if there are any, their features.
    pub(super) fn encode(
        &self,
        range: Range<usize>,
        encoder: &Encoder,
        output: Output,
    ) -> Result<(Vec<usize>, Option<Tensor>)> {
        let given = range.filter_map(|row| Some((row, self.values[row].as_deref()?)));
        match encoder {
            Encoder::Text(encoder) => {
                let (rows, texts): (Vec<_>, Vec<_>) = given.unzip();
                let some = !texts.is_empty();
                let features = some.then(|| encoder.encode(&texts, output)).transpose()?;
                Ok((rows, features))
            }
            Encoder::Image(encoder) => {
                let given: Vec<_> = given.collect();
                let read = |&(row, path): &(usize, &str)| {
                    Some((row, encoder.prepare(&self.dir.join(path)).ok()?))
                };
                let read: Vec<Option<(usize, Pixels)>> = given.par_iter().map(read).collect();
                let (rows, pictures): (Vec<_>, Vec<_>) = read.into_iter().flatten().unzip();
                let some = !pictures.is_empty();
                let features = some
                    .then(|| encoder.encode(&pictures, output))
                    .transpose()?;
                Ok((rows, features))
            }
        }
    }

    /// Rows with an input that gave nothing, and why the first `most` of them did not.
    ///
    /// They are read once more for the reasons, which an interrupted run did not leave behind.
    pub(super) fn unreadable(
        &self,
        present: &[bool],
        encoder: &ImageEncoder,
        most: usize,
    ) -> (usize, Vec<UnreadableItem>) {
        let rows: Vec<usize> = (0..self.len())
            .filter(|&row| !present[row] && self.values[row].is_some())
            .collect();
        let told = rows.iter().take(most).filter_map(|&row| {
            let file = self.values[row].clone()?;
            let reason = encoder.prepare(&self.dir.join(&file)).err()?.to_string();
            Some(UnreadableItem {
                item: self.keys[row].clone(),
                file,
                reason,
            })
        });
        (rows.len(), told.collect())
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
            rows.push(Row {
                line,
                fields: record.iter().map(|f| f.trim().to_owned()).collect(),
            });
        }
        if rows.is_empty() {
            return Err(Error::data(&path, 0, "the table has no rows"));
        }
        Ok(Self {
            dir: dir.to_path_buf(),
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
        let mut by_key: HashMap<String, Row> = std::mem::take(&mut self.rows)
            .into_iter()
            .map(|row| (row.fields[self.id].clone(), row))
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
            .map(|r| &r.fields[column])
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
        let text = |row: &Row| {
            let mut text = String::new();
            for field in chosen
                .iter()
                .map(|&c| &row.fields[c])
                .filter(|f| !f.is_empty())
            {
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
        let values = self.rows.iter().map(text).collect();
        let columns = chosen.iter().map(|&c| self.header[c].clone()).collect();
        Ok(self.inputs(values, columns))
    }

    fn prompts(&self, template: &str) -> Result<Inputs> {
        let prompt = Prompt::parse(template, &self.header)
            .map_err(|reason| Error::config(format!("the prompt cannot be used: {reason}")))?;
        let values = self.rows.iter().map(|row| prompt.fill(&row.fields));
        let columns = prompt.columns();
        let columns = columns.iter().map(|&c| self.header[c].clone()).collect();
        Ok(self.inputs(values.collect(), columns))
    }

    /// Paths of a column, else files in the folder of pictures that have an item's name.
    fn pictures(&self, columns: Option<&[String]>) -> Result<Inputs> {
        let column = match columns {
            Some([name]) => Some(self.column(name)?),
            Some(_) => return Err(Error::config("pictures come from one column")),
            None => self.header.iter().position(|h| h == PICTURE),
        };
        let values: Vec<Option<String>> = match column {
            Some(column) => self
                .rows
                .iter()
                .map(|row| self.named_picture(row, column))
                .collect::<Result<_>>()?,
            None => {
                let key = |row: &Row| self.picture_of(&row.fields[self.id]);
                self.rows.iter().map(key).collect()
            }
        };
        if values.iter().all(Option::is_none) {
            return Err(Error::data(
                &self.path,
                0,
                format!(
                    "no item has a picture: there is no column {PICTURE:?} with paths from this folder, nor a file {PICTURES}/<item_id>.{}",
                    ENDINGS.join(" or .")
                ),
            ));
        }
        let columns = column.map(|c| self.header[c].clone());
        Ok(self.inputs(values, columns.into_iter().collect()))
    }

    fn named_picture(&self, row: &Row, column: usize) -> Result<Option<String>> {
        let path = &row.fields[column];
        if path.is_empty() {
            return Ok(None);
        }
        let refused = if path.contains("://") {
            "is an address, but nothing is fetched; store the picture and name its path"
        } else if !stays_inside(path) {
            "leaves the data folder; pictures must lie inside it"
        } else {
            return Ok(Some(path.clone()));
        };
        let name = &self.header[column];
        Err(Error::data(
            &self.path,
            row.line,
            format!("{name} {path:?} {refused}"),
        ))
    }

    /// An id that cannot be a file's name has no picture.
    fn picture_of(&self, key: &str) -> Option<String> {
        let plain = Path::new(key).components().count() == 1 && stays_inside(key);
        ENDINGS
            .iter()
            .filter(|_| plain)
            .map(|ending| format!("{PICTURES}/{key}.{ending}"))
            .find(|path| self.dir.join(path).is_file())
    }

    fn inputs(&self, values: Vec<Option<String>>, columns: Vec<String>) -> Inputs {
        Inputs {
            dir: self.dir.clone(),
            keys: self
                .rows
                .iter()
                .map(|r| r.fields[self.id].clone())
                .collect(),
            values,
            columns,
        }
    }
}

/// Whether a path goes down only, on every system: links in the folder are its owner's own.
fn stays_inside(path: &str) -> bool {
    let down = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    !path.contains(['\\', '\0']) && Path::new(path).components().all(down)
}
