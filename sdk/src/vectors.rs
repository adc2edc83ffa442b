//! Item vectors in a file, for tables whose vectors exceed the memory.

use std::path::Path;

use crate::bundle::{Content, LoadMode};
use crate::error::{Error, Result};

/// A mapped file of little-endian f32 values and nothing else, row by row: what an
/// [`ItemTableBuilder`](crate::ItemTableBuilder) can take its vectors from when they do not fit
/// the memory. As with a bundle, the file must not be truncated or rewritten while it is open.
pub struct VectorFile(Content);

impl std::fmt::Debug for VectorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VectorFile of {} values", self.values().len())
    }
}

impl VectorFile {
    /// Maps the file at `path`, which holds `values` values.
    ///
    /// # Errors
    /// [`Error::FileSize`] if it holds another number of them, [`Error::Io`].
    pub fn open(path: impl AsRef<Path>, values: usize) -> Result<Self> {
        let bytes = values.checked_mul(4).ok_or_else(|| {
            Error::argument(format!(
                "{values} values exceed this machine's address space"
            ))
        })?;
        Content::open(path.as_ref(), bytes as u64, LoadMode::Map).map(VectorFile)
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        // The length is a multiple of 4, and the start one of 64.
        bytemuck::cast_slice(self.0.bytes())
    }
}
