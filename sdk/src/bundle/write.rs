//! Writing bundles. It lives beside the reader because the two are one format, and because a
//! device that applies a delta writes a bundle too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::{FileInfo, ITEMS_FILE, MANIFEST_FILE, Manifest, TableInfo};
use super::replace::{parent, sync_folder};
use super::table_builder::ItemTableBuilder;
use super::{Bundle, hex};
use crate::error::{Error, Result};
use crate::id::is_file_name;

/// Writes a bundle under a temporary name beside its destination and renames it into place.
///
/// Dropping it unfinished removes everything it wrote.
pub struct BundleWriter {
    dest: PathBuf,
    temp: tempfile::TempDir,
    files: BTreeMap<String, FileInfo>,
    /// Items, dim and form of the table, once written.
    table: Option<(usize, usize, TableInfo)>,
}

impl BundleWriter {
    /// Starts a bundle that will appear as folder `dest`.
    ///
    /// # Errors
    /// [`Error::NotABundle`] if `dest` exists and is anything but a bundle, [`Error::Io`].
    pub fn create(dest: impl AsRef<Path>) -> Result<Self> {
        let dest = dest.as_ref();
        check_destination(dest)?;
        let name = dest
            .file_name()
            .ok_or_else(|| Error::argument("the destination has no file name"))?;
        let temp = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".tmp")
            .tempdir_in(parent(dest))
            .map_err(|e| Error::io("create a temporary folder beside", dest, e))?;
        Ok(BundleWriter {
            dest: dest.to_path_buf(),
            temp,
            files: BTreeMap::new(),
            table: None,
        })
    }

    /// Writes file `name`, for instance a tower.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not plain, reserved or given twice;
    /// [`Error::Io`].
    pub fn write_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if !is_file_name(name) || name.starts_with(MANIFEST_FILE) || name == ITEMS_FILE {
            return Err(Error::argument(format!(
                "{name:?} cannot name a file of a bundle: use ASCII letters, digits, '.', '_', '-'"
            )));
        }
        if self.files.contains_key(name) {
            return Err(Error::argument(format!("file {name:?} is given twice")));
        }
        let path = self.temp.path().join(name);
        write_synced(&path, bytes)?;
        let info = FileInfo {
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        };
        self.files.insert(name.to_string(), info);
        Ok(())
    }

    /// Writes the item table.
    ///
    /// # Errors
    /// As [`ItemTableBuilder::write`]; [`Error::InvalidArgument`] if called twice.
    pub fn table(&mut self, table: &ItemTableBuilder<'_>) -> Result<()> {
        if self.table.is_some() {
            return Err(Error::argument("the item table is given twice"));
        }
        let info = table.write(self.temp.path().join(ITEMS_FILE))?;
        self.files.insert(ITEMS_FILE.to_string(), info);
        let form = TableInfo {
            partitions: table.partitions,
            ..TableInfo::new(table.scheme)
        };
        self.table = Some((table.items(), table.dim, form));
        Ok(())
    }

    /// Fills in `items`, `table` (but for its `probes` and `cold_bias`) and `files` of `manifest`, opens the result as a device would,
    /// and only then renames it into place. An older bundle at the destination is replaced;
    /// whoever has it open keeps reading the old one.
    ///
    /// # Errors
    /// [`Error::EmptyTable`] without a table, [`Error::Manifest`] if the manifest contradicts
    /// itself or the table, [`Error::Io`].
    pub fn finish(self, mut manifest: Manifest) -> Result<Bundle> {
        let (items, dim, form) = self.table.ok_or(Error::EmptyTable)?;
        if manifest.dim != dim {
            return Err(Error::Length {
                what: "item vector (dim of the table against the manifest)".into(),
                expected: manifest.dim,
                got: dim,
            });
        }
        manifest.items = items;
        manifest.table = TableInfo {
            probes: manifest.table.probes,
            cold_bias: manifest.table.cold_bias,
            ..form
        };
        manifest.files = self.files;
        let path = self.temp.path().join(MANIFEST_FILE);
        manifest.check(&path)?;
        write_synced(&path, &manifest.to_json()?)?;
        sync_folder(self.temp.path())?;
        drop(Bundle::open(self.temp.path())?);

        check_destination(&self.dest)?;
        let aside = if self.dest.exists() {
            // An empty folder of a fresh name; on every platform the old bundle can move into it.
            let holder = tempfile::Builder::new()
                .prefix(".replaced.")
                .tempdir_in(parent(&self.dest))
                .map_err(|e| Error::io("create a temporary folder beside", &self.dest, e))?;
            let old = holder.path().join("old");
            std::fs::rename(&self.dest, &old)
                .map_err(|e| Error::io("move aside", &self.dest, e))?;
            Some((holder, old))
        } else {
            None
        };
        if let Err(e) = std::fs::rename(self.temp.path(), &self.dest) {
            if let Some((_, old)) = &aside {
                let _ = std::fs::rename(old, &self.dest);
            }
            return Err(Error::io("rename the new bundle to", &self.dest, e));
        }
        // The folder has moved: nothing is left to remove under the temporary name.
        let _ = self.temp.keep();
        sync_folder(parent(&self.dest))?;
        Bundle::open(&self.dest)
    }
}

/// A destination is free, or an older bundle (of any format version).
fn check_destination(dest: &Path) -> Result<()> {
    match std::fs::symlink_metadata(dest) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", dest, e)),
        Ok(_) => match super::read_manifest(dest) {
            Ok(_) | Err(Error::UnsupportedFormat { .. } | Error::UnsupportedScheme { .. }) => {
                Ok(())
            }
            Err(_) => Err(Error::NotABundle {
                path: dest.to_path_buf(),
                reason: "it exists and has no readable manifest, so it will not be replaced".into(),
            }),
        },
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", path, e))
}
