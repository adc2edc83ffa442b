//! Deltas: the item table of a new bundle, told by what it does not share with one that is here.
//!
//! The file made is that of the new bundle, byte for byte: the signed manifest has its SHA-256. So
//! a delta needs no trust of its own, and all that a damaged or hostile one can bring about is an
//! error. Which tensors it holds is told in [`FORMAT.md`](crate::bundle).

mod limited;
mod write;

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::bundle::tensors::{MAX_HEADER_BYTES, PAD_PREFIX, TensorFile};
use crate::bundle::{Content, LoadMode};
use crate::error::{Error, Result};
use crate::table::NO_VALUE;

use limited::LimitedFile;
pub use write::{DeltaReport, write_delta};

/// File name of a delta, beside the new bundle's manifest.
pub const DELTA_FILE: &str = "delta.safetensors";

/// `rows.start` of rows that the base lacks.
const FRESH: u32 = u32::MAX;

/// A delta, read and not yet applied.
pub(super) struct Delta {
    file: TensorFile,
}

impl Delta {
    /// Reads the delta in file `path` of at most `limit` bytes.
    pub(super) fn open(path: &Path, limit: u64) -> Result<Self> {
        let bytes = std::fs::metadata(path)
            .map_err(|e| Error::io("read the length of", path, e))?
            .len();
        if bytes > limit {
            return Err(Error::BundleTooLarge { bytes, limit });
        }
        // Not mapped: it lies where its downloader may still write.
        let content = Arc::new(Content::open(path, bytes, LoadMode::Read)?);
        Ok(Delta {
            file: TensorFile::parse(path, content)?,
        })
    }

    /// SHA-256 of the manifest of the bundle that this delta starts from.
    pub(super) fn base(&self) -> Result<[u8; 32]> {
        let base = self.bytes("base", Dtype::U8)?;
        base.try_into()
            .map_err(|_| wrong("base", "a digest has 32 bytes"))
    }

    /// Writes the table of `items` rows that `want` describes to `path`, which must not exist, from
    /// a table: its path, bytes and rows. The file has the length `want`; its digest is the caller's
    /// to check, who also syncs it.
    pub(super) fn apply(
        &self,
        (base, base_bytes, base_items): (&Path, u64, usize),
        path: &Path,
        items: usize,
        want: u64,
    ) -> Result<File> {
        let content = Arc::new(Content::open(base, base_bytes, LoadMode::Map)?);
        let base = TensorFile::parse(base, content)?;
        let header = self.bytes("header", Dtype::U8)?;
        let metadata = parse_header(header)?;
        let total = header.len().saturating_add(metadata.data_len());
        if total as u64 != want {
            return Err(Error::FileSize {
                path: path.to_path_buf(),
                expected: want,
                got: total as u64,
            });
        }
        let table = Rebuilt {
            delta: self,
            base: &base,
            rows: Rows::read(self, base_items, items)?,
            metadata: &metadata,
        };
        // Few rows of a delta can stand for many.
        let mut out = LimitedFile::create(path, want)?;
        out.write(header)?;
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else {
                continue;
            };
            table.write(&mut out, &name, info)?;
        }
        out.finish()
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        self.find(name, dtype)?
            .ok_or_else(|| wrong(name, "the delta lacks it"))
    }

    fn find(&self, name: &str, dtype: Dtype) -> Result<Option<&[u8]>> {
        match self.file.peek(name) {
            None => Ok(None),
            Some((got, _, bytes)) if got == dtype => Ok(Some(bytes)),
            Some((got, ..)) => Err(wrong(name, format!("it is {got:?}, expected {dtype:?}"))),
        }
    }

    fn numbers(&self, name: &str) -> Result<Option<&[u32]>> {
        // Tensors are aligned, and what is not yields an empty cast, which no length check passes.
        let bytes = self.find(name, Dtype::U32)?;
        Ok(bytes.map(|bytes| bytemuck::try_cast_slice(bytes).unwrap_or_default()))
    }
}

/// The JSON header of the table to be made: 8 bytes of length, then that many.
fn parse_header(header: &[u8]) -> Result<Metadata> {
    let corrupt = |reason: String| wrong("header", reason);
    let (length, json) = header
        .split_first_chunk::<8>()
        .ok_or_else(|| corrupt("it is truncated".into()))?;
    if json.len() as u64 > MAX_HEADER_BYTES || u64::from_le_bytes(*length) != json.len() as u64 {
        return Err(corrupt("its length differs from its length field".into()));
    }
    serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))
}

