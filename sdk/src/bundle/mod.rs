#![doc = include_str!("../../FORMAT.md")]

mod cluster;
mod hashed;
mod manifest;
mod map;
mod replace;
mod table_builder;
mod tensor_writer;
pub(crate) mod tensors;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

#[cfg(feature = "store")]
pub(crate) use manifest::parse_rfc3339;
pub use manifest::{
    EngineInfo, FORMAT_VERSION, FileInfo, ITEMS_FILE, MANIFEST_FILE, MAX_DIM, MAX_MANIFEST_BYTES,
    MAX_PARTITIONS, MAX_WINDOW, Manifest, Modality, Probe, ProbeEvent, TableInfo,
};
pub(crate) use map::Content;
pub use map::LoadMode;
#[cfg(feature = "store")]
pub(crate) use replace::{parent, sync_folder};
pub(crate) use replace::{remove_leftovers, replace_file};
pub use table_builder::ItemTableBuilder;
pub use tensor_writer::{TensorSpec, TensorWriter};
pub use write::BundleWriter;

#[cfg(feature = "ort")]
use crate::engine::OnnxRuntime;
use crate::engine::{self, EngineKind, FusionTower, Tower, TowerKind, UserTower};
use crate::error::{Error, Result};
use crate::join::join;
use crate::table::ItemTable;

/// How to open a bundle.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Map the item table (default) or read it to the heap.
    pub mode: LoadMode,
}

impl OpenOptions {
    /// The defaults: map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the load mode.
    pub fn mode(mut self, mode: LoadMode) -> Self {
        self.mode = mode;
        self
    }

    /// Opens the bundle in folder `path`; see [`Bundle::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Bundle> {
        Bundle::open_with(path.as_ref(), self)
    }
}

/// An open bundle: a manifest, a mapped item table, and the paths of the towers.
///
/// Cloning is cheap and shares everything. A bundle is immutable.
#[derive(Clone)]
pub struct Bundle(Arc<Inner>);

struct Inner {
    path: PathBuf,
    manifest: Manifest,
    /// The manifest as it was when the bundle was opened, byte by byte.
    original: Vec<u8>,
    table: ItemTable,
    /// Locked as long as the bundle is in use, so that a store keeps its folder.
    #[cfg(feature = "store")]
    lease: std::sync::OnceLock<std::fs::File>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle")
            .field("path", &self.0.path)
            .field("bundle_id", &self.0.manifest.bundle_id)
            .field("bundle_version", &self.0.manifest.bundle_version)
            .field("items", &self.0.manifest.items)
            .finish()
    }
}

