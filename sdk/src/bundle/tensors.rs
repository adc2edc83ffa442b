//! Reading a safetensors file that may be hostile.
//!
//! The container's own checks (no holes, no overlaps, shape × type = bytes, no overflow, no
//! trailing bytes) come from the `safetensors` crate. What it does not check is checked here:
//! the header's length before it is parsed, element type, shape and alignment of each tensor,
//! and that no tensor of an unknown name is present.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use safetensors::{Dtype, SafeTensors};

use super::map::Content;
use crate::error::{Error, Result};

/// Longest accepted JSON header, in bytes. Parsing costs up to 17 times this in memory.
pub(crate) const MAX_HEADER_BYTES: u64 = 64 * 1024;

/// Every tensor starts at a multiple of this many bytes in the file.
pub(crate) const ALIGNMENT: usize = 64;

/// Names of filler tensors start with this; readers ignore them.
pub(crate) const PAD_PREFIX: &str = "pad.";

/// Element types used by the format.
pub(crate) trait Element: Pod {
    const DTYPE: Dtype;
    const NAME: &'static str;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {
        $(impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            const NAME: &'static str = stringify!($dtype);
        })*
    };
}
element!(u8 => U8, i8 => I8, u32 => U32, u64 => U64, f32 => F32);

/// IEEE half precision as raw bits, so that no arithmetic is done on it by mistake.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Half(pub(crate) u16);

impl Element for Half {
    const DTYPE: Dtype = Dtype::F16;
    const NAME: &'static str = "F16";
}

/// A checked range of a file that holds elements of one type.
#[derive(Clone)]
pub(crate) struct Slice<T> {
    content: Arc<Content>,
    range: Range<usize>,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: Pod> Slice<T> {
    /// The elements. The range and its alignment were checked when the slice was made.
    #[inline]
    pub(crate) fn get(&self) -> &[T] {
        bytemuck::cast_slice(&self.content.bytes()[self.range.clone()])
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len() / size_of::<T>()
    }

    /// No elements of `file`.
    #[cfg(feature = "compact")]
    pub(crate) fn empty(file: &TensorFile) -> Self {
        Slice {
            content: file.content.clone(),
            range: 0..0,
            kind: std::marker::PhantomData,
        }
    }
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file, not of the data part.
    range: Range<usize>,
}

/// The tensors of one file, to be taken one by one by name.
pub(crate) struct TensorFile {
    path: PathBuf,
    content: Arc<Content>,
    entries: HashMap<String, Entry>,
}

impl TensorFile {
    pub(crate) fn parse(path: &Path, content: Arc<Content>) -> Result<Self> {
        let bytes = content.bytes();
        if let Some(head) = bytes.first_chunk::<8>() {
            let claimed = u64::from_le_bytes(*head);
            if claimed > MAX_HEADER_BYTES {
                return Err(Error::HeaderTooLarge {
                    path: path.to_path_buf(),
                    bytes: claimed,
                    limit: MAX_HEADER_BYTES,
                });
            }
        }
        let (header, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|source| Error::Container {
                path: path.to_path_buf(),
                source,
            })?;
        let start = 8 + header;
        let mut entries = HashMap::new();
        for (name, info) in metadata.tensors() {
            if name.starts_with(PAD_PREFIX) {
                continue;
            }
            // `read_metadata` has checked that the last offset equals the data's length, so
            // these sums stay within the file.
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            if !range.is_empty() && !range.start.is_multiple_of(ALIGNMENT) {
                return Err(Error::Misaligned {
                    path: path.to_path_buf(),
                    tensor: name,
                    offset: range.start,
                });
            }
            entries.insert(
                name,
                Entry {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range,
                },
            );
        }
        Ok(TensorFile {
            path: path.to_path_buf(),
            content,
            entries,
        })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Names not taken yet, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.entries.keys().cloned().collect();
        names.sort();
        names
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|e| e.dtype)
    }

    #[cfg(feature = "compact")]
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Takes tensor `name`, which must hold `T` and have `shape` (`None` = any length).
    pub(crate) fn take<T: Element>(
        &mut self,
        name: &str,
        shape: &[Option<usize>],
    ) -> Result<Slice<T>> {
        let entry = self
            .entries
            .remove(name)
            .ok_or_else(|| Error::MissingTensor {
                path: self.path.clone(),
                tensor: name.to_string(),
            })?;
        if entry.dtype != T::DTYPE {
            return Err(Error::Dtype {
                path: self.path.clone(),
                tensor: name.to_string(),
                expected: T::NAME,
                got: format!("{:?}", entry.dtype),
            });
        }
        let fits = entry.shape.len() == shape.len()
            && entry
                .shape
                .iter()
                .zip(shape)
                .all(|(&got, want)| want.is_none_or(|want| want == got));
        if !fits {
            let dims: Vec<String> = shape
                .iter()
                .map(|d| d.map_or_else(|| "any".to_string(), |d| d.to_string()))
                .collect();
            return Err(Error::Shape {
                path: self.path.clone(),
                tensor: name.to_string(),
                expected: format!("[{}]", dims.join(", ")),
                got: entry.shape,
            });
        }
        Ok(Slice {
            content: self.content.clone(),
            // Empty tensors may start anywhere, which a cast would refuse.
            range: if entry.range.is_empty() {
                0..0
            } else {
                entry.range
            },
            kind: std::marker::PhantomData,
        })
    }

