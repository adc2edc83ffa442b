//! Making a delta of two bundles.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::super::SIGNATURE_FILE;
use super::{BaseOffsets, DELTA_FILE, FRESH, offsets_tensor, recode};
use crate::bundle::tensors::{PAD_PREFIX, TensorFile};
use crate::bundle::{
    Bundle, Content, ITEMS_FILE, LoadMode, MANIFEST_FILE, TensorSpec, TensorWriter, parent,
    sync_folder,
};
use crate::error::{Error, Result};
use crate::table::NO_VALUE;

/// What a delta holds, in items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct DeltaReport {
    /// Items of both bundles in which nothing differs.
    pub same: usize,
    /// Items of both in which something does: vector, bias, popularity, an attribute.
    pub changed: usize,
    /// Items of the new bundle only.
    pub inserted: usize,
    /// Items of the old bundle only.
    pub deleted: usize,
    /// Length of all files of the delta.
    pub bytes: u64,
    /// Length of all files of the new bundle.
    pub bundle_bytes: u64,
}

/// Writes the folder `dest`, which must not exist: what leads from the bundle `old` to the bundle
/// `new`, for a [`BundleStore`](crate::BundleStore) that has `old`. The signature of `new` is taken
/// over, so `new` is signed first.
///
/// Rows are compared by their bytes: a delta is small if both bundles were exported from the same
/// student, in the same order of items and, if they have partitions, with the same ones.
///
/// # Errors
/// [`Error::OtherBundle`] for bundles of two lines, [`Error::OldBundle`] unless `new` is newer;
/// [`Error::InvalidArgument`] if `dest` exists; errors of [`Bundle::open`]; [`Error::Io`].
pub fn write_delta(old: &Bundle, new: &Bundle, dest: impl AsRef<Path>) -> Result<DeltaReport> {
    let dest = dest.as_ref();
    let (before, after) = (old.manifest(), new.manifest());
    if before.bundle_id != after.bundle_id {
        return Err(Error::OtherBundle {
            expected: before.bundle_id.clone(),
            got: after.bundle_id.clone(),
        });
    }
    if after.bundle_version <= before.bundle_version {
        return Err(Error::OldBundle {
            newest: before.bundle_version,
            got: after.bundle_version,
        });
    }
    if dest.symlink_metadata().is_ok() {
        return Err(Error::argument(format!("{} exists", dest.display())));
    }
    let temp = tempfile::Builder::new()
        .prefix(".delta.")
        .tempdir_in(parent(dest))
        .map_err(|e| Error::io("create a temporary folder beside", dest, e))?;
    let copy = |name: &str| -> Result<u64> {
        let from = new.path().join(name);
        std::fs::copy(&from, temp.path().join(name)).map_err(|e| Error::io("copy", from, e))
    };
    let mut bytes = copy(MANIFEST_FILE)?;
    if new.path().join(SIGNATURE_FILE).exists() {
        bytes += copy(SIGNATURE_FILE)?;
    }
    let mut report = DeltaReport {
        same: after.items,
        changed: 0,
        inserted: 0,
        deleted: 0,
        bytes: 0,
        bundle_bytes: after.files.values().map(|f| f.bytes).sum(),
    };
    // Written in any case: it names the base.
    let path = temp.path().join(DELTA_FILE);
    bytes += write_tables(old, new, &path, &mut report)?;
    for (name, info) in &after.files {
        if name != ITEMS_FILE && before.files.get(name) != Some(info) {
            bytes += copy(name)?;
        }
    }
    report.bytes = bytes;
    sync_folder(temp.path())?;
    std::fs::rename(temp.path(), dest).map_err(|e| Error::io("rename the delta to", dest, e))?;
    let _ = temp.keep();
    sync_folder(parent(dest))?;
    Ok(report)
}

/// Tensors of the delta, in the order in which they are written.
#[derive(Default)]
struct Parts(Vec<(TensorSpec, Vec<u8>)>);

impl Parts {
    fn bytes(&mut self, name: impl Into<String>, bytes: Vec<u8>) {
        let spec = TensorSpec::new(name, Dtype::U8, [bytes.len()]);
        self.0.push((spec, bytes));
    }

    fn numbers(&mut self, name: impl Into<String>, numbers: &[u32]) {
        let spec = TensorSpec::new(name, Dtype::U32, [numbers.len()]);
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.0.push((spec, bytes));
    }

    fn write(self, path: &Path) -> Result<u64> {
        let specs: Vec<TensorSpec> = self.0.iter().map(|(spec, _)| spec.clone()).collect();
        let mut out = TensorWriter::create(path, &specs)?;
        for (spec, bytes) in &self.0 {
            out.write(&spec.name, bytes)?;
        }
        Ok(out.finish()?.bytes)
    }
}

/// Old row of every new one, or [`FRESH`].
struct Origins(Vec<u32>);