/// Where the rows of the new table come from.
struct Rows<'a> {
    start: &'a [u32],
    count: &'a [u32],
    /// N of the base.
    base: usize,
    /// N of the new table.
    items: usize,
}

/// Rows that lie together.
enum Piece {
    /// Of the base.
    Base(Range<usize>),
    /// Entries of the list of rows given.
    Given(Range<usize>),
}

impl<'a> Rows<'a> {
    fn read(delta: &'a Delta, base: usize, items: usize) -> Result<Self> {
        let start = delta.numbers("rows.start")?.unwrap_or_default();
        let count = delta.numbers("rows.count")?.unwrap_or_default();
        if start.len() != count.len() {
            return Err(wrong("rows.start", "it is not as long as rows.count"));
        }
        let mut total = 0u64;
        for (&start, &count) in start.iter().zip(count) {
            total += u64::from(count);
            if start != FRESH && u64::from(start) + u64::from(count) > base as u64 {
                return Err(wrong("rows.start", "the base has no such rows"));
            }
        }
        if total != items as u64 {
            return Err(wrong(
                "rows.start",
                "the rows are not those of the manifest",
            ));
        }
        Ok(Rows {
            start,
            count,
            base,
            items,
        })
    }

    /// The runs: first new row, base row or [`FRESH`], and length.
    fn runs(&self) -> impl Iterator<Item = (usize, u32, usize)> + '_ {
        let mut row = 0;
        self.start.iter().zip(self.count).map(move |(&start, &n)| {
            let at = row;
            row += n as usize;
            (at, start, n as usize)
        })
    }

    /// Walks through the new rows in order. `given` lists the rows, ascending, whose content comes
    /// with the delta.
    fn walk(
        &self,
        name: &str,
        given: &[u32],
        mut visit: impl FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let mut next = 0;
        for (first, start, n) in self.runs() {
            let end = first + n;
            let mut row = first;
            while row < end {
                let stop = given.get(next).map_or(end, |&g| (g as usize).min(end));
                if stop < row {
                    return Err(wrong(name, "rows are not ascending"));
                }
                if stop > row {
                    if start == FRESH {
                        return Err(wrong(name, "a new row is not given"));
                    }
                    let from = start as usize + (row - first);
                    visit(Piece::Base(from..from + (stop - row)))?;
                    row = stop;
                }
                let from = next;
                while row < end && given.get(next).is_some_and(|&g| g as usize == row) {
                    (next, row) = (next + 1, row + 1);
                }
                if next > from {
                    visit(Piece::Given(from..next))?;
                }
            }
        }
        if next < given.len() {
            return Err(wrong(name, "there is no such row"));
        }
        Ok(())
    }
}

/// The new table, tensor by tensor.
struct Rebuilt<'a> {
    delta: &'a Delta,
    base: &'a TensorFile,
    rows: Rows<'a>,
    metadata: &'a Metadata,
}

