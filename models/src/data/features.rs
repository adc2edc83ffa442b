//! Item features: one matrix per modality, a row per item, with a mask of missing rows.
//!
//! Each file of `features/` is one modality, named by its stem without a trailing `_feat`
//! (`image_feat.npy` is `image`); the word before the first `_` is its kind (`text_minilm` is of
//! kind `text`).
//!
//! * `.npy`: a 2-D array, `f16` or `f32`, either byte order, C or Fortran order.
//! * `.safetensors`: one 2-D tensor, `F16`, `BF16` or `F32`, and optionally a tensor `present` of
//!   the same number of rows (`U8`, `BOOL` or `F32`; 0 = missing). A 3-D tensor `[items, tokens,
//!   columns]` holds the tokens of each item, the class token first, and its `present` is
//!   `[items, tokens]`; models without a use for tokens see their mean.
//!
//! A row is *missing* if it is all NaN, if it is all zero (published matrices mark items without a
//! picture that way, and no encoder gives a zero vector), or if `present` says so. Missing rows are
//! stored as zeros. A NaN beside numbers, or an infinity, is an error.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::Array2;
use npyz::WriterBuilder;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::IdMap;
use super::tokens::{TokenFeatures, pool};
use crate::error::{Error, Result};

/// Longest text header of an `.npy` file, in bytes; real ones have about a hundred.
const MAX_NPY_HEADER: usize = 64 * 1024;
/// Longest JSON header of a `.safetensors` file, in bytes.
const MAX_SAFETENSORS_HEADER: u64 = 16 << 20;

/// One modality of all items.
#[derive(Debug, Clone, PartialEq)]
pub struct ModalityFeatures {
    /// The file's stem without `_feat`, for example `text_minilm`.
    pub name: String,
    /// The word before the first `_`, for example `text`.
    pub kind: String,
    /// One row per item; missing rows are zero.
    pub values: Array2<f32>,
    /// Whether the item has this modality.
    pub present: Vec<bool>,
    /// Token by token, where the file has it so; `values` is then the mean of the tokens.
    pub tokens: Option<TokenFeatures>,
}

/// Per column mean and inverse standard deviation, so that `(x - mean) * inv_std` has mean 0 and
/// variance 1 over the present rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardization {
    /// Column means.
    pub mean: Vec<f32>,
    /// One over the column's population standard deviation; 0 for a constant column.
    pub inv_std: Vec<f32>,
}

impl ModalityFeatures {
    /// Checks values and marks missing rows as the [module](self) says.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the row, if a row mixes NaN and numbers or holds an infinity, or if
    /// there are no columns.
    pub fn new(name: impl Into<String>, values: Array2<f32>) -> Result<Self> {
        let name = name.into();
        let present = vec![true; values.nrows()];
        let mut features = Self {
            kind: kind_of(&name),
            name,
            values,
            present,
            tokens: None,
        };
        features.check().map_err(Error::config)?;
        Ok(features)
    }

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.values.ncols()
    }

    /// Number of items without this modality.
    pub fn missing(&self) -> usize {
        self.present.iter().filter(|p| !**p).count()
    }

    /// Column statistics over the present rows, accumulated in f64 (two passes).
    pub fn standardize(&self) -> Standardization {
        statistics(self.dim(), |visit| {
            let mut copy = Vec::with_capacity(self.dim());
            let rows = self.values.outer_iter().zip(&self.present);
            for (row, _) in rows.filter(|(_, p)| **p) {
                copy.clear();
                copy.extend(row.iter());
                visit(&copy);
            }
        })
    }

    fn check(&mut self) -> std::result::Result<(), String> {
        if self.values.ncols() == 0 {
            return Err("the matrix has no columns".to_owned());
        }
        for (r, mut row) in self.values.outer_iter_mut().enumerate() {
            if !self.present[r] {
                row.fill(0.0);
                continue;
            }
            let mut nan = 0;
            let mut zero = 0;
            for (c, x) in row.iter().enumerate() {
                if x.is_nan() {
                    nan += 1;
                } else if x.is_infinite() {
                    return Err(format!("row {r}, column {c} is infinite"));
                } else if *x == 0.0 {
                    zero += 1;
                }
            }
            if nan == row.len() || zero == row.len() {
                self.present[r] = false;
                row.fill(0.0);
            } else if nan > 0 {
                return Err(format!(
                    "row {r} holds {nan} NaN beside numbers; give the whole row as NaN if the item \
                     has no such feature"
                ));
            }
        }
        Ok(())
    }
}