impl Origins {
    fn new(old: &Bundle, new: &Bundle) -> Result<Self> {
        let rows = 0..new.table().len() as u32;
        let of = rows.map(|row| Ok(old.table().find(new.table().key(row)?)?.unwrap_or(FRESH)));
        Ok(Origins(of.collect::<Result<_>>()?))
    }

    fn runs(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut start, mut count): (Vec<u32>, Vec<u32>) = Default::default();
        for &old in &self.0 {
            match (start.last(), count.last_mut()) {
                (Some(&FRESH), Some(n)) if old == FRESH => *n += 1,
                (Some(&s), Some(n)) if s != FRESH && old != FRESH && s + *n == old => *n += 1,
                _ => {
                    start.push(old);
                    count.push(1);
                }
            }
        }
        (start, count)
    }

    /// New rows that have no old row, or whose bytes differ from those of their old row.
    fn differing<'a>(
        &self,
        old: impl Fn(usize) -> Result<&'a [u8]>,
        new: impl Fn(usize) -> Result<&'a [u8]>,
    ) -> Result<Vec<u32>> {
        let mut rows = Vec::new();
        for (row, &from) in self.0.iter().enumerate() {
            if from == FRESH || old(from as usize)? != new(row)? {
                rows.push(row as u32);
            }
        }
        Ok(rows)
    }
}

/// Code in the new dictionary of every value of an attribute's old one, if the two differ.
fn translation(attribute: &str, old: &TensorFile, new: &TensorFile) -> Result<Option<Vec<u32>>> {
    let values = |file: &TensorFile| -> Result<Option<Vec<Vec<u8>>>> {
        let name = format!("{attribute}.values.offsets");
        let bytes = file.peek(&format!("{attribute}.values.bytes"));
        let (Some((_, _, bytes)), Some(ends)) = (bytes, BaseOffsets::of(file, &name)) else {
            return Ok(None);
        };
        let value = |i: usize| {
            let range = ends.range(i, 1, bytes.len());
            range.map(|range| bytes[range].to_vec())
        };
        let all = (0..ends.records()).map(value).collect::<Option<_>>();
        let reason = "offsets decrease or point beyond the data";
        all.ok_or_else(|| Error::corrupt(name, 0, reason)).map(Some)
    };
    let (Some(old), Some(new)) = (values(old)?, values(new)?) else {
        return Ok(None);
    };
    if old == new {
        return Ok(None);
    }
    let codes: HashMap<Vec<u8>, u32> = new.into_iter().zip(0u32..).collect();
    let code = |value| codes.get(value).copied().unwrap_or(NO_VALUE);
    Ok(Some(old.iter().map(code).collect()))
}

/// A tensor's type, shape and bytes.
type View<'a> = (Dtype, &'a [usize], &'a [u8]);

fn write_tables(old: &Bundle, new: &Bundle, path: &Path, report: &mut DeltaReport) -> Result<u64> {
    let manifest = old.path().join(MANIFEST_FILE);
    let manifest = std::fs::read(&manifest).map_err(|e| Error::io("read", manifest, e))?;
    let mut parts = Parts::default();
    parts.bytes("base", Sha256::digest(&manifest).to_vec());
    let info = new.manifest().files.get(ITEMS_FILE);
    if info == old.manifest().files.get(ITEMS_FILE) {
        return parts.write(path);
    }

    let (old_content, new_content) = (content(old)?, content(new)?);
    let bytes = new_content.bytes();
    let (old_file, new_file) = (
        TensorFile::parse(&old.path().join(ITEMS_FILE), old_content)?,
        TensorFile::parse(&new.path().join(ITEMS_FILE), new_content.clone())?,
    );
    let head = bytes
        .first_chunk::<8>()
        .map_or(0, |n| u64::from_le_bytes(*n));
    // The file was parsed, so its header is inside.
    parts.bytes("header", bytes[..8 + head as usize].to_vec());

    let origins = Origins::new(old, new)?;
    let (start, count) = origins.runs();
    parts.numbers("rows.start", &start);
    parts.numbers("rows.count", &count);

    let mut changed = HashSet::new();
    let mut derived = HashSet::new();
    // Data before their offsets.
    let mut names = new_file.names();
    names.sort_by_key(|name| (name.ends_with(".offsets"), name.clone()));
    let mut whole = BTreeMap::new();
    for name in &names {
        debug_assert!(!name.starts_with(PAD_PREFIX));
        let (Some(now), before) = (new_file.peek(name), old_file.peek(name)) else {
            continue;
        };
        if derived.contains(name) || before == Some(now) {
            continue;
        }
        let translated;
        let before = match (before, translation(name, &old_file, &new_file)?) {
            (Some((dtype, shape, bytes)), Some(codes)) => {
                parts.numbers(format!("codes.{name}"), &codes);
                translated = recode(bytes, &codes);
                Some((dtype, shape, &*translated))
            }
            (before, _) => before,
        };
        let rows = match before {
            Some(_) if name == "ids.order" => {
                order(&mut parts, &origins, now);
                continue;
            }
            Some(before) if before.0 == now.0 => match offsets_tensor(name) {
                Some(offsets) if new_file.contains(&offsets) => {
                    let ends = BaseOffsets::of(&old_file, &offsets)
                        .zip(BaseOffsets::of(&new_file, &offsets));
                    let rows = ragged(&mut parts, name, &origins, before, now, ends)?;
                    if rows.is_some() {
                        derived.insert(offsets);
                    }
                    rows
                }
                _ => fixed(&mut parts, name, &origins, before, now, old.table().len())?,
            },
            _ => None,
        };
        match rows {
            Some(rows) => changed.extend(rows),
            None => {
                whole.insert(name.clone(), now.2);
            }
        }
    }
    for (name, bytes) in whole {
        parts.bytes(format!("whole.{name}"), bytes.to_vec());
    }
    let fresh = |row: &u32| origins.0[*row as usize] == FRESH;
    report.inserted = origins.0.iter().filter(|&&o| o == FRESH).count();
    report.changed = changed.iter().filter(|row| !fresh(row)).count();
    report.same = origins.0.len() - report.inserted - report.changed;
    report.deleted = old.table().len() - (origins.0.len() - report.inserted);
    parts.write(path)
}