impl Rebuilt<'_> {
    fn write(&self, out: &mut LimitedFile, name: &str, info: &TensorInfo) -> Result<()> {
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        if name.starts_with(PAD_PREFIX) {
            return out.zeros(bytes);
        }
        let before = out.bytes();
        if let Some(whole) = self.delta.find(&format!("whole.{name}"), Dtype::U8)? {
            out.write(whole)?;
        } else if name == "ids.order" && self.delta.file.contains("order.ranks") {
            self.order(out)?;
        } else if let Some(data) = self.data_of(name) {
            self.offsets(out, name, &data, info)?;
        } else if let Some(given) = self.delta.numbers(&format!("rows.{name}"))? {
            let values = self.delta.bytes(&format!("values.{name}"), Dtype::U8)?;
            match self.delta.numbers(&format!("ends.{name}"))? {
                Some(ends) => self.ragged(out, name, info, given, ends, values)?,
                None => self.fixed(out, name, info, given, values)?,
            }
        } else {
            out.write(self.of_base(name, info)?)?;
        }
        if out.bytes() - before != bytes as u64 {
            return Err(wrong(name, "the delta does not fill it"));
        }
        Ok(())
    }

    /// Bytes of a tensor of the base, which has the same type.
    fn of_base(&self, name: &str, info: &TensorInfo) -> Result<&[u8]> {
        match self.base.peek(name) {
            Some((dtype, _, bytes)) if dtype == info.dtype => Ok(bytes),
            Some(_) => Err(wrong(name, "the base has it in another type")),
            None => Err(wrong(name, "the base lacks it")),
        }
    }

    /// The same, with the codes of the new dictionary if that is another one.
    fn rows_of_base(&self, name: &str, info: &TensorInfo) -> Result<Cow<'_, [u8]>> {
        let bytes = self.of_base(name, info)?;
        match self.delta.numbers(&format!("codes.{name}"))? {
            None => Ok(Cow::Borrowed(bytes)),
            Some(codes) if info.dtype == Dtype::U32 => Ok(Cow::Owned(recode(bytes, codes))),
            Some(_) => Err(wrong(name, "it has no codes")),
        }
    }

    /// Rows of equal length.
    fn fixed(
        &self,
        out: &mut LimitedFile,
        name: &str,
        info: &TensorInfo,
        given: &[u32],
        values: &[u8],
    ) -> Result<()> {
        let base = self.rows_of_base(name, info)?;
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        let width = bytes / self.rows.items;
        if width == 0
            || Some(base.len()) != width.checked_mul(self.rows.base)
            || Some(values.len()) != width.checked_mul(given.len())
        {
            return Err(wrong(name, "rows of base and delta differ"));
        }
        self.rows.walk(name, given, |piece| {
            let (from, rows) = match piece {
                Piece::Base(rows) => (&*base, rows),
                Piece::Given(rows) => (values, rows),
            };
            // Within both: the products were checked above.
            out.write(&from[rows.start * width..rows.end * width])
        })
    }

    /// The data of rows whose lengths differ.
    fn ragged(
        &self,
        out: &mut LimitedFile,
        name: &str,
        info: &TensorInfo,
        given: &[u32],
        ends: &[u32],
        values: &[u8],
    ) -> Result<()> {
        let base = self.rows_of_base(name, info)?;
        let offsets = self.base_offsets(name)?;
        // Elements to bytes; offsets count elements.
        let width = info.dtype.bitsize() / 8;
        check_ends(name, given, ends)?;
        self.rows.walk(name, given, |piece| {
            let part = match piece {
                Piece::Base(rows) => offsets
                    .span(rows, width, base.len())
                    .map(|range| &base[range]),
                Piece::Given(rows) => BaseOffsets::Narrow(ends)
                    .span(rows, width, values.len())
                    .map(|range| &values[range]),
            };
            out.write(part.ok_or_else(|| wrong(name, "offsets beyond the data"))?)
        })
    }

    /// The offsets of such rows.
    fn offsets(
        &self,
        out: &mut LimitedFile,
        name: &str,
        data: &str,
        info: &TensorInfo,
    ) -> Result<()> {
        let given = self.delta.numbers(&format!("rows.{data}"))?;
        let given = given.unwrap_or_default();
        let ends = self.delta.numbers(&format!("ends.{data}"))?;
        let ends = ends.unwrap_or_default();
        check_ends(name, given, ends)?;
        let base = self.base_offsets(data)?;
        let wide = match info.dtype {
            Dtype::U64 => true,
            Dtype::U32 => false,
            _ => return Err(wrong(name, "offsets are U32 or U64")),
        };
        let mut offset = 0u64;
        let mut put = |offset: u64| match wide {
            true => out.write(&offset.to_le_bytes()),
            false => out.write(&(offset as u32).to_le_bytes()),
        };
        put(0)?;
        self.rows.walk(name, given, |piece| {
            let (rows, from) = match piece {
                Piece::Base(rows) => (rows, None),
                Piece::Given(rows) => (rows, Some(ends)),
            };
            let at = |i: usize| match from {
                Some(ends) => ends.get(i).map(|&e| u64::from(e)),
                None => base.at(i),
            };
            let decrease = || wrong(name, "offsets decrease or are missing");
            let first = at(rows.start).ok_or_else(decrease)?;
            for row in rows.clone() {
                let end = at(row + 1).filter(|&e| e >= first).ok_or_else(decrease)?;
                put(offset.wrapping_add(end - first))?;
            }
            let last = at(rows.end).ok_or_else(decrease)?;
            offset = offset.wrapping_add(last - first);
            Ok(())
        })
    }

    /// The rows in the order of their keys: that of the base without the rows that are gone, and
    /// the new rows at the ranks given.
    fn order(&self, out: &mut LimitedFile) -> Result<()> {
        let name = "order.ranks";
        let ranks = self.delta.numbers(name)?.unwrap_or_default();
        let fresh = self.delta.numbers("order.rows")?.unwrap_or_default();
        if ranks.len() != fresh.len() {
            return Err(wrong(name, "it is not as long as order.rows"));
        }
        let base: &[u32] = match self.base.peek("ids.order") {
            Some((Dtype::U32, _, bytes)) => bytemuck::try_cast_slice(bytes).unwrap_or_default(),
            _ => return Err(wrong("ids.order", "the base lacks it")),
        };
        let mut now = vec![FRESH; self.rows.base];
        for (first, start, n) in self.rows.runs() {
            if start != FRESH {
                let start = start as usize;
                for (row, slot) in (first as u32..).zip(&mut now[start..start + n]) {
                    *slot = row;
                }
            }
        }
        let mut fresh = ranks.iter().zip(fresh).peekable();
        let mut rank = 0u32;
        for &row in base {
            let Some(&row) = now.get(row as usize) else {
                return Err(wrong("ids.order", "no such row"));
            };
            if row == FRESH {
                continue;
            }
            while let Some((_, row)) = fresh.next_if(|&(&r, _)| r == rank) {
                out.write(&row.to_le_bytes())?;
                rank += 1;
            }
            out.write(&row.to_le_bytes())?;
            rank += 1;
        }
        for (_, row) in fresh {
            out.write(&row.to_le_bytes())?;
        }
        Ok(())
    }

    /// The tensor whose row lengths tensor `name` tells, if its rows come with the delta.
    fn data_of(&self, name: &str) -> Option<String> {
        let data = data_tensor(name)?;
        let given = self.delta.file.contains(&format!("ends.{data}"));
        (given && self.metadata.info(&data).is_some()).then_some(data)
    }

    fn base_offsets(&self, data: &str) -> Result<BaseOffsets<'_>> {
        let name = offsets_tensor(data).unwrap_or_default();
        BaseOffsets::of(self.base, &name).ok_or_else(|| wrong(name, "the base lacks it"))
    }
}