impl Bundle {
    /// Opens the bundle in folder `path`: reads the manifest, compares the length of every
    /// file, maps the item table and checks its header. The cost does not depend on the number
    /// of items, and no tower is loaded.
    ///
    /// Content is not hashed here; do that once after a download with [`Bundle::verify`].
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::NotABundle`] for missing files, [`Error::Manifest`] and its
    /// kin, [`Error::FileSize`], and the tensor errors ([`Error::Container`], [`Error::Dtype`],
    /// [`Error::Shape`], …).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), OpenOptions::default())
    }

    fn open_with(path: &Path, options: OpenOptions) -> Result<Self> {
        let original = manifest_bytes(path)?;
        let manifest = Manifest::parse(&original, &path.join(MANIFEST_FILE))?;
        for (name, info) in &manifest.files {
            let file = path.join(name);
            let got = std::fs::metadata(&file)
                .map_err(|e| Error::io("read the length of", &file, e))?
                .len();
            if got != info.bytes {
                return Err(Error::FileSize {
                    path: file,
                    expected: info.bytes,
                    got,
                });
            }
        }
        let items = path.join(ITEMS_FILE);
        // `Manifest::parse` has checked that the entry exists.
        let bytes = manifest.files.get(ITEMS_FILE).map_or(0, |f| f.bytes);
        let content = Arc::new(Content::open(&items, bytes, options.mode)?);
        let table = ItemTable::open(&items, content, &manifest)?;
        Ok(Bundle(Arc::new(Inner {
            path: path.to_path_buf(),
            manifest,
            original,
            table,
            #[cfg(feature = "store")]
            lease: std::sync::OnceLock::new(),
        })))
    }

    /// Keeps `lock` open until the last clone of this bundle is gone.
    #[cfg(feature = "store")]
    pub(crate) fn hold(&self, lock: std::fs::File) {
        let _ = self.0.lease.set(lock);
    }

    /// Whether both are clones of one opened bundle.
    pub(crate) fn same(&self, other: &Bundle) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Folder this bundle was opened from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The item table.
    pub fn table(&self) -> &ItemTable {
        &self.0.table
    }

    /// Hashes every file and checks every row, on two threads: costs a full read of the bundle. Run
    /// it once after a download.
    ///
    /// # Errors
    /// [`Error::Digest`] if a file is not the one that the manifest describes,
    /// [`Error::CorruptTensor`] or [`Error::NonFinite`] if the content breaks an invariant.
    pub fn verify(&self) -> Result<()> {
        let (rows, digests) = join(|| self.0.table.verify(), || self.check_digests());
        digests.and(rows)
    }

    fn check_digests(&self) -> Result<()> {
        for (name, info) in &self.0.manifest.files {
            let path = self.0.path.join(name);
            let (bytes, got) = digest_file(&path)?;
            if bytes != info.bytes {
                return Err(Error::FileSize {
                    path,
                    expected: info.bytes,
                    got: bytes,
                });
            }
            if got != info.sha256 {
                return Err(Error::Digest {
                    path,
                    expected: info.sha256.clone(),
                    got,
                });
            }
        }
        Ok(())
    }

    /// Loads the user tower with the fastest engine of this build that can run it: the compact
    /// one if the bundle names the student's weights, else an ONNX engine. Each call loads anew; a
    /// [`Session`](crate::Session) does it once, when it first needs to.
    ///
    /// # Errors
    /// [`Error::MissingTower`], [`Error::EngineUnavailable`], [`Error::Engine`],
    /// [`Error::Replaced`], and the tensor errors of [`Bundle::open`].
    pub fn load_user_tower(&self) -> Result<UserTower> {
        self.load_user_tower_with(self.fastest(TowerKind::User))
    }

    /// Loads the user tower with a given engine.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower`]; [`Error::MissingTower`] if the bundle lacks the file which
    /// that engine reads.
    pub fn load_user_tower_with(&self, engine: EngineKind) -> Result<UserTower> {
        let (tower, file) = self.load_tower(TowerKind::User, engine)?;
        Ok(UserTower::new(tower, self.manifest(), file))
    }

    /// Loads the fusion tower, with the engine that [`Bundle::load_user_tower`] would choose.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower`].
    pub fn load_fusion_tower(&self) -> Result<FusionTower> {
        self.load_fusion_tower_with(self.fastest(TowerKind::Fusion))
    }

    /// Loads the fusion tower with a given engine.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower_with`].
    pub fn load_fusion_tower_with(&self, engine: EngineKind) -> Result<FusionTower> {
        let (tower, file) = self.load_tower(TowerKind::Fusion, engine)?;
        Ok(FusionTower::new(tower, self.manifest(), file))
    }

    /// Loads the user tower with ONNX Runtime.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower_with`].
    #[cfg(feature = "ort")]
    pub fn load_user_tower_on(&self, runtime: &OnnxRuntime) -> Result<UserTower> {
        let (tower, file) = self.load_tower_on(TowerKind::User, runtime)?;
        Ok(UserTower::new(tower, self.manifest(), file))
    }

    /// Loads the fusion tower with ONNX Runtime.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower_with`].
    #[cfg(feature = "ort")]
    pub fn load_fusion_tower_on(&self, runtime: &OnnxRuntime) -> Result<FusionTower> {
        let (tower, file) = self.load_tower_on(TowerKind::Fusion, runtime)?;
        Ok(FusionTower::new(tower, self.manifest(), file))
    }

    #[cfg(feature = "ort")]
    fn load_tower_on(
        &self,
        kind: TowerKind,
        runtime: &OnnxRuntime,
    ) -> Result<(Box<dyn Tower>, &str)> {
        // Both ONNX engines read the same file.
        let file = self.tower_file(kind, EngineKind::Tract);
        let file = file.ok_or(Error::MissingTower { tower: kind.name() })?;
        self.check_not_replaced()?;
        let tower = runtime.tower(kind, &self.0.path.join(file))?;
        self.check_not_replaced()?;
        Ok((tower, file))
    }

    fn tower_file(&self, kind: TowerKind, engine: EngineKind) -> Option<&str> {
        let info = &self.0.manifest.engine;
        let file = match (kind, engine) {
            (TowerKind::User, EngineKind::Compact) => &info.user_weights,
            (TowerKind::User, EngineKind::Tract) => &info.user_tower,
            (TowerKind::Fusion, EngineKind::Compact) => &info.fusion_weights,
            (TowerKind::Fusion, EngineKind::Tract) => &info.fusion_tower,
        };
        file.as_deref()
    }

    fn fastest(&self, kind: TowerKind) -> EngineKind {
        let compact = self.tower_file(kind, EngineKind::Compact);
        if cfg!(feature = "compact") && compact.is_some() {
            EngineKind::Compact
        } else {
            EngineKind::Tract
        }
    }

    fn load_tower(&self, kind: TowerKind, engine: EngineKind) -> Result<(Box<dyn Tower>, &str)> {
        let file = self.tower_file(kind, engine);
        let file = file.ok_or(Error::MissingTower { tower: kind.name() })?;
        let path = self.0.path.join(file);
        self.check_not_replaced()?;
        let tower = match engine {
            EngineKind::Compact => {
                let bytes = self.0.manifest.files.get(file).map_or(0, |f| f.bytes);
                engine::load_compact(kind, &path, bytes, self.manifest())?
            }
            EngineKind::Tract => engine::load(kind, &path)?,
        };
        self.check_not_replaced()?;
        Ok((tower, file))
    }

    /// The table stays what it was when the folder is replaced, but a tower is read when first
    /// needed: one of another release must not meet this table. Asked before reading, for a
    /// clear error, and after it, for certainty.
    fn check_not_replaced(&self) -> Result<()> {
        if manifest_bytes(&self.0.path)? == self.0.original {
            return Ok(());
        }
        Err(Error::Replaced {
            path: self.0.path.clone(),
        })
    }

    /// Whether the manifest names a user tower.
    pub fn has_user_tower(&self) -> bool {
        let info = &self.0.manifest.engine;
        info.user_tower.is_some() || info.user_weights.is_some()
    }
}

/// Reads and checks `manifest.json` of the bundle in `folder`.
pub(crate) fn read_manifest(folder: &Path) -> Result<Manifest> {
    Manifest::parse(&manifest_bytes(folder)?, &folder.join(MANIFEST_FILE))
}

/// Reads `manifest.json` of the bundle in `folder`; a file that is too long for one in part.
fn manifest_bytes(folder: &Path) -> Result<Vec<u8>> {
    let path = folder.join(MANIFEST_FILE);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => {
            return Err(Error::NotABundle {
                path: folder.to_path_buf(),
                reason: format!("it has no {MANIFEST_FILE}"),
            });
        }
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", &path, e))?;
    Ok(bytes)
}

/// Length in bytes and SHA-256 (hex) of a file.
pub(crate) fn digest_file(path: &Path) -> Result<(u64, String)> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    let mut total = 0u64;
    loop {
        let n = file
            .read(&mut buffer)
            .map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            return Ok((total, hex(&hasher.finalize())));
        }
        total += n as u64;
        hasher.update(&buffer[..n]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
