//! Item vectors that were computed in parts, on one machine or on many.
//!
//! A folder of shards holds `part-00000-of-00016.safetensors`, …, and nothing else but hidden files
//! (names that begin with `.` or `_`: what an interrupted writer leaves). A shard is complete when it has its name: writers
//! write under another name and rename.
//!
//! | tensor | |
//! |---|---|
//! | `vectors` F32 `[n, D]` | |
//! | `ids.bytes` U8, `ids.offsets` U64 `[n + 1]` | item keys in UTF-8, key i from `offsets[i]` to `offsets[i + 1]` |
//!
//! | metadata | |
//! |---|---|
//! | `tercet.shard` | `1`, the version of this layout |
//! | `part`, `parts` | as in the name |
//! | `first` | row of the first item in the whole table; shards follow one another without gap |
//! | `items` | items of all shards |
//! | `model` | what made the vectors, say a hash of the fusion tower: the same in all shards |

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use tercet::VectorFile;

use crate::error::{Error, Result, ShardFault};

/// Longest accepted header of a shard: three tensors and six short strings.
const MAX_HEADER: u64 = 64 << 10;

/// Bytes of a shard that are in memory at a time.
const CHUNK: usize = 1 << 20;

/// A complete set of shards, whose headers have been checked.
#[derive(Debug)]
pub struct Shards {
    dim: usize,
    items: usize,
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    first: u64,
    rows: usize,
    vectors: (u64, u64),
    offsets: (u64, u64),
    bytes: (u64, u64),
}

/// All items of a set of shards, in the order of their rows.
#[derive(Debug)]
pub struct Merged {
    /// Keys.
    pub keys: Vec<String>,
    /// Vectors `[N, D]`, in a mapped file.
    pub vectors: VectorFile,
}

impl Shards {
    /// Reads the headers of all shards in `folder`, which hold vectors of `dim` values.
    ///
    /// # Errors
    /// [`Error::Shard`], naming the file; [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>, dim: usize) -> Result<Self> {
        let folder = folder.as_ref();
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| Error::io("list", folder, e))?.file_name();
            let name = name.to_string_lossy().into_owned();
            if !name.starts_with(['.', '_']) {
                names.push(name);
            }
        }
        names.sort();
        let mut found = HashMap::new();
        let mut parts = None;
        for name in names {
            let path = folder.join(&name);
            let (part, of) = parse_name(&name).ok_or_else(|| {
                fault(
                    &path,
                    ShardFault::Foreign("its name is not that of a shard".into()),
                )
            })?;
            let parts = *parts.get_or_insert(of);
            if of != parts {
                let why = format!("it is one of {of} parts, others are of {parts}");
                return Err(fault(&path, ShardFault::Foreign(why)));
            }
            found.insert(part, path);
        }
        let parts = parts.ok_or_else(|| {
            fault(
                folder,
                ShardFault::Malformed("the folder holds no shard".into()),
            )
        })?;
        let mut shards: Vec<Shard> = Vec::with_capacity(found.len());
        let mut expected: Option<Facts> = None;
        let mut next = 0u64;
        for part in 0..parts {
            let path = found
                .remove(&part)
                .ok_or_else(|| fault(&folder.join(name(part, parts)), ShardFault::Missing))?;
            let (shard, facts) = Shard::open(&path, (part, parts), dim)?;
            let expected = expected.get_or_insert_with(|| facts.clone());
            if facts != *expected {
                let why = format!("it says {facts}, the first shard {expected}");
                return Err(fault(&path, ShardFault::Foreign(why)));
            }
            if shard.first != next {
                let wrong = match shards.last() {
                    Some(other) if shard.first < next => ShardFault::Overlap {
                        got: shard.first,
                        other: other.path.clone(),
                    },
                    _ => ShardFault::Gap {
                        expected: next,
                        got: shard.first,
                    },
                };
                return Err(fault(&path, wrong));
            }
            next += shard.rows as u64;
            shards.push(shard);
        }
        let items = expected.map_or(0, |facts| facts.items);
        if next != items {
            let why = format!("all shards together hold {next} items, expected {items}");
            return Err(fault(folder, ShardFault::Malformed(why)));
        }
        Ok(Shards {
            dim,
            items: items as usize,
            shards,
        })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Joins the shards: vectors go through a buffer of a megabyte into the file `scratch`, which
    /// is mapped, so they need no memory that the system could not take back; the keys are held.
    ///
    /// # Errors
    /// [`Error::Shard`] for damaged content, [`Error::Io`].
    pub fn merge(&self, scratch: &Path) -> Result<Merged> {
        let file = File::create_new(scratch).map_err(|e| Error::io("create", scratch, e))?;
        let mut out = BufWriter::with_capacity(CHUNK, file);
        let mut keys = Vec::with_capacity(self.items);
        for shard in &self.shards {
            shard.copy_vectors(self.dim, |bytes| {
                out.write_all(bytes)
                    .map_err(|e| Error::io("write", scratch, e))
            })?;
            shard.read_keys(&mut keys)?;
        }
        out.flush().map_err(|e| Error::io("write", scratch, e))?;
        drop(out);
        let vectors = VectorFile::open(scratch, self.items * self.dim)?;
        Ok(Merged { keys, vectors })
    }

    /// Names the shards of a key that the table's writer has found twice.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match error {
            Error::Runtime(tercet::Error::DuplicateKey { key, first, second }) => {
                let path = |row: usize| {
                    let after = self.shards.partition_point(|s| s.first <= row as u64);
                    self.shards[after.saturating_sub(1)].path.clone()
                };
                let other = path(first);
                fault(&path(second), ShardFault::DuplicateKey { key, other })
            }
            error => error,
        }
    }
}

