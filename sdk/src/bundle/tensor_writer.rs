//! Safetensors files with aligned tensors, written as a stream.

use std::path::Path;

use safetensors::Dtype;

use super::hashed::HashedFile;
use super::manifest::FileInfo;
use super::tensors::{ALIGNMENT, MAX_HEADER_BYTES, PAD_PREFIX};
use crate::error::{Error, Result};

/// Name, element type and shape of a tensor to be written.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Unique name, not starting with `pad.`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A spec.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }

    fn bytes(&self) -> Result<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|n| n.checked_mul(self.dtype.bitsize()))
            .map(|bits| bits / 8)
            .ok_or_else(|| Error::argument(format!("tensor {:?} is too large", self.name)))
    }
}

/// Streams tensors into a safetensors file in which each starts at a multiple of 64 bytes.
///
/// Shapes are declared first, data follows in the same order in pieces of any size, so no
/// tensor need exist in memory as a whole. The container allows no holes, so gaps are filled
/// with U8 tensors named `pad.<n>`; the header is padded with spaces.
pub struct TensorWriter {
    out: HashedFile,
    /// Tensors still to come, last first: name, bytes left, zero bytes to append.
    queue: Vec<(String, usize, usize)>,
}

impl TensorWriter {
    /// Creates `path` (which must not exist) and writes the header.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for names given twice or reserved and for too many tensors,
    /// [`Error::Io`].
    pub fn create(path: impl AsRef<Path>, specs: &[TensorSpec]) -> Result<Self> {
        let (header, queue) = header(specs)?;
        let mut out = HashedFile::create(path.as_ref())?;
        out.write(&(header.len() as u64).to_le_bytes())?;
        out.write(&header)?;
        Ok(TensorWriter { out, queue })
    }

    /// Appends `bytes` to tensor `name`, the first declared one that is not complete.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if another tensor is due or `bytes` exceed its shape.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        // A tensor without elements is complete before it begins.
        if bytes.is_empty() {
            return Ok(());
        }
        self.close_full()?;
        let due = self.queue.last_mut().ok_or_else(|| {
            Error::argument(format!("tensor {name:?} comes after the last declared one"))
        })?;
        if due.0 != name {
            let due = due.0.clone();
            return Err(Error::argument(format!(
                "tensor {name:?} was given, {due:?} is due"
            )));
        }
        due.1 = due.1.checked_sub(bytes.len()).ok_or_else(|| {
            Error::argument(format!(
                "tensor {name:?} got more bytes than its shape holds"
            ))
        })?;
        self.out.write(bytes)
    }

    /// Whether tensor `name` is still to come.
    pub(super) fn expects(&self, name: &str) -> bool {
        self.queue.iter().any(|(due, ..)| due == name)
    }

    /// Completes and syncs the file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a tensor is incomplete, [`Error::Io`].
    pub fn finish(mut self) -> Result<FileInfo> {
        self.close_full()?;
        if let Some((name, left, _)) = self.queue.last() {
            return Err(Error::argument(format!(
                "tensor {name:?} lacks {left} bytes"
            )));
        }
        self.out.finish()
    }

    /// Removes complete tensors from the queue and writes their padding.
    fn close_full(&mut self) -> Result<()> {
        while let Some(&(_, 0, pad)) = self.queue.last() {
            self.queue.pop();
            self.out.zeros(pad)?;
        }
        Ok(())
    }
}

type Queue = Vec<(String, usize, usize)>;

fn header(specs: &[TensorSpec]) -> Result<(Vec<u8>, Queue)> {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"tercet\"}");
    let mut queue = Vec::with_capacity(specs.len());
    let mut names = std::collections::HashSet::new();
    let mut offset = 0usize;
    let mut pads = 0usize;
    let overflow = || Error::argument("the tensors exceed this machine's address space");
    let mut entry = |name: &str, dtype: &str, shape: &[usize], start: usize, end: usize| {
        let name = serde_json::Value::from(name);
        json.push_str(&format!(
            ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        ));
    };
    for (i, spec) in specs.iter().enumerate() {
        if spec.name.starts_with(PAD_PREFIX) || spec.name == "__metadata__" {
            return Err(Error::argument(format!(
                "tensor name {:?} is reserved",
                spec.name
            )));
        }
        if !names.insert(spec.name.as_str()) {
            return Err(Error::argument(format!(
                "tensor {:?} is declared twice",
                spec.name
            )));
        }
        let bytes = spec.bytes()?;
        let end = offset.checked_add(bytes).ok_or_else(overflow)?;
        let dtype = serde_json::to_value(spec.dtype)
            .ok()
            .and_then(|v| v.as_str().map(str::to_string))
            .ok_or_else(|| {
                Error::argument(format!("tensor {:?} has no writable type", spec.name))
            })?;
        entry(&spec.name, &dtype, &spec.shape, offset, end);
        offset = end;
        let next = end
            .checked_next_multiple_of(ALIGNMENT)
            .ok_or_else(overflow)?;
        let pad = if i + 1 < specs.len() { next - end } else { 0 };
        if pad > 0 {
            entry(&format!("{PAD_PREFIX}{pads}"), "U8", &[pad], end, next);
            pads += 1;
            offset = next;
        }
        queue.push((spec.name.clone(), bytes, pad));
    }
    json.push('}');
    let mut json = json.into_bytes();
    // The data starts after 8 bytes of length and the header.
    json.resize((json.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::argument(
            "too many tensors or attribute columns for one table",
        ));
    }
    queue.reverse();
    Ok((json, queue))
}
