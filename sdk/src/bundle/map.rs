//! File content as bytes: memory-mapped, or read into 64-byte aligned memory.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// How the item table is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LoadMode {
    /// Map the file read-only: pages are loaded when touched and shared between processes.
    /// The file must not be truncated or rewritten while it is open. Replacing it by a rename,
    /// as every writer here does, is safe.
    #[default]
    Map,
    /// Copy the file to the heap: for network or removable storage, where a mapped page can
    /// vanish and end the process.
    Read,
}

/// One cache line; gives heap copies the alignment that the format promises.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

enum Source {
    Map(memmap2::Mmap),
    Heap { lines: Vec<Line>, len: usize },
}

/// Immutable bytes of one file, starting at a multiple of 64 in memory.
pub(crate) struct Content(Source);

impl Content {
    /// Brings `path` into memory. The caller has compared its length with the manifest;
    /// `expected` is compared again on the open file, so that a swap in between is noticed.
    pub(crate) fn open(path: &Path, expected: u64, mode: LoadMode) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let got = file
            .metadata()
            .map_err(|e| Error::io("read the length of", path, e))?
            .len();
        if got != expected {
            return Err(Error::FileSize {
                path: path.to_path_buf(),
                expected,
                got,
            });
        }
        let len = usize::try_from(got).map_err(|_| {
            Error::argument(format!(
                "{} does not fit this machine's address space",
                path.display()
            ))
        })?;
        match mode {
            // An empty mapping is an error on some systems.
            LoadMode::Map if len > 0 => {
                // SAFETY: the mapping is read-only and private to this value, and everything
                // read from it is checked as untrusted bytes. What remains is that the file
                // shrinks or changes below us; bundles are documented to be immutable and all
                // our writers replace them by rename, which leaves this mapping intact.
                let map =
                    unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
                if map.len() != len {
                    return Err(Error::FileSize {
                        path: path.to_path_buf(),
                        expected,
                        got: map.len() as u64,
                    });
                }
                Ok(Content(Source::Map(map)))
            }
            _ => {
                // `len` is the length of a real file, so this allocation is honest.
                let mut lines = vec![Line([0; 64]); len.div_ceil(64)];
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
                file.read_exact(&mut bytes[..len])
                    .map_err(|e| Error::io("read", path, e))?;
                Ok(Content(Source::Heap { lines, len }))
            }
        }
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Source::Map(map) => map,
            Source::Heap { lines, len } => &bytemuck::cast_slice(lines)[..*len],
        }
    }
}
