//! A file that is hashed while it is written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::hex;
use super::manifest::FileInfo;
use crate::error::{Error, Result};

/// Written and hashed in pieces of this many bytes.
const PIECE: usize = 1 << 17;

/// A new file; [`HashedFile::finish`] gives its entry of the manifest.
pub(crate) struct HashedFile {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    pending: Vec<u8>,
    bytes: u64,
}

impl HashedFile {
    /// Creates `path`, which must not exist.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
        Ok(HashedFile {
            path: path.to_path_buf(),
            file,
            hasher: Sha256::new(),
            pending: Vec::with_capacity(PIECE),
            bytes: 0,
        })
    }

    /// Appends.
    #[inline]
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while self.pending.len() + bytes.len() >= PIECE {
            let (now, later) = bytes.split_at(PIECE - self.pending.len());
            self.pending.extend_from_slice(now);
            self.flush()?;
            bytes = later;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends zeros.
    pub(crate) fn zeros(&mut self, count: usize) -> Result<()> {
        let zeros = [0u8; 256];
        let mut left = count;
        while left > 0 {
            let n = left.min(zeros.len());
            self.write(&zeros[..n])?;
            left -= n;
        }
        Ok(())
    }

    /// Completes and syncs the file.
    pub(crate) fn finish(mut self) -> Result<FileInfo> {
        self.flush()?;
        self.file
            .sync_all()
            .map_err(|e| Error::io("sync", &self.path, e))?;
        Ok(FileInfo {
            bytes: self.bytes,
            sha256: hex(&self.hasher.finalize()),
        })
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.pending);
        let written = self.file.write_all(&self.pending);
        self.pending.clear();
        written.map_err(|e| Error::io("write", &self.path, e))
    }
}