/// What all shards of a job have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    items: u64,
    model: String,
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} items by model {:?}", self.items, self.model)
    }
}

fn fault(path: &Path, fault: ShardFault) -> Error {
    Error::Shard {
        path: path.to_path_buf(),
        fault,
    }
}

fn name(part: u32, parts: u32) -> String {
    format!("part-{part:05}-of-{parts:05}.safetensors")
}

fn parse_name(text: &str) -> Option<(u32, u32)> {
    let rest = text.strip_prefix("part-")?.strip_suffix(".safetensors")?;
    let (part, parts) = rest.split_once("-of-")?;
    let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
    // Each part has one name only.
    (part < parts && name(part, parts) == text).then_some((part, parts))
}

impl Shard {
    fn open(path: &Path, (part, parts): (u32, u32), dim: usize) -> Result<(Self, Facts)> {
        let bad = |why: String| fault(path, ShardFault::Malformed(why));
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let io = |e| Error::io("read", path, e);
        let length = file.metadata().map_err(io)?.len();
        let mut header = vec![0u8; 8];
        if length < 8 {
            return Err(bad(format!("it has {length} bytes")));
        }
        file.read_exact(&mut header).map_err(io)?;
        let size = header
            .iter()
            .rev()
            .fold(0u64, |n, &b| n << 8 | u64::from(b));
        if size > MAX_HEADER || size + 8 > length {
            return Err(bad(format!("its header has {size} bytes of {length}")));
        }
        header.resize(8 + size as usize, 0);
        file.read_exact(&mut header[8..]).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|e| bad(e.to_string()))?;

