//! A new file that cannot grow past the length promised for it.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Written in pieces of this many bytes.
const PIECE: usize = 1 << 17;

pub(super) struct LimitedFile {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    limit: u64,
}

impl LimitedFile {
    /// Creates `path`, which must not exist, for at most `limit` bytes.
    pub(super) fn create(path: &Path, limit: u64) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
        Ok(LimitedFile {
            path: path.to_path_buf(),
            file: BufWriter::with_capacity(PIECE, file),
            bytes: 0,
            limit,
        })
    }

    /// Appends; what would exceed the limit is refused before it reaches the storage.
    #[inline]
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.grow(bytes.len())?;
        let written = self.file.write_all(bytes);
        written.map_err(|e| Error::io("write", &self.path, e))
    }

    /// Appends zeros.
    pub(super) fn zeros(&mut self, count: usize) -> Result<()> {
        self.grow(count)?;
        let mut zeros = std::io::repeat(0).take(count as u64);
        let written = std::io::copy(&mut zeros, &mut self.file);
        written.map_err(|e| Error::io("write", &self.path, e))?;
        Ok(())
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The complete file, not synced.
    pub(super) fn finish(self) -> Result<File> {
        let file = self.file.into_inner();
        file.map_err(|e| Error::io("write", &self.path, e.into_error()))
    }

    #[inline]
    fn grow(&mut self, count: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(count as u64);
        if self.bytes <= self.limit {
            return Ok(());
        }
        Err(Error::FileSize {
            path: self.path.clone(),
            expected: self.limit,
            got: self.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_limit_is_refused_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = LimitedFile::create(&path, 300_000).unwrap();
        for _ in 0..6 {
            file.write(&[7; 50_000]).unwrap();
        }
        for error in [file.write(&[1]).unwrap_err(), file.zeros(1).unwrap_err()] {
            assert!(matches!(
                error,
                Error::FileSize {
                    expected: 300_000,
                    ..
                }
            ));
        }
        drop(file);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 300_000);
    }
}