    /// Type, shape and bytes of tensor `name`, which stays.
    #[cfg(feature = "store")]
    pub(crate) fn peek(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let entry = self.entries.get(name)?;
        let bytes = &self.content.bytes()[entry.range.clone()];
        Some((entry.dtype, &entry.shape, bytes))
    }

    /// Refuses the file if a tensor is left that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.names().into_iter().next() {
            None => Ok(()),
            Some(tensor) => Err(Error::UnexpectedTensor {
                path: self.path,
                tensor,
            }),
        }
    }
}

/// End positions of variable-length records; U32 or U64 in the file.
#[derive(Clone)]
pub(crate) enum Offsets {
    Narrow(Slice<u32>),
    Wide(Slice<u64>),
}

impl Offsets {
    /// Takes tensor `name` of `records + 1` offsets.
    pub(crate) fn take(file: &mut TensorFile, name: &str, records: Option<usize>) -> Result<Self> {
        let shape = [records.map(|r| r.saturating_add(1))];
        Ok(match file.dtype(name) {
            Some(Dtype::U32) => Offsets::Narrow(file.take(name, &shape)?),
            _ => Offsets::Wide(file.take(name, &shape)?),
        })
    }

    /// Number of records, 0 for a tensor that has not even the first offset.
    pub(crate) fn records(&self) -> usize {
        match self {
            Offsets::Narrow(s) => s.len(),
            Offsets::Wide(s) => s.len(),
        }
        .saturating_sub(1)
    }

    fn at(&self, index: usize) -> Option<u64> {
        match self {
            Offsets::Narrow(s) => s.get().get(index).map(|&x| u64::from(x)),
            Offsets::Wide(s) => s.get().get(index).copied(),
        }
    }

    /// Range of `record` within data of `len` elements, or nothing if it is not inside.
    pub(crate) fn range(&self, record: usize, len: usize) -> Option<Range<usize>> {
        let start = usize::try_from(self.at(record)?).ok()?;
        let end = usize::try_from(self.at(record.checked_add(1)?)?).ok()?;
        (start <= end && end <= len).then_some(start..end)
    }

    /// Checks that records follow each other without gaps and cover `len` elements.
    pub(crate) fn check(&self, tensor: &str, len: usize) -> Result<()> {
        match self {
            Offsets::Narrow(s) => check_offsets(tensor, s.get(), len),
            Offsets::Wide(s) => check_offsets(tensor, s.get(), len),
        }
    }
}

fn check_offsets<T: Copy + Into<u64>>(tensor: &str, offsets: &[T], len: usize) -> Result<()> {
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return Err(Error::corrupt(tensor, 0, "the first offset is missing"));
    };
    if first.into() != 0 {
        return Err(Error::corrupt(tensor, 0, "the first offset is not 0"));
    }
    let wrong = |w: &[T]| w[0].into() > w[1].into() || w[1].into() > len as u64;
    if let Some(record) = offsets.windows(2).position(wrong) {
        let reason = "offsets decrease or point beyond the data";
        return Err(Error::corrupt(tensor, record, reason));
    }
    if last.into() != len as u64 {
        let reason = "the last offset is not the end of the data";
        return Err(Error::corrupt(tensor, offsets.len() - 1, reason));
    }
    Ok(())
}

/// A column of UTF-8 strings: `<prefix>.bytes` and `<prefix>.offsets`.
#[derive(Clone)]
pub(crate) struct Strings {
    name: String,
    bytes: Slice<u8>,
    offsets: Offsets,
}

impl Strings {
    pub(crate) fn take(file: &mut TensorFile, prefix: &str, count: Option<usize>) -> Result<Self> {
        Ok(Strings {
            bytes: file.take(&format!("{prefix}.bytes"), &[None])?,
            offsets: Offsets::take(file, &format!("{prefix}.offsets"), count)?,
            name: prefix.to_string(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.records()
    }

    /// The raw bytes of string `index`.
    pub(crate) fn raw(&self, index: usize) -> Result<&[u8]> {
        let bytes = self.bytes.get();
        let range = self.offsets.range(index, bytes.len()).ok_or_else(|| {
            Error::corrupt(
                format!("{}.offsets", self.name),
                index,
                "offsets decrease or point beyond the data",
            )
        })?;
        Ok(&bytes[range])
    }

    pub(crate) fn get(&self, index: usize) -> Result<&str> {
        std::str::from_utf8(self.raw(index)?)
            .map_err(|_| Error::corrupt(format!("{}.bytes", self.name), index, "not UTF-8"))
    }

    /// Checks every offset and every string.
    pub(crate) fn check(&self) -> Result<()> {
        let bytes = self.bytes.get();
        self.offsets
            .check(&format!("{}.offsets", self.name), bytes.len())?;
        // All at once is much faster than one by one; then no string may begin within a character.
        if let Ok(text) = std::str::from_utf8(bytes) {
            let starts = (0..self.len()).filter_map(|index| self.offsets.at(index));
            if starts
                .into_iter()
                .all(|start| text.is_char_boundary(start as usize))
            {
                return Ok(());
            }
        }
        (0..self.len()).try_for_each(|index| self.get(index).map(|_| ()))
    }
}