/// Mean and inverse deviation of each column of the rows that `each` visits, in two passes.
pub(super) fn statistics(dim: usize, each: impl Fn(&mut dyn FnMut(&[f32]))) -> Standardization {
    let mut rows = 0usize;
    let mut mean = vec![0f64; dim];
    each(&mut |row| {
        rows += 1;
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    });
    let rows = rows.max(1) as f64;
    for m in &mut mean {
        *m /= rows;
    }
    let mut variance = vec![0f64; dim];
    each(&mut |row| {
        for ((sum, &x), m) in variance.iter_mut().zip(row).zip(&mean) {
            *sum += (f64::from(x) - m).powi(2);
        }
    });
    Standardization {
        inv_std: variance
            .iter()
            .zip(&mean)
            .map(|(v, m)| {
                let std = (v / rows).sqrt();
                // A column that is constant up to f32 rounding carries nothing.
                if std > 1e-7 * (1.0 + m.abs()) {
                    (1.0 / std) as f32
                } else {
                    0.0
                }
            })
            .collect(),
        mean: mean.iter().map(|m| *m as f32).collect(),
    }
}

fn kind_of(name: &str) -> String {
    name.split('_').next().unwrap_or(name).to_owned()
}

/// A feature file whose header was read.
#[derive(Debug, Clone)]
pub(super) struct FeatureFile {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) rows: usize,
    pub(super) dim: usize,
    /// `float16`, `bfloat16` or `float32`.
    pub(super) dtype: &'static str,
}

/// The files of `dir/features`, in the order of `modalities`, else by name.
pub(super) fn list(dir: &Path, modalities: Option<&[String]>) -> Result<Vec<FeatureFile>> {
    let folder = dir.join("features");
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            let known = path
                .extension()
                .is_some_and(|e| e == "npy" || e == "safetensors");
            let Some(stem) = path.file_stem().and_then(|s| s.to_str()) else {
                continue;
            };
            if known && path.is_file() {
                found.push((stem.strip_suffix("_feat").unwrap_or(stem).to_owned(), path));
            }
        }
    }
    found.sort();
    for pair in found.windows(2) {
        if pair[0].0 == pair[1].0 {
            return Err(Error::feature(
                &pair[1].1,
                format!(
                    "{} is the same modality; remove one of the two",
                    pair[0].1.display()
                ),
            ));
        }
    }
    let chosen = match modalities {
        None => found,
        Some(names) => {
            let mut chosen: Vec<(String, PathBuf)> = Vec::new();
            for name in names {
                let Some(file) = found.iter().find(|f| f.0 == *name) else {
                    let known: Vec<&str> = found.iter().map(|f| f.0.as_str()).collect();
                    return Err(Error::config(format!(
                        "no modality {name:?} in {}; it has [{}]",
                        folder.display(),
                        known.join(", ")
                    )));
                };
                if chosen.iter().any(|c| c.0 == *name) {
                    return Err(Error::config(format!("modality {name:?} is named twice")));
                }
                chosen.push(file.clone());
            }
            chosen
        }
    };
    chosen
        .into_iter()
        .map(|(name, path)| {
            let (rows, dim, dtype) = if path.extension().is_some_and(|e| e == "npy") {
                let header = npy_header(&path)?;
                (
                    header.rows,
                    header.dim,
                    if header.size == 2 {
                        "float16"
                    } else {
                        "float32"
                    },
                )
            } else {
                let header = safetensors_header(&path)?;
                (header.rows, header.dim, header.dtype)
            };
            Ok(FeatureFile {
                path,
                name,
                rows,
                dim,
                dtype,
            })
        })
        .collect()
}

/// `features/ids.txt`: the item key of each row.
pub(super) fn read_ids(dir: &Path) -> Result<Option<IdMap>> {
    let path = dir.join("features").join("ids.txt");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::data(
            &path,
            0,
            format!("byte {} is not UTF-8", e.utf8_error().valid_up_to()),
        )
    })?;
    let keys: Vec<&str> = text.lines().map(str::trim).collect();
    if let Some(line) = keys.iter().position(|k| k.is_empty()) {
        return Err(Error::data(
            &path,
            line as u64 + 1,
            "the line is empty; each line is the item_id of one feature row",
        ));
    }
    IdMap::new(&keys)
        .map(Some)
        .map_err(|e| Error::data(&path, 0, e.to_string()))
}

