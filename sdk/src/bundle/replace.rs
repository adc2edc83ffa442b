//! Files that appear whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// The folder that `path` lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes renames in `folder` durable, where the platform can.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(|e| Error::io("sync", folder, e))?;
    }
    Ok(())
}

/// How temporary files of [`replace_file`] end.
const TEMPORARY: &str = ".tmp";

/// Removes what [`replace_file`] left beside `path` when its process ended half-way.
pub(crate) fn remove_leftovers(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let start = format!(".{name}.");
    let entries = match std::fs::read_dir(parent(path)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| Error::io("list", parent(path), e))?,
    };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with(&start) && found.ends_with(TEMPORARY) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|e| Error::io("delete", path, e))?;
        }
    }
    Ok(())
}

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it to `path`.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(TEMPORARY)
        .tempfile_in(parent(path))
        .map_err(|e| Error::io("create a temporary file beside", path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| Error::io("write", path, e))?;
    file.persist(path)
        .map_err(|e| Error::io("rename into place", path, e.error))?;
    sync_folder(parent(path))
}