        let none = HashMap::new();
        let strings = metadata.metadata().as_ref().unwrap_or(&none);
        let text = |name: &str| -> Result<&String> {
            let missing = || bad(format!("its metadata lacks `{name}`"));
            strings.get(name).ok_or_else(missing)
        };
        let number = |name: &str| -> Result<u64> {
            let value = text(name)?;
            let wrong = |_| bad(format!("`{name}` is {value:?}, not a number"));
            value.parse().map_err(wrong)
        };
        if text("tercet.shard")? != "1" {
            return Err(bad("its layout is of another version".into()));
        }
        if (number("part")?, number("parts")?) != (u64::from(part), u64::from(parts)) {
            let why = format!(
                "it says that it is part {} of {}",
                number("part")?,
                number("parts")?
            );
            return Err(fault(path, ShardFault::Foreign(why)));
        }
        let tensors = metadata.tensors();
        if tensors.len() != 3 {
            return Err(bad(format!("it has {} tensors, expected 3", tensors.len())));
        }
        let tensor = |name: &str, dtype: Dtype| -> Result<(&[usize], (u64, u64))> {
            let info = tensors
                .get(name)
                .ok_or_else(|| bad(format!("it lacks the tensor `{name}`")))?;
            if info.dtype != dtype {
                return Err(bad(format!("`{name}` is {:?}, not {dtype:?}", info.dtype)));
            }
            let (start, end) = info.data_offsets;
            let at = 8 + size;
            Ok((&info.shape, (at + start as u64, at + end as u64)))
        };
        let (shape, vectors) = tensor("vectors", Dtype::F32)?;
        let &[rows, got] = shape else {
            return Err(bad(format!("`vectors` has the shape {shape:?}")));
        };
        if got != dim {
            return Err(fault(path, ShardFault::Dim { expected: dim, got }));
        }
        let (shape, offsets) = tensor("ids.offsets", Dtype::U64)?;
        if shape != [rows + 1] {
            return Err(bad(format!(
                "`ids.offsets` has the shape {shape:?}, for {rows} rows"
            )));
        }
        let (_, bytes) = tensor("ids.bytes", Dtype::U8)?;
        if vectors.1.max(offsets.1).max(bytes.1) != length {
            return Err(bad(format!(
                "it has {length} bytes, its header tells others"
            )));
        }
        let shard = Shard {
            path: path.to_path_buf(),
            first: number("first")?,
            rows,
            vectors,
            offsets,
            bytes,
        };
        let facts = Facts {
            items: number("items")?,
            model: text("model")?.clone(),
        };
        Ok((shard, facts))
    }

    /// A reader of one tensor's bytes.
    fn tensor(&self, (start, end): (u64, u64)) -> Result<impl Read> {
        let mut file = File::open(&self.path).map_err(|e| self.io(e))?;
        file.seek(SeekFrom::Start(start)).map_err(|e| self.io(e))?;
        Ok(file.take(end - start))
    }

    fn io(&self, e: std::io::Error) -> Error {
        Error::io("read", &self.path, e)
    }

    /// Checks the values and hands them on in pieces.
    fn copy_vectors(&self, dim: usize, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut from = self.tensor(self.vectors)?;
        let row = dim * 4;
        let mut buffer = vec![0u8; (CHUNK / row).max(1) * row];
        let mut left = self.rows * row;
        while left > 0 {
            let piece = buffer.len().min(left);
            let piece = &mut buffer[..piece];
            from.read_exact(piece).map_err(|e| self.io(e))?;
            let (values, _) = piece.as_chunks::<4>();
            if let Some(at) = values
                .iter()
                .position(|&b| !f32::from_le_bytes(b).is_finite())
            {
                let row = (self.rows * row - left) / row + at / dim;
                let why = format!("the vector of its row {row} is not finite");
                return Err(fault(&self.path, ShardFault::Malformed(why)));
            }
            to(piece)?;
            left -= piece.len();
        }
        Ok(())
    }

    fn read_keys(&self, keys: &mut Vec<String>) -> Result<()> {
        let bad = |why: &str| fault(&self.path, ShardFault::Malformed(why.into()));
        let read = |range| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            self.tensor(range)?
                .read_to_end(&mut bytes)
                .map_err(|e| self.io(e))?;
            Ok(bytes)
        };
        let (offsets, bytes) = (read(self.offsets)?, read(self.bytes)?);
        let (offsets, _) = offsets.as_chunks::<8>();
        let offset = |i: usize| usize::try_from(u64::from_le_bytes(offsets[i])).ok();
        if offsets.len() != self.rows + 1 || offset(0) != Some(0) {
            return Err(bad("its key offsets do not begin with 0"));
        }
        let mut start = 0;
        for i in 1..offsets.len() {
            let end = offset(i).filter(|&end| end >= start && end <= bytes.len());
            let end = end.ok_or_else(|| bad("its key offsets do not ascend"))?;
            let key = std::str::from_utf8(&bytes[start..end]);
            keys.push(key.map_err(|_| bad("a key is not UTF-8"))?.to_string());
            start = end;
        }
        if start != bytes.len() {
            return Err(bad("its key offsets end before the keys"));
        }
        Ok(())
    }
}