/// U32 codes of an attribute, translated; what has no translation is no value any more.
fn recode(bytes: &[u8], codes: &[u32]) -> Vec<u8> {
    let old = bytes.as_chunks::<4>().0.iter();
    old.flat_map(|&code| {
        let code = u32::from_le_bytes(code) as usize;
        codes.get(code).unwrap_or(&NO_VALUE).to_le_bytes()
    })
    .collect()
}

/// Tensor of the offsets that cut tensor `data` into rows, if it has the name of one that is cut.
fn offsets_tensor(data: &str) -> Option<String> {
    match data {
        "ids.bytes" => Some("ids.offsets".to_string()),
        _ => {
            let name = data.strip_prefix("attr.")?;
            (!name.contains('.')).then(|| format!("{data}.offsets"))
        }
    }
}

/// The other way round.
fn data_tensor(offsets: &str) -> Option<String> {
    let prefix = offsets.strip_suffix(".offsets")?;
    let data = if prefix == "ids" { "ids.bytes" } else { prefix };
    (offsets_tensor(data).as_deref() == Some(offsets)).then(|| data.to_string())
}

enum BaseOffsets<'a> {
    Narrow(&'a [u32]),
    Wide(&'a [u64]),
}

impl<'a> BaseOffsets<'a> {
    fn of(file: &'a TensorFile, name: &str) -> Option<Self> {
        match file.peek(name)? {
            (Dtype::U32, _, bytes) => bytemuck::try_cast_slice(bytes).ok().map(Self::Narrow),
            (Dtype::U64, _, bytes) => bytemuck::try_cast_slice(bytes).ok().map(Self::Wide),
            _ => None,
        }
    }

    fn records(&self) -> usize {
        match self {
            BaseOffsets::Narrow(o) => o.len(),
            BaseOffsets::Wide(o) => o.len(),
        }
        .saturating_sub(1)
    }

    /// Bytes of a row of elements of `width` bytes, if they are within `len`.
    fn range(&self, row: usize, width: usize, len: usize) -> Option<Range<usize>> {
        self.span(row..row + 1, width, len)
    }

    /// Those of several rows.
    fn span(&self, rows: Range<usize>, width: usize, len: usize) -> Option<Range<usize>> {
        let bytes = |row| usize::try_from(self.at(row)?).ok()?.checked_mul(width);
        let (start, end) = (bytes(rows.start)?, bytes(rows.end)?);
        (start <= end && end <= len).then_some(start..end)
    }

    #[inline]
    fn at(&self, row: usize) -> Option<u64> {
        match self {
            BaseOffsets::Narrow(o) => o.get(row).map(|&x| u64::from(x)),
            BaseOffsets::Wide(o) => o.get(row).copied(),
        }
    }
}

fn wrong(tensor: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Delta {
        tensor: tensor.into(),
        reason: reason.into(),
    }
}

/// One end more than there are rows, and none before the one that precedes it.
fn check_ends(name: &str, given: &[u32], ends: &[u32]) -> Result<()> {
    if ends.len() != given.len() + 1 || !ends.is_sorted() {
        return Err(wrong(name, "ends of its rows are out of order"));
    }
    Ok(())
}