/// The number of rows of all files, which must agree; `None` without files.
pub(super) fn common_rows(files: &[FeatureFile], dir: &Path) -> Result<Option<usize>> {
    let Some(first) = files.first() else {
        return Ok(None);
    };
    for file in files {
        if file.rows != first.rows {
            return Err(Error::feature(
                &file.path,
                format!(
                    "{} rows, but {} has {}; all modalities of {} need a row per item",
                    file.rows,
                    first.path.display(),
                    first.rows,
                    dir.display()
                ),
            ));
        }
    }
    Ok(Some(first.rows))
}

/// Reads all files and puts rows into the order of `items`.
pub(super) fn read(
    files: &[FeatureFile],
    items: &IdMap,
    has_item_table: bool,
    row_ids: Option<&IdMap>,
) -> Result<Vec<ModalityFeatures>> {
    // Rows follow items unless both items.csv and ids.txt exist.
    let order: Option<Vec<u32>> = match row_ids {
        Some(ids) if has_item_table => Some(
            ids.keys()
                .map(|key| {
                    items.get(key).ok_or_else(|| {
                        Error::config(format!(
                            "features/ids.txt names {key:?}, which items.csv does not have"
                        ))
                    })
                })
                .collect::<Result<_>>()?,
        ),
        _ => None,
    };
    let expected = order.as_ref().map_or(items.len(), Vec::len);
    files
        .iter()
        .map(|file| {
            if file.rows != expected {
                return Err(Error::feature(
                    &file.path,
                    format!(
                        "{} rows for {expected} items; a row per line of items.csv (or of \
                         features/ids.txt) is needed",
                        file.rows
                    ),
                ));
            }
            let mut features = read_file(file)?;
            if let Some(order) = &order {
                let mut values = Array2::zeros((items.len(), file.dim));
                let mut present = vec![false; items.len()];
                for (row, &item) in order.iter().enumerate() {
                    values
                        .row_mut(item as usize)
                        .assign(&features.values.row(row));
                    present[item as usize] = features.present[row];
                }
                features.values = values;
                features.present = present;
                features.tokens = features.tokens.map(|t| t.reordered(order, items.len()));
            }
            Ok(features)
        })
        .collect()
}

fn read_file(file: &FeatureFile) -> Result<ModalityFeatures> {
    let (values, present, tokens) = if file.path.extension().is_some_and(|e| e == "npy") {
        (read_npy(&file.path)?, vec![true; file.rows], None)
    } else {
        read_safetensors(&file.path)?
    };
    let mut features = ModalityFeatures {
        kind: kind_of(&file.name),
        name: file.name.clone(),
        values,
        present,
        tokens: None,
    };
    features
        .check()
        .map_err(|reason| Error::feature(&file.path, reason))?;
    Ok(match tokens {
        Some(per_item) => pool(features, per_item),
        None => features,
    })
}

struct NpyHeader {
    /// Bytes before the values.
    start: usize,
    /// Bytes per value.
    size: usize,
    big_endian: bool,
    fortran: bool,
    rows: usize,
    dim: usize,
}