fn content(bundle: &Bundle) -> Result<Arc<Content>> {
    let path = bundle.path().join(ITEMS_FILE);
    let bytes = bundle
        .manifest()
        .files
        .get(ITEMS_FILE)
        .map_or(0, |f| f.bytes);
    Ok(Arc::new(Content::open(&path, bytes, LoadMode::Map)?))
}

/// Ranks and rows of what the old order lacks.
fn order(parts: &mut Parts, origins: &Origins, (_, _, now): View<'_>) {
    let rows: &[u32] = bytemuck::try_cast_slice(now).unwrap_or_default();
    let fresh = |row: u32| origins.0.get(row as usize) == Some(&FRESH);
    let ranked = (0u32..).zip(rows).filter(|&(_, &row)| fresh(row));
    let (ranks, rows): (Vec<u32>, Vec<u32>) = ranked.map(|(rank, &row)| (rank, row)).unzip();
    parts.numbers("order.ranks", &ranks);
    parts.numbers("order.rows", &rows);
}

/// Rows of equal length, if the tensor has a row for each item and few of them differ.
fn fixed(
    parts: &mut Parts,
    name: &str,
    origins: &Origins,
    (_, old_shape, old): View<'_>,
    (_, new_shape, new): View<'_>,
    old_items: usize,
) -> Result<Option<Vec<u32>>> {
    let items = origins.0.len();
    let per_item = new_shape.first() == Some(&items)
        && old_shape.first() == Some(&old_items)
        && old_shape.get(1..) == new_shape.get(1..);
    let width = new.len() / items;
    if !per_item || width == 0 {
        return Ok(None);
    }
    // Both have a row of `width` bytes for each of their items.
    let row = |i: usize| i * width..(i + 1) * width;
    let rows = origins.differing(|i| Ok(&old[row(i)]), |i| Ok(&new[row(i)]))?;
    if rows.len() * (width + 4) >= new.len() {
        return Ok(None);
    }
    let values = rows.iter().flat_map(|&i| &new[row(i as usize)]).copied();
    parts.bytes(format!("values.{name}"), values.collect());
    parts.numbers(format!("rows.{name}"), &rows);
    Ok(Some(rows))
}

/// Rows of different lengths, if few of them differ.
fn ragged(
    parts: &mut Parts,
    name: &str,
    origins: &Origins,
    (dtype, _, old): View<'_>,
    (_, _, new): View<'_>,
    ends: Option<(BaseOffsets<'_>, BaseOffsets<'_>)>,
) -> Result<Option<Vec<u32>>> {
    let Some((old_ends, new_ends)) = ends else {
        return Ok(None);
    };
    let width = dtype.bitsize() / 8;
    let row = |bytes: &'_ [u8], ends: &BaseOffsets<'_>, i: usize| {
        let reason = "its offsets decrease or point beyond the data";
        ends.range(i, width, bytes.len())
            .ok_or_else(|| Error::corrupt(name, i, reason))
    };
    let rows = origins.differing(
        |i| Ok(&old[row(old, &old_ends, i)?]),
        |i| Ok(&new[row(new, &new_ends, i)?]),
    )?;
    let (mut values, mut ends) = (Vec::new(), vec![0u32]);
    for &i in &rows {
        values.extend_from_slice(&new[row(new, &new_ends, i as usize)?]);
        match u32::try_from(values.len() / width) {
            Ok(end) => ends.push(end),
            Err(_) => return Ok(None),
        }
    }
    if values.len() + rows.len() * 8 >= new.len() + origins.0.len() * 4 {
        return Ok(None);
    }
    parts.bytes(format!("values.{name}"), values);
    parts.numbers(format!("rows.{name}"), &rows);
    parts.numbers(format!("ends.{name}"), &ends);
    Ok(Some(rows))
}
