//! What is inside a bundle, by bytes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tercet::{Bundle, Manifest};

use crate::error::{Error, Result};
use crate::onnx;

/// Most bytes read of a tensor header or of a graph.
const MAX_READ: u64 = 64 << 20;

/// The manifest, and what its files weigh.
#[derive(Debug, Clone, Serialize)]
pub struct InspectReport {
    /// The manifest.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Bytes of all files, without the manifest.
    pub bytes: u64,
    /// Per file.
    pub contents: BTreeMap<String, FileReport>,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    /// Its length.
    pub bytes: u64,
    /// Its tensors (of a graph: its constants) in file order; empty for other files.
    pub tensors: Vec<TensorReport>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: usize,
}

/// Lists the files and tensors of an open bundle.
///
/// # Errors
/// A file that cannot be read. A file that is not of the kind its extension tells has no tensors.
pub fn inspect(bundle: &Bundle) -> Result<InspectReport> {
    let manifest = bundle.manifest();
    let mut contents = BTreeMap::new();
    for (name, info) in &manifest.files {
        let path = bundle.path().join(name);
        let tensors = match Path::new(name).extension().and_then(|e| e.to_str()) {
            Some("safetensors") => tensors(&path)?,
            Some("onnx") => onnx::initializers(&read(&path, MAX_READ)?),
            _ => Vec::new(),
        };
        let tensors = tensors
            .into_iter()
            .map(|(name, bytes)| TensorReport { name, bytes })
            .collect();
        contents.insert(
            name.clone(),
            FileReport {
                bytes: info.bytes,
                tensors,
            },
        );
    }
    Ok(InspectReport {
        manifest: manifest.clone(),
        bytes: manifest.files.values().map(|f| f.bytes).sum(),
        contents,
    })
}

/// The JSON header of a safetensors file.
#[derive(Deserialize)]
struct Header(BTreeMap<String, Entry>);

#[derive(Deserialize)]
struct Entry {
    /// Absent in `__metadata__`.
    data_offsets: Option<(usize, usize)>,
}

fn tensors(path: &Path) -> Result<Vec<(String, usize)>> {
    let start = read(path, 8)?;
    let Ok(length) = <[u8; 8]>::try_from(start) else {
        return Ok(Vec::new());
    };
    let length = u64::from_le_bytes(length);
    if length > MAX_READ - 8 {
        return Ok(Vec::new());
    }
    let header = read(path, length + 8)?;
    // Names and offsets only; whether they are sound is what opening and verifying check.
    let Ok(Header(entries)) = serde_json::from_slice(header.get(8..).unwrap_or_default()) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<(usize, String, usize)> = entries
        .into_iter()
        .filter(|(name, _)| !name.starts_with("pad."))
        .filter_map(|(name, entry)| {
            let (start, end) = entry.data_offsets?;
            Some((start, name, end.checked_sub(start)?))
        })
        .collect();
    found.sort_unstable();
    Ok(found
        .into_iter()
        .map(|(_, name, bytes)| (name, bytes))
        .collect())
}

/// At most `limit` bytes from the start of a file.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}