/// Reads and checks an `.npy` header, including that the file is exactly as long as it says. The
/// header is parsed here, without recursion or unchecked products, because the file is not trusted.
fn npy_header(path: &Path) -> Result<NpyHeader> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let bad = |reason: &str| Error::feature(path, reason.to_owned());
    let mut prefix = [0u8; 12];
    let got = read_up_to(&mut file, &mut prefix).map_err(|e| Error::io(path, e))?;
    if got < 12 || prefix[..6] != *b"\x93NUMPY" {
        return Err(bad("not an .npy file (wrong first bytes)"));
    }
    let (start, text_length) = match prefix[6] {
        1 => (10, usize::from(u16::from_le_bytes([prefix[8], prefix[9]]))),
        2 | 3 => (
            12,
            u32::from_le_bytes([prefix[8], prefix[9], prefix[10], prefix[11]]) as usize,
        ),
        version => {
            return Err(Error::feature(
                path,
                format!("unknown .npy version {version}"),
            ));
        }
    };
    if text_length > MAX_NPY_HEADER || (start + text_length) as u64 > length {
        return Err(bad("the header is longer than the file or unreasonable"));
    }
    let mut text = prefix[start..].to_vec();
    text.truncate(text_length);
    let already = text.len();
    text.resize(text_length, 0);
    file.read_exact(&mut text[already..])
        .map_err(|e| Error::io(path, e))?;
    let text = std::str::from_utf8(&text).map_err(|_| bad("the header is not text"))?;
    let descr = dict_value(text, "descr")
        .and_then(|v| v.strip_prefix(['\'', '"']))
        .and_then(|v| v.split(['\'', '"']).next())
        .ok_or_else(|| bad("the header has no simple descr"))?;
    let (big_endian, size) = match descr {
        "<f2" | "|f2" => (false, 2),
        "<f4" | "|f4" => (false, 4),
        ">f2" => (true, 2),
        ">f4" => (true, 4),
        other => {
            return Err(Error::feature(
                path,
                format!("values are {other:?}; float16 or float32 is needed (array.astype)"),
            ));
        }
    };
    let fortran = match dict_value(text, "fortran_order") {
        Some(v) if v.starts_with("False") => false,
        Some(v) if v.starts_with("True") => true,
        _ => return Err(bad("the header has no fortran_order")),
    };
    let shape = dict_value(text, "shape")
        .and_then(|v| v.strip_prefix('('))
        .and_then(|v| v.split(')').next())
        .ok_or_else(|| bad("the header has no shape"))?;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|n| !n.is_empty())
        .map(|n| {
            n.parse()
                .map_err(|_| bad("the shape is not made of integers"))
        })
        .collect::<Result<_>>()?;
    let [rows, dim] = shape[..] else {
        return Err(Error::feature(
            path,
            format!("the array has {} dimensions; 2 are needed", shape.len()),
        ));
    };
    if dim == 0 {
        return Err(bad("the array has no columns"));
    }
    let start = start + text_length;
    let bytes = rows
        .checked_mul(dim)
        .and_then(|n| n.checked_mul(size))
        .and_then(|n| n.checked_add(start));
    if bytes.map(|b| b as u64) != Some(length) {
        return Err(Error::feature(
            path,
            format!("a {rows} x {dim} array does not fill a file of {length} bytes"),
        ));
    }
    Ok(NpyHeader {
        start,
        size,
        big_endian,
        fortran,
        rows,
        dim,
    })
}

/// The text after `'key':` in a flat Python dictionary.
fn dict_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let at = text
        .find(&format!("'{key}'"))
        .or_else(|| text.find(&format!("\"{key}\"")))?;
    let rest = text[at + key.len() + 2..].trim_start();
    Some(rest.strip_prefix(':')?.trim_start())
}

