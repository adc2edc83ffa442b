//! A feature file that grows row by row and takes its name when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::json;

use crate::error::{Error, Result};

/// The shape of a feature file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) items: usize,
    pub(super) tokens: Option<usize>,
    pub(super) dim: usize,
}

impl Rows {
    /// Numbers of an item.
    pub(super) fn width(&self) -> usize {
        self.tokens.unwrap_or(1) * self.dim
    }

    /// Bytes of a number: tokens are many and stored short.
    fn size(&self) -> usize {
        if self.tokens.is_some() { 2 } else { 4 }
    }

    /// The beginning of the finished file: its length and the JSON header of safetensors.
    fn header(&self, source: &str) -> Vec<u8> {
        let mut shape = vec![self.items];
        shape.extend(self.tokens);
        let present: usize = shape.iter().product();
        let presence = shape.clone();
        shape.push(self.dim);
        let end = self.items * self.width() * self.size();
        let dtype = if self.tokens.is_some() { "F16" } else { "F32" };
        let mut text = json!({
            "__metadata__": { "source": source },
            "features": { "dtype": dtype, "shape": shape, "data_offsets": [0, end] },
            "present": { "dtype": "U8", "shape": presence, "data_offsets": [end, end + present] },
        })
        .to_string();
        // The format wants its data aligned.
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text.bytes());
        header
    }
}

/// The growing file.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    rows: Rows,
    start: usize,
    done: usize,
}

impl Partial {
    /// Continues what an interrupted run with the same header left, after its last whole batch, or
    /// starts anew.
    pub(super) fn open(target: &Path, rows: Rows, source: &str, batch: usize) -> Result<Self> {
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let header = rows.header(source);
        let io = |e| Error::io(&path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let mut found = Vec::new();
        Read::by_ref(&mut file)
            .take(header.len() as u64)
            .read_to_end(&mut found)
            .map_err(io)?;
        let mut done = 0;
        if found == header {
            let length = file.metadata().map_err(io)?.len() as usize;
            let whole = (length - header.len()) / (rows.width() * rows.size());
            done = if whole >= rows.items {
                rows.items
            } else {
                whole / batch * batch
            };
            let keep = header.len() + done * rows.width() * rows.size();
            file.set_len(keep as u64).map_err(io)?;
            file.seek(SeekFrom::End(0)).map_err(io)?;
        } else {
            file.set_len(0).map_err(io)?;
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            file.write_all(&header).map_err(io)?;
        }
        Ok(Self {
            file,
            target: target.to_path_buf(),
            rows,
            start: header.len(),
            done,
            path,
        })
    }

    /// Items written.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    /// Appends whole items; an absent one is all zero.
    pub(super) fn append(&mut self, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = if self.rows.tokens.is_some() {
            let short = |x: &f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes();
            values.iter().flat_map(short).collect()
        } else {
            values.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        self.file
            .write_all(&bytes)
            .map_err(|e| Error::io(&self.path, e))?;
        self.done += values.len() / self.rows.width();
        Ok(())
    }

    /// Waits until what was appended is on the disk.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }

    /// Adds which rows are present, gives the file its name and tells of each item whether anything
    /// of it is present.
    pub(super) fn finish(mut self) -> Result<Vec<bool>> {
        let io = |e| Error::io(&self.path, e);
        self.file
            .seek(SeekFrom::Start(self.start as u64))
            .map_err(io)?;
        let mut source = BufReader::with_capacity(1 << 20, &self.file);
        let mut row = vec![0u8; self.rows.dim * self.rows.size()];
        let mut present = Vec::new();
        for _ in 0..self.rows.items * self.rows.tokens.unwrap_or(1) {
            source.read_exact(&mut row).map_err(io)?;
            // No encoder gives a zero vector; see the module on features.
            present.push(u8::from(row.iter().any(|b| *b != 0)));
        }
        self.file.seek(SeekFrom::End(0)).map_err(io)?;
        self.file.write_all(&present).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        std::fs::rename(&self.path, &self.target).map_err(io)?;
        let each = present.chunks_exact(self.rows.tokens.unwrap_or(1));
        Ok(each.map(|item| item.contains(&1)).collect())
    }
}
