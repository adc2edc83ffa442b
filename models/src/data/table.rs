//! Streaming reader of CSV and tab-separated tables, plain or gzipped, whose errors name the line.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use csv::{ErrorKind, ReaderBuilder, StringRecord};
use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

/// Longest user, item or behaviour key, in bytes.
const MAX_KEY: usize = 4096;

pub(super) struct Table {
    pub(super) path: PathBuf,
    pub(super) header: Vec<String>,
    reader: csv::Reader<Box<dyn Read>>,
    record: StringRecord,
}

/// `dir/stem.csv` or `dir/stem.csv.gz`, if there is one.
pub(super) fn find(dir: &Path, stem: &str) -> Result<Option<PathBuf>> {
    let plain = dir.join(format!("{stem}.csv"));
    let packed = dir.join(format!("{stem}.csv.gz"));
    match (plain.is_file(), packed.is_file()) {
        (true, true) => Err(Error::data(
            packed,
            0,
            format!("{stem}.csv lies beside it; remove one of the two"),
        )),
        (true, false) => Ok(Some(plain)),
        (false, true) => Ok(Some(packed)),
        (false, false) => Ok(None),
    }
}

impl Table {
    /// A comma-separated table with RFC 4180 quoting.
    pub(super) fn csv(path: &Path) -> Result<Self> {
        Self::open(path, b',', true)
    }

    /// A tab-separated table without quoting.
    pub(super) fn tsv(path: &Path) -> Result<Self> {
        Self::open(path, b'\t', false)
    }

    fn open(path: &Path, delimiter: u8, quoting: bool) -> Result<Self> {
        let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let source: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        let mut reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(quoting)
            .has_headers(true)
            .from_reader(source);
        let header: Vec<String> = reader
            .headers()
            .map_err(|e| convert(path, 1, e))?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        if header.iter().all(String::is_empty) {
            return Err(Error::data(
                path,
                1,
                "the table is empty; its first line must name the columns",
            ));
        }
        for (at, name) in header.iter().enumerate() {
            if header[..at].contains(name) {
                return Err(Error::data(
                    path,
                    1,
                    format!("column {name:?} occurs twice; rename or remove one"),
                ));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            header,
            reader,
            record: StringRecord::new(),
        })
    }

    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|h| h == name)
    }

    pub(super) fn require(&self, name: &str) -> Result<usize> {
        self.column(name).ok_or_else(|| {
            Error::data(
                &self.path,
                1,
                format!(
                    "column {name:?} is missing; the header has {}",
                    self.header.join(", ")
                ),
            )
        })
    }

    /// The next record and its one-based line.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &StringRecord)>> {
        let line = self.reader.position().line();
        match self.reader.read_record(&mut self.record) {
            Ok(false) => Ok(None),
            Ok(true) => {
                let line = self.record.position().map_or(line, csv::Position::line);
                Ok(Some((line, &self.record)))
            }
            Err(error) => Err(convert(&self.path, line, error)),
        }
    }
}

fn convert(path: &Path, line: u64, error: csv::Error) -> Error {
    let line = error.position().map_or(line, csv::Position::line);
    match error.into_kind() {
        ErrorKind::Io(source) => match source.kind() {
            std::io::ErrorKind::InvalidInput
            | std::io::ErrorKind::InvalidData
            | std::io::ErrorKind::UnexpectedEof => Error::data(
                path,
                line,
                format!("the file is damaged or not gzip ({source}); fetch it again"),
            ),
            _ => Error::io(path, source),
        },
        ErrorKind::Utf8 { err, .. } => Error::data(
            path,
            line,
            format!(
                "field {} is not UTF-8; convert the file to UTF-8",
                err.field() + 1
            ),
        ),
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => Error::data(
            path,
            line,
            format!("{len} fields where the header has {expected_len}; quote fields with commas"),
        ),
        kind => Error::data(path, line, format!("malformed row ({kind:?})")),
    }
}

/// Checks a user, item or behaviour key.
pub(super) fn key<'a>(path: &Path, line: u64, column: &str, text: &'a str) -> Result<&'a str> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::data(path, line, format!("{column} is empty")));
    }
    if text.len() > MAX_KEY {
        return Err(Error::data(
            path,
            line,
            format!("{column} is longer than {MAX_KEY} bytes"),
        ));
    }
    Ok(text)
}

/// Parses an integer time; a fraction is cut off.
pub(super) fn time(path: &Path, line: u64, column: &str, text: &str) -> Result<i64> {
    let text = text.trim();
    if let Ok(value) = text.parse::<i64>() {
        return Ok(value);
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value.abs() < 9.0e18 => Ok(value as i64),
        _ => Err(Error::data(
            path,
            line,
            format!("{column} {text:?} is not a number"),
        )),
    }
}

/// Parses a finite number.
pub(super) fn number(path: &Path, line: u64, column: &str, text: &str) -> Result<f32> {
    let text = text.trim();
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(Error::data(
            path,
            line,
            format!("{column} {text:?} is not finite; remove the row or give a number"),
        )),
        Err(_) => Err(Error::data(
            path,
            line,
            format!("{column} {text:?} is not a number"),
        )),
    }
}