fn read_up_to(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match source.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

fn read_npy(path: &Path) -> Result<Array2<f32>> {
    let header = npy_header(path)?;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut source = BufReader::with_capacity(1 << 16, file);
    std::io::copy(
        &mut source.by_ref().take(header.start as u64),
        &mut std::io::sink(),
    )
    .map_err(|e| Error::io(path, e))?;
    let count = header.rows * header.dim;
    let mut values = Vec::with_capacity(count);
    let mut buffer = vec![0u8; 1 << 16];
    let mut left = count * header.size;
    while left > 0 {
        let take = left.min(buffer.len());
        let chunk = &mut buffer[..take];
        source.read_exact(chunk).map_err(|e| Error::io(path, e))?;
        if header.big_endian {
            for value in chunk.chunks_exact_mut(header.size) {
                value.reverse();
            }
        }
        if header.size == 2 {
            values.extend(
                chunk
                    .chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
            );
        } else {
            values.extend(
                chunk
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        left -= take;
    }
    let matrix = if header.fortran {
        Array2::from_shape_vec((header.dim, header.rows), values)
            .map(|m| m.reversed_axes().as_standard_layout().into_owned())
    } else {
        Array2::from_shape_vec((header.rows, header.dim), values)
    };
    matrix.map_err(|e| Error::feature(path, e.to_string()))
}

fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        Dtype::F32 => Some("float32"),
        _ => None,
    }
}

struct SafetensorsHeader {
    /// Items.
    rows: usize,
    /// Tokens of an item, where the tensor has three dimensions.
    tokens: Option<usize>,
    dim: usize,
    dtype: &'static str,
}

fn safetensors_header(path: &Path) -> Result<SafetensorsHeader> {
    let bad = |reason: String| Error::feature(path, reason);
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut prefix = [0u8; 8];
    let got = read_up_to(&mut file, &mut prefix).map_err(|e| Error::io(path, e))?;
    let size = u64::from_le_bytes(prefix);
    if got < 8 || size > MAX_SAFETENSORS_HEADER || size + 8 > length {
        return Err(bad(
            "not a safetensors file (the header does not fit)".to_owned()
        ));
    }
    // Only the header is read here; all offsets are checked when the whole file is.
    let mut json = vec![0u8; size as usize];
    file.read_exact(&mut json).map_err(|e| Error::io(path, e))?;
    let metadata: Metadata =
        serde_json::from_slice(&json).map_err(|e| bad(format!("not a safetensors file ({e})")))?;
    let bytes = length - 8 - size;
    let mut matrix = None;
    for (name, info) in metadata.tensors() {
        if name == "present" {
            continue;
        }
        if matrix.is_some() {
            return Err(bad(
                "several tensors; one 2-D or 3-D tensor and optionally `present` are expected"
                    .to_owned(),
            ));
        }
        let (rows, tokens, dim) = match info.shape[..] {
            [rows, dim] => (rows, None, dim),
            [rows, tokens, dim] if tokens > 0 => (rows, Some(tokens), dim),
            _ => {
                return Err(bad(format!(
                    "tensor {name:?} has shape {:?}; [items, columns] or [items, tokens, columns] is needed",
                    info.shape
                )));
            }
        };
        if dim == 0 {
            return Err(bad(format!("tensor {name:?} has no columns")));
        }
        let dtype = dtype_name(info.dtype).ok_or_else(|| {
            bad(format!(
                "tensor {name:?} is {:?}; F16, BF16 or F32 is needed",
                info.dtype
            ))
        })?;
        // A shape that its own bytes don't back must not size anything.
        let (start, end) = info.data_offsets;
        let claimed = rows
            .checked_mul(tokens.unwrap_or(1))
            .and_then(|n| n.checked_mul(dim))
            .and_then(|n| n.checked_mul(if dtype == "float32" { 4 } else { 2 }));
        if end as u64 > bytes || end.checked_sub(start) != claimed {
            return Err(bad(format!(
                "tensor {name:?} of shape {:?} does not fit the file; it is damaged",
                info.shape
            )));
        }
        matrix = Some(SafetensorsHeader {
            rows,
            tokens,
            dim,
            dtype,
        });
    }
    matrix.ok_or_else(|| bad("no feature tensor".to_owned()))
}

/// Values and presence, a row for each item or each token, and the tokens of an item.
fn read_safetensors(path: &Path) -> Result<(Array2<f32>, Vec<bool>, Option<usize>)> {
    let header = safetensors_header(path)?;
    let rows = header.rows * header.tokens.unwrap_or(1);
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let bad = |reason: String| Error::feature(path, reason);
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| bad(format!("not a safetensors file ({e})")))?;
    let mut values = Vec::new();
    let mut present = vec![true; rows];
    for (name, view) in tensors.iter() {
        if name == "present" {
            if view.shape().iter().product::<usize>() != rows {
                return Err(bad(format!("`present` needs {rows} entries")));
            }
            present = match view.dtype() {
                Dtype::U8 | Dtype::BOOL => view.data().iter().map(|&b| b != 0).collect(),
                Dtype::F32 => floats(view.dtype(), view.data())
                    .into_iter()
                    .map(|x| x != 0.0)
                    .collect(),
                other => return Err(bad(format!("`present` is {other:?}; U8, BOOL or F32"))),
            };
        } else {
            values = floats(view.dtype(), view.data());
        }
    }
    let matrix = Array2::from_shape_vec((rows, header.dim), values)
        .map_err(|e| Error::feature(path, e.to_string()))?;
    Ok((matrix, present, header.tokens))
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => bytes
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        _ => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
    }
}

/// Writes an `f32` matrix of known size as `.npy`, row by row, so that it never needs to be held.
pub(super) fn write_npy<'a, W: Write>(
    path: &Path,
    file: W,
    rows: usize,
    dim: usize,
    mut row: impl FnMut(usize, &mut Vec<f32>) + 'a,
) -> Result<()> {
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[rows as u64, dim as u64])
        .writer(file)
        .begin_nd()
        .map_err(|e| Error::io(path, e))?;
    let mut buffer = Vec::with_capacity(dim);
    for r in 0..rows {
        buffer.clear();
        row(r, &mut buffer);
        writer
            .extend(buffer.iter().copied())
            .map_err(|e| Error::io(path, e))?;
    }
    writer.finish().map_err(|e| Error::io(path, e))
}
